"""What all verbs share: help, one-line errors with exit code 2, data apart from words."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from magi_world.cli import main
from tests.cli.conftest import Run

VERBS = [
    ("worlds",),
    ("rollout",),
    ("collect",),
    ("train-world",),
    ("train-words",),
    ("train-agent",),
    ("evaluate-agent",),
    ("evaluate",),
    ("evaluate-planner",),
    ("bench",),
    ("bench", "rollout"),
    ("bench", "env"),
    ("generate",),
    ("plan",),
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_explains_itself(verb: tuple[str, ...], run: Run) -> None:
    result = run(*verb, "--help")
    assert result.code == 0 and result.err == ""
    usage, _, words = result.out.partition("\n")
    assert usage.startswith(f"Usage: magi-world {' '.join(verb)}")
    assert len(words.strip().splitlines()[0]) > 20


def test_without_arguments_the_verbs_are_listed(run: Run) -> None:
    result = run()
    assert result.code == 0
    for verb in VERBS:
        assert f"  {verb[0]} " in result.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dance"], "dance"),
        (["bench"], "Missing command"),
        (["rollout", "nowhere"], "no world 'nowhere'"),
        (["rollout", "--chunks", "0"], "--chunks"),
        (["rollout", "--chunks", "many"], "--chunks"),
        (["rollout", "--bogus"], "--bogus"),
        (["collect"], "--out"),
        (["collect", "chess", "--out", "data"], "no real game 'chess'"),
        (["train-world", "--out", "runs"], "--data"),
        (["train-world", "nothing", "--data", ".", "--out", "runs"], "no recipe 'nothing'"),
        (["train-world", "--out", "runs", "--resume", "--set", "vae=3"], "SECTION.NAME=VALUE"),
        (["train-words", "--out", "runs"], "--world"),
        (["train-words", "--world", "nowhere", "--out", "runs"], "no world 'nowhere'"),
        (
            ["train-words", "pong_duel", "--world", "pong-duel", "--out", "runs"],
            "no section [words.patterns]",
        ),
        (["train-agent", "--out", "runs", "--set", "speed=3"], "speed=3"),
        (
            ["train-agent", "--out", "runs", "--set", "hidden=wide"],
            "'wide' is not of kind int",
        ),
        (
            ["train-agent", "--out", "runs", "--set", "signal_weights=5"],
            "5 is not of kind dict",
        ),
        (["train-agent", "--out", "runs", "--world", "nowhere"], "no world 'nowhere'"),
        (["evaluate"], "--out"),
        (["evaluate", "nowhere", "--out", "report"], "no world 'nowhere'"),
        (["evaluate-agent", "--seeds", "lucky"], "--seeds"),
        (["evaluate-agent", "--episodes", "0"], "--episodes"),
        (["evaluate-planner", "--method", "luck"], "--method"),
        (["evaluate-planner", "--signal", "damage"], "'damage' is not NAME=WEIGHT"),
        (["generate", "--out", "a.mp4", "--prompt", "a"], "--model"),
        (["generate", "--model", "nowhere", "--prompt", "a", "--out", "a.mp4"], "no world"),
        (["plan", "--model", "nowhere"], "no world 'nowhere'"),
        (["bench", "env", "--num-envs", "1,two"], "1,two"),
        (["bench", "env", "--num-envs", "0"], "'0'"),
        (["bench", "rollout", "--chunks", "3"], "--chunks"),
    ],
)
def test_a_wrong_argument_ends_with_one_line(
    arguments: list[str], words: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.code == 2
    assert result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_that_cannot_be_used_is_named(
    run: Run, tiny_world_path: Path, tmp_path: Path
) -> None:
    result = run("rollout", tiny_world_path, "--out", tmp_path / "a.mp4", "--prompts", "a\nb")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1


def test_the_console_script_is_this_function() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="magi-world")
    assert script.load() is main


def test_help_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from magi_world.cli import main; main(['rollout', '--help']);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True, capture_output=True
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["rollout", "--chunks", "1"],
        ["collect", "--chunks", "1"],
        ["train-world", "--data", "."],
        ["train-words", "--world", "doom-take-cover"],
        ["train-agent", "--steps", "1"],
        ["evaluate", "--episodes", "2"],
    ],
    ids=lambda arguments: str(arguments[0]),
)
@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_a_file_for_a_folder_is_one_line(
    arguments: list[str],
    place: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_world_path: Path,
    fake_game: object,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file")
    Path("prompts.csv").write_text("file,chunk,prompt\n")
    verb, *options = arguments
    named: dict[str, list[object]] = {
        "rollout": [tiny_world_path],
        "collect": ["tiny"],
        "train-agent": ["--world", tiny_world_path],
        "evaluate": [tiny_world_path],
    }
    result = run(verb, *named.get(verb, []), *options, "--out", place)
    assert result.code == 2 and "taken" in result.err
    assert result.err.splitlines()[-1].startswith("error: ") and "Traceback" not in result.err
    assert Path("taken").read_text() == "a file"
