"""Save, restore and branch environments, in memory and through a file."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence as equal

import magi_world
from magi_world.envs.spaces import OBSERVATIONS
from magi_world.envs.vector_env import WorldVectorEnv
from magi_world.envs.world_env import WorldEnv
from magi_world.errors import CheckpointError
from magi_world.world import load
from tests.tiny_world import make_tiny_world

Env = WorldEnv | WorldVectorEnv
Make = Callable[..., Env]


@pytest.fixture(params=["single", "vector"])
def make(request: pytest.FixtureRequest, tiny_world_path: Path) -> Make:
    """Build either environment over the tiny world."""

    def make(**keywords: Any) -> Env:
        keywords = {"world": str(tiny_world_path), "actions": "discrete", **keywords}
        if request.param == "single":
            env: Any = gym.make("magi_world/DoomTakeCover-v0", **keywords).unwrapped
        else:
            env = gym.make_vec("magi_world/DoomTakeCover-v0", num_envs=3, **keywords)
        assert isinstance(env, Env)
        return env

    return make


def play(env: Env, count: int) -> list[Any]:
    """Steps and resets, as they come: an episode of the tiny world ends within a few chunks."""
    seen: list[Any] = []
    for index in range(count):
        if isinstance(env, WorldVectorEnv):
            seen.append(env.step(np.full(3, index % 3)))
        elif seen and (seen[-1][2] or seen[-1][3]):
            seen.append((*env.reset(), False, False))
        else:
            seen.append(env.step(index % 3))
    return seen


def finish(env: Env) -> None:
    """Leave a single environment in an episode that goes on."""
    if env._ended is not None and isinstance(env, WorldEnv):
        env.reset()


@pytest.mark.parametrize("through_a_file", [False, True])
@pytest.mark.parametrize("observations", OBSERVATIONS)
def test_a_restored_environment_goes_on_exactly(
    make: Make, tmp_path: Path, observations: str, through_a_file: bool
) -> None:
    env = make(observations=observations, render_mode="rgb_array")
    env.reset(seed=4)
    play(env, 1)
    finish(env)
    last, picture = env._shown.observation(slice(None)), env.render()
    state = env.get_state()
    kept = copy.deepcopy(state)
    expected = play(env, 7)
    drawn = env.np_random.integers(2**31)
    if through_a_file:
        magi_world.save_state(state, tmp_path / "here.safetensors")
        state = magi_world.load_state(tmp_path / "here.safetensors")
    for target in (env, make(observations=observations, render_mode="rgb_array")):
        shown = target.set_state(state)
        rows = last if isinstance(env, WorldVectorEnv) else first_row(last)
        assert equal(shown, rows, exact=True)
        assert equal(target.render(), picture, exact=True)
        assert equal(play(target, 7), expected, exact=True)
        assert target.np_random.integers(2**31) == drawn
    if not through_a_file:
        assert str(state) == str(kept)  # going on does not write into what was saved


def first_row(rows: Any) -> Any:
    return {name: part[0] for name, part in rows.items()} if isinstance(rows, dict) else rows[0]


def test_a_state_fits_other_forms_of_observation(make: Make) -> None:
    seen = make(observations="both")
    blind = make(observations="latent", render_mode="rgb_array")
    for env in (seen, blind):
        env.reset(seed=4)
        play(env, 1)
    shown = seen.set_state(blind.get_state())
    twin = make(observations="both")
    twin.reset(seed=4)
    play(twin, 1)
    expected = twin._shown.observation(slice(None))
    assert equal(shown, expected if isinstance(seen, WorldVectorEnv) else first_row(expected))


def test_a_state_before_the_first_reset(make: Make, tmp_path: Path) -> None:
    env = make()
    env.np_random = np.random.default_rng(3)
    magi_world.save_state(env.get_state(), tmp_path / "s")
    twin = make()
    assert twin.set_state(magi_world.load_state(tmp_path / "s")) is None
    with pytest.raises(gym.error.ResetNeeded):
        play(twin, 1)
    assert equal(env.reset(), twin.reset(), exact=True)
    assert equal(play(env, 3), play(twin, 3), exact=True)


def test_a_state_before_the_first_reset_shows_nothing(make: Make) -> None:
    """Also where something was shown before."""
    env = make(render_mode="rgb_array")
    blank = env.get_state()
    env.reset(seed=3)
    env.set_state(blank)
    with pytest.raises(gym.error.ResetNeeded):
        env.render()
    shown = env.get_state()["shown"]
    assert list(shown) == ["latents"] and not shown["latents"].any()


def test_wrong_states_are_refused_with_the_reason(make: Make, tiny_world_path: Path) -> None:
    env, twin = make(), make()
    for each in (env, twin):
        each.reset(seed=0)
    state = env.get_state()
    other = make_tiny_world(seed=1)
    rollout = other.rollout(env.rollout.batch_size)
    rollout.reset()
    half = load(tiny_world_path, dtype="bfloat16").rollout(env.rollout.batch_size)
    lost = {name: part for name, part in state["rollout"]["cache"].items() if name != "newest"}
    broken = {**state["rollout"], "generators": state["rollout"]["generators"][:, :40]}
    kind = "vector" if state["env"] == "single" else "single"
    cases: list[tuple[Any, str]] = [
        (None, "NoneType is no state"),
        (state["rollout"], "a state that no environment gave in a"),
        ({**state, "env": kind}, f"a state of a {kind} environment in a {state['env']}"),
        ({k: v for k, v in state.items() if k != "shown"}, r"it lacks \['shown'\]"),
        ({**state, "np_random": {"bit_generator": "MT19937"}}, "np_random"),
        ({**state, "np_random": {**state["np_random"], "state": torch.zeros(3)}}, "np_random"),
        ({**state, "rollout": None}, "NoneType is no state of a rollout"),
        ({**state, "rollout": rollout.state_dict()}, "made with other weights of 'tiny'"),
        ({**state, "rollout": {**state["rollout"], "world": "pong"}}, "a state of 'pong'"),
        ({**state, "rollout": half.state_dict()}, "a state in bfloat16 in a rollout in float32"),
        ({**state, "rollout": {**state["rollout"], "cache": lost}}, "the cache lacks newest"),
        ({**state, "rollout": broken}, "generators .* do not fit"),
    ]
    for wrong, words in cases:
        with pytest.raises(CheckpointError, match=words):
            env.set_state(wrong)
    assert equal(play(env, 3), play(twin, 3), exact=True)


def leaves(state: dict[str, Any], *keys: str) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """Every leaf of a nested state: the dictionary it is in, and its path of keys."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from leaves(value, *keys, key)
        else:
            yield state, (*keys, key)


def test_damaged_states_are_refused_and_change_nothing(make: Make) -> None:
    """Whatever part of a state is exchanged for something of another kind."""
    env, twin = make(observations="both"), make(observations="both")
    for each in (env, twin):
        each.reset(seed=0)
    state = env.get_state()
    for folder, (*keys, key) in leaves(state):
        whole = folder[key]
        wrong: list[Any] = [torch.zeros(0), {}]
        if key != "ended":  # with a single environment a text or None
            wrong += [None, "x"]
        if isinstance(whole, torch.Tensor):
            wrong += [whole[:-1], whole[None], whole.half()]
        if key in ("time", "chunk_index", "chunk", "length", "scratch", "filled"):
            wrong.append(whole - 1000)
        for value in wrong:
            folder[key] = value
            with pytest.raises(CheckpointError):
                env.set_state(state)
                pytest.fail(f"{[*keys, key]} was taken as {value!r}")
        folder[key] = whole
    assert equal(play(env, 3), play(twin, 3), exact=True)


CONTINUE = """
import sys, numpy as np, torch, magi_world
from magi_world.envs import WorldVectorEnv
world, here, there = sys.argv[1:]
torch.set_num_threads(1)
env = WorldVectorEnv(3, world, actions="discrete", observations="both")
env.set_state(magi_world.load_state(here))
rows = [env.step(np.full(3, index % 3)) for index in range(6)]
magi_world.save_state({
    "frames": torch.from_numpy(np.stack([row[0]["frames"] for row in rows])),
    "latent": torch.from_numpy(np.stack([row[0]["latent"] for row in rows])),
    "rewards": torch.from_numpy(np.stack([row[1] for row in rows])),
    "ends": torch.from_numpy(np.stack([row[2] | row[3] for row in rows])),
}, there)
"""


def test_a_state_goes_on_bit_by_bit_in_another_process(
    tiny_world_path: Path, tmp_path: Path
) -> None:
    env = WorldVectorEnv(3, str(tiny_world_path), actions="discrete", observations="both")
    env.reset(seed=4)
    play(env, 2)
    here, there = str(tmp_path / "here.safetensors"), str(tmp_path / "there.safetensors")
    magi_world.save_state(env.get_state(), here)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        rows = play(env, 6)
    finally:
        torch.set_num_threads(threads)
    words = [sys.executable, "-c", CONTINUE, str(tiny_world_path), here, there]
    subprocess.run(words, check=True)
    other = magi_world.load_state(there)
    for name in ("frames", "latent"):
        assert np.array_equal(other[name].numpy(), np.stack([row[0][name] for row in rows]))
    assert np.array_equal(other["rewards"].numpy(), np.stack([row[1] for row in rows]))
    ends = np.stack([row[2] | row[3] for row in rows])
    assert np.array_equal(other["ends"].numpy(), ends) and ends.any()


def test_widths_have_to_agree(tiny_world_path: Path) -> None:
    envs = [WorldVectorEnv(n, str(tiny_world_path)) for n in (2, 3)]
    for env in envs:
        env.reset(seed=0)
    with pytest.raises(CheckpointError, match="a state of 3 slots in a rollout of 2"):
        envs[0].set_state(envs[1].get_state())


def test_a_file_of_a_rollout(tiny_world_path: Path, tmp_path: Path) -> None:
    """The state of a rollout goes through the same file; a reloaded world gives the same bits."""
    rollout = load(tiny_world_path).rollout(2, seeds=[4, 5])
    rollout.reset()
    rollout.step(["strafe left"] * 2)
    magi_world.save_state(rollout.state_dict(), tmp_path / "s")
    twin = load(tiny_world_path).rollout(2, steps=rollout.steps)
    twin.load_state_dict(magi_world.load_state(tmp_path / "s"))
    one, other = (r.step(["strafe right"] * 2) for r in (rollout, twin))
    assert torch.equal(one.latents, other.latents)


def test_another_number_of_threads_is_close(tiny_world_path: Path, tmp_path: Path) -> None:
    """What another machine does: other sums in another order, for 16 teacher-forced chunks."""
    rollout = load(tiny_world_path).rollout(2, seeds=[4, 5])
    rollout.reset()
    magi_world.save_state(rollout.state_dict(), tmp_path / "s")
    twin = load(tiny_world_path).rollout(2)
    twin.load_state_dict(magi_world.load_state(tmp_path / "s"))
    threads = torch.get_num_threads()
    for index in range(16):
        prompts = [["stand still", "strafe left"][index % 2]] * 2
        chunk = rollout.fork([0, 1]).step(prompts)
        try:
            torch.set_num_threads(2)
            other = twin.fork([0, 1]).step(prompts)
        finally:
            torch.set_num_threads(threads)
        torch.testing.assert_close(chunk.latents, other.latents, rtol=0, atol=1e-4)
        for each in (rollout, twin):  # the same latents and the same draws go on in both
            each.observe(chunk.latents, prompts)
            each.seed([0, 1], [100 + index, 200 + index])


def test_a_fork_may_have_settings_of_its_own(tiny_world_path: Path) -> None:
    rollout = load(tiny_world_path).rollout(1, seeds=[4], steps=3)
    rollout.reset()
    fork = rollout.fork([0, 0], seeds=[1, 2], steps=1, temperature=0.0)
    assert (fork.steps, fork.temperature, rollout.steps) == (1, 0.0, 3)
    rows = fork.step(["strafe left"] * 2).latents
    torch.testing.assert_close(rows[0], rows[1], rtol=0, atol=1e-5)  # no noise, no difference
