"""The fixed-size KV cache: a ring of chunk places for every slot.

A slot has ``kv_range`` places. All but one hold finished chunks; the remaining one is scratch: the
chunk being denoised writes its keys and values there, so one tensor serves the attention and
nothing is concatenated. The clean pass overwrites the scratch, and advancing the ring turns it
into history and the oldest chunk into the next scratch. What a slot may see is told to the
attention as slices over the tensor's rows; places that hold nothing are in no slice.

Shape suffixes: L layers, R = slots * places * n rows, n tokens per chunk, K groups, D head width.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from magi_world.errors import CheckpointError
from magi_world.kernels.attention import AttnSlices
from magi_world.models.layers import KVMemory


@lru_cache(maxsize=64)
def _ring_slices(
    visible: tuple[tuple[int, tuple[int, ...]], ...], places: int, tokens: int
) -> AttnSlices:
    """Mask of a forward: its i-th chunk belongs to a slot and sees these places of its ring."""
    rows = []
    block = places * tokens
    for index, (slot, seen) in enumerate(visible):
        run_start = previous = seen[0]
        runs = []
        for place in seen[1:]:
            if place != previous + 1:
                runs.append((run_start, previous))
                run_start = place
            previous = place
        runs.append((run_start, previous))
        q = (index * tokens, (index + 1) * tokens)
        for first, last in runs:
            base = slot * block
            rows.append((*q, base + first * tokens, base + (last + 1) * tokens, 0))
    # whole rings as key blocks: the shape of the call is the same whatever the slots have seen
    return AttnSlices.from_list(rows, key_block=block)


class KVCache(KVMemory):
    """Keys and values of the last chunks of every slot."""

    def __init__(
        self,
        *,
        slots: int,
        places: int,
        tokens: int,
        layers: int,
        groups: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        latent_shape: tuple[int, ...] = (0,),
    ) -> None:
        """Allocate everything; ``latent_shape`` is that of a chunk where the model reads the
        newest one itself, beside its keys and values."""
        self.slots, self.places, self.tokens = slots, places, tokens
        shape = (layers, slots * places * tokens, groups, head_dim)
        self.keys_LRKD = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LRKD = torch.zeros(shape, dtype=dtype, device=device)
        self.newest = torch.zeros(slots, *latent_shape, device=device)
        """latents of the last finished chunk of every slot, zeros before the first"""
        self._finished = torch.zeros_like(self.newest)
        self.scratch = [0] * slots
        """ring place that the next chunk of each slot is written to"""
        self.filled = [0] * slots
        """finished chunks that each slot holds, at most places - 1"""
        self._rows = torch.empty(0, dtype=torch.int64, device=device)

    def open(self, slots: Sequence[int]) -> AttnSlices:
        """Point the next forward at the scratch places of these slots; return its mask."""
        offsets = torch.arange(self.tokens)
        starts = torch.tensor([slot * self.places + self.scratch[slot] for slot in slots])
        rows = (starts[:, None] * self.tokens + offsets).flatten()
        self._rows = rows.to(self.keys_LRKD.device)
        visible = tuple((slot, self._visible(slot)) for slot in slots)
        return _ring_slices(visible, self.places, self.tokens)

    def _visible(self, slot: int) -> tuple[int, ...]:
        """Places that the next chunk sees, its own included, ascending."""
        newest = self.scratch[slot]
        return tuple(sorted((newest - back) % self.places for back in range(self.filled[slot] + 1)))

    def extend(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> tuple[Tensor, Tensor]:
        """Write the rows of the opened slots; return all rows."""
        keys, values = self.keys_LRKD[layer], self.values_LRKD[layer]
        keys.index_copy_(0, self._rows, k_TKD)
        values.index_copy_(0, self._rows, v_TKD)
        return keys, values

    def finish(self, slots: Sequence[int], latents: Tensor) -> None:
        """Note the chunks whose keys and values are in the scratch places of these slots."""
        if self.newest.shape[1:].numel():
            self._finished[list(slots)] = latents.to(self._finished.dtype)

    def advance(self, slots: Sequence[int]) -> None:
        """Turn the scratch of these slots into history."""
        self.newest[list(slots)] = self._finished[list(slots)]
        for slot in slots:
            self.filled[slot] = min(self.filled[slot] + 1, self.places - 1)
            self.scratch[slot] = (self.scratch[slot] + 1) % self.places

    def clear(self, slot: int) -> None:
        """Forget the history of a slot.

        Its rows are zeroed: masked keys add nothing, but 0 * NaN would.
        """
        self.keys_LRKD[:, self._ring(slot)] = 0
        self.values_LRKD[:, self._ring(slot)] = 0
        self.newest[slot] = 0
        self.filled[slot] = self.scratch[slot] = 0

    def _ring(self, slot: int) -> slice:
        size = self.places * self.tokens
        return slice(slot * size, (slot + 1) * size)

    def copy_slot(self, slot: int, source: "KVCache", source_slot: int) -> None:
        """Take over the whole ring of another cache's slot (same geometry)."""
        here, there = self._ring(slot), source._ring(source_slot)
        self.keys_LRKD[:, here] = source.keys_LRKD[:, there]
        self.values_LRKD[:, here] = source.values_LRKD[:, there]
        self.newest[slot] = source.newest[source_slot]
        self.scratch[slot] = source.scratch[source_slot]
        self.filled[slot] = source.filled[source_slot]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the cache holds, copied."""
        return {
            "keys": self.keys_LRKD.clone(),
            "values": self.values_LRKD.clone(),
            "newest": self.newest.clone(),
            "scratch": torch.tensor(self.scratch),
            "filled": torch.tensor(self.filled),
        }

    def _saved_tensors(self) -> dict[str, Tensor]:
        return {"keys": self.keys_LRKD, "values": self.values_LRKD, "newest": self.newest}

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Check that a saved state fits.

        Raises:
            CheckpointError: it lacks a part, is of another geometry or names places out of range.
        """
        tensors = self._saved_tensors()
        missing = [name for name in (*tensors, "scratch", "filled") if name not in state]
        if missing:
            raise CheckpointError(f"the state of the cache lacks {', '.join(missing)}")
        for name, target in tensors.items():
            if state[name].shape != target.shape:
                raise CheckpointError(
                    f"cache {name} {tuple(state[name].shape)} do not fit {tuple(target.shape)} "
                    "(layers, slots * places * tokens, groups, head width; newest: slots, chunk)"
                )
        for name in ("scratch", "filled"):
            places = [int(place) for place in state[name]]
            if len(places) != self.slots or not all(0 <= p < self.places for p in places):
                raise CheckpointError(
                    f"cache {name} {places}: {self.slots} of 0…{self.places - 1} are needed"
                )

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a saved state.

        Raises:
            CheckpointError: as :meth:`check_state`; nothing has changed.
        """
        self.check_state(state)
        for name, target in self._saved_tensors().items():
            target.copy_(state[name])
        self.scratch = [int(place) for place in state["scratch"]]
        self.filled = [int(count) for count in state["filled"]]
