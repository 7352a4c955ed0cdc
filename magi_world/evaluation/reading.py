"""Going through the episodes once: what is kept, what is fitted, what is only looked at."""

from collections.abc import Callable, Iterable
from itertools import islice

from magi_world.errors import DatasetError
from magi_world.evaluation.clips import Episode, played, whole_chunks
from magi_world.evaluation.dreaming import through_vae
from magi_world.evaluation.motion import CONTEXT, Moments, join_moments, moments_of
from magi_world.evaluation.patch_pca import PatchPCA
from magi_world.evaluation.reconstruction import patch_shape
from magi_world.evaluation.sizes import Sizes
from magi_world.world import World

Say = Callable[[str], None]


def read(
    world: World,
    episodes: Iterable[Episode],
    is_held_out: Callable[[int], bool],
    sizes: Sizes,
    say: Say,
) -> tuple[list[Episode], PatchPCA, Moments]:
    """Go through the episodes once: keep the held-out ones, fit the PCA, cut moments from the rest.

    Moments come in two views: the real pictures, and the same through the world's VAE. Of the
    training episodes only they stay in memory.
    """
    held_out: list[Episode] = []
    moments: list[Moments] = []
    pca = PatchPCA(patch_shape(world))
    num_training = 0
    for episode in episodes:
        if is_held_out(episode.seed):
            if len(held_out) < sizes.held_out_episodes:
                held_out.append(episode)
        elif num_training < sizes.training_chunks:
            chunks = episode.frames[: whole_chunks(episode)]
            if len(chunks):
                pca.add(chunks[:: max(1, len(chunks) // 32)])
            if len(chunks) > CONTEXT:
                actions = played(episode)[: len(chunks)]
                views = (chunks, through_vae(world, chunks))
                moments += [moments_of(view, actions) for view in views]
            if (num_training + len(chunks)) // 2000 > num_training // 2000:
                say(f"{num_training + len(chunks)} training chunks coded")
            num_training += len(chunks)
        if len(held_out) >= sizes.held_out_episodes and num_training >= sizes.training_chunks:
            break
    if not held_out or not num_training:
        raise DatasetError(
            f"the data has {len(held_out)} held-out episodes and {num_training} training chunks; "
            "both are needed"
        )
    return held_out, pca, join_moments(moments)


def read_held_out(
    episodes: Iterable[Episode], is_held_out: Callable[[int], bool], count: int
) -> list[Episode]:
    """The first `count` held-out episodes, and nothing of the others.

    Raises:
        DatasetError: there are none.
    """
    held_out = list(islice((one for one in episodes if is_held_out(one.seed)), count))
    if not held_out:
        raise DatasetError("the data has no held-out episodes")
    return held_out
