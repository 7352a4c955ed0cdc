"""The two-player world that ships: it plays as its card says."""

import numpy as np
import pytest
import torch

import magi_world
from magi_world.envs import ParallelVectorEnv, pong_duel_v0
from magi_world.players import players_of
from magi_world.world import World

NAME = "pong-duel"


@pytest.fixture(scope="module")
def world() -> World:
    return magi_world.load(NAME)


def test_a_game_between_two() -> None:
    env = pong_duel_v0.parallel_env(actions="discrete")
    observations, _ = env.reset(seed=0)
    assert sorted(observations) == sorted(env.possible_agents) == ["first_0", "second_0"]
    assert all(view.shape == (4, 64, 64, 3) for view in observations.values())
    actions = {"first_0": 1, "second_0": 2}
    for _ in range(5):
        observations, rewards, terminated, truncated, infos = env.step(actions)
        assert all(abs(reward) <= 1 for reward in rewards.values())
        assert not any(terminated.values()) and not any(truncated.values())
    assert infos["first_0"]["prompt"] == "left: down; right: up"


def test_many_games_at_once() -> None:
    envs = ParallelVectorEnv(3, actions="discrete", observations="latent")
    envs.reset(seed=0)
    actions = {"first_0": np.array([0, 1, 2]), "second_0": np.array([2, 1, 0])}
    observations, rewards, *_ = envs.step(actions)
    assert observations["first_0"].shape == (3, 16, 1, 8, 8)
    assert rewards["second_0"].shape == (3,)


def test_paddles_go_where_they_are_told(world: World) -> None:
    from magi_world.evaluation.objects import locate

    rollout = world.rollout(2, seeds=[0, 0])
    rollout.reset()
    places = []
    for _ in range(6):
        chunk = rollout.step(["left: down; right: up", "left: up; right: down"])
        places.append(locate(chunk.frames[:, -1].cpu().numpy(), world.card["objects"]))
    # rows count from the top; a paddle that is told to go on leaves the picture but for a rest
    assert places[0]["second_0"][0, 0] - places[0]["second_0"][1, 0] > 2
    assert places[3]["second_0"][0, 0] - places[3]["second_0"][1, 0] > 20
    assert places[0]["first_0"][0, 0] - places[5]["first_0"][0, 0] > 20


def test_a_prompt_alone_begins_a_game(world: World) -> None:
    rollout = world.rollout(1, seeds=[0])
    chunk = rollout.reset(prompt="left: stay; right: stay")
    assert torch.isfinite(chunk.latents).all()


def test_the_card_says_what_there_is(world: World) -> None:
    card = world.card
    assert players_of(card) == ["first_0", "second_0"]
    assert "not shipped" in card["source"] and card["licence"]
    assert card["known_limits"]
    dream = card["evaluation"]["places"]["dream"]["1"]
    assert dream["ball"]["n"] and dream["ball"]["median"] < 2
