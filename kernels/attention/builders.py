"""Masks in common use.

Every builder returns a mask of a few slices; none takes time or memory in proportion to cells.
Masks that are used call after call should be built once and kept: backends keep their plans with
them.
"""

from collections.abc import Sequence
from itertools import accumulate

from magi_world.kernels.attention.errors import SliceError
from magi_world.kernels.attention.geometry import Slice, crop_slice
from magi_world.kernels.attention.slices import AttnSlices


def _positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise SliceError(f"{name} {number} is below 1")


def full(num_queries: int, num_keys: int | None = None) -> AttnSlices:
    """Every query sees every key; as many keys as queries by default."""
    keys = num_queries if num_keys is None else num_keys
    return AttnSlices.from_list([(0, num_queries, 0, keys, 0)])


def causal(num_queries: int, num_keys: int | None = None) -> AttnSlices:
    """The last query sees all keys, each one before it one key less."""
    keys = num_queries if num_keys is None else num_keys
    return AttnSlices.from_list([(0, num_queries, 0, keys, 1)])


def block_causal(num_tokens: int, block: int, *, window: int | None = None) -> AttnSlices:
    """Tokens of a block see each other and all tokens of earlier blocks.

    Args:
        num_tokens: queries and keys; the last block may be shorter.
        block: tokens of a block.
        window: blocks, its own included, that a block sees; all by default.

    Raises:
        SliceError: a block or a window below 1.
    """
    _positive(block=block, window=1 if window is None else window)
    rows = []
    for start in range(0, num_tokens, block):
        first = 0 if window is None else max(0, start - (window - 1) * block)
        end = min(start + block, num_tokens)
        rows.append((start, end, first, end, 0))
    return AttnSlices.from_list(rows)


def _band(num_tokens: int, left: int | None, right: int | None) -> list[Slice]:
    """Slices of the band -left <= k - q <= right, its corners cut off by the sequence."""
    n = num_tokens
    before = n if left is None else min(left, n)
    after = n if right is None else min(right, n)
    # the whole band is one bi-causal slice on keys -before : n + after; what lies inside remains
    band = (before, before + n, 0, n + before + after, 3)
    return [
        (q0 - before, q1 - before, k0 - before, k1 - before, kind)
        for q0, q1, k0, k1, kind in crop_slice(band, (before, before + n), (before, before + n))
    ]


def sliding_window(num_tokens: int, left: int | None, right: int | None = 0) -> AttnSlices:
    """Token q sees the tokens q - left to q + right.

    Args:
        num_tokens: queries and keys.
        left: tokens before its own that a token sees, None for all.
        right: tokens after its own, None for all; 0 makes the window causal.

    Raises:
        SliceError: a negative number.
    """
    for name, number in (("left", left), ("right", right)):
        if number is not None and number < 0:
            raise SliceError(f"{name} {number} is below 0")
    return AttnSlices.from_list(_band(num_tokens, left, right))


def varlen(
    q_lengths: Sequence[int],
    k_lengths: Sequence[int] | None = None,
    *,
    causal: bool = False,
    block: int | None = None,
) -> AttnSlices:
    """Packed samples that do not see each other.

    Args:
        q_lengths: queries of every sample.
        k_lengths: keys of every sample, by default as many as queries.
        causal: each sample is causal, aligned to its last query and key.
        block: each sample is block-causal with blocks of this many tokens.

    Raises:
        SliceError: lengths that do not pair up, are negative, or differ where a block is given.
    """
    k_lengths = q_lengths if k_lengths is None else k_lengths
    if len(q_lengths) != len(k_lengths):
        raise SliceError(f"{len(q_lengths)} query lengths but {len(k_lengths)} key lengths")
    if causal and block is not None:
        raise SliceError("causal and block exclude each other")
    if block is not None and list(q_lengths) != list(k_lengths):
        raise SliceError("block needs as many keys as queries in every sample")
    if min([*q_lengths, *k_lengths], default=0) < 0:
        raise SliceError("lengths must not be negative")
    q_ends, k_ends = accumulate(q_lengths), accumulate(k_lengths)
    rows: list[Slice] = []
    for n, m, q_end, k_end in zip(q_lengths, k_lengths, q_ends, k_ends, strict=True):
        if block is None:
            rows.append((q_end - n, q_end, k_end - m, k_end, int(causal)))
            continue
        inner = block_causal(n, block).shift(q_end - n, k_end - m)
        rows += inner.rows
    return AttnSlices.from_list(rows)


def video_window(
    history: int, window: int, tokens: int, kv_range: int | Sequence[int], *, slots: int = 1
) -> AttnSlices:
    """MAGI-1's video mask: a window of noisy chunks over the clean chunks before it.

    The keys of a slot are its clean chunks followed by the window's own; its queries are the
    window's. A chunk sees itself and the chunks before it as far as its KV range reaches, in full:
    attention is bidirectional inside a chunk and causal across chunks (MAGI-1 report, section 2).

    Args:
        history: clean chunks of a slot, 0 or more.
        window: noisy chunks of a slot.
        tokens: tokens of a chunk.
        kv_range: chunks, itself included, that a chunk may see; one number, or one for each chunk
            of the window.
        slots: rollouts packed one after the other.

    Returns:
        A mask on `slots * window * tokens` queries and `slots * (history + window) * tokens` keys.

    Raises:
        SliceError: a count below 1, a negative history, or KV ranges that are not one a chunk.
    """
    _positive(window=window, tokens=tokens, slots=slots)
    if history < 0:
        raise SliceError(f"history {history} is below 0")
    ranges = [kv_range] * window if isinstance(kv_range, int) else list(kv_range)
    if len(ranges) != window or min(ranges) < 1:
        raise SliceError(f"kv_range {kv_range}: expected {window} numbers of at least 1")
    chunks = history + window
    rows = []
    for slot in range(slots):
        for i, reach in enumerate(ranges):
            own = slot * window + i
            first, last = max(0, history + i + 1 - reach), history + i + 1
            keys = [(slot * chunks + chunk) * tokens for chunk in (first, last)]
            rows.append((own * tokens, (own + 1) * tokens, *keys, 0))
    return AttnSlices.from_list(rows)


def teacher_forcing(
    sequences: int, length: int, tokens: int, kv_range: int, *, copies: int = 1
) -> AttnSlices:
    """Training on whole sequences: a clean copy of every chunk, and noisy copies that see it.

    Packed order: all clean copies, then all first noisy copies, then all second ones, and so on,
    each in the order (sequence, chunk). A clean chunk sees the clean chunks before it and itself;
    a noisy one sees the clean chunks before it and itself, never the clean copy of itself.

    Args:
        sequences: sequences that do not see each other.
        length: chunks of a sequence.
        tokens: tokens of a chunk.
        kv_range: chunks, itself included, that a chunk may see.
        copies: noisy copies of every chunk.

    Raises:
        SliceError: a count below 1.
    """
    _positive(tokens=tokens, kv_range=kv_range)
    rows = []
    G = sequences * length
    for s in range(sequences):
        for i in range(length):
            own, first = s * length + i, s * length + max(0, i - kv_range + 1)
            q = (own * tokens, (own + 1) * tokens)
            rows.append((*q, first * tokens, (own + 1) * tokens, 0))
            for copy in range(G + own, (copies + 1) * G, G):
                q = (copy * tokens, (copy + 1) * tokens)
                if first < own:
                    rows.append((*q, first * tokens, own * tokens, 0))
                rows.append((*q, copy * tokens, (copy + 1) * tokens, 0))
    return AttnSlices.from_list(rows)
