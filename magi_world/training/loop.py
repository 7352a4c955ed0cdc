"""The one training loop: optimiser, EMA, progress, TensorBoard, checkpoints, exact resume.

A stage is a module with its loss. All randomness of a run comes from one generator whose state is
part of the checkpoint, and the learning rate depends on the step alone, so a run that was stopped
and resumed gives the bits of one that was not.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn

from magi_world.checkpoints.tensors import read_tensors_and_metadata
from magi_world.errors import CheckpointError
from magi_world.training.muon import Muon
from magi_world.training.precision import choose_precision
from magi_world.training.video_summary import add_video
from magi_world.training.workers import Workers, backward

_VIDEO_FPS = 12  # slower than the games, for looking at


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """How long and how fast a stage learns."""

    steps: int
    batch_size: int
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    cooldown: float = 0.3
    """share of the steps, at the end, in which the learning rate falls to zero"""
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    muon: bool = False
    """matrices of hidden layers learn by Muon, the rest by AdamW"""
    precision: str = "float32"
    """of the linear layers in forward and backward passes: "float32", "bfloat16" (autocast), or
    "auto" for bfloat16 where the processor has units for it and a measurement says that it pays;
    weights, norms and attention stay float32"""
    seed: int = 0
    checkpoint_minutes: float = 4.0
    log_every: int = 10
    sample_every: int = 500


class Stage(Protocol):
    """What is trained: a module, its loss on one random batch, and pictures to look at."""

    name: str
    module: nn.Module
    progress: float
    """share of its steps that is done; the trainer sets it before each"""

    def loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw a batch with the generator; return the loss and named scalars."""
        ...

    def sample(self) -> dict[str, Tensor]:
        """Videos uint8 `[T, H, W, 3]` by name, made with the EMA weights."""
        ...


def learning_rate(step: int, settings: StageSettings) -> float:
    """Learning rate of a step: linear warm-up, constant, then linear to zero."""
    warmup = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    tail = max(1.0, settings.steps * settings.cooldown)
    return settings.learning_rate * min(warmup, (settings.steps - step) / tail, 1.0)


def make_optimizers(
    module: nn.Module, settings: StageSettings, precision: str = "float32"
) -> dict[str, torch.optim.Optimizer]:
    """Optimisers of all parameters that learn, by the name that their state has in a checkpoint."""
    hidden: list[nn.Parameter] = []
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        in_stack = ".layers." in name or ".blocks." in name  # DiT and text encoder, VAE
        if settings.muon and in_stack and parameter.ndim == 2:
            hidden.append(parameter)
        else:
            (decay if parameter.ndim >= 2 else plain).append(parameter)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "optimizer": torch.optim.AdamW(
            [
                {"params": decay, "weight_decay": settings.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
        )
    }
    if hidden:
        optimizers["muon"] = Muon(
            hidden,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            dtype=getattr(torch, precision),
        )
    return optimizers


class Trainer:
    """Trains one stage and keeps its checkpoint in a folder."""

    def __init__(
        self,
        stage: Stage,
        settings: StageSettings,
        folder: Path,
        *,
        resume: bool = False,
        console: Console | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.stage = stage
        self.workers = workers
        self.settings = settings
        self.folder = folder
        self.console = console or Console(stderr=True)
        self.step = 0
        self.seconds = 0.0
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.precision = choose_precision(settings.precision)
        self.optimizers = make_optimizers(stage.module, settings, self.precision)
        self.parameters = [
            parameter
            for optimizer in self.optimizers.values()
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        self.ema = {
            name: tensor.detach().clone() for name, tensor in stage.module.state_dict().items()
        }
        if resume and self.checkpoint_path.exists():
            self._load()

    @property
    def checkpoint_path(self) -> Path:
        """File of the latest checkpoint."""
        return self.folder / f"{self.stage.name}.checkpoint.safetensors"

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.settings.steps

    def run(self, on_checkpoint: Callable[[], None] | None = None) -> None:
        """Train to the last step; leaves the EMA weights in the module."""
        if not self.finished:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.workers is not None:
                self.workers.start(self.stage.module, self.precision)
            try:
                self._run(on_checkpoint)
            finally:
                if self.workers is not None:
                    self.workers.stop()
        self.stage.module.load_state_dict(self.ema)

    def _run(self, on_checkpoint: Callable[[], None] | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        settings = self.settings
        curves = self.folder / "tensorboard" / self.stage.name
        writer = SummaryWriter(str(curves), purge_step=self.step)  # beyond the last checkpoint
        saved, started = time.monotonic(), time.monotonic()
        first = self.step
        columns = (
            TextColumn(f"[bold]{self.stage.name}[/]"), BarColumn(), MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]} · {task.fields[speed]} steps/s"),
            TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(
                "", total=settings.steps, completed=self.step, loss="-", speed="-"
            )
            while not self.finished:
                before = time.monotonic()
                scalars = self._update()
                self.seconds += time.monotonic() - before
                if self.step % settings.log_every == 0 or self.finished:
                    speed = (self.step - first) / (time.monotonic() - started)
                    values = {key: float(value) for key, value in scalars.items()}
                    progress.update(
                        task,
                        completed=self.step,
                        loss=f"{values['loss']:.4f}",
                        speed=f"{speed:.2f}",
                    )
                    for key, value in {**values, "steps_per_second": speed}.items():
                        writer.add_scalar(f"{self.stage.name}/{key}", value, self.step)
                    if not self.console.is_terminal and self.step % (10 * settings.log_every) == 0:
                        words = " ".join(f"{key} {value:.4f}" for key, value in values.items())
                        self.console.print(
                            f"{self.stage.name} {self.step}/{settings.steps} {words} "
                            f"({speed:.2f} steps/s, {self.seconds / 60:.1f} min)",
                            soft_wrap=True,
                        )
                if self.step % settings.sample_every == 0 or self.finished:
                    self._log_samples(writer)
                due = time.monotonic() - saved > 60 * settings.checkpoint_minutes
                if due or self.finished:
                    self.save()
                    saved = time.monotonic()
                    if on_checkpoint is not None:
                        with self.ema_weights():
                            on_checkpoint()
        writer.close()

    def _update(self) -> dict[str, Tensor]:
        """One optimiser step; returns scalars."""
        settings = self.settings
        rate = learning_rate(self.step, settings)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
        self.stage.progress = self.step / settings.steps
        gradients = backward if self.workers is None else self.workers.backward
        scalars = gradients(self.stage, self.generator, self.precision)
        self._require_finite("loss", float(scalars["loss"]))
        norm = nn.utils.clip_grad_norm_(self.parameters, settings.grad_clip)
        self._require_finite("norm of the gradient", float(norm))
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.step += 1
        decay = min(settings.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, tensor in self.stage.module.state_dict().items():
                self.ema[name].lerp_(tensor, 1 - decay)
        return {
            **scalars, "grad_norm": norm, "learning_rate": torch.tensor(rate)
        }  # fmt: skip

    def _require_finite(self, what: str, value: float) -> None:
        """End the run before a NaN reaches the weights."""
        if not math.isfinite(value):
            raise CheckpointError(
                f"{self.stage.name}: the {what} is {value} at step {self.step}; the last "
                f"checkpoint is {self.checkpoint_path}"
            )

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """The module with its EMA weights, for as long as the block runs."""
        module = self.stage.module
        raw = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        module.load_state_dict(self.ema)
        try:
            yield
        finally:
            module.load_state_dict(raw)

    def _log_samples(self, writer: Any) -> None:
        with self.ema_weights():
            videos = self.stage.sample()
        for name, video_THWC in videos.items():
            tag = f"{self.stage.name}/{name}"
            add_video(writer, tag, video_THWC.numpy(), self.step, _VIDEO_FPS)

    def save(self) -> None:
        """Write the checkpoint under a temporary name, then rename."""
        tensors = {f"ema.{name}": tensor for name, tensor in self.ema.items()}
        for name, tensor in self.stage.module.state_dict().items():
            tensors[f"module.{name}"] = tensor
        for kind, optimizer in self.optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    tensors[f"{kind}.{index}.{key}"] = torch.as_tensor(value)
        tensors["generator"] = self.generator.get_state()
        meta = {
            "step": self.step, "seconds": self.seconds, "stage": self.stage.name,
            "precision": self.precision,
        }  # fmt: skip
        temporary = self.checkpoint_path.with_suffix(".partial")
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={"training": json.dumps(meta)})
        os.replace(temporary, self.checkpoint_path)

    def _load(self) -> None:
        tensors, metadata = read_tensors_and_metadata(self.checkpoint_path)
        if "training" not in metadata:
            raise CheckpointError(f"{self.checkpoint_path} is no checkpoint of a training")
        meta = json.loads(metadata["training"])

        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        module = part("module.")
        expected = self.stage.module.state_dict()
        wrong = sorted(
            name
            for name in expected.keys() | module.keys()
            if name not in module
            or name not in expected
            or module[name].shape != expected[name].shape
        )
        if wrong:
            raise CheckpointError(
                f"{self.checkpoint_path} is of another model: {', '.join(wrong[:4])} differ"
            )
        self.stage.module.load_state_dict(module)
        self.ema = part("ema.")
        for kind, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in part(f"{kind}.").items():
                index, name = key.split(".", 1)
                state.setdefault(int(index), {})[name] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.generator.set_state(tensors["generator"])
        self.step, self.seconds = meta["step"], meta["seconds"]
        self.precision = meta.get("precision", self.precision)  # "auto" may choose otherwise now
        if isinstance(muon := self.optimizers.get("muon"), Muon):
            muon.dtype = getattr(torch, self.precision)
