"""What `WorldEnv` refuses: each wrong value by name, and leaving the episode as it was."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence as equal

from magi_world.envs.world_env import WorldEnv
from magi_world.errors import ActionError, ConfigError, PromptError, ResetOptionError, WorldNotFound

Twins = tuple[WorldEnv, WorldEnv]


@pytest.fixture(scope="module")
def twins(request: pytest.FixtureRequest, tiny_world_path: Path) -> Twins:
    """Two environments in the same state, in the middle of an episode."""
    keywords: dict[str, Any] = {"actions": request.param, "horizon": 1000}
    one, two = (
        WorldEnv(str(tiny_world_path), ignore_termination=True, **keywords) for _ in range(2)
    )
    for env in (one, two):
        env.reset(seed=1)
    return one, two


@pytest.mark.parametrize("twins", ["text"], indirect=True)
def test_a_bad_seed_is_refused_before_anything_changes(twins: Twins) -> None:
    env, twin = twins
    for seed in (-1, 1.5, "one"):
        with pytest.raises(gym.error.Error, match="Seed"):
            env.reset(seed=seed)  # type: ignore[arg-type]
    for seed in (2**63, True):
        with pytest.raises(ConfigError, match="seed"):
            env.reset(seed=seed)
    assert equal(env.step("strafe left"), twin.step("strafe left"), exact=True)


def test_a_refused_first_reset_draws_nothing(tiny_world_path: Path) -> None:
    env = WorldEnv(str(tiny_world_path))
    before = str(env.np_random.bit_generator.state)
    with pytest.raises(ResetOptionError):
        env.reset(options={"clip": 99})
    assert str(env.np_random.bit_generator.state) == before


def test_whole_numbers_of_numpy_are_whole_numbers(tiny_world_path: Path) -> None:
    env = WorldEnv(str(tiny_world_path), steps=np.int64(2))  # type: ignore[arg-type]
    twin = WorldEnv(str(tiny_world_path), steps=2)
    given, _ = env.reset(seed=np.int64(3))  # type: ignore[arg-type]
    assert equal(given, twin.reset(seed=3)[0], exact=True)
    assert equal(env.step("strafe left"), twin.step("strafe left"), exact=True)


@pytest.mark.parametrize("twins", ["text"], indirect=True)
@pytest.mark.parametrize(
    ("action", "words"),
    [
        (3, "int, text is needed"),
        (None, "NoneType"),
        (b"strafe left", "bytes"),
        (["strafe left"], "list"),
        ("", "0 characters, allowed are 1 to 256"),
        ("x" * 257, "257 characters"),
        ("strafe\nleft", "printable"),
        ("\ud800", "printable"),
        ("é" * 200, "400"),  # few enough characters, too many bytes
    ],
)
def test_a_wrong_prompt_is_named_and_changes_nothing(twins: Twins, action: Any, words: str) -> None:
    env, twin = twins
    with pytest.raises(PromptError, match=words):
        env.step(action)
    assert equal(env.step("strafe left"), twin.step("strafe left"), exact=True)


@pytest.mark.parametrize("twins", ["discrete"], indirect=True)
@pytest.mark.parametrize(
    "action",
    [-1, 3, True, np.bool_(True), 1.0, np.float32(1), "strafe left", None, [1], np.array([1])],
)
def test_a_wrong_index_is_named_and_changes_nothing(twins: Twins, action: Any) -> None:
    env, twin = twins
    with pytest.raises(ActionError, match="from 0 to 2"):
        env.step(action)
    assert equal(env.step(1), twin.step(1), exact=True)


@pytest.mark.parametrize("twins", ["text"], indirect=True)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip": 0, "prompt": "go left!"}, "at most one of .*clip.*image.*video.*prompt"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "clip": 0}, "at most one"),
        ({"prompts": ["strafe left"]}, "beside 'image' or 'video'"),
        ({"prompt": "go left!", "prompts": ["strafe left"]}, "beside 'image' or 'video'"),
        ({"clips": 0}, r"\['clips'\]: known are .*'clip', 'image', 'video', 'prompt', 'prompts'"),
        ({"reset_mask": np.array([True])}, "unknown reset options"),
        ({3: 0}, "unknown reset options"),
        ({"clip": None}, "None"),
        ({"clip": 99}, "99"),
        ({"clip": -1}, "-1"),
        ({"clip": "first"}, "first"),
        ({"clip": 1.0}, "an index into the bank"),
        ({"clip": True}, "an index into the bank"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "prompts": "x"}, "a list, one a chunk"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "prompts": ["x", "y"]}, "2 prompts"),
        ({"image": "a picture"}, "image"),
        ({"image": np.zeros((8, 8, 3), np.uint8)}, "image"),
        ({"image": np.zeros((64, 64, 3), np.float32)}, "image"),
        ({"video": np.zeros((64, 64, 3), np.uint8)}, "video"),
        (["clip"], "a dictionary is needed"),
    ],
)
def test_wrong_options_are_named_and_change_nothing(twins: Twins, options: Any, words: str) -> None:
    env, twin = twins
    with pytest.raises(ResetOptionError, match=words):
        env.reset(seed=9, options=options)
    assert equal(env.step("strafe left"), twin.step("strafe left"), exact=True)
    # np_random is the one thing that a step does not draw from
    assert equal(env.np_random.bit_generator.state, twin.np_random.bit_generator.state)


@pytest.mark.parametrize("twins", ["text"], indirect=True)
@pytest.mark.parametrize("prompt", ["", "é" * 200, 3])
def test_a_wrong_start_prompt_is_named(twins: Twins, prompt: Any) -> None:
    env, twin = twins
    with pytest.raises(PromptError, match="prompt"):
        env.reset(seed=9, options={"prompt": prompt})
    assert equal(env.step("strafe left"), twin.step("strafe left"), exact=True)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"actions": "continuous"}, "actions 'continuous': allowed are 'text', 'discrete'"),
        ({"observations": "pixels"}, "'pixels': allowed are 'frames', 'latent', 'both'"),
        ({"horizon": 0}, "horizon 0"),
        ({"horizon": 2.5}, "horizon 2.5"),
        ({"horizon": True}, "horizon True"),
        ({"ignore_termination": "False"}, "ignore_termination 'False'"),
        ({"starts": "middle"}, "starts"),
        ({"steps": 0}, "steps"),
        ({"steps": True}, "steps"),
        ({"temperature": -1.0}, "temperature"),
        ({"dtype": "float99"}, "float99"),
    ],
)
def test_wrong_keywords_are_named(
    tiny_world_path: Path, keywords: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        gym.make("magi_world/DoomTakeCover-v0", world=str(tiny_world_path), **keywords)


def test_an_unknown_render_mode_is_named(tiny_world_path: Path) -> None:
    with pytest.raises(ConfigError, match="'ansi': allowed are 'human', 'rgb_array'"):
        WorldEnv(str(tiny_world_path), render_mode="ansi")


def test_an_unknown_world_is_named() -> None:
    with pytest.raises(WorldNotFound, match="doom-take-caver"):
        WorldEnv("doom-take-caver")
