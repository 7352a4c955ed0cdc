"""Slots in Ray actors: the native batches' bits, one copy of the weights, and a killed actor.

Ray starts processes of its own; what can be told without them is in the tests of `batches`.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import data_equivalence as equal

from magi_world.envs.ray_env import RayVectorEnv
from magi_world.envs.vector_env import WorldVectorEnv
from magi_world.errors import ActionError, ConfigError, PromptError, ResetOptionError

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    """A Ray on this machine with room for two environments of two actors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            num_cpus=4, include_dashboard=False, log_to_driver=False,
            object_store_memory=200 * 2**20,
        )  # fmt: skip
        yield
        ray.shutdown()


@pytest.fixture
def make(tiny_world_path: Path) -> Iterator[Any]:
    made = []

    def make(num_envs: int = 5, **keywords: Any) -> RayVectorEnv:
        keywords = {"world": str(tiny_world_path), "actions": "discrete", **keywords}
        made.append(RayVectorEnv(num_envs, 2, **keywords))
        return made[-1]

    yield make
    for env in made:
        env.close()


def kill(env: RayVectorEnv, index: int) -> None:
    """Kill an actor as if its machine had died, and wait until it is gone."""
    ray.kill(env._actors[index], no_restart=True)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(env._actors[index].step.remote([]))


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
@pytest.mark.parametrize("observations", ["frames", "both"])
def test_the_rows_are_those_of_native_batches(
    make: Any, tiny_world_path: Path, mode: str, observations: str
) -> None:
    keywords: dict[str, Any] = {"observations": observations, "autoreset_mode": mode, "horizon": 3}
    env = make(**keywords)
    sizes = (3, 2)
    batches = [
        WorldVectorEnv(n, str(tiny_world_path), actions="discrete", **keywords) for n in sizes
    ]

    def check(result: Any, parts: list[Any]) -> None:
        for place, part in enumerate(parts[0][:-1]):
            if isinstance(part, dict):
                for name in part:
                    whole = np.concatenate([row[place][name] for row in parts])
                    assert equal(result[place][name], whole, exact=True)
            else:
                whole = np.concatenate([row[place] for row in parts])
                assert equal(result[place], whole, exact=True)
        keys = {key for row in parts for key in row[-1]}
        assert set(result[-1]) == keys
        for key in ("chunk", "_chunk", "prompt", "termination_probability"):
            whole = np.concatenate([row[-1][key] for row in parts])
            assert equal(result[-1][key], whole, exact=True)
        if "final_info" in keys:
            here = result[-1]["final_info"]["chunk"][result[-1]["_final_info"]]
            there = [
                row[-1]["final_info"]["chunk"][row[-1]["_final_info"]]
                for row in parts
                if "final_info" in row[-1]
            ]
            assert here.tolist() == np.concatenate(there).tolist()

    starts = [range(7, 10), range(10, 12)]
    check(
        env.reset(seed=7),
        [batch.reset(seed=list(seeds)) for batch, seeds in zip(batches, starts, strict=True)],
    )
    assert env.single_observation_space == batches[0].single_observation_space
    for count in range(5):
        actions = (np.arange(5) + count) % 3
        check(env.step(actions), [batches[0].step(actions[:3]), batches[1].step(actions[3:])])


def test_actors_read_the_weights_where_they_lie(make: Any) -> None:
    """Every parameter of both actors lies in memory that Ray's object store shares."""

    def shared(actor: Any) -> list[bool]:
        spans = []
        for line in Path("/proc/self/maps").read_text().splitlines():
            if "plasma" in line or "/dev/shm" in line:
                spans.append([int(end, 16) for end in line.split()[0].split("-")])
        return [
            any(low <= parameter.data_ptr() < high for low, high in spans)
            for module in actor.env.world.modules().values()
            for parameter in module.parameters()
            if parameter.numel()
        ]

    env = make()
    for actor in env._actors:
        found = ray.get(actor.__ray_call__.remote(shared))
        assert found and all(found)


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP", "DISABLED"])
def test_a_killed_actor_is_replaced(make: Any, mode: str) -> None:
    keywords: dict[str, Any] = {"autoreset_mode": mode, "ignore_termination": True}
    env, twin = make(**keywords), make(**keywords)
    opening = env.reset(seed=7)[0]
    twin.reset(seed=7)
    actions = np.array([1, 2, 0, 1, 2])
    last = env.step(actions)[0]
    twin.step(actions)
    kill(env, 1)
    obs, reward, terminated, truncated, infos = env.step(actions)
    expected = twin.step(actions)
    assert truncated.tolist() == [False, False, False, True, True] and not terminated.any()
    assert infos["actor_lost"].tolist() == truncated.tolist() and reward[3:].tolist() == [0, 0]
    assert equal(obs[:3], expected[0][:3], exact=True)
    assert equal(reward[:3], expected[1][:3], exact=True)
    if mode == "SAME_STEP":
        assert equal(obs[3:], opening[3:], exact=True)
        assert all(equal(infos["final_obs"][slot], last[slot], exact=True) for slot in (3, 4))
        assert infos["chunk"].tolist() == [2, 2, 2, 0, 0]
        following = [3, 3, 3, 1, 1]
    else:
        assert equal(obs[3:], last[3:], exact=True)
        following = [3, 3, 3, 0, 0]
    if mode == "DISABLED":
        with pytest.raises(ResetNeeded, match=r"slots \[3, 4\] have ended"):
            env.step(actions)
        env.reset(options={"reset_mask": np.array([False, False, False, True, True])})
        following = [3, 3, 3, 1, 1]
    obs, reward, terminated, truncated, infos = env.step(actions)
    assert infos["chunk"].tolist() == following and not truncated.any()
    assert "actor_lost" not in infos
    assert equal(obs[:3], twin.step(actions)[0][:3], exact=True)


def test_who_waited_for_a_reset_gets_it_from_the_new_actor(make: Any) -> None:
    env = make(horizon=1, ignore_termination=True)
    opening = env.reset(seed=7)[0]
    assert env.step([0] * 5)[3].all()
    kill(env, 0)
    obs, _, _, truncated, infos = env.step([0] * 5)
    assert not truncated.any() and infos["chunk"].tolist() == [0] * 5
    assert equal(obs, opening, exact=True)


def test_an_actor_that_dies_before_a_reset(make: Any) -> None:
    env, twin = make(ignore_termination=True), make(ignore_termination=True)
    for each in (env, twin):
        each.reset(seed=7)
        each.step([0] * 5)
    kill(env, 0)
    mask = np.array([True, False, False, True, False])
    _, infos = env.reset(seed=40, options={"reset_mask": mask})
    assert infos["actor_lost"].tolist() == [False, True, True, False, False]
    assert infos["_chunk"].tolist() == mask.tolist()
    twin.reset(seed=40, options={"reset_mask": mask})
    one, other = env.step([1] * 5), twin.step([1] * 5)
    assert one[4]["chunk"].tolist() == [1, 0, 0, 1, 2]
    for slot in (0, 3, 4):
        assert equal(one[0][slot], other[0][slot], exact=True)
    kill(env, 1)
    assert env.reset(seed=7)[1]["chunk"].tolist() == [0] * 5
    assert equal(env.step([1] * 5)[0], (twin.reset(seed=7), twin.step([1] * 5))[1][0], exact=True)


def test_actors_that_find_no_room(make: Any) -> None:
    with pytest.raises(ConfigError, match="did not start within 1 s: Ray has"):
        make(actor_options={"num_cpus": 3}, start_timeout=1)


def test_wrong_calls(make: Any, tiny_world_path: Path) -> None:
    env, twin = make(actions="text"), make(actions="text")
    with pytest.raises(ResetNeeded):
        env.step(["strafe left"] * 5)
    for each in (env, twin):
        each.reset(seed=0)
    for wrong in (["strafe left"] * 4 + [""], ["strafe left"] * 4 + ["ü" * 200]):
        with pytest.raises(PromptError):
            env.step(wrong)
    good = ["strafe left"] * 5
    assert equal(env.step(good)[0], twin.step(good)[0], exact=True)  # no actor had moved
    for each in (env, twin):  # room for the next
        each.close()
    discrete = make()
    discrete.reset(seed=0)
    with pytest.raises(ActionError, match="slot 4"):
        discrete.step([0, 0, 0, 0, 3])
    for keywords, words in (
        ({"num_envs": 1}, "num_actors 2"),
        ({"output": "torch"}, "output"),
        ({"actions": "wishes"}, "actions 'wishes'"),
        ({"dtype": "float16"}, "dtype 'float16'"),
        ({"device": "nowhere"}, "did not start: .* device 'nowhere' cannot be used"),
    ):
        with pytest.raises(ConfigError, match=words):
            make(**keywords)


def test_a_refused_reset_changes_nothing(make: Any) -> None:
    env, twin = make(), make()
    random = str(env.np_random.bit_generator.state)
    with pytest.raises(ResetOptionError):
        env.reset(options={"clip": 99})  # the first, for which seeds are drawn
    assert str(env.np_random.bit_generator.state) == random
    for each in (env, twin):
        each.reset(seed=0)
    random = str(env.np_random.bit_generator.state)
    for options in ({"clip": 99}, {"level": 3}):
        with pytest.raises(ResetOptionError):
            env.reset(seed=7, options=options)
    assert str(env.np_random.bit_generator.state) == random
    assert equal(env.step([1] * 5), twin.step([1] * 5), exact=True)


def test_closed_is_closed(make: Any) -> None:
    """Killed actors must not be taken for dead ones, which would be replaced."""
    env = make()
    env.reset(seed=0)
    env.close()
    actors = list(env._actors)
    for call in (lambda: env.step([0] * 5), env.reset):
        with pytest.raises(ClosedEnvironmentError, match="was closed"):
            call()
    assert env._actors == actors
