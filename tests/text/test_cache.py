"""The cache of embeddings on disk."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magi_world.text.cache import EmbeddingCache, default_folder, fingerprint


def test_what_is_put_is_got(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, "encoder")
    embedding = torch.randn(7, 5)
    assert cache.get("a cat") is None
    cache.put("a cat", embedding)
    kept = cache.get("a cat")
    assert kept is not None and torch.equal(kept, embedding)
    assert EmbeddingCache(tmp_path, "another").get("a cat") is None
    assert cache.get("a cat ") is None
    leftovers = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".safetensors"]
    assert leftovers == []


@given(st.text(max_size=20), st.text(max_size=20))
def test_texts_have_files_of_their_own(one: str, other: str) -> None:
    cache = EmbeddingCache(Path("cache"), "encoder")
    if not any("\ud800" <= c <= "\udfff" for c in one + other):
        assert (cache.path(one) == cache.path(other)) == (one == other)


def test_the_oldest_go_first(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, "encoder")
    for age, text in enumerate(["new", "old", "oldest"]):
        cache.put(text, torch.zeros(10, 10))
        os.utime(cache.path(text), (10**9 - age, 10**9 - age))
    size = cache.path("new").stat().st_size
    EmbeddingCache(tmp_path, "encoder", max_bytes=3 * size).put("last", torch.zeros(10, 10))
    assert cache.get("oldest") is None
    assert all(cache.get(text) is not None for text in ("new", "old", "last"))


def test_the_fingerprint_sees_content_not_time(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(10**6))
    before = fingerprint([path])
    os.utime(path, (1, 1))
    assert fingerprint([path]) == before
    changed = bytearray(10**6)
    changed[-1] = 1
    path.write_bytes(changed)
    assert fingerprint([path]) != before


def test_the_default_folder_follows_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/magi_world/prompts")
