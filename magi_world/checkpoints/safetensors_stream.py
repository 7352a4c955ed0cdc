"""Safetensors files as streams: one tensor in memory at a time, plain or compressed with zstd.

The format is eight bytes with the length of a JSON header, the header, and the tensors' bytes in
the order of their offsets. Reading a compressed file needs no copy on disk, writing a large one no
copy in memory.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from magi_world.errors import CheckpointError, missing_package

COMPRESSED = ".zst"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class Entry:
    """A tensor in the header of a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int
    """bytes `[start, end)` behind the header"""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.end - self.start


@dataclass(frozen=True)
class Source:
    """A tensor that is going to be written: its values are made when their turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "Source":
        """Wrap a tensor that exists."""
        return cls(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


def read_header(path: Path) -> list[Entry]:
    """Read what a file holds, in the order of its bytes.

    Raises:
        CheckpointError: the file is absent or truncated, or its header is damaged.
        MissingPackage: the file is compressed and zstandard is absent.
    """
    with _opened(path) as file:
        entries = _header(path, file)
        # the size of what is packed is only known once it has been read
        if path.suffix != COMPRESSED:
            expected = file.tell() + (entries[-1].end if entries else 0)
            actual = path.stat().st_size
            if actual != expected:
                raise CheckpointError(f"{path} has {actual} bytes, its header says {expected}")
    return entries


def stream_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file one by one, each in memory of its own.

    Raises:
        CheckpointError: as :func:`read_header`, or a compressed file ends early.
        MissingPackage: as :func:`read_header`.
    """
    read_header(path)  # compares sizes too, where they are known
    with _opened(path) as file:
        for entry in _header(path, file):
            data = torch.empty(entry.nbytes, dtype=torch.uint8)
            _read_into(path, file, data.numpy().data)
            yield entry.name, data.view(entry.dtype).view(entry.shape)
        if _read(path, file, 1):
            raise CheckpointError(f"{path} has bytes behind its last tensor")


def write_stream(path: Path, sources: Sequence[Source], metadata: dict[str, str]) -> None:
    """Write a file tensor by tensor under a temporary name, then rename it.

    A name that ends in ``.zst`` is compressed.

    Raises:
        MissingPackage: the name asks for zstandard and it is absent.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    start = 0
    for source in sources:
        end = start + source.nbytes
        header[source.name] = {
            "dtype": _CODES[source.dtype],
            "shape": list(source.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    try:
        with _created(temporary, compressed=path.suffix == COMPRESSED) as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for source in sources:
                tensor = source.make().detach().cpu().contiguous()
                if tensor.dtype != source.dtype or tuple(tensor.shape) != source.shape:
                    raise ValueError(f"{source.name} was announced with another dtype or shape")
                file.write(tensor.flatten().view(torch.uint8).numpy().data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _header(path: Path, file: IO[bytes]) -> list[Entry]:
    (length,) = struct.unpack("<Q", _exactly(path, file, 8))
    if length > _LONGEST_HEADER:
        raise CheckpointError(f"{path} is no safetensors file: a header of {length} bytes")
    text = _exactly(path, file, length)
    try:
        table = json.loads(text)
        table.pop("__metadata__", None)
        entries = [
            Entry(name, DTYPES[e["dtype"]], tuple(map(int, e["shape"])), *e["data_offsets"])
            for name, e in table.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} has a damaged safetensors header: {error!r}") from None
    entries.sort(key=lambda entry: (entry.start, entry.end))
    reached = 0
    for entry in entries:
        size = torch.Size(entry.shape).numel() * entry.dtype.itemsize
        if entry.start != reached or entry.nbytes != size:
            raise CheckpointError(f"{path} has a damaged safetensors header at {entry.name}")
        reached = entry.end
    return entries


def _read(path: Path, file: IO[bytes], size: int) -> bytes:
    """Read ``size`` bytes, or fewer at the end of the file."""
    parts: list[bytes] = []
    missing = size
    try:
        while missing and (part := file.read(missing)):
            parts.append(part)
            missing -= len(part)
    except Exception as error:  # zstandard raises an error class of its own for damaged data
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _exactly(path: Path, file: IO[bytes], size: int) -> bytes:
    data = _read(path, file, size)
    if len(data) < size:
        raise CheckpointError(f"{path} is truncated")
    return data


def _read_into(path: Path, file: IO[bytes], view: memoryview) -> None:
    """Fill memory from a file."""
    done = 0
    try:
        while done < len(view) and (got := file.readinto(view[done:])):  # type: ignore[attr-defined]
            done += got
    except Exception as error:  # as above
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if done < len(view):
        raise CheckpointError(f"{path} is truncated")


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if not path.is_file():
        raise CheckpointError(f"there is no weight file {path}")
    with path.open("rb") as file:
        if path.suffix != COMPRESSED:
            yield file
        else:
            with _zstandard(path).ZstdDecompressor().stream_reader(file) as reader:
                yield reader


@contextmanager
def _created(path: Path, *, compressed: bool) -> Iterator[IO[bytes]]:
    with path.open("wb") as file:
        if not compressed:
            yield file
        else:
            with _zstandard(path).ZstdCompressor(level=3).stream_writer(file) as writer:
                yield writer


def _zstandard(path: Path) -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise missing_package("zstandard", "magi1", f"the compressed file {path.name}") from error
    return zstandard


def total_bytes(entries: Iterable[Entry | Source]) -> int:
    """Bytes of tensors together."""
    return sum(entry.nbytes for entry in entries)
