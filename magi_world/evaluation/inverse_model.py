"""A small network that names the action behind a chunk, trained on real pictures only.

If it names the action of dreamed chunks as well as that of real ones, then the prompt does in the
dream what the action does in the game. It looks at motion, not at raw pixels: an action shows in a
fraction of a pixel a frame, which a network on pixels takes very long to find.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from magi_world.evaluation.clips import Integers, Pairs
from magi_world.evaluation.metrics import blocks, confusion

BATCH = 128
GRID = 8
"""the picture is cut into GRID x GRID cells"""


def motion_features(pictures: Tensor) -> Tensor:
    """Motion of every cell between neighbouring frames, by least squares over its pixels.

    Takes uint8 `[n, T, H, W]`; returns float32 `[n, 5 * (T - 1) * GRID * GRID]`: for each cell the
    shift across and down that explains the change best (pixels), and the logarithms of how much
    edge there is to see it by and of how much changed.
    """
    tones = pictures.float() / 64
    before, after = tones[:, :-1], tones[:, 1:]
    mean, change = (before + after) / 2, after - before
    across = F.pad((mean[..., 2:] - mean[..., :-2]) / 2, (1, 1))
    down = F.pad((mean[..., 2:, :] - mean[..., :-2, :]) / 2, (0, 0, 1, 1))

    def cells(product: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(product, GRID)

    tiny = 1e-3
    edge_across, edge_down = cells(across.square()) + tiny, cells(down.square()) + tiny
    features = [
        -cells(across * change) / edge_across,
        -cells(down * change) / edge_down,
        edge_across.log() / 4,
        edge_down.log() / 4,
        (cells(change.square()) + tiny).log() / 4,
    ]
    return torch.stack(features, dim=1).clamp(-4, 4).flatten(1)


class InverseModel(nn.Module):
    """Two hidden layers on motion features float32 `[n, D]`; returns logits `[n, num_actions]`."""

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


def features_of(pairs: Pairs) -> Tensor:
    """Motion features of all pairs, block by block."""
    parts = [
        motion_features(torch.from_numpy(pairs.pictures[rows])) for rows in blocks(len(pairs), 256)
    ]
    return torch.cat(parts)


def train(
    pairs: Pairs,
    num_actions: int,
    *,
    epochs: int = 20,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> InverseModel:
    """Fit the model to real pairs; every action weighs the same however often it was played.

    The same pairs and seed give the same model on the same machine; global random state is left
    as it was.
    """
    counts = np.bincount(pairs.actions, minlength=num_actions)
    weight = torch.tensor(len(pairs) / (num_actions * np.maximum(counts, 1)), dtype=torch.float32)
    features, actions = features_of(pairs), torch.from_numpy(pairs.actions)
    order = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InverseModel(features.shape[1], num_actions)
        per_epoch = max(1, len(pairs) // BATCH)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=5e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 3e-3, total_steps=epochs * per_epoch + 1
        )
        for epoch in range(epochs):
            loss_sum = 0.0
            for part in np.array_split(order.permutation(len(pairs)), per_epoch):
                rows = torch.from_numpy(part)
                loss = F.cross_entropy(model(features[rows]), actions[rows], weight)
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
def predict(model: InverseModel, pairs: Pairs) -> Integers:
    """The most likely action of every pair, int64 `[n]`."""
    if not len(pairs):
        return np.zeros(0, np.int64)
    predicted: Integers = model(features_of(pairs)).argmax(dim=1).numpy()
    return predicted


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
