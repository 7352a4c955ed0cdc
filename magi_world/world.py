"""A world: weights, configuration and card, and what can be done with them."""

import copy
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from magi_world.checkpoints.finding import find_world
from magi_world.checkpoints.magi1_world import (
    Layout,
    Magi1Parts,
    default_dtype,
    prompt_encoder,
    save_magi1,
)
from magi_world.checkpoints.progress import progress_bar
from magi_world.checkpoints.tensors import as_bfloat16, load_module, write_tensors
from magi_world.checkpoints.world_format import Bank, empty_bank, read_bank, write_bank, write_card
from magi_world.config import TextConfig, WorldConfig
from magi_world.errors import PromptError
from magi_world.models.dit import CaptionKV, VideoDiT
from magi_world.models.outcome import OutcomeHead
from magi_world.models.pixels import checked_frames, to_frames, to_pixels
from magi_world.models.text import TextEncoder, check_prompt
from magi_world.models.vae import VitVAE
from magi_world.models.vae_tiling import Compat, Tiling, tiled_decode, tiled_encode
from magi_world.offload.placement import Placement
from magi_world.placement import DTYPES, check_place, float32_by_default
from magi_world.players import chunk_prompts, players_of
from magi_world.sampling.chunk import Chunk
from magi_world.sampling.kept_captions import KeptCaptions
from magi_world.sampling.pictures import history_chunks
from magi_world.sampling.rollout import Rollout, Starts

if TYPE_CHECKING:
    from magi_world.text.encoder import T5PromptEncoder


class World:
    """Everything that :func:`load` returns.

    Attributes:
        name: the card's name.
        card: `world.json`, read.
        config: the configuration in it.
        dit, vae, outcome: the modules, in evaluation mode; outcome may be None.
        text: the text encoder, a module; of a MAGI-1 checkpoint its `T5PromptEncoder`; or None.
        bank: clips to start from.
        folder: where the world was loaded from, None for one that was built in memory.
        special_tokens: file of a MAGI-1 checkpoint's table of special tokens, or None.
    """

    def __init__(
        self,
        card: dict[str, Any],
        *,
        bank: Bank | None = None,
        folder: Path | None = None,
        text: "T5PromptEncoder | None" = None,
        meta: bool = False,
    ) -> None:
        """Build the modules with fresh weights.

        Args:
            card: its `config` says what is built.
            bank: clips to start from; None for none.
            folder: where the card comes from.
            text: the prompt encoder of a MAGI-1 checkpoint.
            meta: build the modules without memory; the weights are put in later.

        Raises:
            ConfigError: the configuration in the card cannot work.
        """
        self.card = card
        self.name = str(card["name"])
        self.config = WorldConfig.from_dict(card["config"])
        self.folder = folder
        self.bank = empty_bank() if bank is None else bank
        self.special_tokens: Path | None = None
        config = self.config
        self.text: TextEncoder | T5PromptEncoder | None = text
        with float32_by_default(), torch.device("meta") if meta else nullcontext():
            self.dit = VideoDiT(config.dit)
            self.vae = VitVAE(config.vae)
            if isinstance(config.text, TextConfig):
                self.text = TextEncoder(config.text)
            self.outcome: OutcomeHead | None = None
            if config.outcome is not None:
                self.outcome = OutcomeHead(config.outcome, config.dit.hidden_size)
        self._captions = KeptCaptions()
        self.placement = Placement()
        for module in self.modules().values():
            module.eval()

    def modules(self) -> dict[str, nn.Module]:
        """The modules by the names of their weight files."""
        parts = {"dit": self.dit, "vae": self.vae, "text": self.text, "outcome": self.outcome}
        # the prompt encoder of a MAGI-1 checkpoint is no module: it loads T5 when it needs it
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    @property
    def device(self) -> torch.device:
        """Where the DiT computes."""
        return next(self.dit.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the DiT computes in."""
        return self.dit.block_dtype

    def resized(self, height: int, width: int) -> "World":
        """The same world for pictures of another size; the weights are shared.

        Moving one of the two moves both. Clips of the bank have the old size and stay behind.

        Raises:
            ConfigError: height or width is no multiple of 16 pixels.
        """
        if (height, width) == (self.config.height, self.config.width):
            return self
        other = copy.copy(self)  # modules and encoded prompts are the same objects
        other.config = replace(self.config, height=height, width=width)
        other.card = {**self.card, "config": other.config.to_dict()}
        other.bank = empty_bank()
        return other

    def to(self, device: str | torch.device | None = None, dtype: str | None = None) -> "World":
        """Move the world, in place; rollouts that it gave before refuse to go on.

        Args:
            device: None leaves it.
            dtype: "float32" or "bfloat16" (the published mixed-precision recipe); None leaves it.

        Raises:
            ConfigError: another dtype, or a device that is not there.
        """
        check_place(device, dtype)
        if device is None and dtype is None:
            return self
        self.placement.check_movable()
        before = self.device, self.dtype
        for module in self.modules().values():
            module.to(device)
        if dtype is not None:
            self.dit.to_recipe(DTYPES[dtype])
        if (self.device, self.dtype) != before:
            self.forget_captions()
        return self

    @property
    def moves(self) -> int:
        """How often it was moved, cast or trained: what was made before does not fit any more."""
        return self._captions.cleared

    def forget_captions(self) -> None:
        """Drop the encoded prompts: they belong to the device, dtype or weights of before."""
        self._captions.clear()

    # ---------------------------------------------------------------- pictures

    @property
    def tiling(self) -> Tiling | None:
        """How the VAE cuts pictures: MAGI-1's published tiles; None encodes them whole."""
        magi1 = self.config.magi1
        if magi1 is None:
            return None
        return Tiling.published(magi1.fps, self.config.vae.patch_length)

    def encode(self, frames: Tensor | NDArray[np.uint8], *, compat: Compat = None) -> Tensor:
        """Frames uint8 `[n, T, H, W, 3]` to scaled latents float32 `[n, C, T/4, h, w]`.

        T is a multiple of 4, or 1. ``compat="magi-1"`` tiles as the published code does, see
        :func:`magi_world.models.vae_tiling.tiled_encode`.

        Raises:
            ConfigError: another dtype or shape.
        """
        frames_NTHWC = checked_frames(frames, self.config.height, self.config.width)
        with torch.inference_mode(), self.placement.vae:
            pixels = to_pixels(frames_NTHWC.to(self.device))
            latents = tiled_encode(self.vae, pixels, self.tiling, compat=compat)
            scaled = latents * self.config.sampling.scale_factor
        return scaled.clone()  # agents may train on it, unlike on tensors of inference mode

    def decode(self, latents: Tensor, *, compat: Compat = None) -> Tensor:
        """Scaled latents `[n, C, T', h, w]` to frames uint8 `[n, 4T', H, W, 3]`.

        ``compat="magi-1"`` gives fewer frames where a tile is one latent frame long, see
        :func:`magi_world.models.vae_tiling.tiled_decode`.
        """
        with torch.inference_mode(), self.placement.vae:
            z = latents.to(self.device).float() / self.config.sampling.scale_factor
            frames = to_frames(tiled_decode(self.vae, z, self.tiling, compat=compat))
        return frames.clone()

    def history(
        self,
        *,
        image: Any = None,
        video: Any = None,
        latents: Any = None,
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
        chunks, captions = history_chunks(
            self.config, image=image, video=video, latents=latents, prompts=prompts
        )
        for prompt in captions:
            if prompt is not None:
                self.check_prompt(prompt)
        if isinstance(chunks, Tensor):
            return chunks.to(self.device, torch.float32), captions
        return self.encode(chunks), captions

    # ---------------------------------------------------------------- text

    def check_prompt(self, prompt: object) -> None:
        """Check that a prompt can be used.

        Raises:
            PromptError: not text, empty, unprintable or too long; of a MAGI-1 checkpoint also
                one that its text encoder does not know.
        """
        if self.text is None:
            raise PromptError(f"the world {self.name!r} has no text encoder")
        if isinstance(self.text, TextEncoder):
            check_prompt(prompt, self.text.config.max_bytes)
        else:
            self.text.check(prompt)

    @torch.inference_mode()
    def caption(self, prompt: str | None) -> CaptionKV:
        """Cross-attention keys and values of a prompt; None is the null caption.

        The latest are kept. The null caption of a MAGI-1 checkpoint has negative tokens if its text
        encoder's options say so.
        """
        return self._captions.get(prompt, lambda: self.dit.caption_kv(self._tokens(prompt)))

    def _tokens(self, prompt: str | None) -> Tensor:
        """Caption tokens `[Y, caption_channels]` of a prompt, or those that stand for none."""
        if prompt is None:
            table: Tensor = self.dit.y_embedder.null_caption_embedding
            if self.text is not None and not isinstance(self.text, TextEncoder):
                table = self.text.negative(table)
            return table[: self.config.sampling.null_prompt_tokens]
        self.check_prompt(prompt)
        assert self.text is not None  # check_prompt has refused a world without one
        # alone, so that its bits do not depend on the prompts beside it
        if isinstance(self.text, TextEncoder):
            tokens: Tensor = self.text([prompt])[0]
            return tokens
        return self.text.embed([prompt])[0].to(self.device)

    # ---------------------------------------------------------------- rollouts

    def judge(self, latents: Tensor, hidden: Tensor, prompts: Sequence[str | None]) -> Chunk:
        """Reward and termination of n clean chunks from their hidden states `[n, tokens, E]`.

        A card that says `terminates = false` speaks of a world whose episodes never end by
        themselves, whatever the heads say.
        """
        n = latents.shape[0]
        players = len(players_of(self.card))
        probability = torch.zeros(n, dtype=torch.float32, device=self.device)
        reward = probability.new_zeros((n, players) if players else n)
        signals: dict[str, Tensor] = {}
        if self.outcome is not None:
            outcome = self.outcome(hidden)
            low, high = self.card["reward_range"]
            reward = outcome.reward.clamp(low, high)
            if self.card.get("terminates", True):
                probability = outcome.termination_logit.sigmoid()
            for index, name in enumerate(self.outcome.config.signals):
                signals[name] = outcome.signals[:, index]
        never = torch.zeros_like(probability, dtype=torch.bool)
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
        compile: bool = False,
        cuda_graph: bool = False,
    ) -> Rollout:
        """Start a batched rollout; see :class:`magi_world.sampling.rollout.Rollout`.

        ``device`` and ``dtype`` move the whole world, see :meth:`to`.
        """
        self.to(device, dtype)
        return Rollout(
            self, batch_size, seeds, steps=steps, temperature=temperature, starts=starts,
            compile=compile, cuda_graph=cuda_graph,
        )  # fmt: skip

    # ---------------------------------------------------------------- disk

    @property
    def text_folder(self) -> Path | None:
        """Folder of a MAGI-1 checkpoint's text encoder."""
        return None if isinstance(self.text, TextEncoder | None) else self.text.folder

    def save(self, folder: Path | str, *, layout: Layout = "world") -> None:
        """Write the world; the card or configuration comes last, so half a folder is none.

        Args:
            folder: made if absent.
            layout: "world", the package's own: weights in bfloat16, those of MAGI-1 checkpoints
                exactly, with text encoder and table of special tokens beside them; or "magi-1",
                the published one, for MAGI-1 checkpoints.

        Raises:
            ConfigError: another layout, or "magi-1" for another world.
            CheckpointError: "magi-1" into a folder that holds a checkpoint already.
        """
        folder = Path(folder)
        if self.config.magi1 is not None or layout != "world":
            beside = {"text_folder": self.text_folder, "special_tokens": self.special_tokens}
            save_magi1(folder, self.config, self.modules(), layout=layout, **beside)
        else:
            for name, module in self.modules().items():
                write_tensors(as_bfloat16(module), folder / f"{name}.safetensors", {"part": name})
        if layout == "world":
            write_bank(self.bank, chunk_prompts(self.card), folder / "bank.safetensors")
            write_card(folder, self.card)


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    parts: Magi1Parts | None = None,
    progress: bool | None = None,
) -> World:
    """Load a world.

    Args:
        name: an embedded world's name; a folder with a `world.json`; a folder or configuration
            file in MAGI-1's published layout; or `hub:org/name[/folder][@revision]`.
        device: where it runs; None is the CPU. Weights go there tensor by tensor.
        dtype: "float32" or "bfloat16"; None is float32, for a MAGI-1 checkpoint in bfloat16 on a
            card that has it bfloat16.
        parts: for MAGI-1 checkpoints: where VAE, text encoder and table are, and how prompts are
            encoded; None finds them.
        progress: show a progress bar for MAGI-1 checkpoints; None where stderr is a terminal.

    Raises:
        WorldNotFound: no such name or folder.
        CheckpointError: a file of the world does not fit; nothing is half-loaded.
        ConfigError: settings that cannot work or contradict each other, or no such device.
        MissingPackage: an extra that the checkpoint needs.
    """
    check_place(device, dtype)
    parts = Magi1Parts() if parts is None else parts
    found = find_world(str(name), parts)
    if found.checkpoint is None:
        return _load_world(found.path, found.card).to(device, dtype)
    checkpoint, card = found.checkpoint, found.card
    config, place = WorldConfig.from_dict(card["config"]), torch.device(device or "cpu")
    text = prompt_encoder(checkpoint, config, parts, place)
    world = World(card, folder=found.path, text=text, meta=True)
    world.special_tokens = checkpoint.special_tokens
    chosen = DTYPES[dtype or default_dtype(config, place)]
    with progress_bar(f"loading {world.name}", checkpoint.nbytes, show=progress) as told:
        checkpoint.load(world.dit, world.vae, device=place, dtype=chosen, progress=told)
    return world


def _load_world(folder: Path, card: dict[str, Any]) -> World:
    """Load a world with a small text encoder and heads of its own."""
    world = World(card, folder=folder)
    world.bank = read_bank(
        folder / "bank.safetensors", chunk_prompts(card), world.config.latent_shape
    )
    for part, module in world.modules().items():
        load_module(module, folder / f"{part}.safetensors")
    return world
