"""The ViT VAE beyond its golden numbers: shapes, single frames, other sizes, errors."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from magi_world.config import VAEConfig
from magi_world.errors import ConfigError
from magi_world.models.vae import VitVAE

CONFIG = VAEConfig(
    video_size=32, video_length=8, patch_size=8, patch_length=4, embed_dim=24, depth=1,
    num_heads=2, mlp_ratio=1.0, use_final_proj=True,
)  # fmt: skip


@pytest.fixture(scope="module", params=[True, False], ids=["ln_in_attn", "plain"])
def vae(request: pytest.FixtureRequest) -> VitVAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VitVAE(replace(CONFIG, ln_in_attn=request.param)).eval().requires_grad_(False)


def video(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("frames", "height", "width"), [(4, 32, 32), (8, 32, 32), (12, 16, 48)])
def test_four_frames_make_one_latent_frame(
    vae: VitVAE, frames: int, height: int, width: int
) -> None:
    x = video(2, 3, frames, height, width)
    moments = vae.encode_moments(x)
    assert moments.shape == (2, 32, frames // 4, height // 8, width // 8)
    z = vae.encode(x)
    assert torch.equal(z, moments[:, :16])
    assert vae.decode(z, single_frame=False).shape == x.shape


def test_clips_of_a_batch_do_not_see_each_other(vae: VitVAE) -> None:
    x = video(3, 3, 4, 32, 32)
    z = vae.encode(x)
    torch.testing.assert_close(z[1:2], vae.encode(x[1:2]))
    torch.testing.assert_close(
        vae.decode(z, single_frame=False)[2:], vae.decode(z[2:], single_frame=False)
    )


def test_one_frame_is_repeated_to_fill_a_patch(vae: VitVAE) -> None:
    x = video(1, 3, 1, 32, 32)
    assert torch.equal(vae.encode(x), vae.encode(x.expand(-1, -1, 4, -1, -1)))


def test_a_single_frame_is_asked_for_and_never_guessed(vae: VitVAE) -> None:
    z = vae.encode(video(1, 3, 4, 32, 32))
    whole = vae.decode(z, single_frame=False)
    assert whole.shape[2] == 4
    assert torch.equal(vae.decode(z, single_frame=True), whole[:, :, :1])
    with pytest.raises(ConfigError, match="one latent frame, got 2"):
        vae.decode(torch.cat([z, z], dim=2), single_frame=True)
    with pytest.raises(TypeError, match="single_frame"):
        vae.decode(z)  # type: ignore[call-arg]


@pytest.mark.parametrize("shape", [(5, 32, 32), (4, 30, 32), (4, 32, 33), (2, 32, 32)])
def test_a_part_of_a_patch_is_refused(vae: VitVAE, shape: tuple[int, int, int]) -> None:
    words = "video of " + "x".join(map(str, shape)) + ".*4x8x8"
    with pytest.raises(ConfigError, match=words):
        vae.encode_moments(video(1, 3, *shape))


def test_the_posterior_is_clamped(vae: VitVAE) -> None:
    moments = torch.zeros(1, 32, 1, 1, 1)
    moments[:, 16] = 1000.0
    moments[:, 17] = -1000.0
    mean, logvar, std = vae.posterior(moments)
    assert mean.shape == logvar.shape == std.shape == (1, 16, 1, 1, 1)
    assert logvar[0, 0].item() == 20.0 and logvar[0, 1].item() == -30.0
    torch.testing.assert_close(std[0, :2].flatten(), torch.tensor([10.0, -15.0]).exp())


def test_another_size_resizes_the_positions(vae: VitVAE) -> None:
    native = vae.encoder.positions((2, 4, 4))
    assert native is vae.encoder.pos_embed
    other = vae.encoder.positions((1, 2, 6))
    assert other.shape == (1, 1 + 12, 24)
    assert torch.equal(other[:, :1], native[:, :1])  # the class token has no place


def test_patches_are_those_of_the_convolution(vae: VitVAE) -> None:
    x = video(2, 3, 8, 16, 24)
    embed = vae.encoder.patch_embed
    torch.testing.assert_close(embed(x), embed.proj(x).permute(0, 2, 3, 4, 1))


def test_both_halves_learn() -> None:
    vae = VitVAE(CONFIG)
    x = video(1, 3, 8, 32, 32)
    (vae.decode(vae.encode(x), single_frame=False) - x).square().mean().backward()
    without = [
        name
        for name, parameter in vae.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all()
    ]
    assert without == []
