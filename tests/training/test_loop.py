# mypy: disable-error-code="attr-defined,func-returns-value,misc,unused-ignore"
"""The training loop: what it promises about learning rates, resuming, averages and checkpoints."""

import io
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from magi_world.errors import CheckpointError
from magi_world.training import loop
from magi_world.training.loop import StageSettings, Trainer, learning_rate

SETTINGS = StageSettings(
    steps=6, batch_size=5, learning_rate=1e-2, warmup_steps=2, checkpoint_minutes=0.0,
    log_every=1, sample_every=3, ema_decay=0.9,
)  # fmt: skip


class Line:
    """Fits a small network to noise that comes from the generator."""

    name = "line"
    progress = 0.0

    def __init__(self, seed: int = 0, width: int = 8) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module: nn.Module = nn.Sequential(
                nn.Linear(3, width), nn.GELU(), nn.Linear(width, 2)
            )
        self.calls = 0
        self.change: Callable[[int, Tensor], Tensor] = lambda call, loss: loss
        self.sampled: list[dict[str, Tensor]] = []

    def loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.randn(5, 3, generator=generator)
        loss = (self.module(x) - torch.randn(5, 2, generator=generator)).square().mean()
        self.calls += 1
        return self.change(self.calls, loss), {"twice": 2 * loss.detach()}

    def sample(self) -> dict[str, Tensor]:
        self.sampled.append(weights(self.module))
        return {"clip": torch.zeros(3, 8, 8, 3, dtype=torch.uint8)}


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def trainer(stage: Line, folder: Path, settings: StageSettings = SETTINGS, **kw: Any) -> Trainer:
    return Trainer(stage, settings, folder, console=Console(file=io.StringIO()), **kw)


def stop_at(last: int) -> Callable[[int, Tensor], Tensor]:
    """Interrupt the run in the step after this one."""

    def change(call: int, loss: Tensor) -> Tensor:
        if call > last:
            raise KeyboardInterrupt
        return loss

    return change


# -------------------------------------------------------------------- learning rate


@given(
    st.integers(1, 500), st.integers(0, 300), st.floats(0, 1), st.floats(1e-5, 1), st.integers(0)
)
def test_the_learning_rate_stays_within_its_bounds(
    steps: int, warmup: int, cooldown: float, rate: float, step: int
) -> None:
    settings = StageSettings(
        steps=steps, batch_size=1, learning_rate=rate, warmup_steps=warmup, cooldown=cooldown
    )
    assert 0 < learning_rate(step % steps, settings) <= rate


def test_the_learning_rate_rises_stays_and_falls() -> None:
    settings = StageSettings(
        steps=100, batch_size=1, learning_rate=2.0, warmup_steps=10, cooldown=0.2
    )
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10:81] == [2.0] * 71
    assert rates[80:] == pytest.approx([2.0 * (100 - step) / 20 for step in range(80, 100)])


def test_the_optimizer_takes_the_rate_of_the_step(tmp_path: Path) -> None:
    stage = Line()
    run = trainer(stage, tmp_path)
    rates: list[float] = []
    optimizer = run.optimizers["optimizer"]
    step = optimizer.step

    def spy() -> None:
        rates.append(optimizer.param_groups[1]["lr"])
        step()

    optimizer.step = spy  # type: ignore[assignment, method-assign]
    run.run()
    assert rates == [learning_rate(step, SETTINGS) for step in range(6)]


# -------------------------------------------------------------------- resume


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_gives_the_same_bits(tmp_path: Path, stop: int) -> None:
    whole = Line()
    trainer(whole, tmp_path / "whole").run()

    first = Line()
    first.change = stop_at(stop)
    with pytest.raises(KeyboardInterrupt):
        trainer(first, tmp_path / "parts").run()
    second = Line(seed=99)  # its own weights do not matter
    torch.manual_seed(123)
    resumed = trainer(second, tmp_path / "parts", resume=True)
    assert resumed.step == stop and not resumed.finished
    resumed.run()

    assert second.calls == 6 - stop
    assert same(weights(whole.module), weights(second.module))
    one, other = (
        load_file(tmp_path / name / "line.checkpoint.safetensors") for name in ("whole", "parts")
    )
    assert same(one, other)  # weights, averages, optimiser and generator
    kinds = {name.split(".")[0] for name in one}
    assert kinds == {"ema", "module", "optimizer", "generator"}


def test_without_resume_a_run_starts_anew(tmp_path: Path) -> None:
    trainer(Line(), tmp_path).run()
    again = trainer(Line(), tmp_path)
    assert again.step == 0 and not again.finished
    absent = trainer(Line(), tmp_path / "empty", resume=True)
    assert absent.step == 0


def test_a_finished_run_only_hands_out_its_average(tmp_path: Path) -> None:
    stage = Line()
    trainer(stage, tmp_path).run()
    before = (tmp_path / "line.checkpoint.safetensors").read_bytes()
    again = Line(seed=5)
    run = trainer(again, tmp_path, resume=True)
    assert run.finished
    run.run()
    assert again.calls == 0 and same(weights(again.module), weights(stage.module))
    assert (tmp_path / "line.checkpoint.safetensors").read_bytes() == before


def test_the_time_spent_is_counted_through(tmp_path: Path) -> None:
    first = Line()
    first.change = stop_at(3)
    run = trainer(first, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    resumed = trainer(Line(), tmp_path, resume=True)
    assert 0 < resumed.seconds <= run.seconds


def test_global_random_state_is_neither_read_nor_moved(tmp_path: Path) -> None:
    results = []
    for seed in (1, 2):
        stage = Line()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        trainer(stage, tmp_path / str(seed)).run()
        assert torch.equal(torch.get_rng_state(), before)
        results.append(weights(stage.module))
    assert same(*results)


# -------------------------------------------------------------------- the average


def test_the_average_follows_the_weights(tmp_path: Path) -> None:
    stage = Line()
    run = trainer(stage, tmp_path)
    expected = weights(stage.module)
    seen: list[dict[str, Tensor]] = []
    optimizer = run.optimizers["optimizer"]
    step = optimizer.step
    optimizer.step = lambda: step() or seen.append(weights(stage.module))  # type: ignore[assignment, func-returns-value]
    run.run()
    for count, raw in enumerate(seen, start=1):
        decay = min(0.9, (1 + count) / (10 + count))
        for name in expected:
            expected[name] = decay * expected[name] + (1 - decay) * raw[name]
    final = weights(stage.module)
    for name in expected:
        torch.testing.assert_close(final[name], expected[name])
    assert not same(final, seen[-1])  # the module ends with the average


def test_samples_and_callbacks_see_the_average(tmp_path: Path) -> None:
    stage = Line()
    run = trainer(stage, tmp_path)
    seen: list[bool] = []
    run.run(lambda: seen.append(same(weights(stage.module), run.ema)))
    assert seen == [True] * 6
    assert len(stage.sampled) == 2  # after step 3 and at the end
    assert same(stage.sampled[-1], run.ema)


def test_the_raw_weights_come_back(tmp_path: Path) -> None:
    stage = Line()
    run = trainer(stage, tmp_path)
    run.ema = {name: tensor + 1 for name, tensor in run.ema.items()}
    raw = weights(stage.module)
    with pytest.raises(KeyboardInterrupt), run.ema_weights():
        assert same(weights(stage.module), run.ema)
        raise KeyboardInterrupt
    assert same(weights(stage.module), raw)


# -------------------------------------------------------------------- what is trained


def test_decay_is_for_matrices_only(tmp_path: Path) -> None:
    run = trainer(Line(), tmp_path)
    decayed, plain = run.optimizers["optimizer"].param_groups
    assert decayed["weight_decay"] == 0.01 and plain["weight_decay"] == 0.0
    assert {p.ndim for p in decayed["params"]} == {2} and {p.ndim for p in plain["params"]} == {1}


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    stage = Line()
    next(stage.module.parameters()).requires_grad_(False)
    before = weights(stage.module)
    trainer(stage, tmp_path).run()
    after = weights(stage.module)
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(after["2.weight"], before["2.weight"])


def test_gradients_are_clipped(tmp_path: Path) -> None:
    stage = Line()
    stage.change = lambda call, loss: loss * 1e6
    run = trainer(stage, tmp_path)
    norms: list[float] = []
    step = run.optimizers["optimizer"].step

    def spy() -> None:
        gradients = [p.grad.flatten() for p in stage.module.parameters() if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
        step()

    run.optimizers["optimizer"].step = spy  # type: ignore[assignment]
    run.run()
    assert norms == pytest.approx([1.0] * 6, rel=1e-3)


# -------------------------------------------------------------------- refusals


def spoil(name: str) -> Callable[[int, Tensor], Tensor]:
    def change(call: int, loss: Tensor) -> Tensor:
        if call < 4:
            return loss
        if name == "gradient":
            return (loss * 0).sqrt()  # 0, with an infinite slope
        return loss * float(name)

    return change


@pytest.mark.parametrize("value", ["nan", "inf", "gradient"])
def test_what_is_not_finite_ends_the_run(tmp_path: Path, value: str) -> None:
    stage, whole = Line(), Line()
    stage.change, whole.change = spoil(value), stop_at(3)
    with pytest.raises(KeyboardInterrupt):
        trainer(whole, tmp_path / "whole").run()
    words = f"line: the (loss|norm of the gradient) is .* step 3.*{tmp_path.name}"
    with pytest.raises(CheckpointError, match=words):
        trainer(stage, tmp_path / "spoilt").run()
    one, other = (
        load_file(tmp_path / name / "line.checkpoint.safetensors") for name in ("whole", "spoilt")
    )
    assert same(one, other)  # the last good checkpoint is still there
    assert same(weights(stage.module), weights(whole.module))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    trainer(Line(width=8), tmp_path).run()
    other = Line(width=9)
    before = weights(other.module)
    with pytest.raises(CheckpointError, match="is of another model: 0.bias, 0.weight, 2.weight"):
        trainer(other, tmp_path, resume=True)
    assert same(weights(other.module), before)


@pytest.mark.parametrize("keep", [0, 20, -5])
def test_a_truncated_checkpoint_is_named(tmp_path: Path, keep: int) -> None:
    trainer(Line(), tmp_path).run()
    path = tmp_path / "line.checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="line.checkpoint.safetensors"):
        trainer(Line(), tmp_path, resume=True)


def test_an_interrupted_save_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(Line(), tmp_path)
    run.folder.mkdir(exist_ok=True)
    run.save()
    before = run.checkpoint_path.read_bytes()

    def half(tensors: Any, file: Path, metadata: Any) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        run.save()
    assert run.checkpoint_path.read_bytes() == before


# -------------------------------------------------------------------- what can be watched


def test_scalars_and_videos_reach_tensorboard(tmp_path: Path) -> None:
    trainer(Line(), tmp_path).run()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "line"))
    events.Reload()
    names = ["loss", "twice", "grad_norm", "learning_rate", "steps_per_second"]
    assert sorted(events.Tags()["scalars"]) == sorted(f"line/{name}" for name in names)
    assert [event.step for event in events.Scalars("line/loss")] == [1, 2, 3, 4, 5, 6]
    loss, twice = events.Scalars("line/loss"), events.Scalars("line/twice")
    for one, two in zip(loss, twice, strict=True):
        assert two.value == pytest.approx(2 * one.value)
    images = events.Images("line/clip")
    assert [image.step for image in images] == [3, 6]
    assert images[0].encoded_image_string.startswith(b"GIF89a")
    assert (images[0].height, images[0].width) == (8, 8)


def test_a_log_shows_progress_in_words(tmp_path: Path) -> None:
    text = io.StringIO()
    settings = replace(SETTINGS, steps=25, checkpoint_minutes=60.0)
    Trainer(Line(), settings, tmp_path, console=Console(file=text)).run()
    lines = [line for line in text.getvalue().splitlines() if "steps/s," in line]
    assert [line.split()[1] for line in lines] == ["10/25", "20/25"]
    assert all("loss 0." in line or "loss 1." in line for line in lines)


def test_checkpoints_come_every_few_minutes_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(step=30.0)  # seconds between two looks at the clock
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    saved: list[int] = []
    run = trainer(Line(), tmp_path, replace(SETTINGS, steps=40, checkpoint_minutes=10.0))
    save = run.save
    monkeypatch.setattr(run, "save", lambda: saved.append(run.step) or save())
    run.run()
    assert saved[-1] == 40 and 3 < len(saved) < 12
