"""A calibration: which videos it runs, what it refuses, and that its checkpoint loads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import magi_world
from magi_world.calibration import session
from magi_world.errors import ConfigError, PromptError
from magi_world.magi1_config import Magi1Config
from magi_world.world import World
from tests.checkpoints.official import UNCACHED, write_official

PROMPTS = ["A cat walks along the beach.", "Snow falls on the old town."]
DISTILLED = Magi1Config(num_steps=8, cfg_number=1, distill=True)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder: Path = tmp_path_factory.mktemp("calibration") / "tiny-distill"
    return magi_world.load(write_official(folder, "tiny-distill"), parts=UNCACHED)


@given(
    count=st.integers(1, 20),
    images=st.integers(0, 3),
    share=st.floats(0, 1),
    seed=st.integers(0, 100),
    window=st.sampled_from([1, 2, 4]),
)
def test_videos(count: int, images: int, share: float, seed: int, window: int) -> None:
    config = replace(DISTILLED, window=window)
    pictures = [np.full((16, 16, 3), i, np.uint8) for i in range(images)]
    prompts = [f"prompt {i}" for i in range(count)]
    videos = session.plan_videos(config, prompts, pictures, seed=seed, image_share=share)
    assert [video.prompt for video in videos] == prompts
    begun = sum(video.image is not None for video in videos)
    assert begun == (0 if not images else -int(-count * share // 1))
    assert {video.num_steps for video in videos} <= {12, 16, 32}
    again = session.plan_videos(config, prompts, pictures, seed=seed, image_share=share)
    assert [(v.num_steps, v.seed) for v in again] == [(v.num_steps, v.seed) for v in videos]


def test_steps_follow_window_and_ranges() -> None:
    assert session.allowed_steps(DISTILLED) == [12, 16, 32]
    assert session.allowed_steps(Magi1Config(num_steps=64)) == [12, 16, 20, 24, 28, 32]
    assert session.allowed_steps(replace(DISTILLED, num_steps=8, window=8)) == [16, 32]
    with pytest.raises(ConfigError, match="no step count"):
        session.allowed_steps(replace(DISTILLED, window=5, num_steps=20))


def test_a_calibration_gives_a_checkpoint(distilled: World, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert distilled.config.magi1 is not None
    videos = session.plan_videos(distilled.config.magi1, PROMPTS, [image], image_share=0.5)
    videos = [replace(video, num_steps=12) for video in videos]
    said: list[str] = []
    result = session.calibrate(distilled, videos, num_frames=24, checked=2, say=said.append)
    assert len(said) == 5 and len(result.latents) == 2
    assert all(0 < error < 0.1 for error in result.latents)
    assert [row["layer"] for row in result.layers] == [1, 2]
    assert result.report()["alpha"] == 0.45

    result.world.save(tmp_path / "fp8", layout="magi-1")
    assert (tmp_path / "fp8" / "inference_weight.fp8.distill").is_dir()
    loaded = magi_world.load(tmp_path / "fp8", parts=UNCACHED)
    assert loaded.config.magi1 is not None and loaded.config.magi1.fp8_quant
    stored, made = loaded.dit.state_dict(), result.world.dit.state_dict()
    assert stored.keys() == made.keys()
    for name, tensor in made.items():
        assert torch.equal(stored[name].view(torch.uint8), tensor.view(torch.uint8)), name
    # the original is as it was
    assert not distilled.config.magi1.fp8_quant


def test_what_cannot_be_calibrated_is_refused(
    tiny_world: World, distilled: World, tmp_path: Path
) -> None:
    videos = [session.CalibrationVideo(prompt=PROMPTS[0], num_steps=8, seed=0)]
    with pytest.raises(ConfigError, match="only MAGI-1 checkpoints"):
        session.calibrate(tiny_world, videos)
    base = magi_world.load(write_official(tmp_path / "tiny"), parts=UNCACHED)
    with pytest.raises(ConfigError, match="a base model has no FP8 form"):
        session.calibrate(base, videos)
    with pytest.raises(ConfigError, match="at least one is needed"):
        session.calibrate(distilled, [])
    with pytest.raises(PromptError):
        session.calibrate(distilled, [replace(videos[0], prompt="")])
    assert distilled.config.magi1 is not None
    with pytest.raises(ConfigError, match="at least one prompt"):
        session.plan_videos(distilled.config.magi1, [])
    with pytest.raises(ConfigError, match="image_share 2"):
        session.plan_videos(distilled.config.magi1, PROMPTS, image_share=2)


def test_prompt_files(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("# a comment\n\n one \ntwo\n", encoding="utf-8")
    assert session.read_prompts(path) == ["one", "two"]
    path.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no prompt"):
        session.read_prompts(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        session.read_prompts(tmp_path / "absent")
