"""A small network that names the action behind a chunk, trained on real clips only.

If it names the action of dreamed chunks as well as that of real ones, then the prompt does in the
dream what the action does in the game.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from magi_world.evaluation.clips import Integers
from magi_world.evaluation.metrics import blocks, confusion
from magi_world.evaluation.motion import Moments

BATCH = 128
LONG = 4
"""chunks under one action after which it counts as held for long"""


class InverseModel(nn.Module):
    """Two hidden layers: motion float32 `[n, D]` to logits `[n, num_actions]`."""

    def __init__(self, num_features: int, num_actions: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm1d(num_features),
            nn.Linear(num_features, 256),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(256, 32),
            nn.ReLU(),
            nn.Linear(32, num_actions),
        )

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.body(features)
        return logits


def train(
    moments: Moments,
    num_actions: int,
    *,
    epochs: int = 15,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> InverseModel:
    """Fit the model to real moments; every action weighs the same however often it was played.

    The same moments and seed give the same model on the same machine; global random state is left
    as it was.
    """
    counts = np.bincount(moments.actions, minlength=num_actions)
    weight = torch.tensor(len(moments) / (num_actions * np.maximum(counts, 1)), dtype=torch.float32)
    motion, actions = torch.from_numpy(moments.motion), torch.from_numpy(moments.actions)
    order = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InverseModel(motion.shape[1], num_actions)
        per_epoch = max(1, len(moments) // BATCH)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=5e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 3e-3, total_steps=epochs * per_epoch + 1
        )
        for epoch in range(epochs):
            loss_sum = 0.0
            for part in np.array_split(order.permutation(len(moments)), per_epoch):
                rows = torch.from_numpy(part)
                loss = F.cross_entropy(model(motion[rows].float()), actions[rows], weight)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                loss_sum += loss.item()
            if (epoch + 1) % 5 == 0 or epoch + 1 == epochs:
                mean_loss = loss_sum / per_epoch
                say(f"inverse model: epoch {epoch + 1}/{epochs}, loss {mean_loss:.3f}")
    return model.eval()


@torch.inference_mode()
def predict(model: InverseModel, moments: Moments) -> Integers:
    """The most likely action of every moment, int64 `[n]`."""
    parts = [
        model(torch.from_numpy(moments.motion[rows]).float()).argmax(dim=1).numpy()
        for rows in blocks(len(moments), 1024)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def score(moments: Moments, predicted: Integers, names: list[str]) -> dict[str, Any]:
    """Accuracy over all moments, by how long the action had been held, and per action.

    `balanced` is the mean of the per-action accuracies, so that frequent actions count no more.
    Right after a change the body still carries the old motion on, in the game as in the dream.
    `confusion[i][j]` counts moments of action i taken for action j.
    """
    table = confusion(moments.actions, predicted, len(names))
    right = moments.actions == predicted
    per_action = {
        name: {"accuracy": ratio(row[index], sum(row)), "n": sum(row)}
        for index, (name, row) in enumerate(zip(names, table, strict=True))
    }
    by_held = {}
    for length in range(1, LONG + 1):
        those = moments.held >= LONG if length == LONG else moments.held == length
        name = f"{length}+" if length == LONG else str(length)
        count = int(those.sum())
        by_held[name] = {"accuracy": ratio(int(right[those].sum()), count), "n": count}
    present = [row[index] / sum(row) for index, row in enumerate(table) if sum(row)]
    return {
        "accuracy": ratio(int(right.sum()), len(moments)),
        "n": len(moments),
        "balanced": ratio(sum(present), len(present)),
        "by_chunks_held": by_held,
        "per_action": per_action,
        "confusion": table,
    }


def ratio(part: float, whole: float) -> float | None:
    """`part / whole`, or None (JSON's null) when there is nothing to divide by."""
    return part / whole if whole else None
