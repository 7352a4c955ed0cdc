from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magi_world.cli.prompt_file import PromptFile
from magi_world.errors import PromptError


def texts(file: PromptFile, starts: Sequence[float]) -> list[str]:
    """The prompts of chunks that begin at these seconds."""
    return [prompt.text for prompt in file.for_chunks(starts)]


def written(folder: Path, text: str) -> PromptFile:
    path = folder / "story.txt"
    path.write_text(text, encoding="utf-8")
    return PromptFile.read(path)


def test_a_line_a_chunk(tmp_path: Path) -> None:
    file = written(tmp_path, "a cat sits\n the cat jumps \n10:30 in the morning\n\n\n")
    prompts = ["a cat sits", "the cat jumps", "10:30 in the morning"]
    assert file.seconds is None
    assert texts(file, [0, 1, 2]) == prompts
    assert texts(file, [0, 1, 2, 3, 4]) == [*prompts, prompts[-1], prompts[-1]]
    assert texts(file, [0]) == prompts[:1]
    assert file.unused([0]) == [2, 3]
    assert file.unused([0, 1, 2, 3]) == []


def test_lines_with_seconds(tmp_path: Path) -> None:
    file = written(tmp_path, "0: a cat sits\n2: the cat jumps\n2.5: 時間: it lands\n")
    assert texts(file, [0, 1, 2, 3, 4]) == [
        "a cat sits", "a cat sits", "the cat jumps", "時間: it lands", "時間: it lands",
    ]  # fmt: skip
    assert file.unused([0, 1, 2]) == [3]
    # the first chunk of a continuation begins inside the given video
    assert texts(file, [-1 / 3, 2 / 3, 5 / 3, 8 / 3])[:2] == ["a cat sits", "a cat sits"]


def test_windows_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes("\ufeff0: a cat\r\n1: a dog\r\n".encode())
    assert texts(PromptFile.read(path), [0, 1]) == ["a cat", "a dog"]


def test_a_long_video_takes_no_longer_a_chunk(tmp_path: Path) -> None:
    chunks = written(tmp_path, "0: a\n9: [kv 1] b\n").for_chunks(range(200_000))
    assert [c.text for c in chunks[8:10]] == ["a", "b"] and len(chunks) == 200_000
    assert [n for n, c in enumerate(chunks) if c.kv_ranges] == [9]


def test_kv_ranges_hold_for_the_first_chunk_under_their_line(tmp_path: Path) -> None:
    file = written(tmp_path, "0: a harbour\n1: [kv 1,2, 2,6] inside\n3: [kv 1] a [b] c\n")
    assert file.prompts == ("a harbour", "inside", "a [b] c")
    prompts = file.for_chunks([0, 1, 2, 3, 4])
    assert [prompt.kv_ranges for prompt in prompts] == [None, (1, 2, 2, 6), None, (1,), None]
    assert file.max_kv_range == 6
    assert written(tmp_path, "a [kv 1] harbour").max_kv_range is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no prompt"),
        (" \n\n", "no prompt"),
        ("a cat\n[kv 1,1,1,1]\n", "line 2: the prompt is empty"),
        ("a cat\n\na dog\n", "line 2: the prompt is empty"),
        ("0: a cat\na dog\n", "line 2: 'a dog' does not begin with"),
        ("a cat\n1: a dog\n", "line 1: 'a cat' does not begin with"),
        ("1: a cat\n", "line 1: .*from second 0"),
        ("-1: a cat\n", "line 1: .*from second 0"),
        ("0: a cat\n1:\n", "line 2: the prompt is empty"),
        ("0: a cat\n1: [kv 1;2] a dog\n", "line 2: .* does not begin with KV ranges"),
        ("[kv] a cat\n", "line 1: .* does not begin with KV ranges"),
        ("0: a cat\n2: a dog\n2: a bird\n", "line 3: second 2 does not come after 2"),
    ],
)
def test_what_is_no_file_of_prompts_is_named(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=rf"story\.txt.*{words}"):
        written(tmp_path, text)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="none.txt: cannot be read.*No such file"):
        PromptFile.read(tmp_path / "none.txt")
    with pytest.raises(PromptError, match="cannot be read"):
        PromptFile.read(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    with pytest.raises(PromptError, match="not UTF-8"):
        PromptFile.read(tmp_path / "latin.txt")


@given(
    gaps=st.lists(st.integers(1, 40), max_size=8),
    starts=st.lists(st.integers(0, 400), min_size=1, max_size=12, unique=True).map(sorted),
)
def test_a_prompt_holds_from_its_second_on(
    gaps: list[int], starts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tenths = [sum(gaps[:index]) for index in range(len(gaps) + 1)]
    text = "".join(f"{tenth / 10}: prompt {tenth}\n" for tenth in tenths)
    file = written(tmp_path_factory.mktemp("prompts"), text)
    expected = [f"prompt {max(t for t in tenths if t <= start)}" for start in starts]
    seconds = [start / 10 for start in starts]
    assert texts(file, seconds) == expected
    said = {int(prompt.split()[1]) for prompt in expected}
    assert file.unused(seconds) == [n for n, t in enumerate(tenths, start=1) if t not in said]
