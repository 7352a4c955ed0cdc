"""Tile lists against the dense mask, and the mask that is refilled on a device."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magi_world.kernels.attention import (
    AttnSlices,
    DeviceSlices,
    SliceError,
    attention,
    builders,
)
from magi_world.kernels.attention.device_slices import TilePlan, tile_plan
from magi_world.kernels.attention.reference import dense_mask
from magi_world.kernels.attention.tiles import TileList, padded, tile_lists
from tests.kernels.test_attention import inputs, masks

Q, K = 13, 24


def entries(lists: TileList) -> list[list[tuple[int, int]]]:
    """(tile, owner) of every entry, by tile of this side; full ones come first."""
    result = []
    for start, split, end in zip(lists.starts, lists.splits, lists.ends, strict=True):
        assert (lists.owners[start:split] == -1).all() and (lists.owners[split:end] >= 0).all()
        pairs = zip(lists.tiles[start:end], lists.owners[start:end], strict=True)
        result.append([(int(tile), int(owner)) for tile, owner in pairs])
    lengths = [len(row) for row in result]
    assert sorted(lists.order) == list(range(len(lengths)))
    assert [lengths[i] for i in lists.order] == sorted(lengths, reverse=True)
    return result


@given(masks(queries=Q, keys=K), st.sampled_from([2, 3, 4, 16]), st.sampled_from([2, 5, 8, 32]))
def test_tile_lists_hold_what_the_mask_needs(mask: AttnSlices, block_q: int, block_k: int) -> None:
    lists = tile_lists(mask, (Q, K), block_q, block_k)
    dense = dense_mask(mask, Q, K).numpy()
    covered = np.zeros((Q, K), np.int64)
    listed = []
    for i, row in enumerate(entries(lists.by_query)):
        for j, owner in row:
            tile = (slice(i * block_q, (i + 1) * block_q), slice(j * block_k, (j + 1) * block_k))
            listed.append((i, j, owner))
            if owner == -1:
                assert (j + 1) * block_k <= K and dense[tile].all()
                covered[tile] += 1
            else:
                one = AttnSlices.from_list([lists.slices[owner]])
                part = dense_mask(one, Q, K).numpy()[tile]
                assert part.any()  # a tile that needs nothing is in no list
                covered[tile] += part
    assert np.array_equal(covered, dense)
    turned = [(i, j, o) for j, row in enumerate(entries(lists.by_key)) for i, o in row]
    assert sorted(turned) == sorted(listed)


def test_aligned_masks_have_no_partial_tiles() -> None:
    tiles = tile_lists(builders.block_causal(512, 128), (512, 512), 64, 64)
    assert (tiles.by_query.owners == -1).all()
    assert tiles.by_query.tiles.size == builders.block_causal(512, 128).area() // 64**2


@given(masks(queries=Q, keys=K))
def test_padded_tables_list_every_tile_once(mask: AttnSlices) -> None:
    lists = tile_lists(mask, (Q, K), 4, 4).by_query
    partial_count, partial, full_count, full = padded(lists, 6)
    for i, row in enumerate(entries(lists)):
        assert sorted({t for t, o in row if o >= 0}) == list(partial[i, : partial_count[i]])
        assert sorted({t for t, o in row if o < 0}) == list(full[i, : full_count[i]])


def pointers(plan: TilePlan) -> list[int]:
    sides = [*vars(plan.by_query).values(), *vars(plan.by_key).values()]
    return [plan.slices.data_ptr(), *(x.data_ptr() for x in sides)]


def test_a_refill_moves_no_buffer() -> None:
    device = DeviceSlices(num_queries=Q, num_keys=K, max_slices=8, max_tiles=64)
    plan = device.plan((4, 8))
    before = pointers(plan)
    for mask in (builders.full(Q, K), builders.sliding_window(Q, 2), AttnSlices.from_list([])):
        device.fill(mask)
        assert device.plan((4, 8)) is plan and pointers(plan) == before
        fresh = tile_plan(mask, (Q, K), (4, 8), torch.device("cpu"))
        n = fresh.by_query.tiles.numel()
        for side in ("by_query", "by_key"):
            mine, theirs = getattr(plan, side), getattr(fresh, side)
            for name in ("starts", "splits", "ends", "order"):
                assert torch.equal(getattr(mine, name), getattr(theirs, name))
            for name in ("tiles", "owners"):
                assert torch.equal(getattr(mine, name)[:n], getattr(theirs, name))


def test_a_refill_that_does_not_fit_changes_nothing() -> None:
    device = DeviceSlices(num_queries=Q, num_keys=K, max_slices=2, max_tiles=6)
    device.fill(builders.full(4, 8))
    plan = device.plan((4, 8))
    kept = [x.clone() for x in vars(plan.by_query).values()]
    for mask, words in (
        (builders.full(Q + 1, K), f"reaches to query {Q + 1}"),
        (builders.full(Q, K + 1), f"key {K + 1}"),
        (builders.full(Q, K), "12 tile entries do not fit into the 6"),
        (builders.block_causal(6, 2), "3 slices do not fit into the 2"),
    ):
        with pytest.raises(SliceError, match=words):
            device.fill(mask)
        assert device.slices.rows == builders.full(4, 8).rows
        for mine, before in zip(vars(plan.by_query).values(), kept, strict=True):
            assert torch.equal(mine, before)


def test_a_mask_is_for_calls_of_the_size_that_was_reserved() -> None:
    device = DeviceSlices(num_queries=Q, num_keys=K, max_slices=8, max_tiles=64)
    for rows, columns in ((Q + 1, K), (Q - 1, K), (Q, K + 1), (Q, K - 1)):
        for leaves in (True, False):
            q, k, v = (
                x.detach().requires_grad_(leaves)
                for x in inputs(0, rows, columns, dtype=torch.float32)
            )
            with pytest.raises(ValueError, match=f"reserved for {Q} queries and {K} keys"):
                attention(q, k, v, device)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference", "cpu", "sdpa"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_refill_after_the_forward_changes_no_gradient(backend: Any, compiled: bool) -> None:
    device = DeviceSlices(num_queries=Q, num_keys=K, max_slices=8, max_tiles=64)
    first = builders.full(Q, K)
    call = torch.compile(attention, backend="aot_eager") if compiled else attention
    found = []
    for mask, then in ((first, None), (device, builders.causal(Q, K))):
        device.fill(first)
        q, k, v = inputs(0, Q, K, dtype=torch.float32)
        out, _ = call(q, k, v, mask, backend=backend)
        if then is not None:
            device.fill(then)
        found.append(torch.autograd.grad(out.sum(), (q, k, v)))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("backend", ["auto", "reference", "cpu", "sdpa", "flex"])
def test_every_backend_takes_a_refillable_mask(backend: str) -> None:
    q, k, v = (x.detach() for x in inputs(0, Q, K, dtype=torch.float32))
    device = DeviceSlices(num_queries=Q, num_keys=K, max_slices=8, max_tiles=64)
    for mask in (builders.causal(Q, K), builders.full(4, 7)):
        device.fill(mask)
        mine = attention(q, k, v, device, backend=backend)  # type: ignore[arg-type]
        assert torch.equal(mine[0], attention(q, k, v, mask, backend=backend)[0])  # type: ignore[arg-type]
