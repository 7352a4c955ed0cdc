"""The scripts that show other people's libraries over these environments, as they are printed."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_duel import make_tiny_duel

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries themselves


@pytest.fixture(scope="module")
def duel(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("worlds") / "duel"
    make_tiny_duel().save(folder)
    return str(folder)


def script(name: str) -> Any:
    """A script of the folder `examples`, not yet run."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("envs", [1, 2])
def test_stable_baselines3(tiny_world_path: Path, envs: int) -> None:
    pytest.importorskip("stable_baselines3")
    words = ["--world", str(tiny_world_path), "--steps", "256", "--envs", str(envs)]
    assert script("sb3_ppo").main(words).num_timesteps >= 256


def test_cleanrl(tiny_world_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--world", str(tiny_world_path), "--steps", "256", "--envs", "2"]
    agent = script("cleanrl_ppo_atari").main(words)
    printed = capsys.readouterr().out
    assert "episode of" in printed and "iteration 3" in printed
    assert all(parameter.isfinite().all() for parameter in agent.parameters())


def test_torchrl(tiny_world_path: Path, duel: str) -> None:
    pytest.importorskip("torchrl")
    words = ["--world", str(tiny_world_path), "--duel", duel, "--steps", "200"]
    rolled = script("torchrl_env").main(words)
    assert {name: tuple(part.batch_size) for name, part in rolled.items()} == {
        "single": (200,), "batch": (4, 200), "voters": (200,), "duel": (200,)
    }  # fmt: skip


def test_gymnasiums_wrappers(tiny_world_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    words = ["--world", str(tiny_world_path), "--steps", "200", "--limit", "24"]
    episodes = script("gymnasium_wrappers").main([*words, "--out", str(tmp_path)])
    assert episodes and all(0 < episode["l"] <= 24 for episode in episodes)
    assert len(list(tmp_path.glob("*.mp4"))) >= len(episodes)


def test_gymnasiums_play(tiny_world_path: Path) -> None:
    pygame = pytest.importorskip("pygame")
    frames = []

    def stop(*transition: Any) -> None:
        frames.append(transition[0])
        if len(frames) == 200:
            pygame.event.post(pygame.event.Event(pygame.QUIT))

    script("play_window").main(["--world", str(tiny_world_path)], callback=stop)
    assert len(frames) >= 200


@pytest.mark.parametrize("players", [False, True])
def test_rllib(tiny_world_path: Path, duel: str, players: bool) -> None:
    """In an environment of its own: `make test-rllib`."""
    import gymnasium

    pytest.importorskip("ray.rllib", exc_type=ImportError)
    if not gymnasium.__version__.startswith("1.2."):
        pytest.skip("ray[rllib] pins gymnasium 1.2.2")
    words = ["--duel", duel] if players else ["--world", str(tiny_world_path)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = script("rllib_ppo").main([*words, "--iterations", "1"])
    assert results[0]["env_runners"]["num_env_steps_sampled"] >= 200
