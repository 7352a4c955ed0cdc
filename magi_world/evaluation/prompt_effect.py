"""Does the prompt do in the dream what the action does in the game? An inverse model judges.

It is trained on real clips, as they are, as the world's VAE shows them, and those blurred: dreams
come out of that VAE softened, and a judge that never saw such pictures would judge their softness.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from magi_world.evaluation.clips import Clips, Integers
from magi_world.evaluation.dreaming import (
    DreamSettings,
    Phrases,
    decode_chunks,
    dream,
    encode_chunks,
    prompts_of,
)
from magi_world.evaluation.inverse_model import InverseModel, predict, ratio, score
from magi_world.evaluation.metrics import Frames
from magi_world.evaluation.motion import Pairs, join_pairs, pairs_of
from magi_world.world import World

Say = Callable[[str], None]


def dreamed_pairs(dreamed: Frames, actions: Integers) -> Pairs:
    """Pairs of dreams that begin with the last chunk before them.

    `dreamed` is uint8 `[n, 1 + horizon, F, H, W, 3]`, `actions` int64 `[n, 1 + horizon]` or more,
    with those of earlier chunks in front. Pairs come clip by clip, chunk by chunk.
    """
    return join_pairs(pairs_of(f, a) for f, a in zip(dreamed, actions, strict=True))


def measure_real_actions(
    world: World, model: InverseModel, clips: Clips, dreamed: Frames, held_out: Pairs
) -> dict[str, Any]:
    """Accuracy on real pairs, on the clips as the VAE shows them, and dreamed with real actions.

    `dreamed` is what `dream` returned for the clips' own actions. The three belong together: the
    second pays for the VAE, the third for the dream as well.
    """
    names = prompts_of(world)
    actions = clips.actions
    real = clips.frames[:, clips.prefix - 1 :]
    coded = decode_chunks(world, encode_chunks(world, real.reshape(-1, *real.shape[2:])))
    sets = {
        "real_held_out": held_out,
        "real_clips": dreamed_pairs(real, actions),
        "real_clips_through_vae": dreamed_pairs(coded.reshape(real.shape), actions),
        "dreamed_with_real_actions": dreamed_pairs(dreamed, actions),
    }
    return {name: score(pairs, predict(model, pairs), names) for name, pairs in sets.items()}


def draw_actions(count: int, horizon: int, num_actions: int, *, hold: int, seed: int) -> Integers:
    """Uniform actions int64 `[count, horizon]`, drawn anew every `hold` chunks."""
    drawn = np.random.default_rng(seed).integers(num_actions, size=(count, -(-horizon // hold)))
    return drawn.repeat(hold, axis=1)[:, :horizon]


def measure_drawn_actions(
    world: World,
    model: InverseModel,
    clips: Clips,
    settings: DreamSettings,
    *,
    horizon: int,
    hold: int,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Accuracy when actions are drawn at random, each held for `hold` chunks, in three wordings.

    The card's prompts, paraphrases that the text encoder was trained on, and paraphrases it never
    saw: same clips, actions and noise each time, so that only the words differ. Drawn actions owe
    nothing to what the player was doing, so a dream that just carries the motion on scores at
    chance.
    """
    names = prompts_of(world)
    actions = draw_actions(len(clips), horizon, len(names), hold=hold, seed=settings.seed)
    wordings: dict[str, Mapping[str, Sequence[str]]] = {
        "prompts": {name: [name] for name in names},
        "paraphrases_seen": world.card.get("paraphrases", {}),
        "paraphrases_unseen": world.card.get("held_out_paraphrases", {}),
    }
    result: dict[str, Any] = {"chance": 1 / len(names)}
    before = clips.actions[:, : clips.prefix]
    for kind, phrases in wordings.items():
        if not all(phrases.get(name) for name in names):
            say(f"prompt effect: the card has no {kind} for every prompt, skipped")
            continue
        chosen = choose_phrases(actions, [phrases[name] for name in names], settings.seed)
        dreamed = dream(world, clips, actions, settings, phrases=chosen)
        pairs = dreamed_pairs(dreamed, np.concatenate([before, actions], axis=1))
        predicted = predict(model, pairs)
        result[kind] = score(pairs, predicted, names)
        if kind != "prompts":
            right = (predicted == pairs.actions).reshape(actions.shape)
            result[kind]["phrases"] = _by_phrase(chosen, right)
        say(f"prompt effect: {kind} {result[kind]['accuracy']:.3f} of {len(pairs)} chunks")
    return result


def choose_phrases(actions: Integers, phrases: Sequence[Sequence[str]], seed: int) -> Phrases:
    """Give every place `(clip, chunk)` one of its action's phrases, all about equally often."""
    rng = np.random.default_rng(seed)
    chosen: dict[tuple[int, int], str] = {}
    for action, options in enumerate(phrases):
        places = np.argwhere(actions == action)
        picks = rng.permutation(np.arange(len(places)) % len(options))
        for (clip, chunk), pick in zip(places.tolist(), picks.tolist(), strict=True):
            chosen[clip, chunk] = options[pick]
    return chosen


def _by_phrase(chosen: Phrases, right: npt.NDArray[np.bool_]) -> dict[str, dict[str, Any]]:
    hits: dict[str, list[bool]] = {}
    for place, phrase in sorted(chosen.items()):
        hits.setdefault(phrase, []).append(bool(right[place]))
    return {
        phrase: {"accuracy": ratio(sum(values), len(values)), "n": len(values)}
        for phrase, values in sorted(hits.items())
    }
