"""A planner as the player of whole episodes: when it plans, and for whom."""

from typing import Any

import numpy as np
import pytest
import torch

from magi_world.agents.evaluation import play_dream
from magi_world.agents.planner import Planner
from magi_world.errors import AgentError
from magi_world.world import World
from tests.agents.test_planner import small


def test_ended_episodes_are_planned_for_no_more(
    tiny_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that go on are planned for as they were, and nothing is imagined for the others."""
    chunks = torch.randn(4, 3, *tiny_world.config.latent_shape)
    whole, search = small(tiny_world), small(tiny_world)
    imagined: list[int] = []
    imagine = Planner._imagine

    def count(planner: Planner, rollout: Any, slots: list[int], *rest: Any) -> Any:
        imagined.append(len(slots))
        return imagine(planner, rollout, slots, *rest)

    monkeypatch.setattr(Planner, "_imagine", count)
    for one in (whole, search):
        one.reset(3, seed=4)
        one.act(chunks[0])
    imagined.clear()
    search.retire([1])
    for chunk in chunks[1:3]:
        actions = search.act(chunk)
        assert actions[1] == 0
        assert actions[[0, 2]].tolist() == whole.act(chunk)[[0, 2]].tolist()
    assert set(imagined) == {2, 3}
    search.retire([0, 2])
    imagined.clear()
    assert search.act(chunks[3]).tolist() == [0, 0, 0] and not imagined

    # and whoever plays them says so, of an episode that only fills a batch too
    search.reset(3, seed=4)
    told: list[list[int]] = []
    monkeypatch.setattr(Planner, "retire", lambda planner, rows: told.append(list(rows)))
    play_dream(tiny_world, small(tiny_world), episodes=3, first_seed=0, batch=2)
    assert [1] in told and sorted(sum(told, [])) == [0, 0, 1, 1]


def test_a_plan_is_carried_out_for_as_long_as_was_agreed(
    tiny_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two plans the chunks are observed and nothing is imagined; an end changes nothing."""
    plans: list[Any] = []
    made = Planner.plan

    def noted(planner: Planner, *given: Any, **named: Any) -> Any:
        plans.append(made(planner, *given, **named))
        return plans[-1]

    monkeypatch.setattr(Planner, "plan", noted)
    search = small(tiny_world, horizon=3, commit=2)
    search.reset(3, seed=0)
    chunks = torch.randn(5, 3, *tiny_world.config.latent_shape)
    acts = [search.act(chunk) for chunk in chunks[:3]]
    assert len(plans) == 2
    assert np.array_equal(np.stack(acts[:2], axis=1), plans[0].sequences[:, :2])
    search.retire([1])
    rest = search.act(chunks[3])
    assert len(plans) == 2 and rest.tolist() == [
        plans[1].sequences[0, 1], 0, plans[1].sequences[2, 1],
    ]  # fmt: skip
    search.act(chunks[4])
    assert len(plans) == 3
    # what is carried over begins behind what was carried out
    drawn = search._draw(search._plans, None)
    assert drawn[:, 0, 0].tolist() == plans[2].sequences[:, 2].tolist()
    for keywords in ({"commit": 4, "horizon": 3}, {"commit": 2, "method": "hold", "horizon": 1}):
        with pytest.raises(AgentError, match="no longer than"):
            small(tiny_world, **keywords)


def test_a_planner_plays_episodes(tiny_world: World) -> None:
    returns = play_dream(tiny_world, small(tiny_world), episodes=3, first_seed=0, batch=2)
    assert returns.shape == (3,) and np.isfinite(returns).all()
