"""Worlds with several players: everybody's action goes into the one prompt of a chunk.

The card of such a world names its `players`; its `prompts` are then the actions of *one* player,
index 0 the no-op, and its `template` puts those of all together: `left: {second_0}; right:
{first_0}`. The prompts that a chunk can have are all combinations, counted like a number whose
first digit is the first player's: with three actions, index 5 is action 1 of the first player and
action 2 of the second. In a card without players they are the card's prompts as they stand.

Actions are indices everywhere here; `compose` alone takes texts, any texts.
"""

import itertools
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from magi_world.errors import CheckpointError

SIDES = ("left", "right")
"""Halves of the picture that the key `sides` of a card can give to a player."""

Indices = npt.NDArray[np.int64]


def players_of(card: Mapping[str, Any]) -> list[str]:
    """Names of a world's players; empty for a world with a single agent."""
    return list(card.get("players", ()))


def compose(card: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """The prompt of a chunk in which the players do this; who is left out does the no-op.

    Args:
        card: of a world with players.
        texts: what some of the players do, in any words.
    """
    noop: str = card["prompts"][0]
    words = {player: texts.get(player, noop) for player in players_of(card)}
    # not by str.format: a player's text may hold braces, a template holds names and nothing else
    parts = string.Formatter().parse(card["template"])
    return "".join(text + (words[name] if name is not None else "") for text, name, _, _ in parts)


def chunk_prompts(card: Mapping[str, Any]) -> list[str]:
    """All prompts that chunks of the world's data have; an action of the data is an index here."""
    return [wordings[0] for wordings in chunk_wordings(card)]


def chunk_wordings(card: Mapping[str, Any], key: str = "paraphrases") -> list[list[str]]:
    """For every one of `chunk_prompts` all its wordings, itself first.

    Args:
        card: a world's.
        key: where the card keeps the other wordings of its prompts.
    """
    paraphrases = card.get(key, {})
    wordings = [[prompt, *paraphrases.get(prompt, ())] for prompt in card["prompts"]]
    players = players_of(card)
    if not players:
        return wordings
    return [
        [
            compose(card, dict(zip(players, words, strict=True)))
            for words in itertools.product(*(wordings[action] for action in actions))
        ]
        for actions in itertools.product(range(len(wordings)), repeat=len(players))
    ]


def join_actions(actions: Sequence[Indices], num_actions: int) -> Indices:
    """Index of the chunk's prompt from every player's own index, `[n]` each."""
    joined = np.zeros_like(actions[0])
    for player in actions:
        joined = joined * num_actions + player
    return joined


def split_actions(joined: Any, num_actions: int, num_players: int) -> list[Indices]:
    """Every player's own index from that of the chunk's prompt, `[n]` each."""
    rest, own = np.asarray(joined, np.int64), []
    for _ in range(num_players):
        own.append(rest % num_actions)
        rest = rest // num_actions
    return own[::-1]


def check_players(card: Mapping[str, Any], source: str) -> None:
    """Check what a card says of its players; `source` names it in errors.

    Raises:
        CheckpointError: names that are no list of different texts, or a template that does not take
            each of them once.
    """
    if "players" not in card and "template" not in card:
        return
    players, template = card.get("players"), card.get("template")
    named = isinstance(players, list) and all(isinstance(p, str) and p for p in players)
    if not named or len(players) < 2 or len(set(players)) < len(players):  # type: ignore[arg-type]
        raise CheckpointError(f"{source}: players {players!r} is no list of two or more names")
    try:
        assert isinstance(template, str)
        fields = [(name, spec, kind) for _, name, spec, kind in string.Formatter().parse(template)]
    except (AssertionError, ValueError):
        fields = []
    found = [name for name, _, _ in fields if name is not None]
    plain = all(not spec and kind is None for _, spec, kind in fields)
    if sorted(found) != sorted(players) or not plain:  # type: ignore[arg-type]
        raise CheckpointError(
            f"{source}: template {template!r} must take each of the players {players} once, as "
            "{name}"
        )
    sides = card.get("sides", {})
    if not isinstance(sides, dict) or (
        sides and (set(sides) != set(players) or not set(sides.values()) <= set(SIDES))  # type: ignore[arg-type]
    ):
        raise CheckpointError(
            f"{source}: sides {sides!r} must name one of {', '.join(SIDES)} for each of {players}"
        )
    config = card.get("config")
    outcome = config.get("outcome") if isinstance(config, Mapping) else None
    if outcome is not None and list(outcome.get("rewards", ())) != players:
        raise CheckpointError(
            f"{source}: the outcome heads have the rewards {list(outcome.get('rewards', ()))}, "
            f"players are {players}: one a player is needed, in their order"
        )
