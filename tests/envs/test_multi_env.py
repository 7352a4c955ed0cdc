"""Several agents in one world: PettingZoo's own tests, prompts, rewards, arbitration, batches."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pettingzoo
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from pettingzoo.test import (
    api_test,
    max_cycles_test,
    parallel_api_test,
    parallel_seed_test,
    render_test,
    seed_test,
    state_test,
)

import magi_world
from magi_world.envs import WorldEnv, WorldVectorEnv, pong_duel_v0
from magi_world.envs.multi_env import MultiEnv
from magi_world.envs.multi_vector_env import ParallelVectorEnv
from magi_world.errors import (
    ActionError,
    ConfigError,
    PromptError,
    ResetOptionError,
    WorldNotFound,
)
from tests.tiny_duel import PLAYERS
from tests.tiny_world import make_tiny_world

# PettingZoo's tests say that chunks of frames have four dimensions, and that text is unusual.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*has more than 3 dimensions:UserWarning"),
    pytest.mark.filterwarnings("ignore:Action space for each agent probably:UserWarning"),
]


@pytest.fixture(scope="module")
def solo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of the tiny world for one agent."""
    folder = tmp_path_factory.mktemp("worlds") / "solo"
    make_tiny_world().save(folder)
    return str(folder)


@pytest.fixture(params=["duel", "vote", "turns"])
def maker(request: pytest.FixtureRequest, duel: str, solo: str) -> Iterator[Any]:
    """Keywords of one kind of environment with several agents."""
    if request.param == "duel":
        yield {"world": duel}
    else:
        yield {
            "world": solo,
            "arbitration": request.param,
            "num_voters": 3,
            "ignore_termination": True,  # its end is drawn, which a test of lengths cannot bear
        }


@pytest.mark.parametrize("actions", ["text", "discrete"])
def test_pettingzoos_own_tests_pass(maker: dict[str, Any], actions: str) -> None:
    keywords = {**maker, "actions": actions}
    parallel = partial(pong_duel_v0.parallel_env, **keywords)
    turns = partial(pong_duel_v0.env, **keywords)
    parallel_api_test(parallel(), num_cycles=30)
    parallel_seed_test(parallel, num_cycles=20)
    api_test(turns(), num_cycles=20)
    seed_test(turns, num_cycles=10)
    max_cycles_test(SimpleNamespace(parallel_env=parallel, env=turns))


def test_pettingzoos_render_and_state_tests_pass(duel: str) -> None:
    render_test(partial(pong_duel_v0.env, world=duel))
    env = pong_duel_v0.parallel_env(world=duel)
    state_test(pong_duel_v0.env(world=duel), env)


def test_it_is_registered(duel: str) -> None:
    parallel = pettingzoo.make("parallel", "magi_world/pong_duel-v0", world=duel, max_cycles=3)
    assert parallel.possible_agents == PLAYERS
    turns = pettingzoo.make("aec", "magi_world/pong_duel-v0", world=duel)
    assert turns.possible_agents == PLAYERS


def test_the_function_opens_folders_and_says_what_is_missing(duel: str) -> None:
    assert isinstance(magi_world.envs.parallel_env(duel), MultiEnv)
    with pytest.raises(WorldNotFound):
        magi_world.envs.parallel_env("no-such-world")


def test_both_actions_make_one_prompt_and_each_player_has_a_reward(duel: str) -> None:
    env = pong_duel_v0.parallel_env(world=duel)
    observations, infos = env.reset(seed=3)
    assert env.agents == PLAYERS
    assert all(env.observation_space(a).contains(observations[a]) for a in PLAYERS)
    _, rewards, _, _, infos = env.step({"first_0": "up", "second_0": "fly {away}"})
    assert infos["first_0"]["prompt"] == "left: fly {away}; right: up"
    assert (infos["first_0"]["action"], infos["second_0"]["action"]) == ("up", "fly {away}")
    rollout = magi_world.load(duel).rollout(1, seeds=[3])
    rollout.reset()
    chunk = rollout.step(["left: fly {away}; right: up"])
    assert list(rewards.values()) == pytest.approx(chunk.reward[0].tolist())
    assert rewards["first_0"] != rewards["second_0"]


def test_text_and_discrete_actions_are_the_same_thing(duel: str) -> None:
    text = pong_duel_v0.parallel_env(world=duel)
    number = pong_duel_v0.parallel_env(world=duel, actions="discrete")
    text.reset(seed=1)
    number.reset(seed=1)
    one = text.step({"first_0": "down", "second_0": "up"})
    other = number.step({"first_0": np.int64(2), "second_0": 1})
    assert np.array_equal(one[0]["first_0"], other[0]["first_0"])
    assert one[1] == other[1]


def test_an_absent_agent_does_the_no_op(duel: str) -> None:
    env = pong_duel_v0.parallel_env(world=duel)
    env.reset(seed=0)
    infos = env.step({"second_0": "up"})[4]
    assert infos["first_0"]["prompt"] == "left: up; right: stay"


def test_the_dead_stay_dead_until_the_next_reset(duel: str) -> None:
    env = pong_duel_v0.parallel_env(world=duel, max_cycles=2)
    env.reset(seed=0)
    env.step({})
    _, _, terminated, truncated, _ = env.step({})
    assert env.agents == []
    assert all(truncated.values()) and not any(terminated.values())
    with pytest.raises(ResetNeeded):
        env.step({})
    env.reset()
    assert env.agents == PLAYERS


def test_the_cards_horizon_truncates_and_nothing_terminates(duel: str) -> None:
    env = pong_duel_v0.parallel_env(world=duel)
    env.reset(seed=0)
    for chunk in range(12):
        assert env.agents == PLAYERS, chunk
        _, _, terminated, truncated, infos = env.step({})
        assert infos["first_0"]["termination_probability"] == 0.0
    assert env.agents == [] and all(truncated.values()) and not any(terminated.values())


def test_a_player_can_see_its_own_side(duel: str) -> None:
    whole = pong_duel_v0.parallel_env(world=duel, observations="both")
    own = pong_duel_v0.parallel_env(world=duel, observations="both", view="own")
    whole.reset(seed=5)
    own.reset(seed=5)
    all_of_it, _, _, _, _ = whole.step({"first_0": "up"})
    half, _, _, _, _ = own.step({"first_0": "up"})
    frames = all_of_it["first_0"]["frames"]
    assert np.array_equal(half["first_0"]["frames"], frames[:, :, 32:])  # the right half
    assert np.array_equal(half["second_0"]["frames"], frames[:, :, :32])
    assert np.array_equal(half["second_0"]["latent"], all_of_it["first_0"]["latent"][..., :4])
    assert all(own.observation_space(a).contains(half[a]) for a in PLAYERS)
    assert np.array_equal(own.state()["frames"], frames)


def test_what_is_handed_out_shares_no_memory(duel: str) -> None:
    env = pong_duel_v0.parallel_env(world=duel)
    observations, _ = env.reset(seed=0)
    before = env.state()
    observations["first_0"][:] = 0
    assert np.array_equal(observations["second_0"], before)
    assert np.array_equal(env.state(), before)


@pytest.mark.parametrize("kind", ["duel", "turns"])
def test_a_saved_state_goes_on_in_another(kind: str, duel: str, solo: str, tmp_path: Path) -> None:
    keywords: dict[str, Any] = {"world": duel, "view": "own"}
    if kind == "turns":
        keywords = {"world": solo, "arbitration": "turns", "ignore_termination": True}
    env, twin = (MultiEnv(actions="discrete", max_cycles=4, **keywords) for _ in range(2))
    agents = env.possible_agents
    assert twin.set_state(env.get_state()) is None and twin.agents == []
    env.reset(seed=1)
    last = env.step(dict.fromkeys(agents, 1))[0]
    magi_world.save_state(env.get_state(), tmp_path / "s")
    shown = twin.set_state(magi_world.load_state(tmp_path / "s"))
    assert twin.agents == agents and data_equivalence(shown, last, exact=True)
    assert data_equivalence(twin.state(), env.state(), exact=True)
    for _ in range(3):
        actions = {agent: number for number, agent in enumerate(agents, 1)}
        assert data_equivalence(env.step(actions), twin.step(actions), exact=True)
    assert env.agents == twin.agents == []
    env.reset(seed=2)
    env.set_state(twin.get_state())
    assert env.agents == []  # the end is saved too


def test_wrong_actions_are_named_and_change_nothing(duel: str) -> None:
    env = pong_duel_v0.parallel_env(world=duel, actions="discrete")
    again = pong_duel_v0.parallel_env(world=duel, actions="discrete")
    env.reset(seed=0)
    again.reset(seed=0)
    with pytest.raises(ActionError, match="first_0"):
        env.step({"first_0": 3, "second_0": 0})
    with pytest.raises(ActionError, match="third_0"):
        env.step({"third_0": 0})
    with pytest.raises(ActionError, match="dictionary"):
        env.step([0, 1])  # type: ignore[arg-type]
    assert np.array_equal(env.step({})[0]["first_0"], again.step({})[0]["first_0"])
    text = pong_duel_v0.parallel_env(world=duel)
    text.reset(seed=0)
    with pytest.raises(PromptError, match="second_0"):
        text.step({"second_0": ""})
    with pytest.raises(PromptError, match="^first_0 together: .* characters"):
        text.step({"first_0": "u" * 250})  # with the template more than the text encoder takes
    with pytest.raises(PromptError, match="^first_0, second_0 together: .* UTF-8 bytes"):
        text.step({"first_0": "ü" * 100, "second_0": "ü" * 100})


def test_in_turn_a_wrong_action_is_refused_at_once(duel: str) -> None:
    env, twin = (pong_duel_v0.env(world=duel, actions="discrete") for _ in range(2))
    for each in (env, twin):
        each.reset(seed=0)
    for player in PLAYERS:
        for wrong in (3, None, "up"):
            with pytest.raises(ActionError, match=f"{player}: action {wrong!r}"):
                env.step(wrong)
        for each in (env, twin):
            assert each.agent_selection == player
            each.step(1)
    assert data_equivalence(env.last(), twin.last(), exact=True)


@pytest.mark.parametrize("long", ["x" * 250, "é" * 125])
def test_in_turn_no_accepted_action_leaves_the_others_without_one(duel: str, long: str) -> None:
    env = pong_duel_v0.env(world=duel)
    env.reset(seed=0)
    with pytest.raises(PromptError, match="first_0, together with the others"):
        env.step(long)
    env.step(long[:100])
    with pytest.raises(PromptError, match="second_0, together with the others"):
        env.step(long)
    env.step("up")
    assert env.agent_selection == PLAYERS[0]
    assert env.last()[4]["chunk"] == 1
    env.step("down")  # what was said in the chunk before does not count
    env.step(long[:100])


def test_options_that_are_no_dictionary_are_refused(duel: str) -> None:
    env = MultiEnv(duel)
    with pytest.raises(ResetOptionError, match="a dictionary is needed"):
        env.reset(options=[1])  # type: ignore[arg-type]
    assert env.agents == []


def test_votes_are_counted_and_ties_go_to_the_lowest_agent(solo: str) -> None:
    env = MultiEnv(solo, arbitration="vote", num_voters=4, ignore_termination=True)
    env.reset(seed=0)
    agents = [f"agent_{i}" for i in range(4)]
    said = ["strafe left", "strafe right", "strafe right", "strafe left"]
    infos = env.step(dict(zip(agents, said, strict=True)))[4]
    assert infos["agent_0"]["prompt"] == "strafe left"
    _, rewards, _, _, infos = env.step(dict(zip(agents[1:], said[1:], strict=True)))
    assert infos["agent_0"]["prompt"] == "strafe right"
    assert len(set(rewards.values())) == 1


def test_turns_go_round_and_the_others_are_checked_but_ignored(solo: str) -> None:
    env = MultiEnv(
        solo, arbitration="turns", num_voters=2, actions="discrete", ignore_termination=True
    )
    for _ in range(2):
        env.reset(seed=0)
        prompts = [env.step({"agent_0": 1, "agent_1": 2})[4]["agent_0"]["prompt"] for _ in "123"]
        assert prompts == ["strafe left", "strafe right", "strafe left"]
    with pytest.raises(ActionError, match="agent_0"):
        env.step({"agent_0": 9, "agent_1": 2})  # not its turn, and still wrong
    text = MultiEnv(solo, arbitration="turns")
    text.reset(seed=0)
    with pytest.raises(PromptError, match="agent_1: .* UTF-8 bytes"):
        text.step({"agent_1": "ü" * 200})


def test_keywords_that_do_not_go_with_the_world_are_refused(duel: str, solo: str) -> None:
    for keywords in (
        {"world": duel, "arbitration": "vote"},
        {"world": solo},
        {"world": solo, "arbitration": "fight"},
        {"world": solo, "arbitration": "vote", "num_voters": 0},
        {"world": solo, "arbitration": "vote", "view": "own"},
        {"world": duel, "view": "half"},
        {"world": duel, "actions": "none"},
        {"world": duel, "max_cycles": 0},
    ):
        with pytest.raises(ConfigError):
            MultiEnv(**keywords)
    for single in (WorldEnv, WorldVectorEnv):
        with pytest.raises(ConfigError, match="parallel_env"):
            single(world=duel)
    with pytest.raises(ConfigError, match="no players"):
        ParallelVectorEnv(2, solo)
    for limited in (MultiEnv, partial(ParallelVectorEnv, 2)):
        with pytest.raises(ConfigError, match="max_cycles 0"):
            limited(world=duel, max_cycles=0)


def test_saved_duels_come_back(duel: str, tmp_path: Path) -> None:
    world = magi_world.load(duel)
    world.save(tmp_path / "again")
    again = magi_world.load(tmp_path / "again")
    assert again.bank.prompts == world.bank.prompts
    assert again.config.outcome is not None and again.config.outcome.rewards == tuple(PLAYERS)


@pytest.mark.parametrize("arbitration", ["vote", "turns"])
def test_the_shipped_world_passes_pettingzoos_tests_with_arbitration(arbitration: str) -> None:
    keywords = {
        "world": "doom-take-cover", "arbitration": arbitration, "actions": "discrete",
        "observations": "latent", "ignore_termination": True,
    }  # fmt: skip
    parallel = partial(pong_duel_v0.parallel_env, **keywords)
    parallel_api_test(parallel(), num_cycles=5)
    parallel_seed_test(parallel, num_cycles=3)
    api_test(pong_duel_v0.env(**keywords), num_cycles=5)
    seed_test(partial(pong_duel_v0.env, **keywords), num_cycles=3)
    max_cycles_test(
        SimpleNamespace(parallel_env=parallel, env=partial(pong_duel_v0.env, **keywords))
    )
    render_test(partial(pong_duel_v0.env, **keywords))
