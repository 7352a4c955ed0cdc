"""Playing agents in dream and reality: every episode counted once, under its own seed."""

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from magi_world.agents import BASELINES, Agent, evaluation, load
from magi_world.agents.evaluation import (
    compare_with_blind,
    describe_policy,
    evaluate_agents,
    format_table,
    load_agents,
    make_row,
    play_dream,
    play_real,
)
from magi_world.agents.random_agent import NoOp, Random, Sweep
from magi_world.envs.doom import TakeCoverGame
from magi_world.errors import AgentError
from magi_world.sampling.rollout import Rollout
from magi_world.world import World
from tests.tiny_duel import make_tiny_duel

PROMPTS = ["stand still", "strafe left", "strafe right"]
HORIZON = 9


def length_of(seed: int) -> int:
    """Chunks that the episode of a seed lasts in both fakes; 0 to 12, the horizon cuts it."""
    return seed * 7 % 13


class FakeRollout:
    """Ends slot i after `length_of(seed i)` chunks; a chunk gives 4 tics, and its latents name
    the seed of its slot."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.widths: list[int] = []

    def reset(self, *, seeds: Sequence[int]) -> SimpleNamespace:
        self.seeds = list(seeds)
        assert len(self.seeds) == self.batch_size
        self.chunk_index = torch.zeros(self.batch_size, dtype=torch.int64)
        return self._chunk()

    def step(self, prompts: Sequence[str]) -> SimpleNamespace:
        assert set(prompts) <= set(PROMPTS)
        self.widths.append(len(prompts))
        self.chunk_index += 1
        return self._chunk()

    def fork(self, slots: Sequence[int]) -> "FakeRollout":
        other = FakeRollout(len(slots))
        other.widths = self.widths
        other.seeds = [self.seeds[slot] for slot in slots]
        other.chunk_index = self.chunk_index[list(slots)]
        return other

    def _chunk(self) -> SimpleNamespace:
        seed_B = torch.tensor(self.seeds)
        latents = seed_B.float().view(-1, 1, 1, 1, 1).expand(-1, 16, 1, 2, 2)
        length_B = torch.tensor([length_of(seed) for seed in self.seeds])
        over = self.chunk_index >= length_B
        frames = (seed_B % 256).to(torch.uint8).view(-1, 1, 1, 1, 1).expand(-1, 4, 16, 16, 3)
        reward = torch.full((self.batch_size,), 4.0)
        return SimpleNamespace(latents=latents, frames=frames, reward=reward, terminated=over)


class FakeWorld:
    """A world around `FakeRollout`; `encode` writes the first pixel into the latents."""

    name = "fake"

    def __init__(self) -> None:
        self.card = {"prompts": PROMPTS, "horizon": HORIZON, "name": "fake"}
        self.config = SimpleNamespace(chunk_frames=4, latent_shape=(16, 1, 2, 2))
        self.encoded: list[int] = []
        self.rollouts: list[FakeRollout] = []

    def rollout(self, batch_size: int) -> FakeRollout:
        self.rollouts.append(FakeRollout(batch_size))
        return self.rollouts[-1]

    def encode(self, frames: npt.NDArray[np.uint8]) -> torch.Tensor:
        self.encoded.append(len(frames))
        return torch.from_numpy(frames[:, :1, :1, :1, :1].astype(np.float32)).expand(
            -1, 16, 1, 2, 2
        )


class FakeGame:
    """Ends after `length_of(seed)` chunks with 2 tics of the last one; the pixels name the seed."""

    open_games = 0

    def __init__(self, prompts: Sequence[str] = PROMPTS) -> None:
        self.prompts = list(prompts)
        self.over = True
        FakeGame.open_games += 1

    def reset(self, seed: int) -> SimpleNamespace:
        self.seed, self.chunks, self.over = seed, 0, False
        return self._chunk(4.0)

    def step(self, action: int) -> SimpleNamespace:
        assert not self.over
        assert isinstance(action, int)
        self.chunks += 1
        self.over = self.chunks >= length_of(self.seed)
        return self._chunk(2.0 if self.over else 4.0)

    def close(self) -> None:
        FakeGame.open_games -= 1

    def _chunk(self, reward: float) -> SimpleNamespace:
        frames = np.full((4, 16, 16, 3), self.seed % 256, np.uint8)
        odd = self.seed % 2 == 1
        return SimpleNamespace(
            frames=frames, reward=reward, valid_frames=int(reward),
            terminated=self.over and odd, truncated=self.over and not odd,
        )  # fmt: skip


class Watcher:
    """Notes every first latent (or pixel) that it is shown, row by row."""

    def __init__(self, observations: str) -> None:
        self.observations = observations
        self.seen: list[list[float]] = []
        self.resets: list[tuple[int, int | None]] = []

    def reset(self, n: int, seed: int | None = None) -> None:
        self.resets.append((n, seed))

    def act(self, observations: Any) -> npt.NDArray[np.int64]:
        self.seen.append([float(row.flatten()[0]) for row in torch.as_tensor(observations)])
        return np.ones(len(observations), np.int64)


def fake_world() -> Any:
    return FakeWorld()


def fake_game() -> Any:
    return FakeGame()


def dream_return(seed: int) -> float:
    return 4.0 * min(max(length_of(seed), 1), HORIZON)


def real_return(seed: int) -> float:
    return 4.0 * max(length_of(seed), 1) - 2.0


@settings(deadline=None)
@given(
    episodes=st.integers(1, 20), first=st.integers(0, 100), width=st.integers(1, 20),
    blind=st.booleans(),
)  # fmt: skip
def test_every_episode_counts_once(episodes: int, first: int, width: int, blind: bool) -> None:
    world = fake_world()
    agent = NoOp() if blind else Watcher("latent")
    ticks: list[int] = []
    found = play_dream(
        world, agent, episodes=episodes, first_seed=first, batch=width, tick=ticks.append
    )
    assert found.tolist() == [dream_return(first + i) for i in range(episodes)]
    assert sum(ticks) == episodes
    ticks.clear()
    found = play_real(
        fake_game, world, agent, episodes=episodes, first_seed=first, games=width,
        tick=ticks.append,
    )  # fmt: skip
    assert found.tolist() == [real_return(first + i) for i in range(episodes)]
    assert sum(ticks) == episodes
    assert FakeGame.open_games == 0


def test_a_short_batch_is_filled() -> None:
    world = fake_world()
    play_dream(world, NoOp(), episodes=5, first_seed=0, batch=3)
    assert set(world.rollouts[0].widths) == {3}


@pytest.mark.parametrize("name", ["noop", "sticky"])
def test_what_has_ended_is_dreamed_no_further(
    name: str, tiny_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, widths = Rollout.step, []

    def counted(rollout: Rollout, prompts: Sequence[str]) -> Any:
        widths.append(rollout.batch_size)
        return step(rollout, prompts)

    monkeypatch.setattr(Rollout, "step", counted)
    agent = load(name, world=tiny_world)
    play = partial(play_dream, tiny_world, agent, episodes=40, first_seed=3, batch=32)
    fewer = play()
    short = sum(widths)
    assert widths[0] == 32 and min(widths) < 32
    widths.clear()
    monkeypatch.setattr(evaluation, "_LEAST", 10**6)
    whole = play()
    assert set(widths) == {32} and short < sum(widths)
    np.testing.assert_allclose(fewer, whole, rtol=1e-4)


@pytest.mark.parametrize("form", ["latent", "frames"])
def test_agent_rows_are_seeded_and_see_their_own_game(form: str) -> None:
    world = fake_world()
    agent = Watcher(form)
    play_real(fake_game, world, agent, episodes=5, first_seed=20, games=3)
    assert agent.resets == [(3, 20), (2, 23)]
    assert agent.seen[0] == [20.0, 21.0, 22.0]
    assert all(row == [20.0, 21.0, 22.0] for row in agent.seen if len(row) == 3)
    assert all(row == [23.0, 24.0] for row in agent.seen if len(row) == 2)
    assert bool(world.encoded) == (form == "latent")
    if form == "latent":  # games that are over are not encoded again
        assert sum(world.encoded) == sum(max(length_of(seed), 1) + 1 for seed in range(20, 25))


@pytest.mark.parametrize("form", ["latent", "frames"])
def test_the_dream_shows_the_form_that_the_agent_reads(form: str) -> None:
    agent = Watcher(form)
    play_dream(fake_world(), agent, episodes=3, first_seed=300, batch=3)
    assert agent.resets == [(3, 300)]
    offset = 256 if form == "frames" else 0
    assert agent.seen[0] == [300.0 - offset, 301.0 - offset, 302.0 - offset]


def test_blind_agents_cost_no_encoding() -> None:
    world = fake_world()
    play_real(fake_game, world, Random(3), episodes=3, first_seed=0)
    assert world.encoded == []


def test_a_game_with_other_prompts_is_refused_and_closed() -> None:
    def other() -> Any:
        return FakeGame(["jump"])

    with pytest.raises(AgentError, match="jump"):
        play_real(other, fake_world(), NoOp(), episodes=2, first_seed=0)
    assert FakeGame.open_games == 0


def test_rows_of_a_table() -> None:
    agents: dict[str, Agent] = {"random": Random(3), "watcher": Watcher("latent")}
    told: list[str] = []
    rows = evaluate_agents(
        fake_world(), agents, episodes=20, make_game=fake_game, batch=8, games=4,
        on_row=lambda row: told.append(row["agent"]), show=False,
    )  # fmt: skip
    assert told == [row["agent"] for row in rows]
    assert [(row["agent"], row["where"]) for row in rows] == [
        ("random", "dream"), ("watcher", "dream"), ("random", "real"), ("watcher", "real"),
    ]  # fmt: skip
    assert [row["policy"] for row in rows] == ["blind", "not told"] * 2
    real = [real_return(10_000 + i) for i in range(20)]
    row = rows[3]
    assert row["returns"] == real
    assert row["mean"] == pytest.approx(np.mean(real))
    assert row["std"] == pytest.approx(np.std(real, ddof=1))
    assert row["mean_low"] < row["mean"] < row["mean_high"]
    assert (row["episodes"], row["seeds"], row["first_seed"]) == (20, "final", 10_000)
    assert row["real_tics"] == sum(real) + 20 * 4
    assert rows[0]["real_tics"] == 0
    # The fakes do not care who plays: the difference is nothing.
    assert row["above_random"] == 0
    assert row["above_random_low"] < 0 < row["above_random_high"]
    assert "above_random" not in rows[0]


def test_validation_seeds() -> None:
    rows = evaluate_agents(
        fake_world(), {"noop": NoOp()}, where=["dream"], episodes=3, seeds="validation",
        show=False,
    )  # fmt: skip
    assert rows[0]["first_seed"] == 20_000
    assert rows[0]["returns"] == [dream_return(20_000 + i) for i in range(3)]


def test_difference_from_blind_agents_has_an_interval() -> None:
    rng = np.random.default_rng(0)
    rows = compare_with_blind(
        [
            make_row("random", "real", rng.normal(270, 130, 100)),
            make_row("better", "real", rng.normal(370, 130, 100)),
            make_row("better", "dream", rng.normal(370, 130, 100)),
            make_row("sweep", "real", rng.normal(880, 500, 100)),
        ]
    )
    assert rows[1]["above_random_low"] > 0
    assert rows[1]["above_random"] == pytest.approx(rows[1]["mean"] - rows[0]["mean"])
    assert rows[1]["above_sweep_high"] < 0
    assert rows[1]["above_sweep"] == pytest.approx(rows[1]["mean"] - rows[3]["mean"])
    assert rows[3]["above_random"] > 0 and "above_sweep" not in rows[3]
    assert rows[0]["above_sweep"] < 0 and "above_random" not in rows[0]
    assert not {"above_random", "above_sweep"} & set(rows[2])  # nobody beside it in the dream


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"where": ["dreams"]}, "dreams"),
        ({"seeds": "test"}, "test"),
        ({"episodes": 0}, "episodes 0"),
        ({"where": ["real"]}, "make_game"),
        ({"where": ["dream", "real"]}, "make_game"),  # before anything is dreamed
    ],
)
def test_wrong_requests_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(AgentError, match=message):
        evaluate_agents(fake_world(), {"noop": NoOp()}, show=False, **wrong)


def test_a_world_with_players_is_refused() -> None:
    duel = make_tiny_duel()
    with pytest.raises(AgentError, match="'pong-duel' has players: evaluate-selfplay"):
        load_agents(duel)
    with pytest.raises(AgentError, match="'pong-duel' has players: evaluate-selfplay"):
        evaluate_agents(duel, {"noop": NoOp()}, where=["dream"], show=False)


def test_policies_are_told() -> None:
    assert describe_policy(Sweep(24)) == "blind"
    assert describe_policy(Watcher("latent")) == "not told"


def test_dream_of_a_world_is_the_same_for_every_number_of_episodes(tiny_world: World) -> None:
    agents = load_agents(tiny_world)
    assert list(agents) == list(BASELINES)
    for agent in agents.values():
        five = play_dream(tiny_world, agent, episodes=5, first_seed=7, batch=3)
        four = play_dream(tiny_world, agent, episodes=4, first_seed=7, batch=3)
        assert five[:4].tolist() == four.tolist()
        assert (five >= 0).all() and five.any()
        assert (five <= 4 * tiny_world.card["horizon"]).all()


def test_the_real_game_is_played_to_its_end(tiny_world: World) -> None:
    """Standing still in Take Cover: 155 tics on average, and the same in any company."""
    agent = load("noop", world=tiny_world)
    three = play_real(TakeCoverGame, tiny_world, agent, episodes=3, first_seed=500, games=2)
    one = play_real(TakeCoverGame, tiny_world, agent, episodes=1, first_seed=502)
    assert three[2] == one[0]
    assert ((three > 40) & (three < 600)).all()


def test_table_for_people() -> None:
    rows = evaluate_agents(
        fake_world(), {"random": Random(3), "sweep": Sweep(2)}, episodes=4, make_game=fake_game,
        show=False,
    )  # fmt: skip
    console = Console(width=80)
    with console.capture() as captured:
        console.print(format_table(rows))
    text = captured.get()
    assert "final (10000 + i)" in text
    lines = [line for line in text.splitlines() if "sweep" in line and "real" in line]
    row = rows[3]
    assert len(lines) == 1
    assert f"{row['mean']:.0f} ± {row['std']:.0f}" in lines[0]
    assert f"[{row['above_random_low']:+.0f}, {row['above_random_high']:+.0f}]" in lines[0]
    assert f"{rows[2]['real_tics'] + row['real_tics']:,} tics" in text
