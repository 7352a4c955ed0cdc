"""The ring of keys and values, against lists that simply forget their oldest chunk."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magi_world.errors import CheckpointError
from magi_world.kernels.attention.reference import dense_mask
from magi_world.sampling.kv_cache import KVCache

TOKENS, GROUPS, WIDTH, LAYERS = 2, 1, 3, 2


def make_cache(slots: int, places: int) -> KVCache:
    return KVCache(
        slots=slots, places=places, tokens=TOKENS, layers=LAYERS, groups=GROUPS, head_dim=WIDTH,
        dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip


def write(cache: KVCache, slots: Sequence[int], marks: Sequence[int]) -> list[list[int]]:
    """One forward: write a mark for each slot's chunk; return the marks that each chunk sees."""
    slices = cache.open(slots)
    rows = torch.tensor(marks).repeat_interleave(TOKENS)[:, None, None].expand(-1, GROUPS, WIDTH)
    for layer in range(LAYERS):
        keys, values = cache.extend(layer, rows + 0.1 * layer, -rows - 0.1 * layer)
        assert torch.equal(keys, -values)
    mask = dense_mask(slices, len(slots) * TOKENS, keys.shape[0])
    seen = []
    for index in range(len(slots)):
        block = mask[index * TOKENS : (index + 1) * TOKENS]
        assert (block == block[:1]).all()  # all tokens of a chunk see the same
        found = keys[block[0], 0, 0].round().int().tolist()
        assert found[::TOKENS] == found[1::TOKENS]  # whole chunks
        seen.append(sorted(found[::TOKENS]))
    return seen


operations = st.lists(
    st.one_of(
        st.tuples(st.just("finish"), st.sets(st.integers(0, 2), min_size=1)),
        st.tuples(st.just("scribble"), st.sets(st.integers(0, 2), min_size=1)),
        st.tuples(st.just("clear"), st.integers(0, 2)),
        st.tuples(st.just("copy"), st.tuples(st.integers(0, 2), st.integers(0, 2))),
    ),
    max_size=25,
)


@given(st.integers(1, 5), operations)
def test_the_ring_remembers_the_last_chunks(places: int, plan: list[tuple[str, object]]) -> None:
    cache = make_cache(3, places)
    history: list[list[int]] = [[], [], []]
    mark = 0
    for name, where in plan:
        if name in ("finish", "scribble"):
            assert isinstance(where, set)
            slots = sorted(where, reverse=True)  # rows follow the order of the call
            marks = list(range(mark + 1, mark + 1 + len(slots)))
            mark += len(slots)
            expected = [sorted([*history[slot], m]) for slot, m in zip(slots, marks, strict=True)]
            assert write(cache, slots, marks) == expected
            if name == "finish":
                cache.advance(slots)
                for slot, m in zip(slots, marks, strict=True):
                    history[slot] = [*history[slot], m][-(places - 1) :] if places > 1 else []
        elif name == "clear":
            assert isinstance(where, int)
            cache.clear(where)
            history[where] = []
        else:
            assert isinstance(where, tuple)
            target, source = where
            cache.copy_slot(target, cache, source)
            history[target] = list(history[source])
        assert cache.filled == [len(chunks) for chunks in history]


def test_the_shape_of_the_call_does_not_depend_on_the_history() -> None:
    cache = make_cache(2, 4)
    for mark in range(9):
        slices = cache.open([0, 1])
        assert slices.key_block == 4 * TOKENS
        assert {row[1] - row[0] for row in slices.rows} == {TOKENS}
        write(cache, [0, 1], [mark, mark + 100])
        cache.advance([0])  # slot 1 stays empty


def test_the_same_positions_share_one_mask() -> None:
    cache = make_cache(1, 3)
    seen = []
    for mark in range(12):
        seen.append(cache.open([0]))
        write(cache, [0], [mark])
        cache.advance([0])
    assert len({id(slices) for slices in seen[2:]}) == 1  # a full ring is seen whole
    assert len({id(slices) for slices in seen[:3]}) == 3


def test_memory_is_allocated_once() -> None:
    cache = make_cache(2, 3)
    pointers = cache.keys_LRKD.data_ptr(), cache.values_LRKD.data_ptr()
    for mark in range(10):
        write(cache, [0, 1], [mark, -mark])
        cache.advance([0, 1])
    assert (cache.keys_LRKD.data_ptr(), cache.values_LRKD.data_ptr()) == pointers
    assert cache.keys_LRKD.shape == (LAYERS, 2 * 3 * TOKENS, GROUPS, WIDTH)


def test_a_saved_state_is_a_copy() -> None:
    cache, other = make_cache(2, 3), make_cache(2, 3)
    for mark in (1, 2, 3):
        write(cache, [0, 1], [mark, 10 * mark])
        cache.advance([0, 1])
    state = cache.state_dict()
    expected = write(cache, [0, 1], [7, 70])
    cache.advance([0, 1])
    for target in (other, cache):
        target.load_state_dict(state)
        assert write(target, [0, 1], [7, 70]) == expected == [[2, 3, 7], [20, 30, 70]]


@pytest.mark.parametrize(("slots", "places"), [(1, 3), (2, 4)])
def test_a_state_of_another_geometry_is_refused(slots: int, places: int) -> None:
    cache = make_cache(2, 3)
    write(cache, [0, 1], [1, 2])
    cache.advance([0, 1])
    before = cache.state_dict()
    with pytest.raises(CheckpointError, match=r"cache keys \(2, \d+, 1, 3\) do not fit"):
        cache.load_state_dict(make_cache(slots, places).state_dict())
    assert torch.equal(cache.keys_LRKD, before["keys"]) and cache.filled == [1, 1]


def test_a_cleared_slot_keeps_nothing_that_could_spread() -> None:
    cache = make_cache(2, 3)
    for slot in (0, 1):
        write(cache, [slot], [1])
    cache.keys_LRKD.fill_(torch.nan)
    cache.clear(1)
    # 0 * NaN is NaN, so a masked NaN would still reach the output
    ring = cache.keys_LRKD[:, 3 * TOKENS :]
    assert (ring == 0).all() and cache.keys_LRKD[:, : 3 * TOKENS].isnan().all()


def test_the_newest_chunk_is_that_of_the_last_advance() -> None:
    cache = KVCache(
        slots=2, places=3, tokens=TOKENS, layers=LAYERS, groups=GROUPS, head_dim=WIDTH,
        dtype=torch.float32, device=torch.device("cpu"), latent_shape=(2, 1),
    )  # fmt: skip
    first, second = torch.ones(2, 2, 1), torch.full((1, 2, 1), 5.0)
    cache.finish([0, 1], first)
    assert cache.newest.eq(0).all()  # not before the chunk counts
    cache.advance([0, 1])
    cache.finish([1], second)
    cache.advance([1])
    assert cache.newest[0].eq(1).all() and cache.newest[1].eq(5).all()
    copy = KVCache(
        slots=2, places=3, tokens=TOKENS, layers=LAYERS, groups=GROUPS, head_dim=WIDTH,
        dtype=torch.float32, device=torch.device("cpu"), latent_shape=(2, 1),
    )  # fmt: skip
    copy.load_state_dict(cache.state_dict())
    copy.copy_slot(0, cache, 1)
    assert copy.newest.eq(5).all()
    copy.clear(0)
    assert copy.newest[0].eq(0).all() and copy.newest[1].eq(5).all()


def make_ring(places: int, window: int, *, on_host: bool = False) -> KVCache:
    return KVCache(
        slots=1, places=places, tokens=TOKENS, layers=LAYERS, groups=GROUPS, head_dim=WIDTH,
        dtype=torch.float32, device=torch.device("cpu"), window=window, whole_rings=False,
        on_host=on_host,
    )  # fmt: skip


@given(
    history=st.integers(0, 5), window=st.integers(1, 4), calls=st.integers(1, 12),
    on_host=st.booleans(), data=st.data(),
)  # fmt: skip
def test_a_window_sees_its_ranges(
    history: int, window: int, calls: int, on_host: bool, data: st.DataObject
) -> None:
    cache = make_ring(history + window, window, on_host=on_host)
    finished: list[int] = []
    mark = 0
    for _ in range(calls):
        size = data.draw(st.integers(1, window))
        widths = [data.draw(st.one_of(st.none(), st.integers(1, history + 1))) for _ in range(size)]
        own = list(range(mark + 1, mark + 1 + size))
        mark += size
        slices = cache.open([(0, ahead, width) for ahead, width in enumerate(widths)])
        rows = torch.tensor(own).repeat_interleave(TOKENS)[:, None, None].float()
        for layer in range(LAYERS):
            keys, _ = cache.extend(layer, *[rows.expand(-1, GROUPS, WIDTH)] * 2)
        mask = dense_mask(slices, size * TOKENS, keys.shape[0])
        for ahead, width in enumerate(widths):
            seen = [*finished, *own[: ahead + 1]]
            expected = seen if width is None else seen[-width:]
            found = keys[mask[ahead * TOKENS], 0, 0].int().tolist()
            assert sorted(found[::TOKENS]) == expected
            assert cache.seen(0, ahead, width) == len(expected)
        for chunk in own[: data.draw(st.integers(0, size))]:
            cache.advance([0])
            finished = [*finished, chunk][-history:] if history else []


def test_a_narrow_range_costs_no_masked_keys() -> None:
    cache = make_ring(6, 2)
    for _ in range(9):
        cache.advance([0])
    slices = cache.open([(0, 0, 1), (0, 1, 2)])
    assert slices.key_block is None
    assert sum(row[3] - row[2] for row in slices.rows) == 3 * TOKENS
