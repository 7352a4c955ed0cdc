import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_checker import data_equivalence as equal

from magi_world.envs.spaces import ACTIONS, OBSERVATIONS, PromptSpace
from magi_world.envs.world_env import WorldEnv
from magi_world.sampling.chunk import Chunk

ENV_ID = "magi_world/DoomTakeCover-v0"
PROMPTS = ["stand still", "strafe left", "strafe right"]
Make = Callable[..., WorldEnv]


@pytest.fixture
def make(tiny_world_path: Path) -> Make:
    """Build the environment over the tiny world, without Gymnasium's wrappers.

    The tiny world has random weights and ends most episodes at once, so that is ignored by default.
    """

    def make(**keywords: Any) -> WorldEnv:
        keywords = {"world": str(tiny_world_path), "ignore_termination": True, **keywords}
        env = gym.make(ENV_ID, **keywords).unwrapped
        assert isinstance(env, WorldEnv)
        return env

    return make


def play(env: WorldEnv, actions: list[Any], seed: int | None = None) -> list[Any]:
    """Everything that one episode hands out."""
    return [env.reset(seed=seed), *[env.step(action) for action in actions]]


def change_chunks(
    env: WorldEnv, monkeypatch: pytest.MonkeyPatch, change: Callable[[Chunk], object]
) -> None:
    """Let `change` edit every chunk that the rollout's step returns."""
    step = env.rollout.step

    @torch.inference_mode()
    def changed(prompts: list[str]) -> Chunk:
        chunk = step(prompts)
        change(chunk)
        return chunk

    monkeypatch.setattr(env.rollout, "step", changed)


@pytest.mark.parametrize("observations", OBSERVATIONS)
@pytest.mark.parametrize("actions", ACTIONS)
def test_gymnasiums_checker_is_silent(make: Make, actions: str, observations: str) -> None:
    env = make(actions=actions, observations=observations)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env)
    assert [str(warning.message) for warning in caught] == []


def test_spaces(make: Make) -> None:
    frames = spaces.Box(0, 255, (4, 64, 64, 3), np.uint8)
    latent = spaces.Box(-100, 100, (16, 1, 8, 8), np.float32)
    assert make().action_space == PromptSpace(PROMPTS, 256)
    assert make(actions="discrete").action_space == spaces.Discrete(3)
    assert make().observation_space == frames
    assert make(observations="latent").observation_space == latent
    both = make(observations="both").observation_space
    assert both == spaces.Dict({"frames": frames, "latent": latent})


def test_the_same_seed_gives_the_same_bits(make: Make) -> None:
    actions = ["strafe left", "go left!", "stand still"]
    one, two = make(observations="both"), make(observations="both")
    assert equal(play(one, actions, seed=5), play(two, actions, seed=5), exact=True)
    assert equal(play(one, actions, seed=5), play(one, actions, seed=5), exact=True)
    other = play(two, actions, seed=6)
    again = play(one, actions, seed=5)
    assert equal(other[0], again[0], exact=True)  # the bank has one opening: every reset shows it
    assert not equal(other[1][0], again[1][0])


def test_a_reset_without_seed_goes_on_with_the_generator(make: Make) -> None:
    env = make()
    episodes = [play(env, ["stand still"], seed=5), play(env, ["stand still"])]
    assert not equal(episodes[0][1][0], episodes[1][1][0])
    again = [play(env, ["stand still"], seed=5), play(env, ["stand still"])]
    assert equal(episodes, again, exact=True)


def test_the_first_reset_without_seed_draws_one(make: Make) -> None:
    one, two = make(), make()
    for env in (one, two):
        env.np_random = seeding.np_random(3)[0]
    assert equal(play(one, ["stand still"]), play(two, ["stand still"]), exact=True)
    assert not equal(play(make(), ["stand still"])[1][0], play(make(), ["stand still"])[1][0])


def test_discrete_actions_are_the_same_prompts(make: Make) -> None:
    text, discrete = make(), make(actions="discrete")
    indices = [2, np.int64(1), np.array(0)]
    assert equal(play(text, PROMPTS[::-1], seed=0), play(discrete, indices, seed=0), exact=True)


def test_the_prompt_acts(make: Make) -> None:
    env = make()
    still, left = (play(env, [prompt], seed=0)[1][0] for prompt in PROMPTS[:2])
    assert not equal(still, left)


def test_both_is_the_two_other_forms(make: Make) -> None:
    episodes = {form: play(make(observations=form), PROMPTS, seed=2) for form in OBSERVATIONS}
    for frames, latent, both in zip(*(episodes[form] for form in OBSERVATIONS), strict=True):
        assert equal({"frames": frames[0], "latent": latent[0]}, both[0], exact=True)
        assert equal(frames[1:], both[1:], exact=True)


def test_latent_observations_decode_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("decoded")

    env, picture = make(observations="latent"), make(observations="frames")
    for world in {env.world, picture.world}:
        monkeypatch.setattr(world, "decode", refuse)
        monkeypatch.setattr(world, "vae", None, raising=False)
    play(env, ["strafe left", "strafe right"], seed=0)
    with pytest.raises((AssertionError, AttributeError, TypeError)):
        picture.reset(seed=0)


def test_latents_are_clipped(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(observations="latent")
    change_chunks(env, monkeypatch, lambda chunk: chunk.latents.fill_(1e6))
    env.reset(seed=0)
    observation = env.step("stand still")[0]
    assert isinstance(observation, np.ndarray)
    assert observation in env.observation_space and (observation == 100).all()


def test_steps_wait_for_a_reset(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(horizon=2)
    with pytest.raises(ResetNeeded, match="before the first reset"):
        env.step("stand still")
    play(env, ["stand still"] * 2, seed=0)
    with pytest.raises(ResetNeeded, match="end of the episode, 2 chunks"):
        env.step("stand still")
    change_chunks(env, monkeypatch, lambda chunk: chunk.terminated.fill_(True))
    env.ignore_termination = False
    env.reset()
    assert env.step("stand still")[2:4] == (True, False)
    with pytest.raises(ResetNeeded):
        env.step("stand still")
    env.reset()
    env.step("stand still")


def test_the_worlds_draw_ends_an_episode(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(ignore_termination=False)
    said: list[bool] = []
    change_chunks(env, monkeypatch, lambda chunk: said.append(bool(chunk.terminated[0])))
    env.reset(seed=0)
    terminated = False
    while not terminated and len(said) < 12:
        terminated = env.step("stand still")[2]
        assert terminated == said[-1]


def test_the_horizon_counts_chunks_after_the_reset(make: Make) -> None:
    assert make().horizon == make().world.card["horizon"]
    env = make(horizon=3)
    for _ in range(2):
        episode = play(env, ["stand still"] * 3, seed=0)
        assert [step[3] for step in episode[1:]] == [False, False, True]
        assert [step[-1]["chunk"] for step in episode] == [0, 1, 2, 3]


def test_a_card_without_horizon_never_truncates(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make()
    monkeypatch.setattr(env, "horizon", None)
    assert not any(step[3] for step in play(env, ["stand still"] * 15, seed=0)[1:])


def test_termination_and_truncation_do_not_merge(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make(horizon=1, ignore_termination=False)
    change_chunks(env, monkeypatch, lambda chunk: chunk.terminated.fill_(True))
    env.reset(seed=0)
    assert env.step("stand still")[2:4] == (True, True)


def test_termination_can_be_ignored(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(horizon=4)
    change_chunks(env, monkeypatch, lambda chunk: chunk.terminated.fill_(True))
    episode = play(env, ["stand still"] * 4, seed=0)
    assert [step[2:4] for step in episode[1:]] == [(False, False)] * 3 + [(False, True)]


def test_gymnasiums_time_limit_comes_on_top(tiny_world_path: Path) -> None:
    env = gym.make(ENV_ID, max_episode_steps=2, world=str(tiny_world_path), ignore_termination=True)
    assert getattr(env.unwrapped, "horizon", None) == 12
    env.reset(seed=0)
    assert [env.step("stand still")[3] for _ in range(2)] == [False, True]


def test_info_holds_plain_values(make: Make) -> None:
    env = make()
    episode = play(env, ["go left!", np.str_("strafe right")], seed=0)
    signals = set(env.world.config.outcome.signals) if env.world.config.outcome else set()
    for _, info in (episode[0], *[(step[0], step[4]) for step in episode[1:]]):
        assert set(info) == {"prompt", "chunk", "termination_probability"} | signals
        assert type(info["chunk"]) is int and type(info["prompt"]) is str
        assert type(info["termination_probability"]) is float
        assert 0 <= info["termination_probability"] <= 1
        assert all(type(info[name]) is float for name in signals)
    prompts = [episode[0][1]["prompt"], *[step[4]["prompt"] for step in episode[1:]]]
    assert prompts == ["stand still", "go left!", "strafe right"]
    for _, reward, terminated, truncated, _ in episode[1:]:
        assert type(reward) is float and type(terminated) is bool and type(truncated) is bool


@pytest.mark.parametrize("observations", OBSERVATIONS)
def test_observations_are_the_callers_own(make: Make, observations: str) -> None:
    env, twin = make(observations=observations), make(observations=observations)
    expected = play(twin, PROMPTS, seed=0)
    for action, wanted in zip([None, *PROMPTS], expected, strict=True):
        result = env.reset(seed=0) if action is None else env.step(action)
        assert equal(tuple(result), tuple(wanted), exact=True)
        parts = result[0].values() if isinstance(result[0], dict) else [result[0]]
        for part in parts:
            part[...] = 0


def test_the_longest_prompt_is_taken_as_it_is(make: Make) -> None:
    prompt = "left " * 51 + "!"
    assert len(prompt) == 256
    assert play(make(), [prompt], seed=0)[1][4]["prompt"] == prompt


def test_reset_options_choose_the_start(make: Make) -> None:
    env = make()
    image = np.full((64, 64, 3), 90, np.uint8)
    video = np.repeat(image[None], 8, axis=0)
    opening = env.reset(seed=0)[0]
    assert equal(env.reset(seed=0, options={})[0], opening, exact=True)
    assert equal(env.reset(seed=0, options={"clip": 0})[0], opening, exact=True)
    clip, info = env.reset(seed=0, options={"clip": np.int64(1)})
    assert not equal(clip, opening)
    assert info["prompt"] == env.world.bank.prompts[1][-1]
    for options, prompt in (
        ({"image": image}, ""),
        ({"image": image, "prompts": ["strafe left"]}, "strafe left"),
        ({"video": video}, ""),
        ({"video": video, "prompts": ["strafe left", "strafe right"]}, "strafe right"),
        ({"video": video, "prompts": ("strafe left", None)}, ""),
        ({"prompt": "go left!"}, "go left!"),
    ):
        observation, info = env.reset(seed=0, options=options)
        assert observation in env.observation_space
        assert (info["prompt"], info["chunk"]) == (prompt, 0)
        assert env.step("stand still")[4]["chunk"] == 1
    one, two = (env.reset(seed=seed, options={"prompt": "go left!"})[0] for seed in (1, 2))
    assert not equal(one, two)  # a dreamed start depends on the seed


def test_keywords_reach_the_rollout(make: Make) -> None:
    env = make(steps=1, temperature=0.5, starts="any", device="cpu", dtype="float32")
    assert (env.rollout.steps, env.rollout.temperature) == (1, 0.5)
    assert env.world.device == torch.device("cpu") and env.world.dtype == torch.float32
    starts = [env.reset(seed=seed) for seed in range(12)]
    seen = {np.asarray(observation).tobytes(): info["prompt"] for observation, info in starts}
    assert len(seen) == len(env.world.bank)  # longer clips too, not only the one opening
    assert sorted(seen.values()) == sorted(prompts[-1] for prompts in env.world.bank.prompts)


@pytest.mark.parametrize("actions", ACTIONS)
def test_gymnasiums_vector_environment_serves(tiny_world_path: Path, actions: str) -> None:
    envs = gym.make_vec(
        ENV_ID, num_envs=2, vectorization_mode="sync", world=str(tiny_world_path),
        actions=actions, horizon=2, ignore_termination=True,
    )  # fmt: skip
    single = gym.make(ENV_ID, world=str(tiny_world_path), ignore_termination=True)
    batch, info = envs.reset(seed=7)
    envs.action_space.seed(0)
    assert batch.shape == (2, 4, 64, 64, 3)
    left: Any = ("strafe left",) * 2 if actions == "text" else np.array([1, 1])
    for length in (1, 2):
        batch, reward, terminated, truncated, info = envs.step(left)
        assert reward.shape == (2,) and not terminated.any()
        assert truncated.tolist() == [length == 2] * 2
        assert info["chunk"].tolist() == [length] * 2
    single.reset(seed=8)
    rows = [single.step("strafe left")[0] for _ in range(2)]
    assert equal(batch[1], rows[1], exact=True)
    assert envs.step(envs.action_space.sample())[4]["chunk"].tolist() == [0, 0]
    envs.close()
