"""The linear code: exact on data of low rank, and never better with fewer components."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_world.evaluation.metrics import Frames, SquaredError
from magi_world.evaluation.patch_pca import PatchPCA, PatchShape, cut_patches, join_patches

SHAPE = PatchShape(frames=4, size=8, components=3)


@given(n=st.integers(1, 3), t=st.integers(1, 2), h=st.integers(1, 2), w=st.integers(1, 3))
def test_cut_and_join_are_inverse(n: int, t: int, h: int, w: int) -> None:
    shape = PatchShape(frames=2, size=4, components=1)
    dims = (n, 2 * t, 4 * h, 4 * w, 3)
    chunks = np.random.default_rng(0).integers(0, 256, dims, np.uint8)
    patches = cut_patches(chunks, shape)
    assert patches.shape == (n * t * h * w, 2 * 4 * 4 * 3)
    assert (join_patches(patches, shape, dims) == chunks).all()
    first = chunks[0, :2, :4, :4].reshape(-1)
    assert (patches[0] == first).all()


def low_rank(rank: int, num_chunks: int, seed: int) -> Frames:
    """Chunks whose patches lie in a space of `rank` dimensions, up to rounding."""
    rng = np.random.default_rng(seed)
    basis = rng.uniform(-1, 1, (rank, SHAPE.values))
    weights = rng.uniform(-60 / rank, 60 / rank, (num_chunks * 4, rank))
    patches = (128 + weights @ basis).astype(np.float32)
    return join_patches(patches, SHAPE, (num_chunks, 4, 16, 16, 3))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_low_rank_data_comes_back_to_within_rounding(seed: int) -> None:
    chunks = low_rank(SHAPE.components, 16, seed)
    pca = PatchPCA(SHAPE)
    pca.add(chunks[:9])
    pca.add(chunks[9:])
    difference = pca.reconstruct(chunks).astype(int) - chunks.astype(int)
    assert abs(difference).max() <= 1


def test_more_components_are_no_worse() -> None:
    chunks = np.random.default_rng(0).integers(0, 256, (20, 4, 16, 16, 3), np.uint8)
    psnrs = []
    for components in (1, 4, 16):
        pca = PatchPCA(PatchShape(frames=4, size=8, components=components))
        pca.add(chunks)
        error = SquaredError()
        error.add(chunks, pca.reconstruct(chunks))
        psnrs.append(error.psnr)
    assert psnrs == sorted(psnrs)


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="not whole patches"):
        cut_patches(np.zeros((1, 4, 12, 16, 3), np.uint8), SHAPE)
    with pytest.raises(ValueError, match="no chunks"):
        PatchPCA(SHAPE).reconstruct(np.zeros((1, 4, 16, 16, 3), np.uint8))
