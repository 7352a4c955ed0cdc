import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_checker import data_equivalence as equal

import magi_world
from magi_world.envs.doom import TakeCoverGame
from magi_world.envs.real_env import RealEnv
from magi_world.envs.spaces import ACTIONS, OBSERVATIONS
from magi_world.envs.world_env import WorldEnv
from magi_world.errors import (
    ActionError,
    ConfigError,
    MissingPackage,
    PromptError,
    ResetOptionError,
    WorldNotFound,
)

ENV_ID = "magi_world/DoomTakeCoverReal-v0"
PROMPTS = ["stand still", "strafe left", "strafe right"]
Make = Callable[..., RealEnv]


@pytest.fixture(autouse=True)
def no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


@pytest.fixture
def make(tiny_doom_path: Path) -> Iterator[Make]:
    """Build the environment with the tiny world's card, without Gymnasium's wrappers."""
    made = []

    def make(**keywords: Any) -> RealEnv:
        keywords.setdefault("world", str(tiny_doom_path))
        env = gym.make(ENV_ID, **keywords).unwrapped
        assert isinstance(env, RealEnv)
        made.append(env)
        return env

    yield make
    for env in made:
        env.close()


def changed_card(tiny_doom_path: Path, folder: Path, **changes: Any) -> str:
    """A folder with the tiny world's card, changed, and no weights."""
    card = json.loads((tiny_doom_path / "world.json").read_text()) | changes
    (folder / "world.json").write_text(json.dumps(card))
    return str(folder)


@pytest.mark.parametrize(
    ("actions", "observations"), [("text", "frames"), ("discrete", "latent"), ("text", "both")]
)
def test_gymnasiums_checker_is_silent(make: Make, actions: str, observations: str) -> None:
    env = make(actions=actions, observations=observations)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env)
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("observations", OBSERVATIONS)
@pytest.mark.parametrize("actions", ACTIONS)
def test_the_spaces_are_the_dreams(
    make: Make, tiny_doom_path: Path, actions: str, observations: str
) -> None:
    env = make(actions=actions, observations=observations)
    dream = WorldEnv(str(tiny_doom_path), actions=actions, observations=observations)
    assert env.action_space == dream.action_space
    assert env.observation_space == dream.observation_space
    assert env.metadata["render_fps"] == dream.metadata["render_fps"]


def test_it_plays_the_game_of_the_seed(make: Make) -> None:
    env, game = make(actions="discrete"), TakeCoverGame()
    chunk = game.reset(11)
    observation, info = env.reset(seed=11)
    assert equal(observation, chunk.frames)
    assert info == {"prompt": "stand still", "chunk": 0, "valid_frames": 4, "health": 100.0}
    terminated, total, count = False, 0.0, 0
    while not terminated:
        chunk = game.step(count % 3)
        observation, reward, terminated, truncated, info = env.step(count % 3)
        count += 1
        total += reward
        assert equal(observation, chunk.frames)
        assert env.observation_space.contains(observation)
        assert (reward, terminated, truncated) == (chunk.reward, chunk.terminated, False)
        assert info == {
            "prompt": PROMPTS[(count - 1) % 3],
            "chunk": count,
            "valid_frames": chunk.valid_frames,
            "health": chunk.health,
        }
    assert info["health"] == 0.0 and info["valid_frames"] < 4
    assert total == 4 * (count - 1) + info["valid_frames"]
    with pytest.raises(ResetNeeded, match=f"{count} chunks long"):
        env.step(0)
    game.close()


def test_words_mean_the_same_as_indices(make: Make, tiny_doom_path: Path) -> None:
    card = json.loads((tiny_doom_path / "world.json").read_text())
    text, index = make(), make(actions="discrete")
    text.reset(seed=5)
    index.reset(seed=5)
    for action in (1, 1, 2, 0):
        words = [PROMPTS[action], *card.get("paraphrases", {}).get(PROMPTS[action], [])[:1]]
        one, *_, info = text.step(words[-1])
        other, *_ = index.step(action)
        assert equal(one, other) and info["prompt"] == words[-1]


def test_the_game_knows_only_its_actions(make: Make, tiny_doom_path: Path, tmp_path: Path) -> None:
    world = changed_card(
        tiny_doom_path,
        tmp_path,
        paraphrases={"strafe left": ["go left!"]},
        held_out_paraphrases={"strafe left": ["jump left"]},
    )
    env = make(world=world)
    env.reset(seed=1)
    for word in ("go left!", "jump left", "strafe left"):
        assert env.step(word)[-1]["prompt"] == word
    with pytest.raises(ActionError, match="'open the door' is no action .*strafe right"):
        env.step("open the door")
    texts: list[Any] = ["", 1, "a\nb", "x" * 10_000]
    for wrong in texts:
        with pytest.raises(PromptError):
            env.step(wrong)
    discrete = make(actions="discrete")
    discrete.reset(seed=1)
    indices: list[Any] = [3, -1, True, 0.0, "strafe left"]
    for wrong in indices:
        with pytest.raises(ActionError):
            discrete.step(wrong)
    assert env.step("strafe right")[-1]["chunk"] == 4  # what was refused played nothing


def test_latents_are_the_worlds(make: Make, tiny_doom_path: Path) -> None:
    world = magi_world.load(tiny_doom_path)
    frames, _ = make().reset(seed=2)
    latent, _ = make(observations="latent").reset(seed=2)
    both, _ = make(observations="both").reset(seed=2)
    expected = world.encode(np.asarray(frames)[None])[0].numpy().clip(-100, 100)
    assert equal(latent, expected)
    assert equal(both, {"frames": frames, "latent": expected})


def test_no_weights_are_read_for_frames(make: Make, tiny_doom_path: Path, tmp_path: Path) -> None:
    env = make(world=changed_card(tiny_doom_path, tmp_path))
    assert env.world is None
    env.reset(seed=0)


def test_the_horizon_truncates(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TakeCoverGame, "max_tics", 16)
    for horizon, length in ((3, 3), (None, 4), (9, 4)):
        env = make(actions="discrete", horizon=horizon)
        env.reset(seed=1)
        ends = [env.step(0)[2:4] for _ in range(length)]
        assert ends == [(False, False)] * (length - 1) + [(False, True)]
        with pytest.raises(ResetNeeded):
            env.step(0)


def test_without_a_seed_the_generator_draws_the_next(make: Make) -> None:
    def episodes() -> list[Any]:
        env = make(actions="discrete")
        played = []
        for seed in (3, None, None):
            env.reset(seed=seed)
            played.append(np.stack([np.asarray(env.step(0)[0]) for _ in range(20)]))
        return played

    first, second = episodes(), episodes()
    assert all(equal(one, other) for one, other in zip(first, second, strict=True))
    assert not equal(first[1], first[0]) and not equal(first[1], first[2])


def test_what_is_rendered(make: Make) -> None:
    env = make(actions="discrete", render_mode="rgb_array_list")
    first, _ = env.reset(seed=1)
    second, *_ = env.step(1)
    assert equal(np.stack(env.render()), np.concatenate([first, second]))
    assert env.render() == []
    single = make(actions="discrete", render_mode="rgb_array")
    single.reset(seed=1)
    assert equal(np.asarray(single.step(1)[0])[-1], single.render())
    window = make(render_mode="human")
    window.reset(seed=1)
    assert window.render() is None


def test_an_observation_handed_out_is_the_callers(make: Make) -> None:
    env = make(actions="discrete", render_mode="rgb_array")
    observation, _ = env.reset(seed=1)
    shown = env.render()
    np.asarray(observation)[:] = 0
    assert equal(env.render(), shown)


def test_closing_ends_the_game_and_a_reset_starts_it_again(make: Make) -> None:
    env = make()
    with pytest.raises(ResetNeeded, match="before the first reset"):
        env.step("stand still")
    before, _ = env.reset(seed=4)
    env.close()
    env.close()
    with pytest.raises(ResetNeeded, match=r"after close\(\)"):
        env.step("stand still")
    after, _ = env.reset(seed=4)
    assert equal(before, after)


def test_the_spec_is_plain_data(make: Make) -> None:
    env = gym.make(ENV_ID, world=str(make().spec.kwargs["world"]), actions="discrete")  # type: ignore[union-attr]
    assert env.spec is not None
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert equal(env.reset(seed=9)[0], again.reset(seed=9)[0])
    env.close()
    again.close()


def test_wrong_keywords_and_options_are_named(make: Make, tiny_doom_path: Path) -> None:
    for keyword in ("actions", "observations", "render_mode"):
        with pytest.raises(ConfigError, match=f"{keyword} 'none of it'"):
            RealEnv(str(tiny_doom_path), **{keyword: "none of it"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="horizon 0"):
        make(horizon=0)
    with pytest.raises(WorldNotFound, match="'nowhere'"):
        make(world="nowhere")
    with pytest.raises(TypeError, match="temperature"):
        make(temperature=1.0)
    env = make()
    env.reset(seed=1, options={})
    with pytest.raises(ResetOptionError, match=r"\['clip'\]"):
        env.reset(options={"clip": 1})
    random = str(env.np_random.bit_generator.state)
    with pytest.raises(ConfigError, match=r"seed 4294967296: allowed are 0 to 2\*\*32 - 1"):
        env.reset(seed=2**32)
    assert str(env.np_random.bit_generator.state) == random
    env.step("stand still")  # the episode goes on


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"name": "another"}, "'another' has no real game"), ({"prompts": PROMPTS[:2]}, "prompts")],
)
def test_a_world_without_this_game_is_refused(
    make: Make, tiny_doom_path: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make(world=changed_card(tiny_doom_path, tmp_path, **changes))


def test_without_vizdoom_the_error_says_how_to_get_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(MissingPackage, match=r"pip install 'magi-world\[doom\]'"):
        make()
