"""Agents that act in generated worlds and in the real games, one file each.

`load` gives any of them: a baseline by name, the agent shipped with a world by the world's name,
or one's own from its folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from magi_world import worlds
from magi_world.errors import AgentError

if TYPE_CHECKING:
    from magi_world.world import World

BASELINES = ("noop", "random", "sticky", "sweep")
"""agents that see nothing; `random` is uniform per chunk"""
FROZEN = "frozen:"
"""before an agent's name or folder: it sees nothing but the first chunk of an episode"""
AGENT = "agent"
"""folder of the agent that ships with a world, beside the world's weights"""


class Agent(Protocol):
    """What plays: it is told when n episodes begin and answers each batch of observations."""

    @property
    def observations(self) -> str:
        """The form that it reads: "frames" or "latent"."""

    def reset(self, n: int, seed: int | None = None) -> None:
        """Begin n episodes; row i draws from a generator seeded with `seed + i`."""

    def act(self, observations: Any, /) -> npt.NDArray[np.int64]:
        """Return a prompt index int64 `[n]` for observations `[n, ...]`, numpy or torch."""


@runtime_checkable
class Retiring(Protocol):
    """An agent to which acting is dear, and which is told of rows whose episodes have ended."""

    def retire(self, rows: Sequence[int], /) -> None:
        """Think no more about these rows: what it answers for them does not matter."""


def load(
    path_or_name: str | Path, *, world: "World | None" = None, greedy: bool | None = None
) -> Agent:
    """Load an agent: one of `BASELINES`, a world's name (its shipped agent) or a folder.

    Args:
        path_or_name: a baseline, the name of a world, or a folder with `agent.json`; with `FROZEN`
            before it the same agent, to which each episode shows its first chunk all the time.
        world: where it will play. Baselines read its card; a trained agent is checked against it.
        greedy: overrides how a trained agent plays: the most probable action, or sampled; an agent
            that knows one way only plays that.

    Raises:
        AgentError: there is no such agent, its files are damaged, or it does not fit the world.
    """
    name = str(path_or_name)
    if name.startswith(FROZEN):
        from magi_world.agents.frozen import Frozen

        return Frozen(load(name.removeprefix(FROZEN), world=world, greedy=greedy))
    if name in BASELINES:
        if world is None:
            raise AgentError(f"the agent {name!r} reads the card of a world: give world=")
        return _baseline(name, world.card)
    folders = [worlds.folder(name), Path(path_or_name)]
    if world is not None and name == world.name:
        folders = [world.folder]
    found = [agent for folder in folders if folder for agent in (folder, folder / AGENT)]
    found = [folder for folder in found if (folder / "agent.json").is_file()]
    if not found:
        shipped = [w for w in worlds.available() if _has_agent(worlds.folder(w))]
        raise AgentError(
            f"no agent {name!r}: it is neither one of {', '.join(BASELINES)}, nor a world with an "
            f"agent of its own ({', '.join(shipped) or 'there is none'}), nor a folder with "
            "agent.json"
        )
    return _trained(found[0], world, greedy)


def has_agent(world: "World") -> bool:
    """Whether an agent lies beside the world's weights."""
    return _has_agent(world.folder)


def _has_agent(folder: Path | None) -> bool:
    return folder is not None and (folder / AGENT / "agent.json").is_file()


def _trained(folder: Path, world: "World | None", greedy: bool | None) -> Agent:
    """Load the agent of a folder by what its `agent.json` calls its kind."""
    from magi_world.agents.files import read_description
    from magi_world.agents.linear import LinearAgent
    from magi_world.agents.ppo_agent import PPOAgent
    from magi_world.agents.selfplay_agent import SelfPlayAgent

    device = "cpu" if world is None else world.device
    kind = read_description(folder).get("kind")
    agent: PPOAgent | LinearAgent
    if kind in ("ppo", "fitted-q"):  # the same network, learned in another way
        agent = PPOAgent.load(folder, greedy=greedy, device=device)
    elif kind == "selfplay":
        agent = SelfPlayAgent.load(folder, greedy=greedy, device=device)
    elif kind == "linear":
        agent = LinearAgent.load(folder, device=device)
    else:
        raise AgentError(
            f"{folder} holds an agent of kind {kind!r}, known are 'fitted-q', 'linear', 'ppo' and "
            "'selfplay'"
        )
    if world is not None:
        agent.check_fits(world)
    return agent


def _baseline(name: str, card: dict[str, Any]) -> Agent:
    from magi_world.agents.random_agent import NoOp, Random, Sticky, Sweep

    if name == "noop":
        return NoOp()
    if name == "random":
        return Random(len(card["prompts"]))
    if name == "sticky":
        return Sticky(len(card["prompts"]))
    if card.get("sweep_period") is None:
        raise AgentError(
            f"the card of {card['name']!r} has no sweep_period: "
            f"run `magi-world evaluate {card['name']}`, which measures it"
        )
    return Sweep(int(card["sweep_period"]))
