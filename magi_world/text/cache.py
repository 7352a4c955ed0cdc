"""Caption embeddings kept on disk, found by the content that they were computed from.

The text encoder is the largest module of a MAGI-1 checkpoint and says the same of the same text
for ever: with a full cache it need not even be loaded.
"""

import hashlib
import os
import tempfile
from pathlib import Path

from torch import Tensor

from magi_world.checkpoints.tensors import read_tensors, write_tensors
from magi_world.errors import CheckpointError

_SAMPLES, _SAMPLE_BYTES = 64, 4096
_MAX_BYTES = 2**30
_NAME = "embedding"


def default_folder() -> Path:
    """`magi_world/prompts` in the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "magi_world/prompts"


def fingerprint(files: list[Path]) -> str:
    """Digest of weight files by name, size and 64 blocks of each: quick even for many gigabytes.

    Small files are read whole. Other weights of the same size differ in some block unless they
    were changed in a few places on purpose.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            if size <= _SAMPLES * _SAMPLE_BYTES:
                digest.update(file.read())
                continue
            for sample in range(_SAMPLES):
                file.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


class EmbeddingCache:
    """A folder of embeddings, shared by processes: files are renamed into place."""

    def __init__(self, folder: Path | str, encoder: str, *, max_bytes: int = _MAX_BYTES) -> None:
        """Use a folder, made when the first embedding is stored.

        Args:
            folder: for example :func:`default_folder`.
            encoder: digest of everything but the text that decides the numbers.
            max_bytes: the oldest files go when the folder would grow beyond.
        """
        self.folder = Path(folder)
        self.encoder = encoder
        self.max_bytes = max_bytes

    def path(self, text: str) -> Path:
        """File of a cleaned text."""
        digest = hashlib.sha256(f"{self.encoder}\0{text}".encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def get(self, text: str) -> Tensor | None:
        """The embedding `[n, caption_channels]` of a cleaned text, None when there is none.

        A file that cannot be read counts as none: it is computed and written again.
        """
        path = self.path(text)
        if not path.is_file():
            return None
        try:
            embedding = read_tensors(path)[_NAME].clone()
        except (CheckpointError, KeyError):
            return None
        return embedding

    def put(self, text: str, embedding: Tensor) -> None:
        """Store an embedding and remove the oldest files beyond the limit."""
        path = self.path(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        # a folder of its own: two processes may write the same text at the same time
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            temporary = Path(place) / path.name
            write_tensors({_NAME: embedding}, temporary, {"encoder": self.encoder})
            os.replace(temporary, path)
        self._prune(keep=path)

    def _prune(self, keep: Path) -> None:
        found = []
        for path in self.folder.glob("??/*.safetensors"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # another process removed it
                continue
            found.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_bytes:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size
