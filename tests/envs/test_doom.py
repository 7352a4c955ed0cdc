import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from magi_world.envs.doom import Frames, TakeCoverGame, downscale
from magi_world.envs.game_calls import GameChunk
from magi_world.errors import ActionError, MissingPackage, NotReset

STILL, LEFT, RIGHT = range(3)
SEEDS = (1, 7, 4_000_000_000)


@pytest.fixture(scope="module")
def game() -> Iterator[TakeCoverGame]:
    game = TakeCoverGame()
    yield game
    game.close()


def play(game: TakeCoverGame, seed: int, actions: list[int]) -> list[GameChunk]:
    """The chunks of an episode, at most one an action beside the reset chunk."""
    chunks = [game.reset(seed)]
    for action in actions:
        if chunks[-1].terminated:
            break
        chunks.append(game.step(action))
    return chunks


def frames_of(chunks: list[GameChunk]) -> Frames:
    return np.concatenate([chunk.frames for chunk in chunks])


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.uint8, (48, 64)), st.integers(0, 2**32 - 1))
def test_a_byte_is_the_mean_of_the_area_under_it(blocks: Frames, seed: int) -> None:
    # Large flat areas, whose borders fall into the pixels, and noise in one of the colours.
    screen = np.repeat(np.repeat(blocks, 5, axis=0), 5, axis=1)[..., None].repeat(3, axis=2)
    screen[..., 1] = np.random.default_rng(seed).integers(0, 256, screen.shape[:2])
    quarters = screen.astype(np.int64).repeat(4, axis=0).reshape(64, 15, 64, 5, 3)
    nearest = (quarters.sum(axis=(1, 3)) + 37) // 75
    np.testing.assert_array_equal(downscale(screen), nearest)


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_a_flat_screen_stays_flat(value: int) -> None:
    assert (downscale(np.full((240, 320, 3), value, np.uint8)) == value).all()


@pytest.mark.parametrize(
    "screen", [np.zeros((320, 240, 3), np.uint8), np.zeros((240, 320, 3), np.float32)]
)
def test_only_screens_are_shrunk(screen: Frames) -> None:
    with pytest.raises(ValueError, match="a screen is uint8"):
        downscale(screen)


def test_the_first_28_tics_of_the_noop_are_the_same_for_every_seed(game: TakeCoverGame) -> None:
    episodes = [play(game, seed, [STILL] * 30) for seed in SEEDS]
    first = frames_of(episodes[0][:7])
    assert first.shape == (28, 64, 64, 3)
    for chunks in episodes[1:]:
        np.testing.assert_array_equal(frames_of(chunks[:7]), first)
    later = [frames_of(chunks[:16])[-1].tobytes() for chunks in episodes]
    assert len(set(later)) > 1


def test_a_seed_and_actions_fix_the_episode(game: TakeCoverGame) -> None:
    actions = [LEFT, LEFT, RIGHT, STILL] * 6
    first = frames_of(play(game, 7, actions))
    play(game, 8, actions)
    np.testing.assert_array_equal(frames_of(play(game, 7, actions)), first)
    other = TakeCoverGame()
    np.testing.assert_array_equal(frames_of(play(other, 7, actions)), first)
    other.close()


def test_prompts_move_the_way_they_say(game: TakeCoverGame) -> None:
    # Stepping left pushes the picture to the right: the shifted pictures match better.
    before = play(game, 1, [])[-1].frames[-1].astype(float)
    for action, shift in ((LEFT, 1), (RIGHT, -1)):
        after = play(game, 1, [action] * 6)[-1].frames[-1].astype(float)
        errors = {
            columns: np.abs(np.roll(before, columns, axis=1) - after)[:, 8:-8].mean()
            for columns in range(-6, 7)
        }
        assert np.sign(min(errors, key=lambda columns: errors[columns])) == shift


def test_the_end_repeats_the_last_real_frame(game: TakeCoverGame) -> None:
    # Standing still ends within a few hundred tics, at any of the four tics of a chunk.
    for seed in range(30, 34):
        chunks = play(game, seed, [STILL] * 525)
        end = chunks[-1]
        assert (end.terminated, end.truncated, end.health) == (True, False, 0.0)
        assert 0 <= end.valid_frames < 4
        last = end.frames[end.valid_frames - 1] if end.valid_frames else chunks[-2].frames[-1]
        assert (end.frames[end.valid_frames :] == last).all()
        for chunk in chunks[:-1]:
            assert chunk.valid_frames == 4 and 0 < chunk.health <= 100
        assert all(chunk.reward == chunk.valid_frames for chunk in chunks)
        assert frames_of(chunks).mean(axis=(1, 2, 3)).min() > 20  # no black frame


def test_the_limit_is_counted_after_the_reset_chunk(
    game: TakeCoverGame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TakeCoverGame, "max_tics", 12)
    for _ in range(2):  # an episode after a truncated one counts from zero
        chunks = [game.reset(3), *[game.step(STILL) for _ in range(3)]]
        assert [chunk.truncated for chunk in chunks] == [False, False, False, True]
        assert not any(chunk.terminated for chunk in chunks)
        with pytest.raises(NotReset, match="call reset"):
            game.step(STILL)


def test_wrong_use_is_named(game: TakeCoverGame) -> None:
    game.reset(1)
    for action in (-1, 3):
        with pytest.raises(ActionError, match=f"action {action} .*strafe left"):
            game.step(action)
    game.step(STILL)  # a refused action changes nothing
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=f"got {seed}"):
            game.reset(seed)
    with pytest.raises(NotReset):
        TakeCoverGame().step(STILL)


def test_a_closed_game_says_so() -> None:
    game = TakeCoverGame()
    game.close()
    game.close()
    with pytest.raises(NotReset, match="closed"):
        game.reset(1)


def test_it_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    game = TakeCoverGame()
    game.reset(1)
    del game  # nobody called close
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_without_vizdoom_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(MissingPackage, match=r"pip install 'magi-world\[doom\]'"):
        TakeCoverGame()
