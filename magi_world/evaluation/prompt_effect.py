"""Does the prompt do in the dream what the action does in the game? An inverse model judges.

It is trained on real clips, as they are and as the world's VAE shows them: dreams come out of that
VAE, and a judge that never saw its pictures would judge them by their softness.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from magi_world.evaluation.clips import Clips, Integers
from magi_world.evaluation.dreaming import DreamSettings, Phrases, dream, prompts_of, through_vae
from magi_world.evaluation.inverse_model import InverseModel, predict, ratio, score
from magi_world.evaluation.metrics import Frames
from magi_world.evaluation.motion import CONTEXT, Moments, join_moments, moments_of
from magi_world.world import World

Say = Callable[[str], None]


def measure_real_actions(
    world: World, model: InverseModel, clips: Clips, dreamed: Frames, held_out: Moments
) -> dict[str, Any]:
    """Accuracy on real moments, on the clips as the VAE shows them, and dreamed with real actions.

    `dreamed` is what `dream` returned for the clips' own actions. The last three rows belong
    together: they judge the same chunks, the second pays for the VAE, the third for the dream too.
    """
    names = prompts_of(world)
    real = clips.frames[:, clips.prefix - CONTEXT :]
    result: dict[str, Any] = {"real_held_out": score(held_out, predict(model, held_out), names)}
    for name, frames in (
        ("real_clips", real),
        ("real_clips_through_vae", through_vae(world, real)),
        ("dreamed_with_real_actions", dreamed),
    ):
        result[name], _ = judge(model, frames, clips.actions, names)
    return result


def judge(
    model: InverseModel, frames: Frames, actions: Integers, names: list[str]
) -> tuple[dict[str, Any], npt.NDArray[np.bool_]]:
    """Score clips uint8 `[n, CONTEXT + horizon, F, H, W, 3]`; the context is looked at, not judged.

    `actions` int64 `[n, ...]` ends with the chunks' and may begin with earlier ones. Returns the
    score, with the accuracy at every chunk after the prefix in `by_chunk`, and which chunks were
    named rightly, bool `[n, horizon]`.
    """
    moments = join_moments(moments_of(f, a) for f, a in zip(frames, actions, strict=True))
    predicted = predict(model, moments)
    right = (predicted == moments.actions).reshape(len(frames), -1)
    result = score(moments, predicted, names)
    return {**result, "by_chunk": right.mean(axis=0).tolist()}, right


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
        history = np.concatenate([before, actions], axis=1)
        result[kind], right = judge(model, dreamed, history, names)
        if kind != "prompts":
            result[kind]["phrases"] = _by_phrase(chosen, right)
        say(f"prompt effect: {kind} {right.mean():.3f} of {right.size} chunks")
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
