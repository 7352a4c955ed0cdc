"""Does the prompt do in the dream what the action does in the game? An inverse model judges.

It is trained on real clips, as they are and as the world's VAE shows them: dreams come out of that
VAE, and a judge that never saw its pictures would judge them by their softness.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from magi_world.evaluation.clips import Clips, Integers
from magi_world.evaluation.dreaming import DreamSettings, Phrases, dream, prompts_of, through_vae
from magi_world.evaluation.inverse_model import InverseModel, predict, ratio, score
from magi_world.evaluation.metrics import Frames, Mask, ratio_interval, sums_by
from magi_world.evaluation.mobility import Travel, can_move, has_room, spread
from magi_world.evaluation.motion import CONTEXT, Moments, join_moments, moments_of
from magi_world.players import chunk_wordings
from magi_world.world import World

Say = Callable[[str], None]

NO_PROMPT = "(no prompt)"
NO_ACTION = ("look around", "hello", "what a lovely day", "the lights are on", None)
"""texts that name no action of any game, and the null caption"""


def measure_real_actions(
    world: World,
    model: InverseModel,
    clips: Clips,
    dreamed: Frames,
    held_out: Sequence[Moments],
    travel: Travel,
    *,
    group: int,
    seed: int,
) -> dict[str, Any]:
    """Accuracy on real moments, on the clips as the VAE shows them, and dreamed with real actions.

    `held_out` holds one entry an episode, `dreamed` is what `dream` returned for the clips' own
    actions. The last three rows belong together: they judge the same chunks, the second pays for
    the VAE, the third for the dream too. Every row judges up to `group` chunks, spread over the
    actions, and only such in which the real player can move (see `mobility.can_move`).
    """
    names = prompts_of(world)
    whole = join_moments(held_out)
    allowed = np.concatenate([can_move(episode, travel) for episode in held_out])
    chosen = spread(whole.actions, allowed, group, seed)[None]
    result: dict[str, Any] = {
        "real_held_out": {
            **score(whole[chosen[0]], predict(model, whole[chosen[0]]), names),
            "stuck_share": ratio(int((~allowed).sum()), len(allowed)),
        }
    }
    real = clips.frames[:, clips.prefix - CONTEXT :]
    horizon = clips.horizon
    allowed = np.stack([can_move(own, travel)[-horizon:] for own in clip_moments(clips)])
    actions = clips.actions[:, clips.prefix :]
    chosen = spread(actions.ravel(), allowed.ravel(), group, seed).reshape(allowed.shape)
    for name, frames in (
        ("real_clips", real),
        ("real_clips_through_vae", through_vae(world, real)),
        ("dreamed_with_real_actions", dreamed),
    ):
        result[name], _ = judge(model, frames, clips.actions, names, chosen)
        result[name]["stuck_share"] = ratio(int((~allowed).sum()), allowed.size)
    return result


def clip_moments(clips: Clips) -> Iterator[Moments]:
    """Moments of each whole clip as it really went, prefix included."""
    for frames, actions in zip(clips.frames, clips.actions, strict=True):
        yield moments_of(frames, actions)


def judge(
    model: InverseModel, frames: Frames, actions: Integers, names: list[str], chosen: Mask
) -> tuple[dict[str, Any], Mask]:
    """Score clips uint8 `[n, CONTEXT + horizon, F, H, W, 3]`; the context is looked at, not judged.

    `actions` int64 `[n, ...]` ends with the chunks' and may begin with earlier ones; `chosen`, bool
    `[n, horizon]`, says which chunks count. Returns the score, with the accuracy at every chunk
    after the prefix in `by_chunk`, and which chunks were named rightly, bool `[n, horizon]`.
    """
    moments = join_moments(moments_of(f, a) for f, a in zip(frames, actions, strict=True))
    predicted = predict(model, moments)
    rows = chosen.ravel()
    result = score(moments[rows], predicted[rows], names)
    right: Mask = (predicted == moments.actions).reshape(chosen.shape)
    hits, counts = (right & chosen).sum(axis=0), chosen.sum(axis=0)
    by_chunk = [ratio(int(hit), int(count)) for hit, count in zip(hits, counts, strict=True)]
    return {**result, "by_chunk": by_chunk}, right


def draw_actions(count: int, horizon: int, num_actions: int, *, hold: int, seed: int) -> Integers:
    """Uniform actions int64 `[count, horizon]`, drawn anew every `hold` chunks."""
    drawn = np.random.default_rng(seed).integers(num_actions, size=(count, -(-horizon // hold)))
    return drawn.repeat(hold, axis=1)[:, :horizon]


def measure_drawn_actions(
    world: World,
    model: InverseModel,
    clips: Clips,
    settings: DreamSettings,
    travel: Travel,
    *,
    horizon: int,
    hold: int,
    group: int,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Accuracy when actions are drawn at random, each held for `hold` chunks, in three wordings.

    The card's prompts, paraphrases that the text encoder was trained on, and paraphrases it never
    saw: same clips, actions and noise each time, so that only the words differ. Drawn actions owe
    nothing to what the player was doing, so a dream that just carries the motion on scores at
    chance. Judged are up to `group` chunks, spread over the actions, and only such in which the
    player can move (see `mobility.has_room`). `unseen_minus_seen` is the difference of the two
    paraphrase accuracies in points, with its 95 % bootstrap interval over episodes.
    """
    names = prompts_of(world)
    actions = draw_actions(len(clips), horizon, len(names), hold=hold, seed=settings.seed)
    prefix_moments = clips.prefix - CONTEXT
    allowed = np.stack(
        [
            has_room(real, prefix_moments, own, travel)
            for real, own in zip(clip_moments(clips), actions, strict=True)
        ]
    )
    chosen = spread(actions.ravel(), allowed.ravel(), group, settings.seed).reshape(allowed.shape)
    wordings: dict[str, Mapping[str, Sequence[str]]] = {
        "prompts": {name: [name] for name in names},
        "paraphrases_seen": _wordings(world, "paraphrases"),
        "paraphrases_unseen": _wordings(world, "held_out_paraphrases"),
    }
    result: dict[str, Any] = {
        "chance": 1 / len(names),
        "no_room_share": ratio(int((~allowed).sum()), allowed.size),
    }
    rights: dict[str, Mask] = {}
    history = np.concatenate([clips.actions[:, : clips.prefix], actions], axis=1)
    for kind, phrases in wordings.items():
        if not all(phrases.get(name) for name in names):
            say(f"prompt effect: the card has no {kind} for every prompt, skipped")
            continue
        words = choose_phrases(actions, [phrases[name] for name in names], settings.seed)
        dreamed = dream(world, clips, actions, settings, phrases=words)
        result[kind], rights[kind] = judge(model, dreamed, history, names, chosen)
        if kind != "prompts":
            result[kind]["phrases"] = _by_phrase(words, rights[kind], chosen)
        hits = int((rights[kind] & chosen).sum())
        say(f"prompt effect: {kind}, {hits} of {chosen.sum()} chunks named rightly")
    if {"paraphrases_seen", "paraphrases_unseen"} <= set(rights) and chosen.any():
        gain = rights["paraphrases_unseen"].astype(int) - rights["paraphrases_seen"]
        gained, counts = (
            sums_by(clips.episode, column)
            for column in ((gain * chosen).sum(axis=1), chosen.sum(axis=1))
        )
        low, high = ratio_interval(gained, counts, paired=True)
        result["unseen_minus_seen"] = {
            "points": 100 * float(gained.sum() / counts.sum()),
            "interval": [100 * low, 100 * high],
            "n": int(counts.sum()),
        }
    return result


def measure_no_action(
    world: World,
    model: InverseModel,
    clips: Clips,
    settings: DreamSettings,
    travel: Travel,
    *,
    horizon: int,
    texts: Sequence[str | None] = NO_ACTION,
) -> dict[str, Any]:
    """What the dream does under words that name no action: which actions the model sees in it.

    Each text is said for `horizon` chunks, from clips in which the player can go two chunks in
    every direction (all clips, if there are none). `named` is the share of chunks taken for each
    action, `carried_on` the share taken for the action played before. None, under the name
    `NO_PROMPT`, is the null caption; `all texts` pools the others.
    """
    names = prompts_of(world)
    held = [np.full(2, action) for action in range(len(names))]
    free = np.array(
        [
            all(has_room(real, clips.prefix - CONTEXT, own, travel).all() for own in held)
            for real in clip_moments(clips)
        ]
    )
    rows = np.flatnonzero(free if free.any() else ~free)
    clips = clips[rows]
    before = clips.actions[:, clips.prefix - 1].repeat(horizon)
    unnamed = np.zeros((len(clips), horizon), np.int64)
    seen: dict[str, Integers] = {}
    for text in texts:
        words: Phrases = {place: text for place in np.ndindex(*unnamed.shape)}
        dreamed = dream(world, clips, unnamed, settings, phrases=words)
        moments = join_moments(
            moments_of(frames, own) for frames, own in zip(dreamed, unnamed, strict=True)
        )
        seen[NO_PROMPT if text is None else text] = predict(model, moments)
    spoken = [named for text, named in seen.items() if text != NO_PROMPT]
    if spoken:
        seen["all texts"] = np.concatenate(spoken)
    return {
        text: {
            "n": len(named),
            "named": {
                name: ratio(int((named == action).sum()), len(named))
                for action, name in enumerate(names)
            },
            "carried_on": float((named == np.resize(before, len(named))).mean()),
        }
        for text, named in seen.items()
    }


def add_ratios(effect: dict[str, Any]) -> None:
    """Give every dreamed group `of_real`: its accuracy over that on real held-out chunks."""
    real = effect["real_held_out"]["accuracy"]
    drawn = [row for row in effect["drawn_actions"].values() if isinstance(row, dict)]
    for row in (effect["dreamed_with_real_actions"], *drawn):
        if row.get("accuracy") is not None and real:
            row["of_real"] = row["accuracy"] / real


def choose_phrases(
    actions: Integers, phrases: Sequence[Sequence[str]], seed: int
) -> dict[tuple[int, int], str]:
    """Give every place `(clip, chunk)` one of its action's phrases, all about equally often."""
    rng = np.random.default_rng(seed)
    chosen: dict[tuple[int, int], str] = {}
    for action, options in enumerate(phrases):
        places = np.argwhere(actions == action)
        picks = rng.permutation(np.arange(len(places)) % len(options))
        for (clip, chunk), pick in zip(places.tolist(), picks.tolist(), strict=True):
            chosen[clip, chunk] = options[pick]
    return chosen


def _by_phrase(
    words: Mapping[tuple[int, int], str], right: Mask, chosen: Mask
) -> dict[str, dict[str, Any]]:
    hits: dict[str, list[bool]] = {}
    for place, phrase in sorted(words.items()):
        if chosen[place]:
            hits.setdefault(phrase, []).append(bool(right[place]))
    return {
        phrase: {"accuracy": ratio(sum(values), len(values)), "n": len(values)}
        for phrase, values in sorted(hits.items())
    }


def _wordings(world: World, key: str) -> dict[str, list[str]]:
    """Other wordings of every prompt that has some, under one key of the card."""
    wordings = chunk_wordings(world.card, key)
    return {prompt: others for prompt, *others in wordings if others}
