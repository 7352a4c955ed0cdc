"""The demo, from its first line to its video, in the smallest world there is."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import av
import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_demo_runs(
    demo: ModuleType, tiny_world_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    demo.main(
        [
            "--world", str(tiny_world_path), "--steps", "1", "--episodes", "2",
            "--seconds", "0.5", "--out", str(out),
        ]
    )  # fmt: skip
    text = " ".join(capsys.readouterr().out.split())
    assert "random play in the real game" in text
    assert "--logdir" in text
    rows = json.loads((out / "table.json").read_text())
    assert [row["agent"] for row in rows][:2] == ["random", "fresh agent"]
    assert all(row["where"] == "real" and row["episodes"] == 2 for row in rows)
    with av.open(str(out / "dream_and_real.mp4")) as video:
        assert video.streams.video[0].width == 2 * 4 * 64
        assert sum(1 for _ in video.decode(video=0)) == 16  # 4 chunks of 4 frames
    assert (out / "agent" / "agent.safetensors").is_file()
    assert list((out / "agent" / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (10.0, 90.0, "fresh agent beat random play"),
        (-40.0, 90.0, "did not clearly beat"),
        (-90.0, -10.0, "did worse"),
    ],
)
def test_verdict_is_plain(demo: ModuleType, low: float, high: float, words: str) -> None:
    random = {"agent": "random", "mean": 270.0, "episodes": 30}
    fresh = {
        "agent": "fresh agent", "mean": 300.0, "episodes": 30, "above_random": 30.0,
        "above_random_low": low, "above_random_high": high,
    }  # fmt: skip
    text = demo.verdict([random, fresh])
    assert words in text
    assert "300 against 270 tics" in text
    assert f"[{low:+.0f}, {high:+.0f}], 30 episodes each" in text
