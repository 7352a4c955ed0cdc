"""A linear code with as many numbers as the VAE's: the yardstick of the VAE's PSNR."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from magi_world.evaluation.metrics import Floats, Frames

Floats32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class PatchShape:
    """The block of pixels behind one place of the latent, and the numbers that place holds."""

    frames: int
    size: int
    components: int

    @property
    def values(self) -> int:
        """Bytes in one patch."""
        return self.frames * self.size * self.size * 3


def cut_patches(chunks: Frames, shape: PatchShape) -> Floats32:
    """Cut uint8 `[n, F, H, W, 3]` into patches, float32 `[n * F/frames * H/size * W/size, values]`.

    F, H and W must be multiples of the patch.
    """
    n, num_frames, height, width, colours = chunks.shape
    t, h, w = num_frames // shape.frames, height // shape.size, width // shape.size
    if (t * shape.frames, h * shape.size, w * shape.size) != (num_frames, height, width):
        raise ValueError(
            f"chunks of {num_frames}x{height}x{width} are not whole patches of "
            f"{shape.frames}x{shape.size}x{shape.size}"
        )
    split = chunks.reshape(n, t, shape.frames, h, shape.size, w, shape.size, colours)
    patches = split.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, shape.values)
    return patches.astype(np.float32)


def join_patches(patches: Floats, shape: PatchShape, like: tuple[int, ...]) -> Frames:
    """Undo `cut_patches` for chunks of shape `like`; values are rounded and clipped to bytes."""
    n, num_frames, height, width, colours = like
    t, h, w = num_frames // shape.frames, height // shape.size, width // shape.size
    split = patches.reshape(n, t, h, w, shape.frames, shape.size, shape.size, colours)
    joined = split.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(like)
    pixels: Frames = np.clip(np.rint(joined), 0, 255).astype(np.uint8)
    return pixels


@dataclass
class PatchPCA:
    """Principal components of patches, fitted by streaming over training chunks."""

    shape: PatchShape
    _count: int = field(default=0, init=False)
    _sum: npt.NDArray[np.float64] = field(init=False)
    _outer: npt.NDArray[np.float64] = field(init=False)
    _mean: Floats32 | None = field(default=None, init=False)
    _basis: Floats32 | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._sum = np.zeros(self.shape.values)
        self._outer = np.zeros((self.shape.values, self.shape.values))

    def add(self, chunks: Frames) -> None:
        """Count uint8 chunks `[n, F, H, W, 3]` in; a few hundred at a time keep memory small."""
        patches = cut_patches(chunks, self.shape)
        self._count += len(patches)
        self._sum += patches.sum(axis=0, dtype=np.float64)
        self._outer += patches.T @ patches
        self._mean = self._basis = None

    def reconstruct(self, chunks: Frames) -> Frames:
        """Code and decode uint8 chunks `[n, F, H, W, 3]` with the first components."""
        if self._mean is None or self._basis is None:
            self._fit()
        assert self._mean is not None and self._basis is not None
        patches = cut_patches(chunks, self.shape) - self._mean
        return join_patches(
            patches @ self._basis @ self._basis.T + self._mean, self.shape, chunks.shape
        )

    def _fit(self) -> None:
        if not self._count:
            raise ValueError("the PCA has seen no chunks: call add first")
        mean = self._sum / self._count
        covariance = self._outer / self._count - np.outer(mean, mean)
        _, vectors = np.linalg.eigh(covariance)  # ascending eigenvalues
        self._mean = mean.astype(np.float32)
        self._basis = vectors[:, -self.shape.components :].astype(np.float32)
