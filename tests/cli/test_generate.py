"""`magi-world generate` with tiny checkpoints in the published layout: modes, stops, refusals."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from magi_world.checkpoints.random_presets import random_preset
from magi_world.cli import generating
from magi_world.media.writing import VideoWriter
from magi_world.planning import checks
from magi_world.sampling.window import WindowSampler
from tests.cli.conftest import Run

SIZE = ("--size", "32x48")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model."""
    folder: Path = tmp_path_factory.mktemp("checkpoints") / "tiny"
    random_preset("tiny").write(folder)
    return folder


@pytest.fixture(autouse=True)
def prompt_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoded prompts go to a folder of the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, and a video of 57 frames at 24 a second."""
    folder: Path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (57, 2, 3, 3), np.uint8).repeat(16, axis=1).repeat(16, axis=2)
    Image.fromarray(tiles[0]).save(folder / "cat.png")
    with VideoWriter(folder / "cat.mp4", fps=24, height=32, width=48) as writer:
        writer.append(tiles)
    return folder


def read(path: Path) -> npt.NDArray[np.uint8]:
    """All frames of a file."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("preset", ["tiny", "tiny-distill", "tiny-distill-fp8"])
@pytest.mark.parametrize("mode", ["text", "image", "video"])
def test_every_model_generates_in_every_mode(
    preset: str, mode: str, run: Run, pictures: Path, tmp_path: Path
) -> None:
    random_preset(preset).write(tmp_path / "model")
    given = {"text": [], "image": ["--image", pictures / "cat.png"]}
    start = given.get(mode, ["--video", pictures / "cat.mp4"])
    out = tmp_path / "out.mp4"
    result = run(
        "generate", "--model", tmp_path / "model", "--prompt", "a cat", "--seconds", 1.5,
        "--seed", 7, "--out", out, *SIZE, *start, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    data = result.data
    frames = read(out)
    assert len(frames) == data["frames"] == 36 and frames.shape[1:] == (32, 48, 3)
    assert data["seconds"] == 1.5 and data["fps"] == 24 and not data["stopped"]
    # behind 56 frames, two chunks and two latent frames, the nine latent frames end in chunk 4
    assert data["chunks"] == len(data["chunk_seconds"]) == len(data["chunk_memory_bytes"]) == 2
    assert min(data["chunk_seconds"]) > 0 and min(data["chunk_memory_bytes"]) > 1 << 20
    assert data["chunk_passes"] <= data["chunk_passes_published"]
    assert f"chunk {data['chunks']} of {data['chunks']}: 1.5 s of video" in result.err
    assert "left" in result.err


def apart(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    """Mean distance of two videos, 0 to 255."""
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def test_a_seed_repeats_a_video(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    def film(name: str, *more: object) -> npt.NDArray[np.uint8]:
        result = run(
            "generate", "--model", checkpoint, "--prompt", "a cat", "--seconds", 1, *SIZE,
            "--out", tmp_path / name, *more,
        )  # fmt: skip
        assert result.code == 0, result.err
        return read(tmp_path / name)

    one = film("one.mp4", "--seed", 1)
    assert (film("again.mp4", "--seed", 1) == one).all()
    other = apart(film("two.mp4", "--seed", 2), one)
    assert (film("host.mp4", "--seed", 1, "--offload", "kv") == one).all()
    moved = ("--offload", "layers", "--offload", "idle")
    # streamed layers do not work in place as resident ones do: they agree to rounding
    assert apart(film("moved.mp4", "--seed", 1, *moved), one) < other / 20
    assert (film("tokens.mp4", "--seed", 1, "--quality", "hq", "--duration", "auto",
                 "--style", "3d") != one).any()  # fmt: skip


def test_prompts_may_change_from_chunk_to_chunk(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    story = tmp_path / "story.txt"
    story.write_text("a cat\n[kv 1,2,2,6] a dog\n", encoding="utf-8")
    arguments = ("generate", "--model", checkpoint, "--prompts", story, *SIZE, "--window", 1)
    result = run(*arguments, "--out", tmp_path / "a.mp4", "--json")
    assert result.code == 0, result.err
    assert result.data["chunks"] == 2 and len(read(tmp_path / "a.mp4")) == 48
    result = run(*arguments, "--out", tmp_path / "b.mp4", "--seconds", 3, "--json")
    assert result.data["chunks"] == 3
    assert "the last line holds from chunk 2 to 3" in result.err
    result = run(*arguments, "--out", tmp_path / "c.mp4", "--seconds", 1, "--json")
    assert result.data["chunks"] == 1 and "line 2 holds for no chunk" in result.err
    story.write_text("0: a cat\n1.5: a dog\n", encoding="utf-8")
    result = run(*arguments, "--out", tmp_path / "d.mp4", "--json")
    assert result.data["frames"] == 60  # the last prompt has a second of its own


def test_compat_generates_what_the_published_code_does(
    run: Run, checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    frames = {}
    for name, start in (
        ("text", []),
        ("image", ["--image", pictures / "cat.png"]),
        ("video", ["--video", pictures / "cat.mp4"]),
    ):
        out = tmp_path / f"{name}.mp4"
        result = run(
            "generate", "--model", checkpoint, "--prompt", "a cat", "--seconds", 2, *SIZE,
            "--out", out, *start, "--compat", "magi-1", "--json",
        )  # fmt: skip
        assert result.code == 0, result.err
        frames[name] = len(read(out))
        assert frames[name] == result.data["frames"]
    # one chunk more behind an image; behind 32 frames the first piece is 13 frames, not 16
    assert frames == {"text": 48, "image": 72, "video": 61}


# a shell that starts tests in the background has its children ignore interrupts
GENERATE = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from magi_world.cli import main; sys.exit(main())"
)


def started(checkpoint: Path, out: Path, log: Path) -> "subprocess.Popen[bytes]":
    """A process that generates a minute of video, behind its first two chunks."""
    command = [
        sys.executable, "-c", GENERATE, "generate", "--model", str(checkpoint), "--prompt", "a cat",
        "--seconds", "60", "--out", str(out), *SIZE,
    ]  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, stdout=subprocess.DEVNULL)
    while "chunk 2 of 60" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    return process


def finished(log: Path) -> int:
    """Chunks that a log speaks of."""
    return log.read_text().count(" s of video")


def test_a_killed_process_leaves_its_finished_chunks(checkpoint: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "a.mp4", tmp_path / "log"
    process = started(checkpoint, out, log)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(read(out)) >= 24 * finished(log) - 1 >= 47


def test_an_interrupt_ends_the_file(checkpoint: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "a.mp4", tmp_path / "log"
    process = started(checkpoint, out, log)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    chunks = finished(log)
    assert 2 <= chunks < 60
    assert f"stopped after {chunks} chunks" in log.read_text()
    assert len(read(out)) >= 24 * chunks


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither weights are read nor steps taken."""

    def forbidden(*args: Any, **keywords: Any) -> Any:
        raise AssertionError("too late")

    monkeypatch.setattr(generating, "load", forbidden)
    monkeypatch.setattr(WindowSampler, "run", forbidden)


def refused(run: Run, out: Path, *arguments: object) -> str:
    """The one line that a refused command says; nothing is written."""
    before = sorted(path.name for path in out.parent.rglob("*"))
    result = run("generate", "--out", out, *arguments)
    assert result.code == 2 and result.out == ""
    (line,) = result.err.splitlines()
    assert sorted(path.name for path in out.parent.rglob("*")) == before
    return line


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "either --prompt"),
        (["--prompt", "a", "--prompts", "b.txt"], "either --prompt"),
        (["--prompts", "none.txt"], "none.txt"),
        (["--prompt", ""], "empty"),
        (["--prompt", " \t "], "empty"),
        (["--prompt", "a", "--image", "a.png", "--video", "a.mp4"], "one of them"),
        (["--prompt", "a", "--image", "none.png"], "none.png is not there"),
        (["--prompt", "a", "--video", "none.mp4"], "none.mp4 is not there"),
        (["--prompt", "a", "--image", __file__], "cannot be read as a picture"),
        (["--prompt", "a", "--video", __file__], "cannot be read as a video"),
        (["--prompt", "a", "--video-seconds", "1"], "goes with --video"),
        (["--prompt", "a", "--seconds", "0"], "--seconds 0"),
        (["--prompt", "a", "--seconds", "0.001"], "less than one frame"),
        (["--prompt", "a", "--seconds", "soon"], "--seconds"),
        (["--prompt", "a", "--size", "480"], "HEIGHTxWIDTH"),
        (["--prompt", "a", "--size", "40x48"], "40x48"),
        (["--prompt", "a", "--size", "16x48"], "two tokens"),
        (["--prompt", "a", "--steps", "6"], "does not divide the 6 steps"),
        (["--prompt", "a", "--window", "3"], "allowed are [1, 2, 4, 8]"),
        (["--prompt", "a", "--kv-range", "5,4,3"], "8 steps are not a multiple of the 3"),
        (["--prompt", "a", "--kv-range", "5,0"], "5,0"),
        (["--prompt", "a", "--seed", "-1"], "seed -1"),
        (["--prompt", "a", "--quality", "best"], "best"),
        (["--prompt", "a", "--duration", "9"], "9"),
        (["--prompt", "a", "--style", "2d"], "2d"),
        (["--prompt", "a", "--fit", "squeeze"], "squeeze"),
        (["--prompt", "a", "--compat", "magi-2"], "magi-2"),
        (["--prompt", "a", "--offload", "all"], "all"),
        (["--prompt", "a", "--device", "abacus"], "abacus"),
        (["--prompt", "a", "--device", "mps"], "from the 'MPS' backend"),
        (["--prompt", "a", "--dtype", "int4"], "int4"),
        (["--prompt", "a", "--special-tokens", "none.npz"], "none.npz"),
        (["--prompt", "a", "--t5", "none"], "none"),
    ],
)
def test_what_cannot_work_is_said_before_weights_are_read(
    arguments: list[str],
    words: str,
    run: Run,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(run, tmp_path / "a.mp4", "--model", checkpoint, *arguments)


@pytest.mark.usefixtures("never")
def test_places_that_cannot_be_written_are_refused(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    model = ("--model", checkpoint, "--prompt", "a")
    assert "must end with .mp4" in refused(run, tmp_path / "a.avi", *model)
    (tmp_path / "a.mp4").mkdir()
    assert "is a folder" in refused(run, tmp_path / "a.mp4", *model)


@pytest.mark.usefixtures("never")
def test_a_truncated_shard_is_refused(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    weights = folder / "inference_weight" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 8)
    line = refused(run, tmp_path / "a.mp4", "--model", folder, "--prompt", "a")
    assert "model.safetensors" in line
    assert "no world" in refused(run, tmp_path / "a.mp4", "--model", "nowhere", "--prompt", "a")


@pytest.mark.usefixtures("never")
def test_short_memory_and_disk_are_refused(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--model", checkpoint, "--prompt", "a")
    with monkeypatch.context() as patch:
        patch.setattr(checks, "available_bytes", lambda device: 10**6)
        line = refused(run, tmp_path / "a.mp4", *model)
        assert "GiB" in line and "--size" in line and "--offload" in line
    story = tmp_path.parent / "endless.txt"
    story.write_text("0: a cat\n1000000000: a dog\n", encoding="utf-8")
    arguments = ("--model", checkpoint, "--prompts", story)
    assert "GB free" in refused(run, tmp_path / "a.mp4", *arguments)  # before any list of chunks
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    assert ", 0.00 GB free" in refused(run, tmp_path / "a.mp4", *model)


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(
    ("package", "more", "words"),
    [
        ("av", [], "magi-world[video]"),
        ("transformers", [], "magi-world[magi1]"),
        ("ftfy", ["--compat", "magi-1"], "magi-world[magi1]"),
    ],
)
def test_missing_packages_are_named(
    package: str,
    more: list[str],
    words: str,
    run: Run,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    if package == "av":
        monkeypatch.setitem(sys.modules, "av", None)
    line = refused(run, tmp_path / "a.mp4", "--model", checkpoint, "--prompt", "a", *more)
    assert package in line and words in line


def test_an_embedded_world_generates_too(run: Run, tiny_world_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.mp4"
    result = run(
        "generate", "--model", tiny_world_path, "--prompt", "strafe left", "--seconds", 0.5,
        "--out", out, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert len(read(out)) == result.data["frames"] == 18  # of 17.5
    line = refused(
        run, tmp_path / "b.mp4", "--model", tiny_world_path, "--prompt", "a", "--quality", "hq"
    )
    assert "no MAGI-1 checkpoint" in line


def test_available_memory_is_known() -> None:
    free = checks.available_bytes(torch.device("cpu"))
    assert free is None or free > 10**6
    assert checks.available_bytes(torch.device("meta")) is None
