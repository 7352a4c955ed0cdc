"""The section `[card]` of a recipe: what a world could be trained with, but not as it was meant."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from magi_world.config import TextConfig
from magi_world.errors import PromptError, RecipeError
from magi_world.models.text import check_prompt

_WORDINGS = ("paraphrases", "held_out_paraphrases")
_KNOWN = {
    "name", "game", "description", "licence", "source", "adapter", "players", "template", "sides",
    "prompts", "horizon", "terminates", "reward_range", "objects", "known_limits", *_WORDINGS,
}  # fmt: skip


def check_recipe_card(card: Mapping[str, Any], text: object, source: str) -> None:
    """Refuse unknown keys and values that would be noticed late or never; `source` names the card.

    Args:
        card: one that `checkpoints.world_format.check_card` lets through.
        text: the configuration of the text encoder, which says how long prompts may be.
        source: of the card, for errors.

    Raises:
        RecipeError: there is such a key or value.
    """
    if unknown := sorted(set(card) - _KNOWN):
        raise RecipeError(f"{source}: unknown {unknown}; known are {sorted(_KNOWN)}")
    for key in ("name", "game"):
        if not (isinstance(card[key], str) and card[key].strip()):
            raise RecipeError(f"{source}: {key} {card[key]!r} is no text")
    if not all(map(math.isfinite, card["reward_range"])):
        raise RecipeError(f"{source}: reward_range {card['reward_range']} is not finite")
    said = [(prompt, prompt) for prompt in card["prompts"]]
    for key in _WORDINGS:
        said += check_wordings(card.get(key, {}), card["prompts"], f"{source}: {key}")
    check_meanings(said, text, source)


def check_meanings(said: Iterable[tuple[str, str]], text: object, source: str) -> None:
    """Refuse wordings that are no prompts, or that stand for two.

    Args:
        said: wordings, each with the prompt for which it stands.
        text: as in :func:`check_recipe_card`.
        source: of the wordings, for errors.

    Raises:
        RecipeError: there is such a wording.
    """
    longest = text.max_bytes if isinstance(text, TextConfig) else TextConfig.max_bytes
    meant: dict[str, str] = {}
    for words, prompt in said:
        try:
            check_prompt(words, longest)
        except PromptError as error:
            raise RecipeError(f"{source}: {words!r} for {prompt!r}: {error}") from None
        if words in meant:
            raise RecipeError(
                f"{source}: {words!r} stands for {meant[words]!r} and again for {prompt!r}"
            )
        meant[words] = prompt


def check_wordings(value: Any, prompts: Sequence[str], source: str) -> list[tuple[str, str]]:
    """Other words for the prompts, each with its prompt.

    Raises:
        RecipeError: `value` is no mapping of these prompts to lists.
    """
    if not isinstance(value, Mapping) or not all(isinstance(v, list) for v in value.values()):
        raise RecipeError(f"{source} {value!r} is no section with a list of texts for each prompt")
    if strange := sorted(set(value) - set(prompts)):
        raise RecipeError(f"{source} of {strange}, which are none of the prompts {prompts}")
    return [(words, prompt) for prompt, texts in value.items() for words in texts]
