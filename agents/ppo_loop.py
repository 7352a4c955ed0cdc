"""The loop of every PPO training here: play, learn, log, save, until the budget is used."""

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from magi_world.agents.ppo_actor import Actor, Samples, Slots
from magi_world.agents.ppo_learning import blend, learn
from magi_world.agents.ppo_state import Training

if TYPE_CHECKING:
    from magi_world.agents.ppo import Args

Charts = Callable[[Actor, Samples], dict[str, float]]
"""what a training logs of an update beside losses, speed and learning rate"""


def run(
    training: Training,
    make_slots: Callable[[], Slots],
    args: "Args",
    out: Path,
    *,
    charts: Charts,
    after_update: Callable[[float], None] = lambda progress_before: None,
    show: bool = True,
) -> None:
    """Train until the budget is used; a training whose budget is used already is left as it is.

    The folder `out` gets the agent and the checkpoint every `save_minutes` and at the end, and the
    TensorBoard log under `tensorboard/`.

    Args:
        training: what learns.
        make_slots: begins what is played.
        args: the settings.
        out: a folder.
        charts: see `Charts`.
        after_update: told, after every update, how much of the budget was used before it.
        show: draw a progress line on stderr.
    """
    if training.progress >= 1.0:
        return
    from torch.utils.tensorboard import SummaryWriter

    begin = saved = time.monotonic()
    steps_before, seconds_before = training.steps, training.seconds
    generator = training.generator
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with (
        closing(make_slots()) as slots,
        # purge_step hides the curves of an earlier run, or what it did after its last checkpoint
        SummaryWriter(str(out / "tensorboard"), purge_step=training.steps) as writer,
        Progress(*columns, console=Console(stderr=True), disable=not show) as bar,
    ):
        training.counters = slots.counters
        writer.add_text("args", json.dumps(asdict(args), indent=2), training.steps)
        task = bar.add_task("first chunks", total=1.0)
        actor = Actor(slots, args, generator)
        while (before := training.progress) < 1.0:
            if args.anneal:
                rate = args.learning_rate * (1.0 - 0.9 * before)
                training.optimizer.param_groups[0]["lr"] = rate
            samples = actor.collect(training.network)
            log = learn(training.network, training.optimizer, samples, args, generator)
            training.updates += 1
            training.steps += args.num_slots * args.num_steps
            decay = min(args.average, training.updates / (training.updates + 9))
            blend(training.average, training.network, decay)

            now = time.monotonic()
            training.seconds = seconds_before + now - begin
            speed = (training.steps - steps_before) / (now - begin)
            log |= charts(actor, samples) | {
                "charts/steps_per_second": speed,
                "charts/learning_rate": training.optimizer.param_groups[0]["lr"],
            }
            for name, scalar in log.items():
                writer.add_scalar(name, scalar, training.steps)
            after_update(before)
            told = f"{training.steps:,} steps, {speed:.0f} steps/s"
            if "charts/episodic_length" in log:
                told += f", {log['charts/episodic_length']:.1f} chunks an episode"
            bar.update(task, completed=min(training.progress, 1.0), description=told)
            if now - saved > 60 * args.save_minutes:
                training.save(out)
                saved = now
        training.save(out)
