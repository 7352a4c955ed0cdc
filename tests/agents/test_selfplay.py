"""Self-play: who sees and gets what, ages, resuming, and how real games are scored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import magi_world
from magi_world import agents
from magi_world.agents import selfplay
from magi_world.agents.matches import match, play_duels, score
from magi_world.agents.ppo import Args
from magi_world.agents.ppo import train as train_alone
from magi_world.agents.random_agent import Random
from magi_world.agents.selfplay_agent import SelfPlayAgent, with_player
from magi_world.errors import AgentError, ConfigError
from magi_world.players import compose
from magi_world.world import World
from tests.tiny_duel import PLAYERS, make_tiny_duel

SMALL: dict[str, Any] = selfplay.SETTINGS | {
    "num_slots": 4, "num_steps": 4, "horizon": 3, "channels": (4, 4), "hidden": 8, "epochs": 1,
    "minibatches": 2, "total_steps": 64, "history": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def duel(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("worlds") / "duel"
    make_tiny_duel().save(folder)
    return magi_world.load(folder)


@pytest.fixture(scope="module")
def trained(duel: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("agents") / "agent"
    selfplay.train(duel, Args(**SMALL), out, show=False)
    return out


def slots_of(world: World) -> selfplay.DuelSlots:
    return selfplay.DuelSlots(world, Args(**SMALL), torch.Generator().manual_seed(0), {})


def test_rows_are_the_players_of_games(duel: World) -> None:
    slots = slots_of(duel)
    begun = slots.begin(range(4))
    assert begun.shape == (4, 2, 18, 1, 8, 8)
    assert torch.equal(begun[0, :, :16], begun[1, :, :16])  # one game, seen by both
    told = begun[:, -1, 16:, 0, 0, 0]
    assert told.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    played = slots.step([1, 2, 0, 0])
    twin = slots_of(duel)
    twin.begin(range(4))
    prompts = [
        compose(duel.card, {"first_0": "up", "second_0": "down"}), compose(duel.card, {})
    ]  # fmt: skip
    chunk = twin.rollout.step(prompts)
    assert torch.equal(played.reward, chunk.reward.flatten())
    assert torch.equal(played.latents[::2, :16], chunk.latents)
    assert played.continues.tolist() == [1, 1, 1, 1]


def test_games_begin_whole(duel: World) -> None:
    slots = slots_of(duel)
    slots.begin(range(4))
    with pytest.raises(ConfigError, match="all rows"):
        slots.begin([1])
    with pytest.raises(ConfigError, match="multiple"):
        selfplay.train(duel, Args(**SMALL | {"num_slots": 3}), "unused")


def test_training_leaves_an_agent_and_its_earlier_ages(duel: World, trained: Path) -> None:
    ages = sorted(folder.name for folder in (trained / "ages").iterdir())
    assert ages == ["10", "25", "50"]
    agent = agents.load(trained, world=duel)
    assert isinstance(agent, SelfPlayAgent) and agent.players == PLAYERS
    young = agents.load(trained / "ages" / "25", world=duel)
    assert isinstance(young, SelfPlayAgent)
    assert young.description["trained"]["steps"] < agent.description["trained"]["steps"] == 64


def test_the_same_settings_give_the_same_agent_and_resuming_goes_on(
    duel: World, trained: Path, tmp_path: Path
) -> None:
    again = selfplay.train(duel, Args(**SMALL), tmp_path / "again", show=False)
    first = SelfPlayAgent.load(trained)
    for one, other in zip(first.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(one, other)
    longer = Args(**SMALL | {"total_steps": 96})
    more = selfplay.train(duel, longer, tmp_path / "again", resume=True, show=False)
    assert more.description["trained"]["steps"] == 96


def test_resuming_a_finished_training_leaves_it_as_it_is(duel: World, tmp_path: Path) -> None:
    args = Args(**SMALL | {"total_steps": 16})
    before = selfplay.train(duel, args, tmp_path, show=False).description["trained"]
    again = selfplay.train(duel, args, tmp_path, resume=True, show=False).description["trained"]
    assert again == before and before["episodes"] > 0


def test_an_agent_is_told_whom_it_plays(duel: World, trained: Path) -> None:
    agent = SelfPlayAgent.load(trained, greedy=False)
    with torch.no_grad():  # what an agent that cares for its side would do
        agent.network.policy.bias.copy_(torch.tensor([0.0, 0.0, 0.0]))
    latents = torch.randn(3, *duel.config.latent_shape)
    with pytest.raises(AgentError, match="nobody"):
        agent.reset(3, player="nobody")
    seen = with_player(latents, torch.tensor([1, 1, 1]), 2)
    assert seen[:, 16].abs().max() == 0 and seen[:, 17].min() == 1
    for player in PLAYERS:
        agent.reset(3, seed=0, player=player)
        actions = agent.act(latents.numpy())
        agent.reset(3, seed=0, player=player)
        assert np.array_equal(actions, agent.act(latents))
        assert actions.shape == (3,) and set(actions.tolist()) <= {0, 1, 2}
    for wrong in (latents[:2], latents[:, :3]):  # named as the world has them, without the players
        with pytest.raises(AgentError, match=r"expected \(3, 16, 1, 8, 8\)"):
            agent.act(wrong)


def test_what_cannot_be_trained_is_refused(duel: World, tmp_path: Path) -> None:
    from tests.tiny_world import make_tiny_world

    with pytest.raises(AgentError, match="no players"):
        selfplay.train(make_tiny_world(), Args(**SMALL), tmp_path / "a", show=False)
    with pytest.raises(ConfigError, match="reward"):
        selfplay.train(duel, Args(**SMALL | {"reward": "penalty"}), tmp_path / "b", show=False)
    with pytest.raises(AgentError, match="self-play"):
        train_alone(duel, Args(total_steps=1), tmp_path / "c", show=False)


class FakeDuel:
    """A game of three chunks in which whoever goes up wins a point from who does not."""

    def __init__(self) -> None:
        self.left = 0

    def reset(self, seed: int) -> Any:
        self.left = 3
        return self._chunk(np.zeros(2, np.float32))

    def step(self, action: int) -> Any:
        self.left -= 1
        ups = np.array([action // 3 == 1, action % 3 == 1], np.float32)
        return self._chunk(ups - ups[::-1])

    def close(self) -> None:
        self.left = 0

    def _chunk(self, reward: Any) -> Any:
        from magi_world.envs.pong import DuelChunk

        frames = np.zeros((4, 64, 64, 3), np.uint8)
        return DuelChunk(frames, 4, reward, np.zeros(2, np.int64), self.left == 0, False)


class Always:
    """An agent that always does the same."""

    observations = "frames"

    def __init__(self, action: int) -> None:
        self.action = action

    def reset(self, n: int, seed: int | None = None) -> None:
        self.n = n

    def act(self, observations: Any) -> Any:
        return np.full(self.n, self.action)


def test_margins_are_points_won_minus_lost_on_either_side(duel: World) -> None:
    make: Any = FakeDuel
    won = play_duels(make, duel, [Always(1), Always(2)], games=5, first_seed=0, width=2)
    assert won.tolist() == [[3, -3]] * 5
    row = match(make, duel, lambda: (Always(0), Always(1)), games=5, first_seed=0, width=3)
    assert row["mean"] == -3 and row["n"] == 5 and row["wins"] == 0
    assert row["sides"] == {"first_0": -3, "second_0": -3}
    assert score(np.array([1.0, -1.0, 3.0]))["wins"] == pytest.approx(2 / 3)
    same = Always(1)
    with pytest.raises(AgentError, match="twice"):
        play_duels(make, duel, [same, same], games=1, first_seed=0)
    with pytest.raises(AgentError, match="one each"):
        play_duels(make, duel, [same], games=1, first_seed=0)


def test_agents_that_read_latents_play_real_games(duel: World, trained: Path) -> None:
    agent = agents.load(trained, world=duel)
    row = match(FakeDuel, duel, lambda: (agent, Random(3)), games=4, first_seed=0)  # type: ignore[arg-type]
    assert row["n"] == 4 and -3 <= row["mean"] <= 3
