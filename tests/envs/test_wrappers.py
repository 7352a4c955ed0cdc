import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.env_checker import check_env

import magi_world  # noqa: F401 (registers the environments)
from magi_world.envs.text_image import TextImageSimilarity
from magi_world.envs.wrappers import CallableReward, ChannelStack, FrameByFrame, LastFrame
from magi_world.errors import ConfigError

WRAPPERS = [LastFrame, ChannelStack, FrameByFrame]


class Stub(gym.Env[Any, Any]):
    """Two frames of 3x4 pixels, each byte different."""

    observation_space: spaces.Space[Any] = spaces.Box(0, 255, (2, 3, 4, 3), np.uint8)
    action_space: spaces.Space[Any] = spaces.Discrete(3)
    frames = np.arange(72, dtype=np.uint8).reshape(2, 3, 4, 3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return self.frames, {"chunk": 0}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.frames + np.uint8(1), 1.0, False, True, {"chunk": 1}


def test_last_frame_is_the_last() -> None:
    env = LastFrame(Stub())
    observation, info = env.reset()
    assert observation in env.observation_space
    assert (observation == Stub.frames[1]).all()
    assert not np.shares_memory(observation, Stub.frames)
    assert info == {"chunk": 0}
    observation, *rest = env.step(0)
    assert (observation == Stub.frames[1] + 1).all()
    assert rest == [1.0, False, True, {"chunk": 1}]


def test_channels_hold_the_oldest_frame_first() -> None:
    env = ChannelStack(Stub())
    observation, _ = env.reset()
    assert observation in env.observation_space
    assert observation.shape == (3, 4, 6)
    assert (observation[..., :3] == Stub.frames[0]).all()
    assert (observation[..., 3:] == Stub.frames[1]).all()
    assert observation.flags.c_contiguous


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-100, 100, (16, 1, 8, 8), np.float32),
        spaces.Box(0, 255, (64, 64, 3), np.uint8),
        spaces.Dict(frames=Stub.observation_space),
    ],
)
def test_other_observations_are_refused(wrapper: Any, space: spaces.Space[Any]) -> None:
    env = Stub()
    env.observation_space = space
    with pytest.raises(
        ConfigError, match=f"{wrapper.__name__} needs frames.*observations='frames'"
    ):
        wrapper(env)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_stable_baselines_is_content(wrapper: Any, tiny_world_path: Path) -> None:
    env = gym.make("magi_world/DoomTakeCover-v0", world=str(tiny_world_path), actions="discrete")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(wrapper(env))
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_environment_is_remade_from_its_spec(wrapper: Any, tiny_world_path: Path) -> None:
    env = wrapper(gym.make("magi_world/DoomTakeCover-v0", world=str(tiny_world_path)))
    text = env.spec.to_json()
    assert json.loads(text)["additional_wrappers"][-1]["name"] == wrapper.__name__
    twin = gym.make(EnvSpec.from_json(text))
    assert isinstance(twin, wrapper)
    assert twin.observation_space == env.observation_space
    assert (twin.reset(seed=0)[0] == env.reset(seed=0)[0]).all()


def mean_level(frames: Any, prompt: str) -> Any:
    """Brightness; the length of the prompt in front of the point."""
    return np.float32(len(prompt) + frames.mean() / 256)


class Prompted(Stub):
    """A stub that names a prompt, as the environments of the package do."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, *rest, info = super().step(action)
        if isinstance(self.observation_space, spaces.Dict):
            observation = {"frames": observation}
        return observation, *rest, {**info, "prompt": "jump"}


@pytest.mark.parametrize(
    "space", [Stub.observation_space, spaces.Dict(frames=Stub.observation_space)]
)
def test_a_callable_rewards_frames_and_prompt(space: spaces.Space[Any]) -> None:
    stub = Prompted()
    stub.observation_space = space
    env = CallableReward(stub, mean_level)
    env.reset()
    observation, reward, terminated, truncated, info = env.step(0)
    frames = observation["frames"] if isinstance(observation, dict) else observation
    assert (frames == Stub.frames + 1).all()
    assert reward == pytest.approx(4 + (Stub.frames + 1).mean() / 256)
    assert type(reward) is float
    assert (terminated, truncated) == (False, True)
    assert info == {"chunk": 1, "prompt": "jump", "env_reward": 1.0}


def test_a_callable_cannot_change_what_is_observed() -> None:
    def clear(frames: Any, prompt: str) -> float:
        frames[:] = 0
        return 0.0

    env = CallableReward(Prompted(), clear)
    env.reset()
    observation: Any = env.step(0)[0]
    assert (observation == Stub.frames + 1).all()


@pytest.mark.parametrize("value", [None, "much", float("nan"), np.zeros(2)])
def test_a_rating_that_is_no_number_is_refused(value: Any) -> None:
    env = CallableReward(Prompted(), lambda frames, prompt: value)
    env.reset()
    with pytest.raises(ConfigError, match="a finite number is needed"):
        env.step(0)


def test_a_callable_reward_needs_frames_and_a_callable() -> None:
    with pytest.raises(ConfigError, match="cannot be called"):
        CallableReward(Prompted(), "mean_level")  # type: ignore[arg-type]
    env = Prompted()
    env.observation_space = spaces.Box(-100, 100, (16, 1, 8, 8), np.float32)
    with pytest.raises(ConfigError, match="CallableReward needs frames"):
        CallableReward(env, mean_level)


class Counting(Stub):
    """Counts its steps and tells the action; ends in the second one."""

    def __init__(self) -> None:
        self.actions: list[int] = []

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        count = len(self.actions)
        return self.frames + np.uint8(count), float(count), count == 2, False, {"chunk": count}


def test_frames_come_one_by_one_and_the_action_is_held() -> None:
    inner = Counting()
    env = FrameByFrame(inner)
    observation, info = env.reset()
    assert (observation == Stub.frames[1]).all() and info == {"chunk": 0, "held": False}
    rows = [env.step(action) for action in (2, 0, 1, 1)]
    assert inner.actions == [2, 1]  # the second and the fourth action came while one was held
    for index, (row, count, frame) in enumerate(zip(rows, (1, 1, 2, 2), (0, 1, 0, 1), strict=True)):
        assert (row[0] == Stub.frames[frame] + count).all(), index
        assert row[4] == {"chunk": count, "held": frame == 1}
    assert [row[1] for row in rows] == [0.0, 1.0, 0.0, 2.0]  # with the last frame of a chunk
    assert [row[2] for row in rows] == [False, False, False, True]
    env.reset()
    assert env.step(0)[4]["held"] is False  # what was still waiting is forgotten


def test_frames_one_by_one_are_rendered_at_the_games_rate(tiny_world_path: Path) -> None:
    made = gym.make(
        "magi_world/DoomTakeCover-v0", world=str(tiny_world_path), render_mode="rgb_array"
    )
    env = FrameByFrame(made)
    assert env.metadata["render_fps"] == 35
    env.reset(seed=0)
    for _ in range(3):
        observation = env.step("stand still")[0]
        assert np.array_equal(env.render(), observation)


# ---------------------------------------------------------------- pictures and texts


class TwoColours(torch.nn.Module):
    """Knows two texts and the mean red and blue of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def get_text_features(self, words: torch.Tensor) -> torch.Tensor:
        return words * self.scale

    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((1, 2))[:, [0, 2]] * self.scale


def two_colours(text: Any = None, images: Any = None, **given: Any) -> dict[str, torch.Tensor]:
    if text is not None:
        return {"words": torch.tensor([[1.0, 0.0] if "red" in t else [0.0, 1.0] for t in text])}
    return {"pixels": torch.tensor(np.stack(images)).float()}


def coloured(red: int, blue: int) -> Any:
    frames = np.zeros((2, 3, 4, 3), np.uint8)
    frames[-1, ..., 0], frames[-1, ..., 2] = red, blue
    return frames


def test_pictures_are_rewarded_for_what_a_text_says() -> None:
    red = TextImageSimilarity("a red picture", TwoColours(), two_colours)
    assert red(coloured(9, 0), "") == pytest.approx(1.0)
    assert red(coloured(0, 9), "") == pytest.approx(0.0)
    contrast = TextImageSimilarity("red", TwoColours(), two_colours, against=["blue"])
    assert contrast(coloured(9, 9), "") == pytest.approx(0.0)
    assert contrast(coloured(0, 9), "") == pytest.approx(-1.0)
    env = CallableReward(Prompted(), red)
    env.reset()
    assert -1 <= env.step("strafe left")[1] <= 1


def test_a_model_of_transformers_rates_pictures() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPConfig(
        text_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 16,
        },
        projection_dim=8,
    )  # fmt: skip
    model = transformers.CLIPModel(config)

    def processor(text: Any = None, images: Any = None, **given: Any) -> dict[str, torch.Tensor]:
        if text is not None:
            ids = torch.tensor([[1, *list(t.encode())[:3], 2] for t in text]).clamp(max=63)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        pixels = torch.tensor(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        return {"pixel_values": torch.nn.functional.interpolate(pixels, (32, 32))}

    rate = TextImageSimilarity("a", model, processor)
    one, other = rate(coloured(255, 0), ""), rate(coloured(0, 255), "")
    assert -1 <= one <= 1 and one != other


def test_a_siglip_text_does_not_feel_the_texts_beside_it() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }  # fmt: skip
    text_config = {**sizes, "vocab_size": 128, "max_position_embeddings": 16, "projection_size": 16}
    vision_config = {**sizes, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = transformers.SiglipModel(
        transformers.SiglipConfig(text_config=text_config, vision_config=vision_config)
    )
    given: list[torch.Tensor] = []

    def processor(
        text: Any, return_tensors: str, padding: Any, max_length: int = 0
    ) -> dict[str, torch.Tensor]:
        length = max_length if padding == "max_length" else max(map(len, text))
        given.append(torch.tensor([[*t.encode(), *[1] * (length - len(t))] for t in text]))
        return {"input_ids": given[-1]}

    TextImageSimilarity("ball", model, processor)
    TextImageSimilarity("ball", model, processor, against=["a far longer"])
    assert torch.equal(given[0][0], given[1][0]) and given[0].shape == (1, 16)


def test_what_cannot_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match="get_text_features"):
        TextImageSimilarity("red", torch.nn.Linear(1, 1), two_colours)
    with pytest.raises(ConfigError, match="texts are needed"):
        TextImageSimilarity("", TwoColours(), two_colours)
