"""What would another action have done? The dream's answer beside the game's.

An agent learns from differences: what happens under one action and not under another. Real moments
are drawn, and from each of them every action is held for some chunks: in the game, which is played
up to the moment again, and in the dream, several times with noise of its own. Taking at each
moment the action that the dream likes best then earns a share of what a player would gain who knew
what the game does: 0 is what a random action earns, 1 is all.

Shape letters: n moments, A actions, K dreams of one branch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from magi_world.evaluation.clips import Episode, Integers, played
from magi_world.evaluation.dreaming import DreamSettings, new_rollout, prompts_of
from magi_world.evaluation.hazard import give_history
from magi_world.evaluation.metrics import blocks, ratio_interval, sums_by
from magi_world.sampling.rollout import Rollout
from magi_world.world import World

Array = npt.NDArray[np.float64]

DEPTH = 10
"""chunks for which an action is held"""
DREAMS = 8
"""dreams of every branch, K"""


class Outcome(NamedTuple):
    """What a branch gave."""

    reward: float
    """sum over its chunks"""
    damage: float
    """health lost, as a share of 100; NaN where nobody knows it"""


Branch = Callable[[int, Sequence[int], int, int], Outcome]
"""plays a real branch, given (seed of the episode, actions up to the moment, action, chunks)"""


@dataclass(frozen=True, kw_only=True)
class Branches:
    """One row a moment, one column an action."""

    episode: Integers
    """int64 `[n]`: which episode each moment is from"""
    real: dict[str, Array]
    """"reward" and "damage" `[n, A]`; NaN where the game does not know them"""
    dreamed: dict[str, Array]
    """the same, means over K dreams"""


def branch_out(
    world: World,
    episodes: Sequence[Episode],
    moments: Sequence[tuple[int, int]],
    branch: Branch,
    settings: DreamSettings,
    *,
    depth: int = DEPTH,
    dreams: int = DREAMS,
    say: Callable[[str], None] = lambda text: None,
) -> Branches:
    """Play every branch in the game and in the dream.

    A moment is (episode, chunk): what lies before that chunk has happened. Dreamed ends are not
    drawn: a chunk counts with the probability that it is still reached.
    """
    prompts = prompts_of(world)
    shape = (len(moments), len(prompts))
    real = {name: np.empty(shape) for name in Outcome._fields}
    dreamed = {name: np.empty(shape) for name in Outcome._fields}
    for row, (index, chunk) in enumerate(moments):
        before = played(episodes[index])[1:chunk].tolist()
        for action in range(len(prompts)):
            outcome = branch(episodes[index].seed, before, action, depth)
            for name, value in outcome._asdict().items():
                real[name][row, action] = value
        if (row + 1) % 50 == 0 or row + 1 == len(moments):
            say(f"branches: {row + 1} of {len(moments)} moments played")
    each = len(prompts) * dreams
    width = min(max(1, settings.batch_size // each), len(moments))
    for rows in blocks(len(moments), width):
        taken = [moments[(rows.start + at) % len(moments)] for at in range(width)]
        numbers = [(rows.start + at) % len(moments) for at in range(width)]
        rollout = new_rollout(world, settings, [settings.seed + number for number in numbers])
        acted = [played(episodes[index]) for index, _ in taken]
        give_history(world, rollout, episodes, taken, acted)
        # the K dreams of an action have the noise of the K dreams of every other one
        seeds = [[settings.seed + dreams * row + k for k in range(dreams)] for row in numbers]
        fork = rollout.fork(
            np.repeat(np.arange(width), each).tolist(),
            [seed for row in seeds for _ in prompts for seed in row],
        )
        actions = [prompt for _ in taken for prompt in prompts for _ in range(dreams)]
        for name, values in _imagine(fork, actions, depth).items():
            means = values.reshape(width, len(prompts), dreams).mean(axis=2)
            dreamed[name][rows] = means[: rows.stop - rows.start]
    say(f"branches: {len(moments)} moments dreamed")
    owner = np.array([index for index, _ in moments], np.int64)
    return Branches(episode=owner, real=real, dreamed=dreamed)


def _imagine(rollout: Rollout, actions: Sequence[str], depth: int) -> dict[str, Array]:
    """Expected sums `[slots]` over chunks under one action a slot."""
    alive = np.ones(rollout.batch_size)
    sums = {name: np.zeros(rollout.batch_size) for name in Outcome._fields}
    for _ in range(depth):
        chunk = rollout.step(actions)
        sums["reward"] += alive * chunk.reward.double().cpu().numpy()
        damage = chunk.signals.get("damage")
        lost = np.nan if damage is None else damage.double().cpu().numpy()
        sums["damage"] += alive * lost
        alive *= 1 - chunk.termination_probability.double().cpu().numpy()
    return sums


def measure_branches(branches: Branches, *, depth: int = DEPTH) -> dict[str, Any]:
    """How much of an oracle's gain the dream's favourite action earns, for reward and damage.

    `random` is the mean over actions, `chosen` what the dream's favourite really gave (ties share),
    `best` what the best action gave; `captured` is (chosen - random) / (best - random), with a 95 %
    bootstrap interval over episodes. `deciding` counts the moments at which actions differ at all.
    What was not known in the game, or has no signal in the world, is None.
    """
    result: dict[str, Any] = {
        "unit": "moments",
        "n": len(branches.episode),
        "episodes": len(np.unique(branches.episode)),
        "chunks": depth,
    }
    for name, sign in (("reward", 1.0), ("damage", -1.0)):
        real, dreamed = sign * branches.real[name], sign * branches.dreamed[name]
        known = np.isfinite(real).all(axis=1) & np.isfinite(dreamed).all(axis=1)
        result[name] = None
        if known.any():
            rows = _captured(branches.episode[known], real[known], dreamed[known])
            result[name] = {**rows, **{k: sign * rows[k] for k in ("random", "chosen", "best")}}
    return result


def _captured(episode: Integers, real: Array, dreamed: Array) -> dict[str, Any]:
    liked = dreamed == dreamed.max(axis=1, keepdims=True)
    chosen = (real * liked).sum(axis=1) / liked.sum(axis=1)
    random, best = real.mean(axis=1), real.max(axis=1)
    gain, most = (sums_by(episode, values - random) for values in (chosen, best))
    total = float(most.sum())
    return {
        "n": len(real),
        "deciding": int((best > real.min(axis=1)).sum()),
        "random": float(random.mean()),
        "chosen": float(chosen.mean()),
        "best": float(best.mean()),
        "captured": float(gain.sum()) / total if total else None,
        "captured_interval": list(ratio_interval(gain, most, paired=True)),
    }
