"""Several duels as one batch."""

from typing import Any

import numpy as np
import pytest
import torch

from magi_world.envs import pong_duel_v0
from magi_world.envs.multi_vector_env import ParallelVectorEnv
from magi_world.errors import ActionError, PromptError
from tests.tiny_duel import PLAYERS


def test_a_batch_plays_what_single_games_play(duel: str) -> None:
    batch = ParallelVectorEnv(3, duel, actions="discrete", observations="latent")
    singles = [pong_duel_v0.parallel_env(world=duel, observations="latent") for _ in range(3)]
    observations, _ = batch.reset(seed=7)
    for slot, env in enumerate(singles):
        first, _ = env.reset(seed=7 + slot)
        assert np.allclose(first["first_0"], observations["first_0"][slot], atol=1e-4)
    said: dict[str, Any] = {"first_0": [0, 1, 2], "second_0": np.array([2, 2, 0])}
    observations, rewards, _, _, infos = batch.step(said)
    words = batch.world.card["prompts"]
    for slot, env in enumerate(singles):
        alone = env.step({a: words[int(rows[slot])] for a, rows in said.items()})
        for agent in PLAYERS:
            assert np.allclose(alone[0][agent], observations[agent][slot], atol=1e-4)
            assert alone[1][agent] == pytest.approx(rewards[agent][slot], abs=1e-4)
        assert infos["first_0"]["prompt"][slot] == alone[4]["first_0"]["prompt"]
    assert batch.observation_space("first_0").contains(observations["first_0"])


def test_games_of_a_batch_end_and_begin_again(duel: str) -> None:
    env = ParallelVectorEnv(2, duel, max_cycles=2, autoreset_mode="SAME_STEP")
    env.reset(seed=0)
    env.step({})
    _, _, terminated, truncated, infos = env.step({})
    assert truncated["first_0"].all() and not terminated["first_0"].any()
    assert infos["second_0"]["_final_obs"].all()
    _, _, _, truncated, _ = env.step({})
    assert not truncated["first_0"].any()


@pytest.mark.parametrize("observations", ["frames", "both"])
def test_an_end_is_seen_as_all_else_and_infos_are_everybodys_own(
    duel: str, observations: str
) -> None:
    env = ParallelVectorEnv(
        2, duel, max_cycles=1, view="own", observations=observations, autoreset_mode="SAME_STEP"
    )
    env.reset(seed=0)
    infos = env.step({})[4]
    for agent in PLAYERS:
        space = env.single_observation_spaces[agent]
        assert all(space.contains(last) for last in infos[agent]["final_obs"])
    one, other = (infos[agent] for agent in PLAYERS)
    one["chunk"][:] = 9
    one["final_info"]["chunk"][:] = 9
    assert other["chunk"].tolist() == [0, 0] and other["final_info"]["chunk"].tolist() == [1, 1]


def test_texts_too_long_together_name_the_agents_of_a_batch(duel: str) -> None:
    batch = ParallelVectorEnv(2, duel)
    batch.reset(seed=0)
    with pytest.raises(PromptError, match="^first_0, second_0 together: slot 1: "):
        batch.step({"first_0": ["up", "x" * 150], "second_0": ["up", "x" * 150]})


def test_a_batch_in_torch_and_its_state(duel: str) -> None:
    env = ParallelVectorEnv(2, duel, output="torch", observations="latent", view="own")
    env.reset(seed=0)
    state = env.get_state()
    one = env.step({"first_0": ["up", "down"], "second_0": ["stay", "climb"]})
    assert isinstance(one[1]["first_0"], torch.Tensor) and one[1]["first_0"].shape == (2,)
    assert one[0]["first_0"].shape[-1] == 4
    assert env.set_state(state) is not None
    other = env.step({"first_0": ["up", "down"], "second_0": ["stay", "climb"]})
    assert torch.equal(one[0]["first_0"], other[0]["first_0"])
    with pytest.raises(ActionError, match="players are"):
        env.step({"nobody": ["up", "up"]})
    with pytest.raises(PromptError, match="first_0: slot 1"):
        env.step({"first_0": ["up", ""]})
