"""What a step, a reset or an observation of a rollout returns."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ParamSpec

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Chunk:
    """One row a slot; tensors on the rollout's device."""

    latents: Tensor
    """float32 `[n, C, P, H, W]`"""
    reward: Tensor
    """float32 `[n]`, of a world with players `[n, players]`; the head's mean, clipped to the card's
    range"""
    termination_probability: Tensor
    """float32 `[n]`"""
    terminated: Tensor
    """bool `[n]`"""
    signals: dict[str, Tensor]
    """the card's extra signals, float32 `[n]` each"""
    prompts: tuple[str | None, ...]
    """the prompt that each chunk had, n of them; None for "no prompt" """
    decode: Callable[[Tensor], Tensor] = field(repr=False)
    """latents to frames, see :meth:`magi_world.world.World.decode`"""
    _decoded: list[Tensor] = field(default_factory=list, repr=False)

    @property
    def frames(self) -> Tensor:
        """Frames uint8 `[n, F, H, W, 3]`, decoded when first asked for."""
        if not self._decoded:
            self._decoded.append(self.decode(self.latents))
        return self._decoded[0]

    def row(self, slot: int) -> "Chunk":
        """The row of one slot, with tensors of its own."""
        rows = slice(slot, slot + 1)
        return replace(
            self,
            latents=self.latents[rows].clone(),
            reward=self.reward[rows].clone(),
            termination_probability=self.termination_probability[rows].clone(),
            terminated=self.terminated[rows].clone(),
            signals={name: signal[rows].clone() for name, signal in self.signals.items()},
            prompts=self.prompts[rows],
            _decoded=[],
        )

    def clone(self) -> "Chunk":
        """A chunk with tensors of its own."""
        return replace(
            self,
            latents=self.latents.clone(),
            reward=self.reward.clone(),
            termination_probability=self.termination_probability.clone(),
            terminated=self.terminated.clone(),
            signals={name: signal.clone() for name, signal in self.signals.items()},
            _decoded=[frames.clone() for frames in self._decoded],
        )


Arguments = ParamSpec("Arguments")


def fast(method: Callable[Arguments, Chunk]) -> Callable[Arguments, Chunk]:
    """Run a method in inference mode and hand out a copy that was made outside of it.

    Inference mode is faster than ``no_grad``, but its tensors can neither be trained on nor
    changed, which is what agents do with observations.
    """

    @functools.wraps(method)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Chunk:
        with torch.inference_mode():
            chunk = method(*args, **kwargs)
        return chunk.clone()

    return wrapped


def concatenate(chunks: Sequence[Chunk]) -> Chunk:
    """Rows of several chunks of one row each, one after the other.

    They are decoded one by one, so that a row's pixels do not depend, in their last bit, on how
    many rows lie beside it.
    """
    if len(chunks) == 1:
        return chunks[0]
    decode = chunks[0].decode
    return Chunk(
        torch.cat([chunk.latents for chunk in chunks]),
        torch.cat([chunk.reward for chunk in chunks]),
        torch.cat([chunk.termination_probability for chunk in chunks]),
        torch.cat([chunk.terminated for chunk in chunks]),
        {name: torch.cat([chunk.signals[name] for chunk in chunks]) for name in chunks[0].signals},
        tuple(prompt for chunk in chunks for prompt in chunk.prompts),
        functools.partial(_one_by_one, decode),
    )


def _one_by_one(decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    return torch.cat([decode(row[None]) for row in latents])
