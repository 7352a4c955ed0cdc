"""Muon: orthogonal updates of AdamW's size, on matrices only, and resumed bit by bit."""

import io
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn

from magi_world.training.loop import StageSettings, Trainer, make_optimizers
from magi_world.training.muon import Muon, orthogonalise


@given(rows=st.integers(2, 24), columns=st.integers(2, 24), seed=st.integers(0, 99))
def test_singular_values_come_near_to_one(rows: int, columns: int, seed: int) -> None:
    # known singular values, none of them tiny against the largest
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator))
    k = min(rows, columns)
    values = 0.2 + torch.rand(k, generator=generator)
    out = orthogonalise(u[:, :k] * values @ v[:k] * 7)
    assert out.shape == (rows, columns)
    assert ((torch.linalg.svdvals(out) - 1).abs() < 0.35).all()
    turned = u[:, :k].T @ out @ v[:k].T  # the same singular vectors
    torch.testing.assert_close(turned, torch.diag(turned.diagonal()), atol=1e-4, rtol=0)


def test_an_update_has_the_size_of_adamws() -> None:
    weight = nn.Parameter(torch.zeros(64, 256))
    weight.grad = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * 1e-3
    Muon([weight], lr=0.1).step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.1 * 0.2, rel=0.2)


def test_only_matrices_and_no_closure() -> None:
    with pytest.raises(ValueError, match="matrices only"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)
    with pytest.raises(ValueError, match="closure"):
        Muon([nn.Parameter(torch.zeros(3, 3))], lr=0.1).step(lambda: 0.0)


class Deep:
    """A stage whose hidden layer lies under `layers`, as in the video DiT."""

    name = "deep"
    progress = 0.0

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            blocks = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(6, 6)])})
            self.module: nn.Module = nn.ModuleDict({"blocks": blocks, "out": nn.Linear(6, 2)})

    def loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.randn(16, 6, generator=generator)
        hidden = self.module["blocks"]["layers"][0](x).tanh()  # type: ignore[index]
        return (self.module["out"](hidden) - x[:, :2]).square().mean(), {}  # type: ignore[index]

    def sample(self) -> dict[str, Tensor]:
        return {}


SETTINGS = StageSettings(
    steps=6, batch_size=16, learning_rate=1e-2, checkpoint_minutes=0.0, muon=True
)


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest() -> None:
    module = Deep().module
    hidden = make_optimizers(module, SETTINGS)["muon"].param_groups[0]["params"]
    assert [p.shape for p in hidden] == [(6, 6)]
    rest = make_optimizers(module, SETTINGS)["optimizer"].param_groups
    assert sum(len(group["params"]) for group in rest) == 3


def test_a_resumed_run_gives_the_same_bits(tmp_path: Path) -> None:
    def run(folder: Path, stop: int | None = None) -> dict[str, Tensor]:
        stage = Deep()
        console = Console(file=io.StringIO())
        trainer = Trainer(stage, SETTINGS, tmp_path / folder, resume=True, console=console)

        def halt() -> None:
            if trainer.step == stop:
                raise KeyboardInterrupt

        trainer.run(halt)
        return stage.module.state_dict()

    whole = run(Path("whole"))
    with pytest.raises(KeyboardInterrupt):
        run(Path("parts"), stop=3)
    parts = run(Path("parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
