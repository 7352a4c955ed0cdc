"""`magi_world/Video-v0`: what starts an episode, what is an action, what rewards it."""

import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from PIL import Image

import magi_world
from magi_world.checkpoints.random_presets import random_preset
from magi_world.envs.spaces import PromptSpace
from magi_world.envs.video_env import NEUTRAL_PROMPT, VideoEnv
from magi_world.envs.wrappers import CallableReward, LastFrame
from magi_world.errors import (
    ActionError,
    ConfigError,
    MediaError,
    PromptError,
    ResetOptionError,
    WorldNotFound,
)
from magi_world.media.writing import VideoWriter

ID = "magi_world/Video-v0"


def picture(seed: int = 0, frames: int = 1) -> npt.NDArray[np.uint8]:
    """Frames of large random tiles, 64x64."""
    tiles = np.random.default_rng(seed).integers(0, 256, (frames, 4, 4, 3), np.uint8)
    return tiles.repeat(16, axis=1).repeat(16, axis=2)


@pytest.fixture(scope="module")
def image_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "tiles.png"
    Image.fromarray(picture()[0]).save(path)
    return str(path)


@pytest.fixture(scope="module")
def video_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("videos") / "tiles.mp4"
    with VideoWriter(path, fps=35, height=64, width=64) as writer:
        writer.append(picture(1, frames=12))
    return str(path)


@pytest.fixture(scope="module")
def model(tiny_world_path: Path) -> str:
    return str(tiny_world_path)


def test_an_episode_starts_from_an_image(model: str, image_path: str) -> None:
    env = gym.make(ID, model=model, image=image_path)
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space and observation.shape == (4, 64, 64, 3)
    assert info == {"prompt": "", "chunk": 0, "termination_probability": pytest.approx(0.5, abs=1)}
    given, _ = env.reset(seed=0, options={"image": picture()[0]})
    assert (given == observation).all()
    following, reward, terminated, truncated, info = env.step("a red tile grows")
    assert following in env.observation_space and isinstance(reward, float)
    assert not truncated and info["prompt"] == "a red tile grows" and info["chunk"] == 1


def test_an_episode_starts_from_a_video(model: str, video_path: str) -> None:
    env = gym.make(ID, model=model, video=video_path).unwrapped
    assert isinstance(env, VideoEnv)
    env.reset(seed=0)
    assert env.rollout.time == [3]  # twelve frames are three chunks of history


def test_an_episode_starts_from_a_prompt(model: str) -> None:
    env = gym.make(ID, model=model, prompt="a cat")
    first, info = env.reset(seed=0)
    assert info["prompt"] == "a cat"
    assert (env.reset(seed=0)[0] == first).all()
    assert (env.reset(seed=1)[0] != first).any()


def test_without_a_start_reset_says_what_is_missing(model: str) -> None:
    env = VideoEnv(model)
    with pytest.raises(ResetOptionError, match="image=, video= or prompt="):
        env.reset()
    with pytest.raises(ResetNeeded):
        env.step("go on")
    env.reset(options={"prompt": "a dog"})
    env.step("the dog runs")


@pytest.mark.parametrize(
    ("keywords", "prompts"),
    [
        ({}, [NEUTRAL_PROMPT]),
        ({"prompt": "a cat"}, ["a cat"]),
        ({"prompt": "a cat", "prompts": ["stay", "jump"]}, ["stay", "jump"]),
        ({"image": True, "prompt": "it rains"}, ["it rains"]),
    ],
)
def test_prompts_stand_in_for_the_card(
    keywords: dict[str, Any], prompts: list[str], model: str, image_path: str
) -> None:
    if "image" in keywords:
        keywords = {**keywords, "image": image_path}
    env = VideoEnv(model, **keywords)
    assert isinstance(env.action_space, PromptSpace) and env.action_space.prompts == tuple(prompts)
    assert env.action_space.sample() in prompts
    env = VideoEnv(model, actions="discrete", **keywords)
    assert env.action_space == spaces.Discrete(len(prompts))
    env.reset(options={"image": picture()[0]}, seed=0)
    assert env.step(0)[-1]["prompt"] == prompts[0]


def test_an_episode_is_endless_unless_a_horizon_ends_it(model: str) -> None:
    env = VideoEnv(model, prompt="a cat")
    assert env.horizon is None
    env = VideoEnv(model, prompt="a cat", horizon=2)
    env.reset(seed=0)
    ends: list[bool] = []
    while not any(ends):
        *_, terminated, truncated, _ = env.step("a cat")
        ends = [terminated, truncated]
        if truncated:
            assert env._chunk == 2
    with pytest.raises(ResetNeeded, match="after the end"):
        env.step("a cat")


@pytest.fixture
def rewards(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module of a user's with reward functions."""
    module = types.ModuleType("my_rewards")
    module.brightness = lambda frames, prompt: frames.mean()  # type: ignore[attr-defined]
    module.length = lambda frames, prompt: len(prompt)  # type: ignore[attr-defined]
    module.nothing = lambda frames, prompt: None  # type: ignore[attr-defined]
    module.number = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    return module


@pytest.mark.parametrize("observations", ["frames", "latent", "both"])
def test_a_named_function_rewards(observations: str, model: str, rewards: types.ModuleType) -> None:
    keywords: dict[str, Any] = {"prompt": "a cat", "observations": observations}
    env = VideoEnv(model, reward="my_rewards:brightness", **keywords)
    twin = VideoEnv(model, prompt="a cat")
    env.reset(seed=0)
    twin.reset(seed=0)
    frames: Any = twin.step("jump")[0]
    assert env.step("jump")[1] == pytest.approx(frames.mean())


def test_the_wrapper_and_the_keyword_agree(model: str, rewards: types.ModuleType) -> None:
    env = VideoEnv(model, prompt="a cat", reward="my_rewards:length")
    wrapped = CallableReward(VideoEnv(model, prompt="a cat"), rewards.length)
    for one in (env, wrapped):
        one.reset(seed=0)
    assert env.step("jump")[1] == wrapped.step("jump")[1] == 4.0


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"actions": "keys"}, ConfigError, "actions"),
        ({"observations": "sound"}, ConfigError, "observations"),
        ({"render_mode": "ascii"}, ConfigError, "render_mode"),
        ({"horizon": 0}, ConfigError, "horizon"),
        ({"image": "a.png", "video": "a.mp4"}, ConfigError, "one of them"),
        ({"prompts": "stay"}, ConfigError, "prompts"),
        ({"prompts": []}, ConfigError, "prompts"),
        ({"prompts": ["stay", "stay"]}, ConfigError, "different"),
        ({"prompts": ["stay", ""]}, ConfigError, "prompts"),
        ({"prompts": 5}, ConfigError, "prompts 5"),
        ({"prompts": ["stay", ["jump"]]}, ConfigError, "list, text is needed"),
        ({"prompts": [], "actions": "discrete"}, ConfigError, "prompts"),
        ({"prompts": ["stay", "stay"], "actions": "discrete"}, ConfigError, "different"),
        ({"prompts": ["stay"], "prompt": "a\nb"}, PromptError, "printable"),
        ({"prompt": ""}, ConfigError, "prompts"),
        ({"prompts": ["é" * 200]}, PromptError, "400"),
        ({"size": "big"}, ConfigError, "HEIGHTxWIDTH"),
        ({"reward": "brightness"}, ConfigError, "module:function"),
        ({"reward": "my_rewards:"}, ConfigError, "module:function"),
        ({"reward": "no_such_module:f"}, ConfigError, "no_such_module"),
        ({"reward": "my_rewards:absent"}, ConfigError, "absent"),
        ({"reward": "my_rewards:number"}, ConfigError, "cannot be called"),
        ({"image": "none.png"}, MediaError, "none.png"),
        ({"video": "none.mp4"}, MediaError, "none.mp4"),
        ({"image": picture()[0]}, ConfigError, r"a path is needed: arrays go through reset\(opt"),
        ({"video": picture()}, ConfigError, "video is a ndarray"),
        ({"model": "nowhere"}, WorldNotFound, "nowhere"),
    ],
)
def test_wrong_keywords_are_named(
    keywords: dict[str, Any],
    error: type[Exception],
    words: str,
    model: str,
    rewards: types.ModuleType,
) -> None:
    with pytest.raises(error, match=words):
        VideoEnv(**{"model": model, **keywords})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": picture()[0], "prompt": "a cat"}, "at most one"),
        ({"picture": picture()[0]}, "unknown"),
        ({"image": picture()[0, :32]}, "image"),
        ({"video": picture()[0]}, "video"),
        ({"clip": 0}, "clip"),
    ],
)
def test_wrong_reset_options_are_named(options: dict[str, Any], words: str, model: str) -> None:
    world_without_clips = VideoEnv(model, prompt="a cat")
    world_without_clips.world.bank = type(world_without_clips.world.bank)((), (), 0)
    with pytest.raises(ResetOptionError, match=words):
        world_without_clips.reset(options=options)


def test_wrong_actions_change_nothing(model: str) -> None:
    env, twin = (VideoEnv(model, prompt="a cat") for _ in range(2))
    for one in (env, twin):
        one.reset(seed=3)
    with pytest.raises(PromptError):
        env.step("")
    assert data_equivalence(env.step("jump"), twin.step("jump"), exact=True)
    env = VideoEnv(model, prompt="a cat", actions="discrete")
    env.reset(seed=3)
    with pytest.raises(ActionError):
        env.step(1)


def test_a_reward_that_is_no_number_is_named(model: str, rewards: types.ModuleType) -> None:
    env = VideoEnv(model, prompt="a cat", reward="my_rewards:nothing")
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="returned None"):
        env.step("jump")


@pytest.mark.parametrize("actions", ["text", "discrete"])
@pytest.mark.parametrize("observations", ["frames", "latent", "both"])
def test_gymnasium_is_content(actions: str, observations: str, model: str, image_path: str) -> None:
    env = gym.make(
        ID, model=model, image=image_path, actions=actions, observations=observations,
        prompts=["stay", "jump"],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_a_spec_survives_json(model: str, image_path: str) -> None:
    env = gym.make(ID, model=model, image=image_path, prompts=["stay"], horizon=3)
    text = env.spec.to_json()  # type: ignore[union-attr]
    assert json.loads(text)["kwargs"]["image"] == image_path
    twin = gym.make(EnvSpec.from_json(text))
    assert (twin.reset(seed=4)[0] == env.reset(seed=4)[0]).all()
    assert LastFrame(twin).observation_space.shape == (64, 64, 3)


def test_frames_are_rendered(model: str) -> None:
    env = VideoEnv(model, prompt="a cat", render_mode="rgb_array_list")
    env.reset(seed=0)
    env.step("jump")
    assert len(env.render()) == 8
    env.close()
    assert env.metadata["render_fps"] == 35


def test_a_saved_state_goes_on_exactly(model: str, tmp_path: Path) -> None:
    keywords: dict[str, Any] = {"prompt": "a cat", "observations": "both"}
    env, twin = VideoEnv(model, **keywords), VideoEnv(model, **keywords)
    for one in (env, twin):
        one.world.card["terminates"] = False  # its end is drawn
    env.reset(seed=3)
    last = env.step("jump")[0]
    magi_world.save_state(env.get_state(), tmp_path / "s")
    assert data_equivalence(twin.set_state(magi_world.load_state(tmp_path / "s")), last, exact=True)
    assert data_equivalence(env.step("run"), twin.step("run"), exact=True)


@pytest.fixture(scope="module")
def magi1_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny checkpoint in MAGI-1's published layout."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    random_preset("tiny-distill").write(folder)
    return str(folder)


@pytest.mark.parametrize("start", ["image", "video", "prompt"])
def test_a_magi1_checkpoint_is_an_environment(
    start: str,
    magi1_path: str,
    image_path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    long_video = str(tmp_path / "long.mp4")
    with VideoWriter(long_video, fps=24, height=32, width=48) as writer:
        writer.append(picture(2, frames=60)[:, :32, :48])
    begin = {"image": image_path, "video": long_video, "prompt": "a cat"}[start]
    keywords: dict[str, Any] = {start: begin}
    env = gym.make(ID, model=magi1_path, size="32x48", steps=4, **keywords)
    first, info = env.reset(seed=0)
    assert first.shape == (24, 32, 48, 3) and first in env.observation_space
    assert info["prompt"] == ("a cat" if start == "prompt" else "")
    prompts = ["the cat jumps", "it lands", "x" * 30]
    for index, prompt in enumerate(prompts, start=1):
        observation, reward, terminated, truncated, info = env.step(prompt)
        assert observation.shape == (24, 32, 48, 3)
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert info["chunk"] == index
    again, _ = env.reset(seed=0)
    assert (again == first).all()


def test_a_step_of_a_magi1_checkpoint_repeats_with_its_seed(
    magi1_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    envs = [VideoEnv(magi1_path, size="32x32", steps=4, prompt="a cat") for _ in range(2)]
    for env in envs:
        env.reset(seed=5)
    one, two = (env.step("a dog") for env in envs)
    assert data_equivalence(one, two, exact=True)
    with pytest.raises(ConfigError, match="33x32"):
        VideoEnv(magi1_path, size="33x32", prompt="a cat")
