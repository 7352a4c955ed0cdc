"""Pictures larger than the VAE was trained on, in overlapping tiles (golden README section 7).

A tile is 256x256 pixels and half a second. Tiles overlap in space by a quarter and are blended
over the overlap; in time they stand side by side.

Shape suffixes: N batch, C channels, Z latent channels, T frames, H rows, W columns in pixels;
t, h, w the latent grid.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from magi_world.errors import ConfigError
from magi_world.models.vae import VitVAE

Compat = Literal["magi-1"] | None

_TILE_PIXELS = 256
_AXES = (2, 3, 4)  # time, rows, columns of [N, C, T, H, W]


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Size and overlap of the tiles.

    Raises:
        ConfigError: sizes or overlaps for which the tiles of pixels and of latents do not match.
    """

    length: int
    """frames of a tile"""
    height: int = _TILE_PIXELS
    """rows of pixels of a tile"""
    width: int = _TILE_PIXELS
    """columns of pixels of a tile"""
    spatial_overlap: float = 0.25
    """share of a tile's rows and columns that the next one covers too"""
    temporal_overlap: float = 0.0
    """the same for its frames"""

    def __post_init__(self) -> None:
        for name in ("length", "height", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"tiling {name} {getattr(self, name)}: 1 or more is needed")
        for name in ("spatial_overlap", "temporal_overlap"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"tiling {name} {getattr(self, name)} is outside [0, 1)")

    @classmethod
    def published(cls, fps: int, patch_length: int) -> Self:
        """Tiles of half a second, in whole latent frames: 12 frames for 24 frames a second."""
        return cls(length=max(1, fps // 2 // patch_length) * patch_length)

    def axes(self, vae: VitVAE) -> tuple["_Axis", "_Axis", "_Axis"]:
        """Tiles along time, rows and columns for a VAE.

        Raises:
            ConfigError: tiles that are not whole patches, or overlaps that leave no step.
        """
        patches = (vae.config.patch_length, vae.config.patch_size, vae.config.patch_size)
        sizes = (self.length, self.height, self.width)
        overlaps = (self.temporal_overlap, self.spatial_overlap, self.spatial_overlap)
        time, rows, columns = map(_Axis, sizes, overlaps, patches)
        return time, rows, columns


class _Axis:
    """Tiles along one axis, in pixels (or frames) and in latents."""

    def __init__(self, tile: int, overlap: float, patch: int) -> None:
        self.tile, self.patch = tile, patch
        self.stride = int(tile * (1 - overlap))
        self.latent_tile = tile // patch
        self.latent_stride = int(self.latent_tile * (1 - overlap))
        self.blend = int(tile * overlap)
        self.latent_blend = int(self.latent_tile * overlap)
        whole = tile % patch == 0 and self.latent_stride >= 1
        steps = (self.latent_stride, self.latent_tile - self.latent_blend)
        if not whole or {s * patch for s in steps} | {tile - self.blend} != {self.stride}:
            raise ConfigError(
                f"tiles of {tile} with overlap {overlap} do not match the patches of {patch}: "
                "tile and step must be whole patches, in pixels and in latents alike"
            )

    def starts(self, size: int, latent: bool, compat: Compat) -> range:
        """Where tiles begin. The published layout cuts a piece off even what fits one tile."""
        tile, stride = self._sizes(latent)
        if compat is None and size <= tile:
            return range(0, 1)
        return range(0, size, stride)

    def slices(self, size: int, latent: bool, compat: Compat) -> list[slice]:
        """The tiles themselves, clipped at the border."""
        tile, _ = self._sizes(latent)
        return [slice(s, min(s + tile, size)) for s in self.starts(size, latent, compat)]

    def _sizes(self, latent: bool) -> tuple[int, int]:
        return (self.latent_tile, self.latent_stride) if latent else (self.tile, self.stride)


def tiled_encode(
    vae: VitVAE, video: Tensor, tiling: Tiling | None, *, compat: Compat = None
) -> Tensor:
    """Encode pixels `[N, 3, T, H, W]` in [-1, 1] to the posterior mean `[N, Z, t, h, w]`.

    Args:
        vae: encodes one tile at a time.
        video: whole patches in every axis, or a single frame.
        tiling: None encodes all at once.
        compat: "magi-1" splits what fits one tile too, as published.

    Raises:
        ConfigError: a size that is not a whole number of patches, or tiles that do not match.
    """
    vae.check_pixels(video)
    if tiling is None:
        return vae.encode(video)
    axes = tiling.axes(vae)
    kept = (axes[0].latent_stride, axes[1].latent_stride, axes[2].latent_stride)
    blends = (axes[0].latent_blend, axes[1].latent_blend, axes[2].latent_blend)
    tiles = _Tiles(video, axes, latent=False, compat=compat)
    return tiles.assemble(vae.encode, kept, blends, cascade=True)


def tiled_decode(vae: VitVAE, z: Tensor, tiling: Tiling | None, *, compat: Compat = None) -> Tensor:
    """Decode unscaled latents `[N, Z, t, h, w]` to pixels `[N, 3, T, H, W]` near [-1, 1].

    Args:
        vae: decodes one tile at a time.
        z: latents, not multiplied by the scale factor.
        tiling: None decodes all at once.
        compat: None gives four frames for every latent frame. "magi-1" splits what fits one tile
            too, and a tile of one latent frame gives one frame, as published: 4 latent frames in
            tiles of 3 become 13 frames.

    Raises:
        ConfigError: tiles that do not match the patches.
    """

    def decode(tile: Tensor) -> Tensor:
        return vae.decode(tile, single_frame=compat is not None and tile.shape[2] == 1)

    if tiling is None:
        return decode(z)
    axes = tiling.axes(vae)
    kept = (axes[0].stride, axes[1].stride, axes[2].stride)
    blends = (axes[0].blend, axes[1].blend, axes[2].blend)
    tiles = _Tiles(z, axes, latent=True, compat=compat)
    return tiles.assemble(decode, kept, blends, cascade=False)


class _Tiles:
    """The tiles of one input, in raster order."""

    def __init__(
        self, x: Tensor, axes: tuple[_Axis, _Axis, _Axis], *, latent: bool, compat: Compat
    ) -> None:
        self.x = x
        self.slices = [
            axis.slices(size, latent, compat) for axis, size in zip(axes, x.shape[2:], strict=True)
        ]

    def planes(self, run: Callable[[Tensor], Tensor]) -> Iterator[list[list[Tensor]]]:
        """Run the tiles of one moment after the other, as rows of columns."""
        times, rows, columns = self.slices
        for t in times:
            yield [[run(self.x[:, :, t, h, w]) for w in columns] for h in rows]

    def assemble(
        self,
        run: Callable[[Tensor], Tensor],
        kept: tuple[int, int, int],
        blends: tuple[int, int, int],
        *,
        cascade: bool,
    ) -> Tensor:
        """Run, blend, crop and join all tiles.

        Args:
            run: one tile to its result.
            kept: what remains of a tile's result per axis.
            blends: how far a result is blended into its predecessor per axis.
            cascade: predecessors are already blended themselves (as encoding does it), else raw.
        """
        done = []
        before: list[list[Tensor]] | None = None
        for plane in self.planes(run):
            blended = _blend_plane(plane, before, blends, cascade)
            rows = [_join(row, kept[2], axis=4) for row in blended]
            done.append(_join(rows, kept[1], axis=3))
            before = (blended if cascade else plane) if blends[0] else None
        return _join(done, kept[0], axis=2)


def _join(tiles: list[Tensor], kept: int, axis: int) -> Tensor:
    """Put neighbours together, each cut where the next one begins; the last one stays whole."""
    cut = [tile.narrow(axis, 0, min(kept, tile.shape[axis])) for tile in tiles[:-1]]
    return torch.cat([*cut, tiles[-1]], dim=axis)


def _blend_plane(
    plane: list[list[Tensor]],
    before: list[list[Tensor]] | None,
    blends: tuple[int, int, int],
    cascade: bool,
) -> list[list[Tensor]]:
    """Blend every tile with the one before it, the one above and the one to the left."""
    result: list[list[Tensor]] = []
    for i, row in enumerate(plane):
        result.append([])
        for j, tile in enumerate(row):
            source = result if cascade else plane
            if before is not None:
                tile = _blend(before[i][j], tile, blends[0], _AXES[0])
            if i:
                tile = _blend(source[i - 1][j], tile, blends[1], _AXES[1])
            if j:
                tile = _blend(source[i][j - 1], tile, blends[2], _AXES[2])
            result[i].append(tile)
    return result


def _blend(a: Tensor, b: Tensor, extent: int, axis: int) -> Tensor:
    """Fade from the end of ``a`` to the beginning of ``b``; returns a new ``b``."""
    extent = min(extent, a.shape[axis], b.shape[axis])
    if extent == 0:
        return b
    shape = [1] * b.ndim
    shape[axis] = extent
    weight = (torch.arange(extent, dtype=torch.float64) / extent).view(shape)
    end = a.narrow(axis, a.shape[axis] - extent, extent)
    start = b.narrow(axis, 0, extent)
    mixed = end * (1 - weight).to(b) + start * weight.to(b)
    rest = b.narrow(axis, extent, b.shape[axis] - extent)
    return torch.cat([mixed, rest], dim=axis)
