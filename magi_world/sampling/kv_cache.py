"""The fixed-size KV cache: a ring of chunk places for every slot.

A slot's ring holds the finished chunks that may still be seen, its history, and as many places
ahead of it as chunks are denoised together, its window. Those write their keys and values into
their places on every forward, so one tensor serves the attention and nothing is concatenated. The
clean pass overwrites the first place ahead, and advancing the ring turns it into history and the
oldest chunk into the last place ahead. What a chunk may see is told to the attention as slices
over the tensor's rows; places that hold nothing are in no slice.

Shape suffixes: L layers, R = slots * places * n rows, n tokens per chunk, K groups, D head width.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from magi_world.errors import CheckpointError
from magi_world.kernels.attention import AttnSlices
from magi_world.kernels.rope.write import CacheRows
from magi_world.models.layers import KVMemory
from magi_world.offload.kv_rows import DeviceRows, HostRows, KVRows
from magi_world.sampling.saved_state import check_like

Sight = tuple[int, int, int | None]
"""slot, chunks between its history and this one, KV range (None: everything that is held)"""


@lru_cache(maxsize=64)
def _ring_slices(
    visible: tuple[tuple[int, tuple[int, ...]], ...], places: int, tokens: int, whole_rings: bool
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
    return AttnSlices.from_list(rows, key_block=block if whole_rings else None)


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
        window: int = 1,
        history: int | None = None,
        whole_rings: bool = True,
        on_host: bool = False,
        latent_shape: tuple[int, ...] = (0,),
    ) -> None:
        """Allocate the rings.

        Args:
            slots: independent rings.
            places: chunks in a ring, history and window.
            tokens: tokens n of a chunk.
            layers, groups, head_dim: geometry of the keys.
            dtype, device: of keys and values as the attention reads them.
            window: places ahead of the history.
            history: most chunks of the history; None: places - window. More of it is for short
                videos, whose last chunks have fewer than a window ahead of them.
            whole_rings: the attention works on whole rings under a mask, so that the bits of a slot
                do not depend on how much the others have seen; False touches only what is visible.
            on_host: keep the rows in host memory, two layers of them on the device.
            latent_shape: of a chunk where the model reads the newest one itself, beside its keys
                and values.
        """
        self.slots, self.places, self.tokens, self.window = slots, places, tokens, window
        self.history = places - window if history is None else history
        self.dtype, self.device, self.whole_rings = dtype, device, whole_rings
        shape = (layers, slots * places * tokens, groups, head_dim)
        rows = HostRows if on_host else DeviceRows
        self.rows: KVRows = rows(shape, dtype, device)
        self._opened: list[int] = []
        self.newest = torch.zeros(slots, *latent_shape, dtype=torch.float32, device=device)
        """latents of the last finished chunk of every slot, zeros before the first"""
        self._finished = torch.zeros_like(self.newest)
        self.scratch = [0] * slots
        """ring place of the first chunk ahead of each slot's history"""
        self.filled = [0] * slots
        """finished chunks that each slot holds, at most `history`"""

    @property
    def keys_LRKD(self) -> Tensor:
        """All keys."""
        return self.rows.keys_LRKD

    @property
    def values_LRKD(self) -> Tensor:
        """All values."""
        return self.rows.values_LRKD

    def open(self, chunks: Sequence[int | Sight]) -> AttnSlices:
        """Point the next forward at the places of its chunks; return its mask.

        Args:
            chunks: a slot stands for the next chunk of that slot, seeing everything; otherwise
                what a chunk sees is its KV range, and of that what is held.
        """
        sights = [(chunk, 0, None) if isinstance(chunk, int) else chunk for chunk in chunks]
        own = [slot * self.places + self._place(slot, ahead) for slot, ahead, _ in sights]
        if own != self._opened:
            self.rows.open([(place * self.tokens, (place + 1) * self.tokens) for place in own])
            self._opened = own
        visible = tuple((sight[0], self._visible(*sight)) for sight in sights)
        return _ring_slices(visible, self.places, self.tokens, self.whole_rings)

    def seen(self, slot: int, ahead: int, width: int | None) -> int:
        """How many chunks a chunk sees, itself included."""
        held = self.filled[slot] + ahead + 1
        return held if width is None else min(width, held)

    def _place(self, slot: int, ahead: int) -> int:
        return (self.scratch[slot] + ahead) % self.places

    def _visible(self, slot: int, ahead: int, width: int | None) -> tuple[int, ...]:
        """Places that a chunk sees, its own included, ascending."""
        seen = self.seen(slot, ahead, width)
        return tuple(sorted(self._place(slot, ahead - back) for back in range(seen)))

    def extend(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> tuple[Tensor, Tensor]:
        """Write the rows of the opened chunks; return all rows."""
        return self.rows.extend(layer, k_TKD, v_TKD)

    def place(self, layer: int) -> CacheRows | None:
        """See :class:`~magi_world.models.layers.KVMemory`; rows in host memory have none."""
        return self.rows.place(layer) if isinstance(self.rows, DeviceRows) else None

    def finish(self, slots: Sequence[int], latents: Tensor) -> None:
        """Note the chunks whose keys and values are in the scratch places of these slots."""
        if self.newest.shape[1:].numel():
            self._finished[list(slots)] = latents.to(self._finished.dtype)

    def advance(self, slots: Sequence[int]) -> None:
        """Turn the first place ahead of these slots' history into history."""
        self.newest[list(slots)] = self._finished[list(slots)]
        for slot in slots:
            self.filled[slot] = min(self.filled[slot] + 1, self.history)
            self.scratch[slot] = (self.scratch[slot] + 1) % self.places

    def clear(self, slot: int) -> None:
        """Forget the history of a slot.

        Its rows are zeroed: masked keys add nothing, but 0 * NaN would.
        """
        self.rows.edit()
        self.keys_LRKD[:, self._ring(slot)] = 0
        self.values_LRKD[:, self._ring(slot)] = 0
        self.newest[slot] = 0
        self.filled[slot] = self.scratch[slot] = 0

    def _ring(self, slot: int) -> slice:
        size = self.places * self.tokens
        return slice(slot * size, (slot + 1) * size)

    def copy_slot(self, slot: int, source: "KVCache", source_slot: int) -> None:
        """Take over the whole ring of another cache's slot (same geometry)."""
        self.rows.edit()
        source.rows.edit()
        here, there = self._ring(slot), source._ring(source_slot)
        self.keys_LRKD[:, here] = source.keys_LRKD[:, there]
        self.values_LRKD[:, here] = source.values_LRKD[:, there]
        self.newest[slot] = source.newest[source_slot]
        self.scratch[slot] = source.scratch[source_slot]
        self.filled[slot] = source.filled[source_slot]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the cache holds, copied."""
        self.rows.edit()
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
        counts = {"scratch": torch.tensor(self.scratch), "filled": torch.tensor(self.filled)}
        own = self._saved_tensors() | counts
        missing = [name for name in own if not isinstance(state, Mapping) or name not in state]
        if missing:
            raise CheckpointError(f"the state of the cache lacks {', '.join(missing)}")
        rows = "layers, slots * places * tokens, groups, head width"
        axes = {"keys": rows, "values": rows, "newest": "slots, then a chunk"}
        for name, tensor in own.items():
            check_like(f"cache {name}", state[name], tensor, axes.get(name, "slots"))
        for name in counts:
            places = state[name].tolist()
            if not all(0 <= p < self.places for p in places):
                raise CheckpointError(
                    f"cache {name} {places}: {self.slots} of 0…{self.places - 1} are needed"
                )

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a saved state.

        Raises:
            CheckpointError: as :meth:`check_state`; nothing has changed.
        """
        self.check_state(state)
        self.rows.edit()
        for name, target in self._saved_tensors().items():
            target.copy_(state[name])
        self.scratch = [int(place) for place in state["scratch"]]
        self.filled = [int(count) for count in state["filled"]]
