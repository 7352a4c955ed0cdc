"""Driver of the VAE cases: whole, single images, in tiles, from pixels to pixels (section 7)."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from magi_world.checkpoints.tensors import load_module
from magi_world.config import VAEConfig
from magi_world.models.pixels import to_frames, to_pixels
from magi_world.models.vae import VitVAE
from magi_world.models.vae_tiling import Tiling, tiled_decode, tiled_encode
from tests.golden.cases import Case, Computed

_WITHOUT = 100_000  # spatial tile of the published code when it does not tile in space


def run_vae(case: Case) -> Computed:
    """The inputs tell which computation it is."""
    vae, inputs = load_vae(case.folder / case.meta["weights"], case.meta["config"]), case.inputs()
    if case.meta["tiling"] is not None:
        return Computed(tensors=_tiled(vae, inputs, case.meta))
    if "image" in inputs:
        latent = vae.encode(inputs["image"])
        return Computed(
            tensors={
                "latent": latent,
                "decoded": _decode(vae, latent),
                "decoded_random": _decode(vae, inputs["z"]),
            }
        )
    moments = vae.encode_moments(inputs["video"])
    mean, logvar, std = vae.posterior(moments)
    latent = vae.encode(inputs["video"])
    return Computed(
        tensors={
            "moments": moments,
            "mean": mean,
            "logvar": logvar,
            "std": std,
            "latent": latent,
            "decoded": _decode(vae, latent),
        }
    )


def load_vae(weights: Path, config: dict[str, Any]) -> VitVAE:
    """The VAE of a weight file, kept for the next case."""
    return _load_vae(weights, json.dumps(config["ddconfig"]))


def _decode(vae: VitVAE, latent: Tensor) -> Tensor:
    """The published code returns one frame for one latent frame."""
    return vae.decode(latent, single_frame=latent.shape[2] == 1)


def _tiled(vae: VitVAE, inputs: dict[str, Tensor], meta: dict[str, Any]) -> dict[str, Tensor]:
    t = meta["tiling"]
    tiling = Tiling(
        length=t["tile_sample_min_length"],
        height=t["tile_sample_min_height"],
        width=t["tile_sample_min_width"],
        spatial_overlap=t["spatial_tile_overlap_factor"],
        temporal_overlap=t["temporal_tile_overlap_factor"],
    )
    if "latent" in inputs:  # pixels to pixels
        z = inputs["latent"] / meta["scale_factor"]
        pixels = tiled_decode(vae, z, tiling, compat="magi-1")
        computed = {"frames_float": pixels[0].transpose(0, 1)}
        if "video" in inputs:
            video = to_pixels(inputs["video"].permute(0, 2, 3, 4, 1))
            latent = tiled_encode(vae, video, tiling, compat="magi-1")
            computed["latent_scaled"] = latent * meta["scale_factor"]
            computed["frames_uint8"] = to_frames(pixels)[0].permute(0, 3, 1, 2)
        return computed
    whole = replace(tiling, height=_WITHOUT, width=_WITHOUT)
    return {
        "latent": tiled_encode(vae, inputs["video"], tiling, compat="magi-1"),
        "latent_no_spatial_tiling": tiled_encode(vae, inputs["video"], whole, compat="magi-1"),
        "decoded": tiled_decode(vae, inputs["latent_in"], tiling, compat="magi-1"),
    }


@cache
def _load_vae(weights: Path, config: str) -> VitVAE:
    vae = VitVAE(VAEConfig.from_dict(json.loads(config)))
    load_module(vae, weights)
    return vae.eval()
