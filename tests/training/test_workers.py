"""Processes that share a batch: the gradient is that of the whole, and a dead worker is named."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from magi_world.errors import CheckpointError
from magi_world.training.workers import Workers, backward


@pytest.fixture(autouse=True)
def workers_can_import_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


class Slope:
    """Two numbers, one of which the loss does not see; in some processes the loss ends them."""

    name = "slope"

    def __init__(self, module: nn.Linear, deadly: bool = False) -> None:
        self.module, self.deadly, self.progress = module, deadly, 0.0

    def loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.randn(4, 2, generator=generator)
        if self.deadly and torch.multiprocessing.parent_process() is not None:
            raise SystemExit(1)
        loss = (x * self.module.weight).square().mean() * (1 + self.progress)
        return loss, {"first": x[0, 0]}


def make(count: int, **settings: Any) -> tuple[Slope, Workers]:
    module = nn.Linear(2, 1)
    build = partial(Slope, module, **settings)
    return build(), Workers(build, count)


@pytest.mark.parametrize("count", [2, 3])
def test_the_gradient_is_the_mean_of_all_workers(count: int) -> None:
    stage, workers = make(count)
    workers.start(stage.module, "float32")
    try:
        for progress in (0.0, 0.5):  # the second step's weights are other ones
            stage.progress = progress
            scalars = workers.backward(stage, torch.Generator().manual_seed(3), "float32")
            shared = [p.grad.clone() for p in stage.module.parameters() if p.grad is not None]

            generator = torch.Generator().manual_seed(3)
            seeds = torch.randint(2**62, (count - 1,), generator=generator).tolist()
            results, gradients = [], []
            for one in [generator, *(torch.Generator().manual_seed(seed) for seed in seeds)]:
                results.append(backward(stage, one, "float32"))
                assert isinstance(stage.module.weight.grad, Tensor)
                gradients.append(stage.module.weight.grad.clone())
            torch.testing.assert_close(shared[0], torch.stack(gradients).mean(0))
            assert (shared[1] == 0).all()  # the bias has no gradient
            for key in ("loss", "first"):
                mean = torch.stack([one[key] for one in results]).mean()
                torch.testing.assert_close(scalars[key], mean)
            with torch.no_grad():
                stage.module.weight.mul_(2)
    finally:
        workers.stop()


def test_a_dead_worker_ends_the_run_with_its_name() -> None:
    stage, workers = make(2, deadly=True)
    workers.start(stage.module, "float32")
    try:
        with pytest.raises(CheckpointError, match="worker of stage slope has died"):
            workers.backward(stage, torch.Generator(), "float32")
    finally:
        workers.stop()
