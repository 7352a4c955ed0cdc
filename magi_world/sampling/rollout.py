"""The running state of a world: step it, observe with it, save it, fork it.

One environment step, as code:

    prompt ── text encoder (cached) ──┐
    noise ── DiT velocity x N steps ──┤   reads the KV cache, writes only its scratch place
    clean pass ──► KV cache           │   the oldest chunk falls out
        └── outcome heads ──► reward, terminated

The passes themselves are in :mod:`magi_world.sampling.sampler`, the ring of keys and values in
:mod:`magi_world.sampling.kv_cache`.

Shapes: B slots, n slots named in a call, C channels, P latent frames, H rows, W columns.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from magi_world.errors import ConfigError, NotReset, ResetOptionError
from magi_world.sampling import saved_state
from magi_world.sampling.arguments import (
    as_latents,
    check_count,
    check_prompts,
    check_seeds,
    check_slots,
    chosen_clips,
)
from magi_world.sampling.chunk import Chunk, concatenate, fast
from magi_world.sampling.fixed_step import FixedStep
from magi_world.sampling.kv_cache import KVCache
from magi_world.sampling.sampler import ChunkSampler, Places
from magi_world.sampling.starts import ClipStarts, generated, replayed

if TYPE_CHECKING:
    from magi_world.world import World

Starts = Literal["opening", "any"]

_DRAWN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
"""what generators draw, whatever torch's defaults were set to: other dtypes are other numbers"""


class Rollout:
    """B independent rollouts of one world with a fixed-size cache.

    Build it with :meth:`magi_world.world.World.rollout`. A rollout never ends by itself:
    ``terminated`` is reported and the slot may be stepped on.
    """

    world: "World"
    batch_size: int
    steps: int
    temperature: float
    starts: Starts
    sampler: ChunkSampler
    generators: list[torch.Generator]
    cache: KVCache
    chunk_index: Tensor
    """chunks since the reset chunk, int64 `[B]`"""
    time: list[int]
    """chunks that each slot's history has held since it began"""
    ready: list[bool]
    """which slots were ever reset"""
    clips: ClipStarts
    """what the clips of the world's bank begin with"""
    _moves: int

    def __init__(
        self,
        world: "World",
        batch_size: int = 1,
        seeds: Iterable[int] | None = None,
        *,
        steps: int | None = None,
        temperature: float = 1.0,
        starts: Starts = "opening",
        compile: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        """Set up the slots; nothing is generated before :meth:`reset`.

        Args:
            world: the world.
            batch_size: slots B.
            seeds: one seed a slot; None seeds each from the operating system.
            steps: denoising steps per chunk, default the world's.
            temperature: factor on the initial noise.
            starts: "opening" draws resets from the real openings, "any" from all clips of the bank.
            compile: :meth:`step` runs the DiT through ``torch.compile``; its first call compiles,
                which takes a minute or more. Results agree with those of the ordinary step within
                1e-4. docs/benchmarks.md says what it gains.
            cuda_graph: :meth:`step` replays one CUDA graph of denoising, clean pass and decode;
                its first call captures it. A fork is an ordinary rollout.

        Raises:
            ConfigError: a value outside what is named here.
        """
        sampling = world.config.sampling
        batch_size = check_count("batch_size", batch_size)
        if starts not in ("opening", "any"):
            raise ConfigError(f"starts {starts!r} is not one of 'opening', 'any'")
        if not isinstance(temperature, Real) or not 0 <= temperature < math.inf:
            raise ConfigError(f"temperature {temperature!r}: a number, 0 or more, is needed")
        self.world = world
        self._moves = world.moves
        self.batch_size = batch_size
        self.steps = check_count("steps", sampling.num_steps if steps is None else steps)
        self.temperature = temperature
        self.starts = starts
        self.sampler = ChunkSampler(world, self.steps)
        self.generators = [torch.Generator() for _ in range(batch_size)]
        self.seed(range(batch_size), seeds)
        self.chunk_index = torch.zeros(batch_size, dtype=torch.int64, device="cpu")
        self.cache = self.sampler.new_cache(batch_size)
        self.time = [0] * batch_size
        self.ready = [False] * batch_size
        self.clips = ClipStarts(self.sampler)
        self._fixed: FixedStep | None = None
        if compile or cuda_graph:
            self._fixed = FixedStep(
                self.sampler, self.cache, compile=compile, cuda_graph=cuda_graph
            )

    @property
    def device(self) -> torch.device:
        """Device of the tensors that come out."""
        return self.world.device

    def seed(self, slots: Sequence[int], seeds: Iterable[int] | None) -> None:
        """Seed the generators of these slots, one seed each; None asks the operating system.

        Raises:
            ConfigError: not one seed a slot, or one outside 0 to 2**64 - 1; nothing has changed.
        """
        if seeds is None:
            for slot in slots:
                self.generators[slot].seed()
            return
        values = check_seeds(seeds, len(slots))  # all of them before the first generator moves
        for slot, seed in zip(slots, values, strict=True):
            self.generators[slot].manual_seed(seed)

    # ---------------------------------------------------------------- step

    @fast
    def step(self, prompts: Sequence[str]) -> Chunk:
        """Generate the next chunk of every slot.

        Order: prompts are encoded (cached), noise from each slot's generator, denoising steps,
        clean pass, outcome heads, one uniform draw a slot (also when the probability is 0).
        An error leaves the rollout as it was, generators included.

        Args:
            prompts: one text a slot.

        Returns:
            One row a slot.

        Raises:
            NotReset: a slot was never reset.
            PromptError: a prompt that cannot be used, or not one a slot.
            ConfigError: the world was moved to another device or dtype since.
        """
        self._require_ready(range(self.batch_size))
        check_prompts(prompts, self.batch_size, self.world.check_prompt)
        before = [generator.get_state() for generator in self.generators]
        try:
            slots = range(self.batch_size)
            places = self._places(slots)
            if self._fixed is None:
                latents = self.sampler.denoise(self._noise(slots), prompts, places)
                chunk = self.sampler.clean_pass(latents, prompts, places)
            else:
                chunk = self._fixed.step(self._noise(slots), prompts, places)
            draws = [torch.rand((), generator=one, **_DRAWN) for one in self.generators]
        except BaseException:
            for generator, state in zip(self.generators, before, strict=True):
                generator.set_state(state)
            raise
        self._advance(slots)
        terminated = torch.stack(draws).to(self.device) < chunk.termination_probability
        return replace(chunk, terminated=terminated)

    def _noise(self, slots: Sequence[int]) -> Tensor:
        """Initial noise from the slots' own generators, `[n, C, P, H, W]`."""
        shape = self.world.config.latent_shape
        noise = [torch.randn(shape, generator=self.generators[slot], **_DRAWN) for slot in slots]
        return torch.stack(noise).to(self.device) * self.temperature

    def _places(self, slots: Sequence[int]) -> Places:
        return Places(self.cache, slots, [self.time[slot] for slot in slots])

    def _advance(self, slots: Sequence[int]) -> None:
        self.cache.advance(slots)
        for slot in slots:
            self.time[slot] += 1
        self.chunk_index[list(slots)] += 1

    def require_unmoved(self) -> None:
        """Raise `ConfigError` if the world was moved to another device or dtype since."""
        keys, world = self.cache.keys_LRKD, self.world
        here = keys.dtype == world.dtype and keys.device == world.device
        if not here or world.moves != self._moves:  # there and back: a cast has lost bits
            raise ConfigError(
                f"the world was moved since this rollout began with {keys.dtype} on {keys.device} "
                f"(it is now in {world.dtype} on {world.device}): make a new one"
            )

    def _require_ready(self, slots: Iterable[int]) -> None:
        self.require_unmoved()
        waiting = [slot for slot in slots if not self.ready[slot]]
        if waiting:
            raise NotReset(f"slots {waiting} were never reset: call reset() first")

    # ---------------------------------------------------------------- observe

    @fast
    def observe(
        self,
        latents: Any,
        prompts: Sequence[str | None],
        slots: Sequence[int] | None = None,
    ) -> Chunk:
        """Append one given chunk a slot by one clean pass; draws nothing.

        Args:
            latents: tensor or array `[n, C, P, H, W]`, as :meth:`magi_world.world.World.encode`
                scales them.
            prompts: the prompt that each chunk had; None for "no prompt".
            slots: which slots, default all.

        Returns:
            One row per slot named; ``terminated`` is False.

        Raises:
            NotReset, PromptError, ConfigError: as :meth:`step`, or latents of another shape.
        """
        chosen = check_slots(slots, self.batch_size)
        self._require_ready(chosen)
        expected = (len(chosen), *self.world.config.latent_shape)
        given = as_latents(latents, ConfigError)
        if tuple(given.shape) != expected:
            raise ConfigError(f"latents {tuple(given.shape)}: expected {expected}")
        check_prompts(prompts, len(chosen), self.world.check_prompt, given=True)
        x = given.to(self.device, torch.float32)
        # at a fixed width, so that a slot's bits do not depend on how many others observe
        if slots is None:
            chunk = self.sampler.clean_pass(x, prompts, self._places(chosen))
            self._advance(chosen)
            return chunk
        rows = [
            self.sampler.clean_pass(x[index : index + 1], [prompts[index]], self._places([slot]))
            for index, slot in enumerate(chosen)
        ]
        self._advance(chosen)
        return concatenate(rows)

    # ---------------------------------------------------------------- reset

    @fast
    def reset(
        self,
        slots: Sequence[int] | None = None,
        *,
        seeds: Iterable[int] | None = None,
        clip: int | Sequence[int] | None = None,
        image: Any = None,
        video: Any = None,
        latents: Any = None,
        prompts: Sequence[str | None] | None = None,
        prompt: str | None = None,
    ) -> Chunk:
        """Begin anew in these slots, and in no other.

        Without a start among the arguments an opening of the bank is drawn from the slot's
        generator (with ``starts="any"`` any clip of the bank).

        Args:
            slots: which slots, default all.
            seeds: one seed per slot named; None lets their generators go on.
            clip: index of a clip of the bank, or one a slot.
            image: uint8 `[H, W, 3]`, repeated to fill a chunk.
            video: uint8 `[T, H, W, 3]`, cropped at the front to whole chunks.
            latents: float `[m, C, P, H, W]`, the chunks of a history, as the world encodes them.
            prompts: the captions of such a history, one a chunk; default "no prompt".
            prompt: chunk 0 is generated under this text, with no history.

        Returns:
            The last chunk of the history, one row per slot named, reward 0.

        Raises:
            ResetOptionError: two starts at once, or one that cannot be used.
            ConfigError: the world was moved to another device or dtype since.
        """
        self.require_unmoved()
        chosen = check_slots(slots, self.batch_size)
        history_of = {"image": image, "video": video, "latents": latents}
        given = {"clip": clip, **history_of, "prompt": prompt}
        named = [name for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise ResetOptionError(f"at most one of {', '.join(given)} can be given, got {named}")
        continues = bool(named) and named[0] in history_of
        if prompts is not None and not continues:
            raise ResetOptionError("prompts are the captions of an image or video: give one too")
        if prompt is not None:
            self.world.check_prompt(prompt)
        history = self.world.history(**history_of, prompts=prompts) if continues else None
        clips = chosen_clips(clip, len(chosen), len(self.world.bank))
        bank = self.world.bank
        if not named and not (bank.num_openings if self.starts == "opening" else len(bank)):
            raise ResetOptionError(
                f"the world {self.world.name!r} has no clips to start from: reset with image, "
                "video or prompt"
            )
        before = [self.generators[slot].get_state() for slot in chosen]
        try:
            if seeds is not None:
                self.seed(chosen, seeds)
            if history is not None:
                begun = [replayed(self.sampler, *history)] * len(chosen)
            elif prompt is not None:
                begun = [generated(self.sampler, self._noise([slot]), prompt) for slot in chosen]
            else:
                if clips is None:
                    clips = [self._drawn_clip(slot) for slot in chosen]
                begun = [self.clips.start(clip) for clip in clips]
        except BaseException:  # the slots go on as if nobody had asked
            for slot, state in zip(chosen, before, strict=True):
                self.generators[slot].set_state(state)
            raise
        for slot, start in zip(chosen, begun, strict=True):
            self.cache.copy_slot(slot, start.cache, 0)
            self.time[slot] = start.length
            self.ready[slot] = True
            self.chunk_index[slot] = 0
        return concatenate([start.chunk.clone() for start in begun])

    def _drawn_clip(self, slot: int) -> int:
        """A clip of the bank, drawn from the slot's generator."""
        choices = self.world.bank.num_openings if self.starts == "opening" else len(self.world.bank)
        return int(torch.randint(choices, (), generator=self.generators[slot], device="cpu"))

    def prepare_clips(self, side_by_side: int = 64) -> None:
        """Replay all clips of the bank ahead, so that resets to them only copy.

        It takes some 0.5 MB a clip in a shipped world. The starts agree with those of a reset that
        replays its clip alone to rounding.
        """
        self.clips.prepare(side_by_side)

    # ---------------------------------------------------------------- save, restore, branch

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the future: cache, time, generators, counters. All copies."""
        return saved_state.save(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, bit-exactly on the same machine.

        Raises:
            CheckpointError: no state, or one of another world, of other weights, dtype, batch size
                or geometry; nothing has changed.
        """
        saved_state.restore(self, state)

    def fork(
        self,
        slots: Sequence[int],
        seeds: Iterable[int] | None = None,
        *,
        steps: int | None = None,
        temperature: float | None = None,
    ) -> "Rollout":
        """Copy slots into a new rollout that shares nothing mutable with this one.

        Args:
            slots: one per new slot; a slot may be named several times.
            seeds: one per new slot; None copies the generators (exact replay).
            steps: denoising steps per chunk of the copy, default those of this rollout.
            temperature: factor on the initial noise of the copy, default this rollout's.

        Raises:
            ConfigError: an unknown slot, not one seed per new slot, a wrong setting, or the world
                was moved to another device or dtype since.
        """
        return saved_state.fork(self, slots, seeds, steps=steps, temperature=temperature)
