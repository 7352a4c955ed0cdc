"""The real two-player Pong: chunks, serves, points, ends, and what its collector sees."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magi_world.cli.games import duel_mixture
from magi_world.envs.games import find_game
from magi_world.envs.pong import CARD, AtariPongGame, PongDuelGame, shrink_field
from magi_world.envs.real_multi_env import RealMultiEnv, parallel_env
from magi_world.errors import ActionError, ConfigError, NotReset
from magi_world.evaluation.objects import locate, measure_places
from magi_world.training.collect import collect
from magi_world.training.episodes import read_episodes
from magi_world.training.recipe import load_recipe
from tests.tiny_duel import PLAYERS, make_tiny_duel

pytest.importorskip("multi_agent_ale_py")
pytest.importorskip("ale_py")

OBJECTS = CARD["objects"]


@pytest.fixture(scope="module")
def game() -> PongDuelGame:
    return PongDuelGame()


def test_the_field_is_averaged_exactly() -> None:
    rng = np.random.default_rng(0)
    screen = rng.integers(256, size=(210, 160, 3), dtype=np.uint8)
    fine = screen[34:194].repeat(2, axis=0).repeat(2, axis=1).astype(np.float64)
    mean = fine.reshape(64, 5, 64, 5, 3).mean((1, 3))
    assert np.array_equal(shrink_field(screen), np.floor(mean + 0.5 + 1e-9).astype(np.uint8))
    with pytest.raises(ValueError, match="210"):
        shrink_field(screen[:200])


def test_a_game_begins_with_the_serve_and_its_seed_repeats_it(game: PongDuelGame) -> None:
    first = game.reset(3)
    assert first.frames.shape == (4, 64, 64, 3) and first.valid_frames == 4
    ball = locate(first.frames, OBJECTS)["ball"]
    assert not np.isnan(ball).any() and np.allclose(ball[:, 1], 31, atol=2)
    played = [game.step(action).frames for action in (4, 5, 7)]
    game.reset(4)
    again = game.reset(3)
    assert np.array_equal(again.frames, first.frames)
    assert all(
        np.array_equal(game.step(a).frames, f) for a, f in zip((4, 5, 7), played, strict=True)
    )
    openings = {game.reset(seed).frames.tobytes() for seed in range(6)}
    assert len(openings) > 3  # the paddles' places differ


@pytest.mark.parametrize("player", [0, 1])
def test_up_is_up_and_down_is_down_for_both(game: PongDuelGame, player: int) -> None:
    name = PLAYERS[player]
    weight = 3 if player == 0 else 1
    places = []
    for own in (1, 2):
        game.reset(0)
        for _ in range(3):
            chunk = game.step(own * weight)
        places.append(locate(chunk.frames[-1:], OBJECTS)[name][0])
    up, down = places
    # at the edges less of the paddle is to be seen, or nothing
    assert np.isnan(up[0]) or np.isnan(down[0]) or up[0] < down[0] - 10


def test_points_are_won_by_one_and_lost_by_the_other_until_21(game: PongDuelGame) -> None:
    rng = np.random.default_rng(0)
    chunk, points, chunks = game.reset(1), np.zeros(2), 0
    while not (chunk.terminated or chunk.truncated):
        chunk = game.step(int(rng.integers(9)))
        assert chunk.reward.sum() == 0
        assert (chunk.penalties == 0).all()  # everybody serves
        points += chunk.reward.clip(0)
        chunks += 1
    assert chunk.terminated and points.max() == 21
    assert 1000 < chunks < 2500
    with pytest.raises(NotReset):
        game.step(0)
    with pytest.raises(ActionError):
        game.step(9)


def test_the_built_in_opponent_plays_in_the_same_chunks() -> None:
    game = find_game("pong-atari")()
    assert isinstance(game, AtariPongGame)
    chunk, total = game.reset(0), 0.0
    while not (chunk.terminated or chunk.truncated):
        chunk = game.step(0)
        total += float(np.asarray(chunk.reward)[0])
    assert chunk.terminated and total == -21  # who stands still loses all
    game.close()


def test_collected_rewards_are_those_of_each_player(tmp_path: Path, game: PongDuelGame) -> None:
    result = collect(
        PongDuelGame, duel_mixture(game), dataset_id="pong-duel-v0", root=tmp_path, chunks=120,
        horizon=50,
    )  # fmt: skip
    assert result.episodes == 3 and result.chunks == 150
    episodes = list(read_episodes(result.path))
    assert {episode.behaviour for episode in episodes} == {
        "sticky", "trackers", "tracker and sticky"
    }  # fmt: skip
    for episode in episodes:
        assert episode.rewards.shape == (50, 2) and episode.frames.shape == (51, 4, 64, 64, 3)
        assert (episode.rewards.sum(axis=1) == 0).all()
        assert episode.truncated and not episode.terminated
    assert any((episode.rewards != 0).any() for episode in episodes)


def test_the_recipe_speaks_of_this_game() -> None:
    recipe = load_recipe("pong-duel")
    assert all(recipe.card[key] == value for key, value in CARD.items())
    assert recipe.config.fps == PongDuelGame.fps


def test_the_real_twin_has_the_dreams_spaces(tmp_path: Path) -> None:
    make_tiny_duel().save(tmp_path / "duel")
    env = RealMultiEnv(tmp_path / "duel", max_cycles=3)
    dream = parallel_env(tmp_path / "duel")
    assert env.possible_agents == dream.possible_agents == PLAYERS
    for agent in PLAYERS:
        assert env.observation_space(agent) == dream.observation_space(agent)
        assert env.action_space(agent) == dream.action_space(agent)
    observations, _ = env.reset(seed=2)
    assert np.array_equal(observations["first_0"], PongDuelGame().reset(2).frames)
    with pytest.raises(ActionError, match="second_0"):
        env.step({"second_0": "fly away"})
    infos = env.step({"first_0": "climb", "second_0": "go down"})[4]
    assert infos["first_0"]["prompt"] == "left: down; right: up"
    assert [infos[agent]["action"] for agent in PLAYERS] == ["climb", "go down"]  # as in the dream
    assert env.world is None  # no latents are observed
    env.step({})
    assert all(env.step({})[3].values()) and env.agents == []
    with pytest.raises(ConfigError, match="no states"):
        env.get_state()
    env.close()


@pytest.mark.parametrize("kind", [PongDuelGame, AtariPongGame])
def test_a_closed_game_stays_closed(kind: Any) -> None:
    closed = kind()
    closed.close()
    closed.close()
    with pytest.raises(NotReset, match="closed"):
        closed.reset(0)


def test_what_is_moved_is_measured_as_moved(game: PongDuelGame) -> None:
    frames = np.concatenate([game.reset(0).frames, game.step(0).frames])
    moved = np.roll(frames, 2, axis=1)
    row = measure_places([(frames, moved)], OBJECTS)["ball"]
    assert row["n"] == 8 and row["mean"] == pytest.approx(2, abs=1e-6)
    assert row["missed"] == 0
    blank = np.full_like(frames, OBJECTS["background"])
    row = measure_places([(frames, blank)], OBJECTS)["ball"]
    assert row["n"] == 0 and row["missed"] == 1
