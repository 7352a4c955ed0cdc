"""A small network that names the action behind a chunk, trained on real pictures only.

If it names the action of dreamed chunks as well as that of real ones, then the prompt does in the
dream what the action does in the game.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from magi_world.evaluation.clips import Integers, Pairs
from magi_world.evaluation.metrics import blocks, confusion

BATCH = 128


class InverseModel(nn.Module):
    """Convolutions over a stack of grey frames, then one linear layer.

    Takes uint8 `[n, num_frames, H, W]` (height and width multiples of 8), returns logits float32
    `[n, num_actions]`.
    """

    def __init__(self, num_frames: int, height: int, width: int, num_actions: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(num_frames, 24, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(24, 40, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(40, 48, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(48 * (height // 8) * (width // 8), num_actions),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.body(pictures.float() / 127.5 - 1)
        return logits


def train(
    pairs: Pairs,
    num_actions: int,
    *,
    epochs: int = 4,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> InverseModel:
    """Fit the model to real pairs; every action weighs the same however often it was played.

    The same pairs and seed give the same model on the same machine; global random state is left
    as it was.
    """
    counts = np.bincount(pairs.actions, minlength=num_actions)
    weight = torch.tensor(len(pairs) / (num_actions * np.maximum(counts, 1)), dtype=torch.float32)
    order = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, num_frames, height, width = pairs.pictures.shape
        model = InverseModel(num_frames, height, width, num_actions)
        total = epochs * -(-len(pairs) // BATCH)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=total + 1)
        model.train()
        for epoch in range(epochs):
            shuffled = order.permutation(len(pairs))
            loss_sum = 0.0
            for rows in blocks(len(pairs), BATCH):
                chosen = shuffled[rows]
                logits = model(torch.from_numpy(pairs.pictures[chosen]))
                target = torch.from_numpy(pairs.actions[chosen])
                loss = nn.functional.cross_entropy(logits, target, weight)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                loss_sum += loss.item() * len(chosen)
            say(f"inverse model: epoch {epoch + 1}/{epochs}, loss {loss_sum / len(pairs):.3f}")
    return model.eval()


@torch.inference_mode()
def predict(model: InverseModel, pairs: Pairs) -> Integers:
    """The most likely action of every pair, int64 `[n]`."""
    parts = [
        model(torch.from_numpy(pairs.pictures[rows])).argmax(dim=1).numpy()
        for rows in blocks(len(pairs), 512)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def score(pairs: Pairs, predicted: Integers, names: list[str]) -> dict[str, Any]:
    """Accuracy over all pairs, over those where the action had just changed, and per action.

    `balanced` is the mean of the per-action accuracies, so that frequent actions count no more.
    `confusion[i][j]` counts pairs of action i taken for action j.
    """
    table = confusion(pairs.actions, predicted, len(names))
    right = pairs.actions == predicted
    changed = pairs.actions != pairs.before
    per_action = {
        name: {"accuracy": ratio(row[index], sum(row)), "n": sum(row)}
        for index, (name, row) in enumerate(zip(names, table, strict=True))
    }
    present = [row[index] / sum(row) for index, row in enumerate(table) if sum(row)]
    return {
        "accuracy": ratio(int(right.sum()), len(pairs)),
        "n": len(pairs),
        "balanced": ratio(sum(present), len(present)),
        "after_a_change": {
            "accuracy": ratio(int(right[changed].sum()), int(changed.sum())),
            "n": int(changed.sum()),
        },
        "per_action": per_action,
        "confusion": table,
    }


def ratio(part: float, whole: float) -> float | None:
    """`part / whole`, or None (JSON's null) when there is nothing to divide by."""
    return part / whole if whole else None
