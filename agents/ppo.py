"""PPO on latents: inside a dream, where it never leaves torch, or in the real game.

After each chunk the world says how probable an end was; by default the agent learns from that
probability and not from the world's draw, see :func:`magi_world.agents.ppo_learning.advantages`.
What is saved is a running average of the weights: two neighbouring updates of one run can play very
differently, their average does not.

The loop is in `agents/ppo_loop.py`, one update in `agents/ppo_learning.py`; `agents/ppo_actor.py`
plays the dream during training and `agents/ppo_real.py` the real game; `agents/ppo_agent.py` holds
the network and the agent that is saved, `agents/ppo_state.py` what a stopped training goes on from.

Shape suffixes in these files: T chunks of one update, B slots, N samples (T * B or a part of them),
A actions, C channels of a stack (chunks in view times channels of one chunk, c), Z latent channels,
P latent frames of a chunk, h and w the latent grid.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from magi_world.agents.files import describe
from magi_world.agents.ppo_actor import DreamSlots, Slots, check_signals
from magi_world.agents.ppo_agent import PPOAgent
from magi_world.agents.ppo_loop import run
from magi_world.agents.ppo_real import SIGNALS, RealSlots
from magi_world.agents.ppo_state import Training
from magi_world.errors import ConfigError
from magi_world.training.collect import Game
from magi_world.world import World


@dataclass(frozen=True, kw_only=True)
class Args:
    """Settings of one training; a value that cannot work raises `ConfigError`.

    In the real game some have other defaults, see :mod:`magi_world.agents.ppo_real`.
    """

    seed: int = 1
    """seeds the weights, the sampled actions, the order of samples and the slots of the dream"""
    total_steps: int | None = 200_000
    """chunks to play, all slots together; None leaves the end to `minutes`"""
    minutes: float | None = None
    """wall-clock time to train, in all runs of a resumed training together; with both budgets the
    first that runs out ends the training"""
    num_slots: int = 32
    """independent rollouts stepped together"""
    num_steps: int = 32
    """chunks every slot plays between two updates"""
    temperature: float = 1.0
    """scale of the world's noise: above 1 the dream is harder to exploit"""
    denoising_steps: int | None = None
    """denoising steps of a chunk; None is the world's own number"""
    starts: Literal["opening", "any"] = "any"
    """where episodes begin: "opening", or "any" clip of the bank"""
    horizon: int | None = 8
    """chunks after which a slot is cut off and reset, with its value behind the cut counted; short,
    because what was not in the clip fades from a dream. None is the card's horizon, and in the real
    game the game's own end"""
    reward: Literal["penalty", "survival", "world"] = "penalty"
    """what is learned from: "penalty" is -1 at the end, "survival" the share of a chunk survived,
    "world" the reward that the world predicts, divided by the largest of its range; these two are
    the game's own reward where the real game is learned in"""
    expected_termination: bool = True
    """learn from the probability of an end instead of the draw that was made with it"""
    signal_weights: dict[str, float] = field(default_factory=dict)
    """added to the reward: weight times the world's signal of that name, e.g. {"damage": -0.01}"""
    history: int = 4
    """chunks that the agent sees, the newest one included"""
    channels: tuple[int, int] = (48, 32)
    """widths of the two convolutions"""
    hidden: int = 192
    """width of the layer that policy and value share"""
    observation_noise: float = 0.1
    """standard deviation of noise added to the latents, so that small errors of the dream and of
    the encoder do not matter"""
    gamma: float = 0.95
    """discount of one chunk"""
    gae_lambda: float = 0.9
    """weight of long returns against the value function"""
    epochs: int = 3
    """passes over the samples of one update"""
    minibatches: int = 4
    """parts that the samples are cut into, in each pass anew"""
    learning_rate: float = 5e-4
    """of Adam, at the start"""
    anneal: bool = True
    """lower the learning rate to a tenth along the budget"""
    clip: float = 0.2
    """how far the probability of an action may move in one update, as a ratio"""
    entropy: float = 0.01
    """weight of the entropy bonus"""
    value_weight: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """longest gradient; longer ones are scaled down"""
    average: float = 0.95
    """decay of the running average of the weights, per update; young averages decay faster"""
    greedy: bool = False
    """how the saved agent plays unless told otherwise: the most probable action, or sampled. Where
    nothing threatens all actions are equally good, and an agent that then always takes the same one
    is an easy aim"""
    save_minutes: float = 2.0
    """minutes between two checkpoints"""

    def __post_init__(self) -> None:
        if self.total_steps is None and self.minutes is None:
            raise ConfigError("total_steps and minutes are both None: give one budget")
        counts = ("num_slots", "num_steps", "history", "hidden", "epochs", "minibatches")
        for name in (*counts, "total_steps", "horizon", "denoising_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} is below 1")
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError(f"minutes {self.minutes} is not above 0")
        for name in ("gamma", "gae_lambda", "average"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} {getattr(self, name)} is outside [0, 1]")
        for name, words in (
            ("reward", ("penalty", "survival", "world")), ("starts", ("opening", "any")),
        ):  # fmt: skip
            if getattr(self, name) not in words:
                raise ConfigError(f"{name} {getattr(self, name)!r} is not one of {words}")
        if self.num_slots * self.num_steps < self.minibatches:
            raise ConfigError(
                f"{self.num_slots} slots x {self.num_steps} steps give fewer samples than "
                f"minibatches ({self.minibatches})"
            )


def train(
    world: World,
    args: Args,
    out: str | Path,
    *,
    make_game: Callable[[], Game] | None = None,
    resume: bool = False,
    show: bool = True,
) -> PPOAgent:
    """Train an agent inside a world, or in the real game, and leave it in the folder `out`.

    The folder gets `agent.json`, `agent.safetensors` and the checkpoint `training.safetensors`
    every `save_minutes` and at the end, and the TensorBoard log under `tensorboard/`.

    With `total_steps` alone two runs of the same world and `Args` on one machine give the same
    agent; with `minutes` the machine's speed decides how many updates fit.

    Args:
        world: what is dreamed in, or what the real game is seen through.
        args: the settings; those of the real game begin with `REAL_SETTINGS` of `ppo_real`.
        out: a folder.
        make_game: makes the real game, which is then trained in; None trains in the dream.
        resume: go on from the checkpoint in `out`: networks, optimizer, generator, counters and the
            time that was used. The episodes that were running are not kept, new ones begin; so the
            agent is not bit for bit that of a training that was never stopped.
        show: draw a progress line on stderr.

    Raises:
        AgentError: the world has no outcome heads to learn from, or what is learned from lacks a
            signal of `signal_weights`; the real game does not fit; there is nothing to resume.
    """
    check_signals(world, args, None if make_game is None else SIGNALS)
    out = Path(out)
    description = describe(world, "ppo", "dream" if make_game is None else "real") | {
        "history": args.history,
        "channels": list(args.channels),
        "hidden": args.hidden,
        "greedy": args.greedy,
    }
    training = Training(description, args, world.device)
    if resume:
        training.resume(out)

    def make_slots() -> Slots:
        if make_game is None:
            return DreamSlots(world, args, training.generator, training.counters)
        return RealSlots(make_game, world, args, training.counters)

    run(training, make_slots, args, out, charts=lambda actor, samples: actor.log(), show=show)
    return PPOAgent.load(out, device=world.device)
