"""Tiles of the VAE; parity with the published code is in the golden cases."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magi_world.config import VAEConfig
from magi_world.errors import ConfigError
from magi_world.models.vae import VitVAE
from magi_world.models.vae_tiling import Tiling, tiled_decode, tiled_encode

CONFIG = VAEConfig(
    video_size=16, video_length=8, patch_size=4, patch_length=4, embed_dim=64, depth=1,
    num_heads=2, z_chans=4, mlp_ratio=1,
)  # fmt: skip
TILING = Tiling(length=8, height=16, width=16)


class Upsampling(VitVAE):
    """Pixels are the latents repeated, latents the first pixel of a patch: tiles cannot show."""

    def encode(self, video: Tensor) -> Tensor:
        return video[:, :1, ::4, ::4, ::4].expand(-1, 4, -1, -1, -1)

    def decode(self, z: Tensor, single_frame: bool) -> Tensor:
        pixels = z[:, :3]
        for axis in (2, 3, 4):
            pixels = pixels.repeat_interleave(4, dim=axis)
        return pixels[:, :, :1] if single_frame else pixels


@pytest.fixture(scope="module")
def vae() -> VitVAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VitVAE(CONFIG).eval()


def test_the_published_tiles() -> None:
    assert Tiling.published(24, 4) == Tiling(length=12, height=256, width=256)
    assert Tiling.published(30, 4).length == 12  # whole latent frames
    assert Tiling.published(2, 4).length == 4


@torch.no_grad()
def test_what_fits_one_tile_is_not_cut(vae: VitVAE) -> None:
    video, z = torch.randn(2, 3, 8, 16, 12), torch.randn(2, 4, 2, 4, 3)
    assert torch.equal(tiled_encode(vae, video, TILING), vae.encode(video))
    assert torch.equal(tiled_decode(vae, z, TILING), vae.decode(z, single_frame=False))
    assert torch.equal(tiled_encode(vae, video, None), vae.encode(video))
    wide, large = torch.randn(1, 3, 8, 16, 32), Tiling(length=8, height=32, width=32)
    assert torch.equal(tiled_encode(vae, wide, large), vae.encode(wide))
    assert not torch.equal(tiled_encode(vae, wide, large, compat="magi-1"), vae.encode(wide))


@torch.no_grad()
def test_every_latent_frame_gives_four_frames(vae: VitVAE) -> None:
    for t in range(1, 7):
        z = torch.randn(1, 4, t, 2, 2)
        frames = tiled_decode(vae, z, Tiling(length=12, height=16, width=16))
        quirk = tiled_decode(vae, z, Tiling(length=12, height=16, width=16), compat="magi-1")
        assert frames.shape[2] == 4 * t
        assert quirk.shape[2] == 4 * t - (3 if t % 3 == 1 else 0)


@torch.no_grad()
def test_a_single_picture_is_encoded_in_tiles(vae: VitVAE) -> None:
    latent = tiled_encode(vae, torch.randn(1, 3, 1, 32, 24), TILING)
    assert latent.shape == (1, 4, 1, 8, 6)


tilings = st.builds(
    Tiling,
    length=st.sampled_from([4, 8, 12]),
    height=st.sampled_from([16, 32]),
    width=st.sampled_from([16, 32]),
    spatial_overlap=st.sampled_from([0.0, 0.25, 0.5]),
)


@settings(max_examples=40)
@given(
    tiling=tilings, t=st.integers(1, 7), h=st.integers(1, 13), w=st.integers(1, 13),
    compat=st.sampled_from([None, "magi-1"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_tiles_join_without_a_seam(
    tiling: Tiling, t: int, h: int, w: int, compat: object, seed: int
) -> None:
    """Where every pixel depends on its own latent alone, tiling must change nothing."""
    vae = Upsampling(CONFIG)
    z = torch.randn(1, 4, t, h, w, generator=torch.Generator().manual_seed(seed))
    whole = vae.decode(z, single_frame=False)
    decoded = tiled_decode(vae, z, tiling, compat=compat)  # type: ignore[arg-type]
    per_tile = tiling.length // 4
    if compat is None or per_tile > 1:  # else every tile gives one frame
        frames = 4 * t - (3 if compat is not None and t % per_tile == 1 else 0)
        assert decoded.shape[2] == frames
        torch.testing.assert_close(decoded, whole[:, :, :frames], atol=1e-6, rtol=1e-6)
    encoded = tiled_encode(vae, whole, tiling, compat=compat)  # type: ignore[arg-type]
    torch.testing.assert_close(encoded, vae.encode(whole), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "values",
    [
        {"length": 0},
        {"length": 8, "height": -1},
        {"length": 8, "spatial_overlap": 1.0},
        {"length": 8, "temporal_overlap": -0.1},
    ],
)
def test_wrong_tiles_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="tiling"):
        Tiling(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "tiling",
    [
        Tiling(length=6, height=16, width=16),
        Tiling(length=8, height=18, width=16),
        Tiling(length=8, height=16, width=16, spatial_overlap=0.3),
        Tiling(length=4, height=16, width=16, temporal_overlap=0.5),
    ],
)
def test_tiles_that_do_not_match_the_patches_are_refused(vae: VitVAE, tiling: Tiling) -> None:
    with pytest.raises(ConfigError, match="do not match the patches of 4"):
        tiled_decode(vae, torch.randn(1, 4, 2, 4, 4), tiling)
    with pytest.raises(ConfigError, match="is not a multiple of the patch"):
        tiled_encode(vae, torch.randn(1, 3, 6, 16, 16), TILING)
