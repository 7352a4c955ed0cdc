import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_world.agents.random_agent import NoOp, Random, Sticky, Sweep
from magi_world.errors import AgentError


def play(agent: Random | Sticky | Sweep | NoOp, n: int, chunks: int, seed: int) -> np.ndarray:
    """Actions int64 `[chunks, n]`."""
    agent.reset(n, seed=seed)
    actions = [agent.act(np.zeros((n, 1))) for _ in range(chunks)]
    assert all(row.dtype == np.int64 and row.shape == (n,) for row in actions)
    return np.stack(actions)


def test_noop_plays_prompt_zero() -> None:
    assert not play(NoOp(), 3, 5, seed=0).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5))
def test_sweep_follows_the_rule(period: int, rows: int) -> None:
    actions = play(Sweep(period), rows, 4 * period, seed=0)
    for k, row in enumerate(actions):
        left = ((k + period // 2) // period) % 2 == 0
        assert (row == (1 if left else 2)).all()


def test_sweep_walks_half_a_period_first_and_takes_other_directions() -> None:
    actions = play(Sweep(4, left=5, right=7), 1, 12, seed=0)[:, 0]
    assert actions.tolist() == [5, 5, 7, 7, 7, 7, 5, 5, 5, 5, 7, 7]


@pytest.mark.parametrize("agent", [Random(3), Sticky(3)])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 4))
def test_every_row_can_be_repeated_alone(agent: Sticky, seed: int, rows: int) -> None:
    together = play(agent, rows, 12, seed)
    for row in range(rows):
        np.testing.assert_array_equal(play(agent, 1, 12, seed + row)[:, 0], together[:, row])


def test_without_a_seed_episodes_differ() -> None:
    agent, observations = Random(3), np.zeros((1, 1))
    episodes = []
    for _ in range(2):
        agent.reset(1)
        episodes.append([int(agent.act(observations)[0]) for _ in range(40)])
    assert episodes[0] != episodes[1]


def test_random_is_uniform_and_sticky_repeats() -> None:
    uniform = play(Random(3), 50, 400, seed=1)
    sticky = play(Sticky(3, p=0.5), 50, 400, seed=1)
    for actions in (uniform, sticky):
        np.testing.assert_allclose(np.bincount(actions.ravel()) / actions.size, 1 / 3, atol=0.02)
    assert abs((uniform[1:] == uniform[:-1]).mean() - 1 / 3) < 0.02
    assert abs((sticky[1:] == sticky[:-1]).mean() - 2 / 3) < 0.02  # half, and a third of the rest


def test_always_repeating_keeps_the_first_action() -> None:
    actions = play(Sticky(3, p=1.0), 30, 5, seed=3)
    assert (actions == actions[0]).all() and len(np.unique(actions[0])) == 3


def test_an_action_handed_out_is_the_callers() -> None:
    agent = Sticky(3, p=1.0)
    agent.reset(2, seed=0)
    observations = np.zeros((2, 1))
    first = agent.act(observations)
    expected = first.copy()
    first[:] = 9
    np.testing.assert_array_equal(agent.act(observations), expected)


def test_observations_may_be_torch() -> None:
    for agent in (NoOp(), Random(2), Sweep(3)):
        agent.reset(2, seed=0)
        assert agent.act(torch.zeros(2, 16, 1, 8, 8)).shape == (2,)


def test_wrong_numbers_are_named() -> None:
    with pytest.raises(AgentError, match="got 0"):
        Random(0)
    with pytest.raises(AgentError, match="got 1.5"):
        Sticky(3, p=1.5)
    with pytest.raises(AgentError, match="got 0"):
        Sweep(0)
    agent = Random(3)
    agent.reset(2, seed=0)
    with pytest.raises(AgentError, match="3 observations.* 2 rows"):
        agent.act(np.zeros((3, 1)))


def test_sticky_draws_by_weight() -> None:
    agent = Sticky(3, p=0.0, weights=[1.0, 0.0, 3.0])
    agent.reset(1000, seed=0)
    counts = np.bincount(agent.act(np.zeros((1000, 1))), minlength=3)
    assert counts[1] == 0 and 200 < counts[0] < 300
    for weights in ([1.0, 2.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0]):
        with pytest.raises(AgentError, match="3 numbers, none below 0"):
            Sticky(3, weights=weights)
