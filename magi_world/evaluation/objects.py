"""Where things are in frames, by their colour: the ball and the paddles of Pong.

A card can name the colour of its plain background and of things before it:

    [card.objects]
    background = [144, 72, 17]
    ball = { colour = [236, 236, 236], height = 1.6, width = 0.8 }

with heights and widths in pixels of a frame. A frame is taken as a mixture of these colours: which
share of each pixel every thing covers is the least-squares solution. A thing is where the most of
it lies in a window of its size; it is absent where that is less than `PRESENT` of its area.

Shapes: n frames, H rows, W columns, K things.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from magi_world.errors import ConfigError
from magi_world.evaluation.clips import Clips, Episode
from magi_world.evaluation.dreaming import through_vae
from magi_world.evaluation.metrics import Frames
from magi_world.evaluation.reconstruction import draw_chunks
from magi_world.world import World

PRESENT = 0.3
_BACKGROUND = "background"

Places = npt.NDArray[np.float64]


def locate(frames: Frames, objects: Mapping[str, Any]) -> dict[str, Places]:
    """Row and column of the centre of every thing, float64 `[n, 2]` each, NaN where it is absent.

    Args:
        frames: uint8 `[n, H, W, 3]`.
        objects: the card's, see above.

    Raises:
        ConfigError: `objects` lacks the background, or things whose colours cannot be told apart.
    """
    names = [name for name in objects if name != _BACKGROUND]
    if _BACKGROUND not in objects or not names:
        raise ConfigError(f"objects {sorted(objects)}: a background and at least one thing")
    background = np.array(objects[_BACKGROUND], float)
    colours_K3 = np.array([objects[name]["colour"] for name in names], float) - background
    if np.linalg.matrix_rank(colours_K3) < len(names):
        raise ConfigError(f"objects {names}: their colours are mixtures of each other")
    covered_nHWK = (frames.astype(float) - background) @ np.linalg.pinv(colours_K3)
    covered_nHWK = covered_nHWK.clip(0, 1)
    return {
        name: _centres(covered_nHWK[..., index], objects[name]) for index, name in enumerate(names)
    }


def _centres(covered_nHW: npt.NDArray[np.float64], thing: Mapping[str, Any]) -> Places:
    size = float(thing["height"]) * float(thing["width"])
    # a thing that lies between pixels touches one more in each direction
    rows, columns = (int(np.ceil(thing[side])) + 1 for side in ("height", "width"))
    n, height, width = covered_nHW.shape
    padded = np.pad(covered_nHW, ((0, 0), (rows, rows), (columns, columns)))
    sums = np.pad(padded.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    mass = sums[:, rows:, columns:] - sums[:, :-rows, columns:]
    mass = mass - (sums[:, rows:, :-columns] - sums[:, :-rows, :-columns])
    best = mass.reshape(n, -1).argmax(1)
    top, left = np.unravel_index(best, mass.shape[1:])
    places = np.full((n, 2), np.nan)
    for index in range(n):
        r, c = int(top[index]), int(left[index])
        window = padded[index, r : r + rows, c : c + columns]
        total = window.sum()
        if total >= PRESENT * size:
            places[index, 0] = (window.sum(1) @ np.arange(r - rows, r)) / total
            places[index, 1] = (window.sum(0) @ np.arange(c - columns, c)) / total
    return places


def measure_places(
    pairs: Iterable[tuple[Frames, Frames]], objects: Mapping[str, Any]
) -> dict[str, Any]:
    """How far from its real place every thing is, in pixels of a frame.

    Args:
        pairs: real frames and the frames that are measured, uint8 `[n, H, W, 3]`, place by place.
        objects: the card's.

    Returns:
        For each thing `n` frames in which both show it, the `mean`, `median` and 95th percentile
        (`p95`) of the distance between its centres; `missed`, the share of frames with it in which
        it cannot be found, and `invented`, the share of frames without it that show it.
    """
    found: dict[str, tuple[list[Places], list[Places]]] = {}
    for real, other in pairs:
        there, here = locate(real, objects), locate(other, objects)
        for name in there:
            sides = found.setdefault(name, ([], []))
            sides[0].append(there[name])
            sides[1].append(here[name])
    result: dict[str, Any] = {}
    for name, (real_parts, other_parts) in found.items():
        real_n2, other_n2 = np.concatenate(real_parts), np.concatenate(other_parts)
        real_there, other_there = ~np.isnan(real_n2[:, 0]), ~np.isnan(other_n2[:, 0])
        both = real_there & other_there
        distance = np.linalg.norm(real_n2[both] - other_n2[both], axis=1)
        result[name] = {
            "n": int(both.sum()),
            "mean": float(distance.mean()) if len(distance) else float("nan"),
            "median": float(np.median(distance)) if len(distance) else float("nan"),
            "p95": float(np.percentile(distance, 95)) if len(distance) else float("nan"),
            "missed": _share(real_there & ~other_there, real_there),
            "invented": _share(other_there & ~real_there, ~real_there),
        }
    return result


def places_in_reconstruction(
    world: World, episodes: Sequence[Episode], *, count: int, seed: int
) -> dict[str, Any]:
    """`measure_places` of held-out chunks that only went through the VAE."""
    real = draw_chunks(episodes, count, seed)
    coded = through_vae(world, real)
    shape = (-1, *real.shape[2:])
    return measure_places([(real.reshape(shape), coded.reshape(shape))], world.card["objects"])


def places_in_prediction(
    clips: Clips, dreamed: Frames, objects: Mapping[str, Any], distances: Sequence[int]
) -> dict[str, Any]:
    """`measure_places` of dreamed chunks, by their distance from the last real one.

    `dreamed` is uint8 `[n, horizon, F, H, W, 3]`, dreamed under the clips' real actions.
    """
    shape = (-1, *dreamed.shape[3:])
    return {
        str(distance): measure_places(
            [
                (
                    clips.frames[:, clips.prefix + distance - 1].reshape(shape),
                    dreamed[:, distance - 1].reshape(shape),
                )
            ],
            objects,
        )
        for distance in distances
        if distance <= clips.horizon
    }


def _share(part: npt.NDArray[np.bool_], whole: npt.NDArray[np.bool_]) -> float:
    return float(part.sum() / whole.sum()) if whole.any() else float("nan")
