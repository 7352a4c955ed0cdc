"""Open-loop prediction: a real prefix, the real actions, and how far the dream stays with them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from magi_world.evaluation.clips import Clips, Integers
from magi_world.evaluation.dreaming import through_vae
from magi_world.evaluation.metrics import PEAK, Frames, psnr_of_mse, ratio_interval, sums_by
from magi_world.world import World

Errors = npt.NDArray[np.float64]

HORIZONS = (1, 5, 20)
"""chunks after the prefix at which the prediction is judged"""


def chunk_errors(real: Frames, other: Frames) -> Errors:
    """Mean squared byte error of every chunk: uint8 `[n, F, H, W, 3]` twice to float64 `[n]`."""
    difference = real.astype(np.float32) - other.astype(np.float32)
    errors: Errors = np.square(difference).reshape(len(real), -1).mean(axis=1, dtype=np.float64)
    return errors


def measure_prediction(world: World, clips: Clips, dreamed: Frames) -> dict[str, Any]:
    """PSNR of dreamed chunks at fixed distances beside copy-last and beside the VAE alone.

    `dreamed` is uint8 `[n, horizon, F, H, W, 3]`, dreamed under the clips' real actions. Copy-last
    repeats the last real frame before the prediction; `vae` codes and decodes the true chunk, which
    bounds every prediction of this world. PSNRs pool all pixels of a distance (dB, peak 255);
    `beats_copy_last` is the share of clips with the smaller error, and `margin_interval` the 95 %
    bootstrap interval over episodes of dream's PSNR minus copy-last's.
    """
    last_frame = clips.frames[:, clips.prefix - 1, -1:]
    rows = {}
    for distance in HORIZONS:
        if distance > clips.horizon:
            continue
        real = clips.frames[:, clips.prefix + distance - 1]
        coded = through_vae(world, real)
        dream = chunk_errors(real, dreamed[:, distance - 1])
        copy = chunk_errors(real, np.broadcast_to(last_frame, real.shape))
        rows[str(distance)] = {
            "dream": psnr_of_mse(float(dream.mean())),
            "copy_last": psnr_of_mse(float(copy.mean())),
            "vae": psnr_of_mse(float(chunk_errors(real, coded).mean())),
            "beats_copy_last": float((dream < copy).mean()),
            "margin_interval": list(_margin_interval(dream, copy, clips.episode)),
        }
    return {"n": len(clips), "unit": "clips", "prefix_chunks": clips.prefix, "psnr_at": rows}


def _margin_interval(dream: Errors, copy: Errors, episode: Integers) -> tuple[float, float]:
    smallest = PEAK**2 / 1e12  # an exact copy has no finite PSNR; 120 dB stands for it
    ours, theirs = (sums_by(episode, np.maximum(errors, smallest)) for errors in (dream, copy))
    low, high = 10 * np.log10(ratio_interval(theirs, ours, paired=True))
    return float(low), float(high)
