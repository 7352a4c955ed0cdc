"""The native batch: Gymnasium's semantics, and slots that never feel each other."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence as equal
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_world.envs.spaces import ACTIONS, OBSERVATIONS
from magi_world.envs.vector_env import WorldVectorEnv
from magi_world.world import World
from tests.envs.vector_envs import ENV_ID, make_batch, mask

MODES = ("NEXT_STEP", "SAME_STEP", "DISABLED")
Make = Callable[..., WorldVectorEnv]


@pytest.fixture
def make(tiny_world_path: Path) -> Make:
    """Builds the native batch over the tiny world."""
    return partial(make_batch, tiny_world_path)


def fix_ends(env: WorldVectorEnv, monkeypatch: pytest.MonkeyPatch, ends: list[set[int]]) -> None:
    """Let the world end these slots in its first, second, … forward."""
    step, script = env.rollout.step, iter(ends)

    @torch.inference_mode()
    def changed(prompts: list[str]) -> Any:
        chunk = step(prompts)
        over = next(script)
        chunk.terminated[:] = torch.tensor([slot in over for slot in range(env.num_envs)])
        return chunk

    monkeypatch.setattr(env.rollout, "step", changed)


# ---------------------------------------------------------------- as Gymnasium's own


@pytest.mark.parametrize("observations", OBSERVATIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("actions", ACTIONS)
def test_one_slot_is_gymnasiums_loop_over_one(
    make: Make, tiny_world_path: Path, actions: str, mode: str, observations: str
) -> None:
    """Every array, key, mask and dtype, to the bit, over resets of all kinds."""
    keywords: dict[str, Any] = {
        "world": str(tiny_world_path), "actions": actions, "observations": observations,
    }  # fmt: skip
    native = make(1, autoreset_mode=mode, **keywords)
    loop = gym.make_vec(
        ENV_ID, num_envs=1, vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode[mode]}, **keywords,
    )  # fmt: skip
    assert native.single_action_space == loop.single_action_space
    assert native.observation_space == loop.observation_space
    assert native.action_space == loop.action_space
    assert native.metadata == loop.metadata
    assert equal(native.reset(seed=3), loop.reset(seed=3), exact=True)
    ended = 0
    for count in range(12):
        action: Any = np.array([count % 3])
        if actions == "text":
            action = (native.world.card["prompts"][count % 3],)
        one, other = native.step(action), loop.step(action)
        assert equal(one, other, exact=True)
        over = bool((one[2] | one[3])[0])
        ended += over
        if mode == "DISABLED" and over:
            options = mask(0, n=1)
            seed = None if count % 2 else 50 + count
            one_reset = native.reset(seed=seed, options=dict(options))
            assert equal(one_reset, loop.reset(seed=seed, options=dict(options)), exact=True)
    assert 3 <= ended < 12
    native.close()
    native.close()


def test_the_registry_builds_it(make: Make, tiny_world_path: Path) -> None:
    env = make(2, autoreset_mode="SAME_STEP", max_episode_steps=3, horizon=5)
    assert env.horizon == 3 and env.num_envs == 2
    assert make(2, max_episode_steps=30).horizon == 12
    assert env.metadata["autoreset_mode"] is env.autoreset_mode is AutoresetMode.SAME_STEP
    assert make().autoreset_mode is AutoresetMode.NEXT_STEP
    assert env.spec is not None
    spec = EnvSpec.from_json(env.spec.to_json())
    twin = gym.make_vec(spec)
    assert isinstance(twin, WorldVectorEnv) and twin.num_envs == 2 and twin.horizon == 3
    assert twin.autoreset_mode is AutoresetMode.SAME_STEP


# ---------------------------------------------------------------- the three modes


def test_next_step_resets_in_the_step_after(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(horizon=3)
    fix_ends(env, monkeypatch, [{1}, set(), set(), set()])
    opening, _ = env.reset(seed=0)
    first = env.step([0, 1, 2])
    assert first[2].tolist() == [False, True, False] and not first[3].any()
    obs, reward, terminated, truncated, infos = env.step([0, "ignored", 0])
    assert equal(obs[1], opening[1], exact=True) and reward[1] == 0
    assert infos["chunk"].tolist() == [2, 0, 2] and infos["_chunk"].all()
    assert not terminated.any() and not truncated.any()
    _, _, _, truncated, infos = env.step([0, 0, 0])
    assert truncated.tolist() == [True, False, True]
    assert infos["chunk"].tolist() == [3, 1, 3]
    assert env.step([0, 0, 0])[4]["chunk"].tolist() == [0, 2, 0]


def test_no_forward_when_no_slot_is_live(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(horizon=1, ignore_termination=True)
    opening, _ = env.reset(seed=0)
    assert env.step([0, 0, 0])[3].all()

    def refuse(prompts: list[str]) -> Any:
        raise AssertionError("a forward without a live slot")

    monkeypatch.setattr(env.rollout, "step", refuse)
    obs, reward, terminated, truncated, infos = env.step([0, 0, 0])
    assert equal(obs, opening, exact=True)
    assert not reward.any() and not terminated.any() and not truncated.any()
    assert infos["chunk"].tolist() == [0, 0, 0]


def test_same_step_hands_out_the_end_beside_the_beginning(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, twin = (make(autoreset_mode=mode) for mode in ("SAME_STEP", "NEXT_STEP"))
    for each in (env, twin):
        fix_ends(each, monkeypatch, [{0, 2}, {1}])
    opening, _ = env.reset(seed=0)
    twin.reset(seed=0)
    obs, reward, terminated, _, infos = env.step([1, 1, 1])
    other = twin.step([1, 1, 1])
    assert equal(reward, other[1], exact=True) and terminated.tolist() == [True, False, True]
    assert equal(obs[[0, 2]], opening[[0, 2]], exact=True)
    assert equal(obs[1], other[0][1], exact=True)
    assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == [True, False, True]
    assert infos["final_obs"][1] is None
    for slot in (0, 2):
        assert equal(infos["final_obs"][slot], other[0][slot], exact=True)
    assert infos["final_info"]["chunk"].tolist() == [1, 0, 1]
    assert infos["final_info"]["_chunk"].tolist() == [True, False, True]
    assert infos["final_info"]["prompt"].tolist() == ["strafe left", None, "strafe left"]
    assert infos["chunk"].tolist() == [0, 1, 0]
    infos = env.step([1, 1, 1])[4]
    assert infos["chunk"].tolist() == [1, 0, 1]
    assert infos["_final_obs"].tolist() == [False, True, False]


def test_disabled_names_the_slots_that_have_ended(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, twin = make(autoreset_mode="DISABLED"), make(autoreset_mode="DISABLED")
    fix_ends(env, monkeypatch, [{0, 2}, set()])
    fix_ends(twin, monkeypatch, [set(), set()])
    for each in (env, twin):
        each.reset(seed=0)
        each.step([0, 0, 0])
    with pytest.raises(ResetNeeded, match=r"slots \[0, 2\] have ended"):
        env.step([0, 0, 0])
    env.reset(options=mask(0))
    with pytest.raises(ResetNeeded, match=r"slots \[2\] have ended"):
        env.step([0, 0, 0])
    env.reset(options=mask(2))
    assert equal(env.step([0, 0, 0])[0][1], twin.step([0, 0, 0])[0][1], exact=True)


# ---------------------------------------------------------------- slots do not feel each other


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_a_slot_does_not_feel_when_others_end(
    make: Make, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Slot 0's whole run, resets and later episodes included, for three fates of the others."""
    own = [set(), {0}, set(), set(), {0}, set(), set(), set()]
    others: list[list[set[int]]] = [[set()] * 8, [{1}, set(), {1, 2}, {2}] * 2, [{1, 2}] * 8]
    runs = []
    for index, fate in enumerate(others):
        env = make(autoreset_mode=mode)
        fix_ends(env, monkeypatch, [a | b for a, b in zip(own, fate, strict=True)])
        env.reset(seed=[7, 100 + index, 200 + index])
        steps = [env.step([count % 3, index, (count + index) % 3]) for count in range(6)]
        runs.append([[part[0] for part in step[:4]] for step in steps])
    assert equal(runs[0], runs[1], exact=True)
    assert equal(runs[0], runs[2], exact=True)


def test_a_reset_of_one_slot_touches_nothing_else(make: Make) -> None:
    env, twin = (make(ignore_termination=True, observations="both") for _ in range(2))
    for each in (env, twin):
        each.reset(seed=0)
        each.step([1, 2, 0])
    before = env.step([1, 1, 1])
    twin.step([1, 1, 1])
    obs, infos = env.reset(options=mask(1))
    for name, part in obs.items():
        assert equal(part[[0, 2]], before[0][name][[0, 2]], exact=True)
        assert not equal(part[1], before[0][name][1])
    assert infos["_chunk"].tolist() == infos["_prompt"].tolist() == [False, True, False]
    one, other = env.step([2, 2, 2]), twin.step([2, 2, 2])
    for name in one[0]:
        assert equal(one[0][name][[0, 2]], other[0][name][[0, 2]], exact=True)
    assert one[4]["chunk"].tolist() == [3, 1, 3]


def test_a_reset_without_seed_goes_on_with_the_generator(make: Make) -> None:
    def second(seed: Any) -> Any:
        env = make(ignore_termination=True)
        env.reset(seed=0)
        env.step([0, 0, 0])
        env.reset(seed=seed, options=mask(1))
        return env.step([0, 0, 0])[0]

    going_on, seeded = second(None), second([None, 9, None])
    assert equal(going_on, second(None), exact=True)
    assert equal(going_on[[0, 2]], seeded[[0, 2]], exact=True)
    assert not equal(going_on[1], seeded[1])
    assert equal(seeded, second(8), exact=True)  # slot 1 of seed 8 is seed 9


def test_the_first_reset_without_seed_draws_from_np_random(make: Make) -> None:
    runs = []
    for seed in (1, 1, 2):
        env = make(ignore_termination=True)
        env.np_random = np.random.default_rng(seed)
        env.reset()
        runs.append(env.step([0, 0, 0])[0])
    assert equal(runs[0], runs[1], exact=True) and not equal(runs[0], runs[2])
    assert not equal(runs[0][0], runs[0][1])  # and each slot its own


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("observations", OBSERVATIONS)
def test_torch_output_is_the_same_numbers(make: Make, observations: str) -> None:
    keywords: dict[str, Any] = {"observations": observations, "autoreset_mode": "SAME_STEP"}
    env, twin = make(output="torch", **keywords), make(**keywords)

    def parts(obs: Any) -> list[Any]:
        return list(obs.values()) if isinstance(obs, dict) else [obs]

    one: Any = env.reset(seed=0)
    other: Any = twin.reset(seed=0)
    for _ in range(4):
        for tensor, array in zip(parts(one[0]), parts(other[0]), strict=True):
            assert isinstance(tensor, torch.Tensor)
            assert equal(tensor.numpy(), array, exact=True)
            tensor.zero_()  # the caller's own
        one = env.step(torch.tensor([0, 1, 2]))
        other = twin.step(np.array([0, 1, 2]))
        for tensor, array in zip(one[1:4], other[1:4], strict=True):
            assert isinstance(tensor, torch.Tensor) and (tensor.numpy() == array).all()
        assert set(one[-1]) == set(other[-1])
    assert one[1].dtype == torch.float32


@pytest.mark.parametrize("observations", OBSERVATIONS)
def test_torch_observations_never_go_through_numpy(
    make: Make, monkeypatch: pytest.MonkeyPatch, observations: str
) -> None:
    """Infos are arrays; nothing as large as one chunk's latents crosses over, either way."""
    env = make(output="torch", observations=observations, autoreset_mode="SAME_STEP", horizon=1)
    crossed = []

    def watched(method: Any) -> Any:
        def wrapped(given: Any, *rest: Any, **named: Any) -> Any:
            crossed.append(given.size if isinstance(given, np.ndarray) else given.numel())
            return method(given, *rest, **named)

        return wrapped

    monkeypatch.setattr(torch.Tensor, "numpy", watched(torch.Tensor.numpy))
    monkeypatch.setattr(torch, "from_numpy", watched(torch.from_numpy))
    env.reset(seed=0)
    for _ in range(3):
        env.step(torch.tensor([0, 1, 2]))
    assert crossed and max(crossed) < np.prod(env.world.config.latent_shape)


def test_latent_observations_decode_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(observations="latent")

    def refuse(*_: object) -> Any:
        raise AssertionError("decoded")

    monkeypatch.setattr(env.world, "decode", refuse)
    env.reset(seed=0)
    for _ in range(3):
        env.step([0, 0, 0])


# ---------------------------------------------------------------- any sequence of events

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.tuples(*[st.integers(0, 2)] * 3)),
        st.tuples(st.just("reset"), st.sets(st.integers(1, 2), min_size=1)),
    ),
    min_size=2,
    max_size=8,
)


@settings(max_examples=15)
@given(events=EVENTS, actions=st.lists(st.integers(0, 2), min_size=8, max_size=8))
def test_whatever_the_others_do(
    tiny_world: World, events: list[tuple[str, Any]], actions: list[int]
) -> None:
    """Slot 0 beside any sequence of actions and resets of the others, and beside idle ones."""
    busy, calm = (WorldVectorEnv(3, tiny_world, actions="discrete", horizon=3) for _ in range(2))
    busy.reset(seed=[1, 50, 60])
    calm.reset(seed=[1, 2, 3])
    own = iter(actions)
    for kind, what in events:
        if kind == "reset":
            obs, _ = busy.reset(options=mask(*what))
            assert equal(obs[0], calm._shown.observation()[0], exact=True)
            continue
        action = next(own)
        one, other = busy.step([action, *what[1:]]), calm.step([action, 0, 0])
        for part, twin in zip(one[:4], other[:4], strict=True):
            assert equal(part[0], twin[0], exact=True)
