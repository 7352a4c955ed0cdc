"""A world on disk: one folder with its card, its weights and its bank of clips.

world.json               the card: prompts, configuration, data, measurements
dit.safetensors  vae.safetensors  text.safetensors  outcome.safetensors
bank.safetensors         latents and prompts of the openings and of longer clips
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magi_world.checkpoints.tensors import read_tensors, write_tensors
from magi_world.disk import write_text
from magi_world.errors import CheckpointError, ResetOptionError
from magi_world.players import check_players

CARD = "world.json"
_REQUIRED = ("name", "game", "prompts", "fps", "horizon", "reward_range", "config")


@dataclass(frozen=True, eq=False)
class Bank:
    """Clips of the real game as latents; the openings come first."""

    latents: tuple[Tensor, ...]
    """float `[m, C, P, h, w]` each, m chunks"""
    prompts: tuple[tuple[str, ...], ...]
    """the prompt of every chunk"""
    num_openings: int

    def __len__(self) -> int:
        return len(self.latents)

    def clip(self, index: int) -> tuple[Tensor, tuple[str, ...]]:
        """Latents and prompts of one clip.

        Raises:
            ResetOptionError: no such clip.
        """
        if not 0 <= index < len(self):
            raise ResetOptionError(f"clip {index}: the bank has the clips 0…{len(self) - 1}")
        return self.latents[index], self.prompts[index]


def empty_bank() -> Bank:
    """The bank of a world without clips; such a world starts from an image, video or prompt."""
    return Bank((), (), 0)


def write_bank(bank: Bank, prompts: list[str], path: Path) -> None:
    """Write a bank; prompts are stored as indices into the card's list."""
    tensors: dict[str, Tensor] = {"num_openings": torch.tensor(bank.num_openings)}
    if len(bank):
        tensors |= {
            "latents": torch.cat(bank.latents).to(torch.bfloat16),
            "actions": torch.tensor([prompts.index(p) for clip in bank.prompts for p in clip]),
            "lengths": torch.tensor([clip.shape[0] for clip in bank.latents]),
        }
    write_tensors(tensors, path, {"part": "bank"})


def read_bank(path: Path, prompts: list[str], latent_shape: tuple[int, ...]) -> Bank:
    """Read a bank.

    Args:
        path: the file.
        prompts: the card's.
        latent_shape: `C, P, h, w` of one chunk.

    Raises:
        CheckpointError: the file does not fit the card, or holds a NaN.
    """
    tensors = read_tensors(path)
    if set(tensors) == {"num_openings"}:
        return empty_bank()
    names = {"latents", "actions", "lengths", "num_openings"}
    if set(tensors) != names:
        raise CheckpointError(f"{path} holds {sorted(tensors)}, expected {sorted(names)}")
    stored = tuple(tensors["latents"].shape)
    if stored[1:] != latent_shape:
        raise CheckpointError(f"{path}: latents {stored}, expected {latent_shape} each")
    if not tensors["latents"].isfinite().all():
        raise CheckpointError(f"{path}: latents holds NaN or infinity")
    lengths = tensors["lengths"].tolist()
    actions = tensors["actions"].tolist()
    if any(length < 1 for length in lengths):
        raise CheckpointError(f"{path}: lengths of clips must be 1 or more, they are {lengths}")
    num_openings = int(tensors["num_openings"])
    if not 0 <= num_openings <= len(lengths):
        raise CheckpointError(f"{path}: num_openings is {num_openings} of {len(lengths)} clips")
    if sum(lengths) != len(actions) or len(actions) != tensors["latents"].shape[0]:
        raise CheckpointError(f"{path}: lengths, actions and latents do not belong together")
    if not all(0 <= action < len(prompts) for action in actions):
        raise CheckpointError(f"{path}: an action outside 0…{len(prompts) - 1}")
    latents = tensors["latents"].float().split(lengths)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    texts = tuple(
        tuple(prompts[a] for a in actions[start : start + n])
        for start, n in zip(starts, lengths, strict=True)
    )
    return Bank(latents, texts, num_openings)


def read_card(folder: Path) -> dict[str, Any]:
    """Read and check the card of a world.

    Raises:
        CheckpointError: no card, no JSON, or as :func:`check_card`.
    """
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no world: it has no {CARD}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    return check_card(card, str(path))


def check_card(card: Any, source: str) -> dict[str, Any]:
    """Return a card if its keys outside `config` can be used; ``source`` names it in errors.

    Raises:
        CheckpointError: a required key is missing or has a value of another kind.
    """
    if not isinstance(card, dict):
        raise CheckpointError(f"{source} is no JSON object of keys")
    missing = [key for key in _REQUIRED if key not in card]
    if missing:
        raise CheckpointError(f"{source} lacks {missing}")
    prompts, horizon, rewards = card["prompts"], card["horizon"], card["reward_range"]
    listed = bool(prompts) or is_magi1_card(card)  # which takes every prompt and lists none
    if not (isinstance(prompts, list) and listed and all(isinstance(p, str) for p in prompts)):
        raise CheckpointError(f"{source}: prompts {prompts!r} is no list of texts")
    if horizon is not None and (type(horizon) is not int or horizon < 1):
        raise CheckpointError(f"{source}: horizon {horizon!r} is no number of chunks")
    numbers = isinstance(rewards, list) and all(type(r) in (int, float) for r in rewards)
    if not numbers or len(rewards) != 2 or not rewards[0] <= rewards[1]:
        raise CheckpointError(f"{source}: reward_range {rewards!r} is no [lowest, highest]")
    if type(card.get("terminates", True)) is not bool:
        raise CheckpointError(f"{source}: terminates {card['terminates']!r} is not true or false")
    check_players(card, source)
    return card


def is_magi1_card(card: dict[str, Any]) -> bool:
    """Say whether a card is that of a MAGI-1 checkpoint."""
    return isinstance(card["config"], dict) and card["config"].get("magi1") is not None


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write a card under a temporary name, then rename it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
