"""Fitted Q learning on dreamed moments: what is every action worth, where real chunks end?

`agents/moments.py` dreams each action one chunk ahead of real moments, once and for all. What an
action is worth is then what that chunk gives and, discounted, what the best action is worth behind
it, by a slowly following copy of the network (Ernst et al. 2005; Mnih et al. 2015). So values reach
as far as they like while no dream is longer than a chunk, and every moment teaches many times.

The actions of a moment share their noise, so that the differences between them, which alone decide,
are known better than their mean; the loss weighs both apart, and the network gives both apart
(Wang et al. 2016). What is saved is the network of `agents/ppo_agent.py`, with the advantages as
its policy.

Where the game is the same in a mirror (`mirror` names what changes places), half of what an update
learns from is seen in it, with the values of the actions exchanged: twice the moments, and no
dream more.

Shape suffixes as in `agents/moments.py` and `agents/fitted_q_data.py`.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from magi_world.agents.files import read_description
from magi_world.agents.fitted_q_data import Data, Mirror, exchanged
from magi_world.agents.fitted_q_files import (
    DATA,
    DRAWN_FROM,
    MOMENTS,
    TAKEN,
    check_moments,
    check_values,
    described,
    drawn_from,
    take_moments,
    taken,
    tics_beyond,
)
from magi_world.agents.fitted_q_learning import VALUES, FittedQ, measure, update
from magi_world.agents.moments import Dreamer, dream_moments, moment_bytes
from magi_world.agents.ppo_actor import check_signals, full_reward, learned_from
from magi_world.agents.ppo_agent import PPOAgent
from magi_world.disk import check_disk
from magi_world.errors import AgentError, ConfigError
from magi_world.training.encoding import mirrored_latents
from magi_world.training.store import Store
from magi_world.world import World

HELD = "fitted-q-held"
"""section of a recipe: settings for an agent that learns by another's values"""
DREAMING = "dreaming_seconds"
"""what `agent.json` says of the time in which its moments were dreamed, in all runs together"""
_MEASURED = 500
"""updates between two measurements"""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Settings of one training; a value that cannot work raises `ConfigError`."""

    seed: int = 1
    """seeds the weights, the order of moments and the noise of their dreams"""
    moments: int = 100_000
    """real moments from which every action is dreamed, again with other noise where the data has
    fewer; they are kept in the agent's folder, for Doom some 6 kB each and chunk held"""
    workers: int = 1
    """processes that dream moments side by side, each with its share of the threads"""
    hold: int = 1
    """chunks for which an action is held in a dream; the longer, the more it matters beside what
    chance does, and the more a dream has lost. Values for more than one are best those of an agent
    that learned with one, see `train`"""
    earliest: int = 0
    """chunk of an episode from which on it has moments: where nothing happens at first, nothing is
    to be learned from it"""
    updates: int = 8_000
    """steps of the optimizer"""
    minutes: float | None = None
    """wall-clock time to learn, after the moments are dreamed, in all runs of a resumed training
    together; with both budgets the first that runs out ends the training"""
    batch_size: int = 256
    """moments of one update"""
    history: int = 4
    """chunks that the agent sees, the newest one included"""
    channels: tuple[int, int] = (48, 32)
    """widths of the two convolutions"""
    hidden: int = 192
    """width of the layer that differences and mean share"""
    mirror: dict[str, str] = field(default_factory=dict)
    """prompts that change places where left and right do, e.g. {"strafe left": "strafe right"};
    all others mean the same in a mirror. Empty where the game is another there"""
    observation_noise: float = 0.3
    """standard deviation of noise added to the latents of moments, so that small differences
    between what is dreamed and what is real do not matter"""
    temperature: float = 1.0
    """scale of the world's noise"""
    denoising_steps: int | None = None
    """denoising steps of a chunk; None is the world's own number"""
    reward: Literal["penalty", "survival", "world"] = "penalty"
    """what is learned from: "penalty" is -1 at the end, "survival" the share of a chunk survived,
    "world" the reward that the world predicts, divided by the largest of its range"""
    signal_weights: dict[str, float] = field(default_factory=dict)
    """added to the reward: weight times the world's signal of that name, e.g. {"damage": -0.01}"""
    gamma: float = 0.95
    """discount of one chunk"""
    learning_rate: float = 1e-3
    """of Adam, at the start; it falls to a twentieth"""
    weight_decay: float = 0.0
    """of AdamW"""
    difference_weight: float = 3.0
    """weight of errors in the differences between actions, those of their mean having 3"""
    target: float = 0.995
    """share of the old in the copy that values what follows, per update"""
    average: float = 0.997
    """share of the old in the weights that are saved, per update"""
    max_grad_norm: float = 1.0
    """longest gradient; longer ones are scaled down"""
    value_softness: float = 0.0
    """0: what follows is worth what its best action is. Else actions count by their softmax, one
    worth this much less e times as little: the best of values that are not quite known is too good,
    the more so the less they are known, and every chunk would add to that"""
    softness: float = 0.02
    """how the agent plays where it is sampled: an action worth this much less is taken e times as
    rarely"""
    greedy: bool = True
    """how the saved agent plays unless told otherwise: the best action, or sampled"""
    margin: float = 0.0
    """a greedy agent keeps the action that it took last unless another one is worth this much more:
    what is learned of small differences is mostly noise, and turning round costs momentum"""
    save_minutes: float = 2.0
    """minutes between two checkpoints"""

    def __post_init__(self) -> None:
        counts = ("moments", "workers", "hold", "updates", "batch_size", "history", "hidden")
        for name in (*counts, "denoising_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} is below 1")
        for name in ("gamma", "target", "average"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} {getattr(self, name)} is outside [0, 1]")
        for name in ("earliest", "weight_decay", "value_softness", "margin"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} is below 0")
        for name in ("minutes", "softness"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ConfigError(f"{name} {getattr(self, name)} is not above 0")
        if len(self.channels) != 2 or min(self.channels) < 1:
            raise ConfigError(f"channels {self.channels} are not two widths, from 1 on")
        words = ("penalty", "survival", "world")
        if self.reward not in words:
            raise ConfigError(f"reward {self.reward!r} is not one of {words}")

    @property
    def expected_termination(self) -> bool:
        """Always: the draw of an end would only add noise."""
        return True


def train(
    world: World,
    args: Args,
    out: str | Path,
    *,
    store: Store,
    values: PPOAgent | None = None,
    moments: Path | None = None,
    resume: bool = False,
    show: bool = True,
) -> PPOAgent:
    """Train an agent on moments of a world's data and leave it in the folder `out`.

    The folder gets `agent.json`, `agent.safetensors` and the checkpoint `training.safetensors`
    every `save_minutes` and at the end, the TensorBoard log under `tensorboard/`, and the dreamed
    moments under `moments/`, which can be deleted afterwards. Without `minutes` two trainings of
    the same world, data and `Args` on one machine give the same agent.

    Args:
        world: what is dreamed in.
        args: the settings.
        out: a folder.
        store: the data that moments are from, encoded by the world's VAE.
        values: an agent of this kind to begin with. What follows is valued by it from first to
            last: values that learn from deeper dreams would drift with what these have lost.
        moments: folder of such an agent whose dreamed moments are taken, as far as they go, in
            place of new ones: other seeds and settings of learning cost no dreams then. Its data
            are the same, or the first datasets of these: then new ones are of the others first.
        resume: go on from what lies in `out`; it needs no `values` and no `moments`.
        show: draw a progress line on stderr.

    Raises:
        AgentError: the disk is too small for the moments; the world has no outcome heads or lacks
            a signal of `signal_weights`, or has players; `values` is another kind of agent or has
            other settings of what it sees, of reward or discount; `moments` were dreamed in another
            world, from other data or by other settings, or are gone; or there is nothing to resume,
            or of other data, or moments of another training lie in `out`.
        ConfigError: `mirror` names something else than the world's prompts, or one twice.
        DatasetError: the data has no moments, or too few.
    """
    check(world, args)
    out = Path(out)
    description = described(world, args) | {DRAWN_FROM: drawn_from(store)}
    if resume:
        about = read_description(out)
        description |= {key: about[key] for key in (VALUES, DATA, TAKEN) if key in about}
    else:
        if any((out / MOMENTS).glob("*.safetensors")):
            raise AgentError(f"{out / MOMENTS} holds moments of another training: take them away")
        description[DATA] = tics_beyond(world, store)
        if values is not None:
            check_values(values, description, args)
            told = values.description
            description[VALUES] = {key: told[key] for key in ("args", "trained")}
            description[DATA] |= told.get(DATA, {})
        if moments is not None:
            check_moments(moments, description, args)
            take_moments(moments, out, description)
    training = FittedQ(description, args, world.device, values=None if resume else values)
    training.counters = {"real_tics": sum(description.get(DATA, {}).values())}
    if resume:
        training.resume(out)
    if training.progress < 1.0:
        _learn(training, world, store, out, show=show)
    else:
        training.save(out)  # it may play with another margin from now on
    return PPOAgent.load(out, device=world.device)


def check(world: World, args: Args) -> None:
    """Raise `AgentError` or `ConfigError` unless the world has all that the settings name."""
    check_signals(world, args)
    exchanged(args.mirror, world.card["prompts"])


def _taken_bytes(folder: Path) -> int:
    """Bytes of the moments that are there already."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _learn(training: FittedQ, world: World, store: Store, out: Path, *, show: bool) -> None:
    """Dream what is missing of the moments, and update until the budget is used."""
    from torch.utils.tensorboard import SummaryWriter

    args = training.args
    needed = moment_bytes(world, args.hold) * args.moments - _taken_bytes(out / MOMENTS)
    check_disk(out, max(0, needed), AgentError)
    full = full_reward(world, args)
    dreamer = Dreamer(
        world, store, partial(learned_from, args=args, full_reward=full), history=args.history,
        hold=args.hold, steps=args.denoising_steps, temperature=args.temperature,
    )  # fmt: skip
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with (
        SummaryWriter(str(out / "tensorboard"), purge_step=training.updates) as writer,
        Progress(*columns, console=Console(stderr=True), disable=not show) as bar,
    ):
        writer.add_text("args", json.dumps(asdict(args), indent=2), training.updates)
        task = bar.add_task("first moments", total=float(args.moments))
        training.save(out)  # what a training that is stopped while it dreams goes on from
        dreaming, begin = training.counters.get(DREAMING, 0), time.monotonic()

        def on_part(done: int) -> None:
            bar.update(task, completed=done, description=f"{done:,} moments")
            training.counters[DREAMING] = dreaming + round(time.monotonic() - begin)
            training.save(out)

        moments = dream_moments(
            dreamer, store, out / MOMENTS, count=args.moments, seed=args.seed,
            earliest=args.earliest, taken=taken(training.description), workers=args.workers,
            say=on_part,
        )  # fmt: skip
        before = training.description.get(VALUES, {"trained": {"steps": 0}})
        training.steps = moments.reward.numel() + before["trained"]["steps"]
        mirror = None
        if args.mirror:
            latents = mirrored_latents(world, store, bar.console)
            mirror = Mirror(latents, exchanged(args.mirror, dreamer.prompts))
        data = Data(moments, store, args, world.device, mirror=mirror)
        bar.reset(task, total=1.0)
        begin = saved = time.monotonic()
        seconds_before = training.seconds
        while training.progress < 1.0:
            rate = args.learning_rate * min(1.0, (training.updates + 1) / 100)
            rate *= 1.0 - 0.95 * training.progress
            training.optimizer.param_groups[0]["lr"] = rate
            log = update(training, data.draw(args.batch_size, training.generator))
            now = time.monotonic()
            training.seconds = seconds_before + now - begin
            if training.updates % _MEASURED == 0 or training.progress >= 1.0:
                measured = measure(training, data) | {"charts/learning_rate": rate}
                for name, scalar in ({k: v.item() for k, v in log.items()} | measured).items():
                    writer.add_scalar(name, scalar, training.updates)
                told = f"{training.updates:,} updates, {measured['charts/share_of_gain']:.2f}"
                bar.update(task, description=f"{told} of the gain")
            bar.update(task, completed=min(training.progress, 1.0))
            if now - saved > 60 * args.save_minutes:
                training.save(out)
                saved = now
        training.save(out)
