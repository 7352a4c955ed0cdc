"""A world: weights, configuration and card, and what can be done with them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from magi_world import worlds
from magi_world.checkpoints.tensors import as_bfloat16, load_module, write_tensors
from magi_world.checkpoints.world_format import (
    CARD,
    Bank,
    empty_bank,
    read_bank,
    read_card,
    write_bank,
    write_card,
)
from magi_world.config import WorldConfig
from magi_world.errors import ConfigError, PromptError, ResetOptionError, WorldNotFound
from magi_world.models.dit import CaptionKV, VideoDiT
from magi_world.models.outcome import OutcomeHead
from magi_world.models.text import TextEncoder, check_prompt
from magi_world.models.vae import VitVAE
from magi_world.sampling.chunk import Chunk
from magi_world.sampling.rollout import Rollout, Starts

_CACHED_PROMPTS = 1024  # encoded prompts kept per world
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class World:
    """Everything that :func:`load` returns.

    Attributes:
        name: the card's name.
        card: `world.json`, read.
        config: the configuration in it.
        dit, vae, text, outcome: the modules, in evaluation mode; text and outcome may be None.
        bank: clips to start from.
        folder: where the world was loaded from, None for one that was built in memory.
    """

    def __init__(
        self,
        card: dict[str, Any],
        *,
        bank: Bank | None = None,
        folder: Path | None = None,
    ) -> None:
        """Build the modules with fresh weights.

        Raises:
            ConfigError: the configuration in the card cannot work.
        """
        self.card = card
        self.name = str(card["name"])
        self.config = WorldConfig.from_dict(card["config"])
        self.folder = folder
        self.bank = empty_bank() if bank is None else bank
        config = self.config
        self.dit = VideoDiT(config.dit)
        self.vae = VitVAE(config.vae)
        self.text = None if config.text is None else TextEncoder(config.text)
        self.outcome = (
            None if config.outcome is None else OutcomeHead(config.outcome, config.dit.hidden_size)
        )
        self._captions: dict[str | None, CaptionKV] = {}
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        for module in self.modules().values():
            module.eval()

    def modules(self) -> dict[str, nn.Module]:
        """The modules by the names of their weight files."""
        parts = {"dit": self.dit, "vae": self.vae, "text": self.text, "outcome": self.outcome}
        return {name: module for name, module in parts.items() if module is not None}

    def to(self, device: str | torch.device | None = None, dtype: str | None = None) -> "World":
        """Move the world, in place; rollouts that it gave before refuse to go on.

        Args:
            device: None leaves it.
            dtype: "float32" or "bfloat16" (the published mixed-precision recipe); None leaves it.

        Raises:
            ConfigError: another dtype, or a device that is not there.
        """
        if dtype is not None and dtype not in _DTYPES:
            raise ConfigError(f"dtype {dtype!r} is not one of {sorted(_DTYPES)}")
        if device is not None:
            try:
                torch.empty(0, device=device)
            except (RuntimeError, AssertionError) as error:  # torch built without it: an assertion
                reason = str(error).splitlines()[0]
                raise ConfigError(f"device {str(device)!r} cannot be used: {reason}") from None
        for module in self.modules().values():
            if device is not None:
                module.to(device)
        if device is not None:
            self.device = next(self.dit.parameters()).device
        if dtype is not None:
            self.dtype = _DTYPES[dtype]
            self.dit.to_recipe(self.dtype)
        self._captions.clear()
        return self

    # ---------------------------------------------------------------- pictures

    def encode(self, frames: Tensor | NDArray[np.uint8]) -> Tensor:
        """Frames uint8 `[n, T, H, W, 3]` to scaled latents float32 `[n, C, T/4, h, w]`.

        Raises:
            ConfigError: another dtype or shape.
        """
        if isinstance(frames, np.ndarray):
            frames = frames.copy()  # torch takes neither read-only arrays nor backward strides
        frames_NTHWC = torch.as_tensor(frames)
        expected = (self.config.height, self.config.width, 3)
        if frames_NTHWC.ndim != 5 or tuple(frames_NTHWC.shape[2:]) != expected:
            raise ConfigError(f"frames {tuple(frames_NTHWC.shape)}: expected [n, T, *{expected}]")
        if frames_NTHWC.dtype != torch.uint8:
            raise ConfigError(f"frames are {frames_NTHWC.dtype}, expected uint8")
        with torch.inference_mode():
            pixels = frames_NTHWC.to(self.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
            latents = self.vae.encode(pixels) * self.config.sampling.scale_factor
        return latents.clone()  # agents may train on it, unlike on tensors of inference mode

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents `[n, C, T', h, w]` to frames uint8 `[n, 4T', H, W, 3]`."""
        with torch.inference_mode():
            z = latents.to(self.device).float() / self.config.sampling.scale_factor
            pixels = self.vae.decode(z, single_frame=False)
            frames = (pixels * 127.5 + 127.5).clamp(0, 255).to(torch.uint8)
        return frames.permute(0, 2, 3, 4, 1).clone(memory_format=torch.contiguous_format)

    def history(
        self,
        *,
        image: Any = None,
        video: Any = None,
        latents: Tensor | None = None,
        prompts: Sequence[str | None] | None = None,
    ) -> tuple[Tensor, list[str | None]]:
        """Turn pictures into the history that a rollout starts from.

        Args:
            image: uint8 `[H, W, 3]`, repeated to fill a chunk.
            video: uint8 `[T, H, W, 3]`, cropped at the front to whole chunks.
            latents: float `[m, C, P, h, w]`, as :meth:`encode` gives them.
            prompts: one a chunk, None stands for "no prompt".

        Returns:
            Latents `[m, C, P, h, w]` and m prompts.

        Raises:
            ResetOptionError: not such pictures, or not one prompt a chunk.
        """
        if latents is not None:
            shape = self.config.latent_shape
            if latents.shape[1:] != shape or not len(latents) or not latents.is_floating_point():
                raise ResetOptionError(
                    f"latents are {latents.dtype} {tuple(latents.shape)}: expected [m, *]{shape}"
                )
            return latents.to(self.device, torch.float32), self._history_prompts(
                prompts, "history", len(latents)
            )
        what = "image" if video is None else "video"
        try:
            frames = np.asarray(image if video is None else video)
        except (ValueError, TypeError) as error:  # ragged lists, tensors on another device
            raise ResetOptionError(f"{what} is no array of pixels: {error}") from None
        size = (self.config.height, self.config.width, 3)
        F = self.config.chunk_frames
        if frames.dtype != np.uint8 or frames.shape[-3:] != size or frames.ndim not in (3, 4):
            raise ResetOptionError(
                f"{what} is {frames.dtype} {frames.shape}: expected uint8 "
                f"{'' if what == 'image' else '[T, *]'}{size}"
            )
        if what == "image":
            if frames.ndim != 3:
                raise ResetOptionError(f"image has shape {frames.shape}: expected {size}")
            frames = np.repeat(frames[None], F, axis=0)
        elif frames.ndim != 4 or len(frames) < F:
            raise ResetOptionError(f"video {frames.shape} is shorter than one chunk of {F} frames")
        frames = frames[len(frames) % F :]
        chunks = frames.reshape(-1, F, *size)
        captions = self._history_prompts(prompts, what, len(chunks))
        return self.encode(chunks), captions

    def _history_prompts(
        self, prompts: Sequence[str | None] | None, what: str, chunks: int
    ) -> list[str | None]:
        """The captions of a history, one a chunk, checked."""
        if prompts is None:
            return [None] * chunks
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise ResetOptionError(f"prompts {prompts!r}: a list, one a chunk, is needed")
        if len(prompts) != chunks:
            raise ResetOptionError(f"{len(prompts)} prompts for a {what} of {chunks} chunks")
        for prompt in prompts:
            if prompt is not None:
                self.check_prompt(prompt)
        return list(prompts)

    # ---------------------------------------------------------------- text

    def check_prompt(self, prompt: object) -> None:
        """Check that a prompt can be used.

        Raises:
            PromptError: not text, empty, unprintable or too long.
        """
        if self.config.text is None:
            raise PromptError(f"the world {self.name!r} has no text encoder")
        check_prompt(prompt, self.config.text.max_bytes)

    @torch.inference_mode()
    def caption(self, prompt: str | None) -> CaptionKV:
        """Cross-attention keys and values of a prompt, cached; None is the null caption."""
        if prompt not in self._captions:
            if prompt is None:
                rows = self.config.sampling.null_prompt_tokens
                tokens = self.dit.y_embedder.null_caption_embedding[:rows]
            else:
                self.check_prompt(prompt)
                assert self.text is not None  # check_prompt has refused a world without one
                # alone, so that its bits do not depend on the prompts beside it
                tokens, _ = self.text([prompt])
            if len(self._captions) >= _CACHED_PROMPTS:
                self._captions.pop(next(iter(self._captions)))
            self._captions[prompt] = self.dit.caption_kv(tokens)
        return self._captions[prompt]

    # ---------------------------------------------------------------- rollouts

    def judge(self, latents: Tensor, hidden: Tensor, prompts: Sequence[str | None]) -> Chunk:
        """Reward and termination of n clean chunks from their hidden states `[n, tokens, E]`."""
        n = latents.shape[0]
        reward = torch.zeros(n, device=self.device)
        probability = torch.zeros(n, device=self.device)
        signals: dict[str, Tensor] = {}
        if self.outcome is not None:
            outcome = self.outcome(hidden)
            low, high = self.card["reward_range"]
            reward = outcome.reward.clamp(low, high)
            probability = outcome.termination_logit.sigmoid()
            for index, name in enumerate(self.outcome.config.signals):
                signals[name] = outcome.signals[:, index]
        never = torch.zeros(n, dtype=torch.bool, device=self.device)
        return Chunk(latents, reward, probability, never, signals, tuple(prompts), self.decode)

    def rollout(
        self,
        batch_size: int = 1,
        seeds: Iterable[int] | None = None,
        *,
        steps: int | None = None,
        temperature: float = 1.0,
        starts: Starts = "opening",
        device: str | None = None,
        dtype: str | None = None,
    ) -> Rollout:
        """Start a batched rollout; see :class:`magi_world.sampling.rollout.Rollout`.

        ``device`` and ``dtype`` move the whole world, see :meth:`to`.
        """
        if device is not None or dtype is not None:
            self.to(device, dtype)
        return Rollout(self, batch_size, seeds, steps=steps, temperature=temperature, starts=starts)

    # ---------------------------------------------------------------- disk

    def save(self, folder: Path | str) -> None:
        """Write the world: weights in bfloat16, the bank and, last, the card."""
        folder = Path(folder)
        for name, module in self.modules().items():
            write_tensors(as_bfloat16(module), folder / f"{name}.safetensors", {"part": name})
        write_bank(self.bank, self.card["prompts"], folder / "bank.safetensors")
        write_card(folder, self.card)


def load(
    name: str | Path, *, device: str | torch.device | None = None, dtype: str | None = None
) -> World:
    """Load a world.

    Args:
        name: an embedded world's name, or a folder with a `world.json`.
        device: where it runs; None is the CPU.
        dtype: "float32" (default) or "bfloat16".

    Raises:
        WorldNotFound: no such name or folder.
        CheckpointError: a file of the world does not fit; nothing is half-loaded.
    """
    folder = worlds.folder(str(name)) or Path(name)
    if not (folder / CARD).is_file():
        raise WorldNotFound(
            f"no world {str(name)!r}: embedded are {', '.join(worlds.available()) or 'none'}; "
            f"a path must be a folder with {CARD}"
        )
    card = read_card(folder)
    world = World(card, folder=folder)
    world.bank = read_bank(folder / "bank.safetensors", card["prompts"], world.config.latent_shape)
    for part, module in world.modules().items():
        load_module(module, folder / f"{part}.safetensors")
    return world.to(device, dtype)
