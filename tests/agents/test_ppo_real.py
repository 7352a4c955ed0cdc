"""PPO in the real game: what is learned from, what is counted, what is refused."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from magi_world.agents import load
from magi_world.agents.evaluation import play_real
from magi_world.agents.ppo import Args, train
from magi_world.agents.ppo_actor import Actor
from magi_world.agents.ppo_real import FIRST_SEED, REAL_SETTINGS, RealSlots
from magi_world.envs.doom import TakeCoverGame
from magi_world.errors import AgentError
from magi_world.world import World
from magi_world.world import load as load_world
from tests.agents.fork import SMALL, ForkGame, fork_game, fork_world, new_agent

REAL: dict[str, Any] = SMALL | {"expected_termination": False}


@pytest.fixture(autouse=True)
def all_games_are_closed() -> Iterator[None]:
    ForkGame.seeds = []
    ForkGame.running = 0
    yield
    assert ForkGame.running == 0


def slots_of(**settings: Any) -> RealSlots:
    return RealSlots(fork_game, fork_world(), Args(**(REAL | {"num_slots": 2} | settings)), {})


def test_rewards_are_deaths_and_the_health_that_was_lost() -> None:
    slots = slots_of(signal_weights={"damage": -0.5})
    assert slots.begin([0, 1]).shape == (2, 1, 16, 1, 4, 4)
    games: Any = slots.games
    steps = []
    for _ in range(3):  # slot 0 goes the right way, slot 1 never moves
        steps.append(slots.step([games[0].open, 0]))
    assert [step.reward[0].item() for step in steps] == [0.0, 0.0, 0.0]
    found = [step.reward[1].item() for step in steps]
    assert found == pytest.approx([-0.2, -0.2, -1.0 - 0.5 * 0.2])  # 40, 40 and the last 20
    assert [step.continues.tolist() for step in steps] == [[1, 1], [1, 1], [1, 0]]
    assert [step.ended.tolist() for step in steps] == [[False] * 2, [False] * 2, [False, True]]
    assert steps[2].survived.tolist() == [4.0, 2.0]
    assert slots.counters == {"episodes": 2, "real_tics": 2 * 4 + 5 * 4 + 2}
    slots.close()


def test_the_games_own_limit_is_no_death() -> None:
    slots = slots_of(reward="survival")
    slots.begin([0, 1])
    games: Any = slots.games
    for _ in range(ForkGame.limit):
        step = slots.step([game.open for game in games])
    assert step.ended.tolist() == [True, True]
    assert step.continues.tolist() == [1.0, 1.0]
    assert step.reward.tolist() == [1.0, 1.0]  # of what a chunk can give
    slots.close()


def test_a_begun_slot_starts_with_full_health_and_a_seed_of_its_own() -> None:
    slots = slots_of(signal_weights={"damage": -1.0}, seed=7)
    slots.begin([0, 1])
    slots.step([0, 0])
    slots.begin([1])
    games: Any = slots.games
    assert slots.step([games[0].open, games[1].open]).reward.tolist() == [0.0, 0.0]
    assert ForkGame.seeds == [FIRST_SEED + 700_000 + k for k in range(3)]
    slots.close()


def test_the_actor_plays_games_as_it_plays_dreams() -> None:
    args = Args(**(REAL | {"num_slots": 3, "horizon": 5, "observation_noise": 0.0}))
    generator = torch.Generator().manual_seed(0)
    slots = RealSlots(fork_game, fork_world(), args, {})
    actor = Actor(slots, args, generator)
    samples = actor.collect(new_agent().network)
    assert samples.cut.any() and (samples.continues == 0).any()
    assert max(length for _, length in actor.recent) <= 5
    assert slots.counters["episodes"] == 3 + int(samples.cut.sum())
    slots.close()


def test_learns_in_the_real_game(tmp_path: Path) -> None:
    args = Args(
        **(REAL_SETTINGS | {
            "total_steps": 4_000, "num_steps": 16, "history": 2, "channels": (8, 8), "hidden": 32,
            "learning_rate": 2e-3, "signal_weights": {"damage": -1.0},
        })
    )  # fmt: skip
    agent = train(fork_world(), args, tmp_path, make_game=fork_game, show=False)
    played = play_real(fork_game, fork_world(), agent, episodes=40, first_seed=0)
    assert played.mean() > 0.8 * 4 * ForkGame.limit
    described = json.loads((tmp_path / "agent.json").read_text())
    assert described["trained_in"] == "real"
    assert described["trained"]["steps"] == 4_096
    assert described["trained"]["episodes"] > 16
    # every chunk of four tics, and the reset chunks; only deaths are shorter
    tics = 4 * (described["trained"]["steps"] + described["trained"]["episodes"])
    assert 0.9 * tics < described["trained"]["real_tics"] <= tics


def test_a_world_without_heads_is_enough(tmp_path: Path) -> None:
    world = fork_world(outcome=False)
    train(world, Args(**(REAL | {"total_steps": 1})), tmp_path, make_game=fork_game, show=False)


def test_resumed_trainings_count_on(tmp_path: Path) -> None:
    args = Args(**(REAL | {"total_steps": 128}))
    train(fork_world(), args, tmp_path, make_game=fork_game, show=False)
    before = json.loads((tmp_path / "agent.json").read_text())["trained"]
    args = dataclasses.replace(args, total_steps=256)
    train(fork_world(), args, tmp_path, make_game=fork_game, resume=True, show=False)
    after = json.loads((tmp_path / "agent.json").read_text())["trained"]
    assert after["steps"] == 256
    assert after["real_tics"] > before["real_tics"]
    assert len(set(ForkGame.seeds)) == len(ForkGame.seeds) == after["episodes"]
    with pytest.raises(AgentError, match="trained_in 'real', not 'dream'"):
        train(fork_world(), args, tmp_path, resume=True, show=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"starts": "any"}, "starts 'any'"),
        ({"expected_termination": True}, "expected_termination True"),
        ({"temperature": 1.3}, "temperature 1.3"),
        ({"denoising_steps": 2}, "denoising_steps 2"),
        ({"signal_weights": {"armour": 1.0}}, r"real game .*no signals \['armour'\].*damage"),
    ],
)
def test_what_only_a_dream_has_is_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(AgentError, match=message):
        args = Args(**(REAL | settings))
        train(fork_world(), args, tmp_path, make_game=fork_game, show=False)
    assert list(tmp_path.iterdir()) == []


def test_a_game_without_health_has_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ForkGame, "full_health", float("nan"))
    slots = slots_of(signal_weights={"damage": -1.0})
    with pytest.raises(AgentError, match="reports no health"):
        slots.begin([0, 1])
    slots.close()
    slots = slots_of()
    slots.begin([0, 1])
    assert slots.step([0, 0]).reward.tolist() == [0.0, 0.0]
    slots.close()


def test_a_game_with_other_prompts_is_refused() -> None:
    world = fork_world()
    world.card["prompts"] = ["stay", "up", "down"]
    with pytest.raises(AgentError, match="the world 'fork'"):
        RealSlots(fork_game, world, Args(**REAL), {})


def test_one_update_in_take_cover(tiny_doom_path: Path, tmp_path: Path) -> None:
    world: World = load_world(tiny_doom_path)
    args = Args(
        **(REAL_SETTINGS | {
            "total_steps": 1, "num_slots": 2, "num_steps": 8, "channels": (8, 8), "hidden": 16,
            "signal_weights": {"damage": -1.0},
        })
    )  # fmt: skip
    train(world, args, tmp_path, make_game=TakeCoverGame, show=False)
    described = json.loads((tmp_path / "agent.json").read_text())
    assert described["trained"]["real_tics"] == 4 * (2 + 16)
    assert load(tmp_path, world=world).observations == "latent"
