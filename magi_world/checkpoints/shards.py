"""Sharded weights on disk: found, checked against the model, streamed to it, and written.

A folder holds one ``model.safetensors`` or the shards that ``model.safetensors.index.json`` names;
every file may carry the extra suffix ``.zst`` (spec section 2.2).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from magi_world.checkpoints.published_config import read_json
from magi_world.checkpoints.safetensors_stream import (
    COMPRESSED,
    Entry,
    Source,
    read_header,
    stream_tensors,
    total_bytes,
    write_stream,
)
from magi_world.checkpoints.tensors import some_names
from magi_world.disk import write_text
from magi_world.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
"""size at which the writer begins another file"""

Progress = Callable[[int], None]
"""told the bytes of every tensor that has arrived"""


@dataclass(frozen=True)
class Shards:
    """The weight files of one model, headers read."""

    folder: Path
    files: tuple[Path, ...]
    entries: Mapping[str, Entry]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, uncompressed."""
        return total_bytes(self.entries.values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: entry.shape for name, entry in self.entries.items()}


def open_shards(folder: Path, single: str = SINGLE) -> Shards:
    """Find the weight files of a folder and read their headers, not their tensors.

    Args:
        folder: holds ``single`` or its index and shards.
        single: name of the file when there is one.

    Raises:
        CheckpointError: no weights, a damaged index, an absent or truncated shard, or one that
            holds other tensors than the index says.
        MissingPackage: a shard is compressed and zstandard is absent.
    """
    index = folder / f"{single}.index.json"
    placed: dict[str, str] | None = None
    if index.is_file():
        placed = _read_index(index)
        files = [_existing(folder / name) for name in sorted(set(placed.values()))]
    elif (folder / single).is_file() or (folder / (single + COMPRESSED)).is_file():
        files = [_existing(folder / single)]
    else:
        raise CheckpointError(f"{folder} holds no weights: neither {single} nor {index.name}")
    entries: dict[str, Entry] = {}
    for path in files:
        for entry in read_header(path):
            if entry.name in entries:
                raise CheckpointError(f"{path}: {entry.name} is in another shard too")
            stored_in = None if placed is None else placed.get(entry.name)
            if placed is not None and stored_in != path.name.removesuffix(COMPRESSED):
                raise CheckpointError(
                    f"{path} holds {entry.name}, which {index.name} places in {stored_in}"
                )
            entries[entry.name] = entry
    absent = sorted(set(placed or {}) - set(entries))
    if absent:
        raise CheckpointError(f"{index}: no shard holds {some_names(absent)}")
    return Shards(folder, tuple(files), entries)


def _read_index(index: Path) -> dict[str, str]:
    document = read_json(index)
    placed = document.get("weight_map") if isinstance(document, dict) else None
    names = placed.values() if isinstance(placed, dict) else []
    if not names or not all(isinstance(n, str) and n == Path(n).name for n in names):
        raise CheckpointError(f"{index} has no weight_map from tensors to files beside it")
    assert isinstance(placed, dict)
    return placed


def _existing(path: Path) -> Path:
    packed = path.with_name(path.name + COMPRESSED)
    if not path.is_file() and not packed.is_file():
        raise CheckpointError(f"the shard {path} is absent, and so is {packed.name}")
    return path if path.is_file() else packed


def check_shards(shards: Shards, module: nn.Module) -> None:
    """Compare names and shapes with a model, before any tensor is read.

    Raises:
        CheckpointError: missing or unknown tensors or another shape: a checkpoint of another
            configuration.
    """
    expected, found = module.state_dict(), shards.shapes()
    where = shards.folder
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing:
        raise CheckpointError(
            f"{where}: {len(missing)} tensors that the configuration asks for are missing: "
            f"{some_names(missing)}"
            + (f"; unknown ones are there: {some_names(extra)}" if extra else "")
        )
    if extra:
        raise CheckpointError(
            f"{where}: {len(extra)} tensors are unknown to the configuration: {some_names(extra)}"
        )
    for name, tensor in expected.items():
        if tuple(tensor.shape) != found[name]:
            raise CheckpointError(
                f"{where}: {name} has shape {found[name]}, the configuration asks for "
                f"{tuple(tensor.shape)}"
            )
        is_float8 = tensor.dtype == torch.float8_e4m3fn
        if is_float8 != (shards.entries[name].dtype == torch.float8_e4m3fn):
            raise CheckpointError(
                f"{where}: {name} is {shards.entries[name].dtype}, the configuration asks for "
                f"{tensor.dtype}"
            )


def load_shards(
    module: nn.Module,
    shards: Shards,
    *,
    device: torch.device,
    dtype_of: Callable[[str, torch.dtype], torch.dtype] | None = None,
    progress: Progress | None = None,
) -> None:
    """Fill a model tensor by tensor, each put on the device in its final dtype at once.

    The model may stand on the meta device: its tensors are replaced, not copied into, so that the
    weights exist once.

    Args:
        module: the model; of :func:`check_shards`' names and shapes.
        shards: where they come from.
        device: where they go.
        dtype_of: final dtype from a tensor's name and the dtype the model declares; None keeps
            the model's.
        progress: told the bytes that have arrived.

    Raises:
        CheckpointError: as :func:`check_shards`, a damaged file, a NaN or infinity. The model is
            then unusable and must be thrown away.
    """
    check_shards(shards, module)
    owners = dict(module.named_modules())
    declared = module.state_dict()
    with torch.no_grad():
        for path in shards.files:
            for name, tensor in stream_tensors(path):
                wanted = declared[name].dtype
                if dtype_of is not None:
                    wanted = dtype_of(name, wanted)
                arrived = tensor.to(device=device, dtype=wanted)
                if not all_finite(arrived):
                    raise CheckpointError(f"{path}: {name} holds NaN or infinity")
                owner, _, last = name.rpartition(".")
                _replace(owners[owner], last, arrived)
                if progress is not None:
                    progress(tensor.numel() * tensor.element_size())


def _replace(owner: nn.Module, name: str, tensor: Tensor) -> None:
    if name in owner._parameters:
        old = owner._parameters[name]
        assert old is not None
        owner._parameters[name] = nn.Parameter(tensor, requires_grad=old.requires_grad)
    else:
        owner._buffers[name] = tensor


def all_finite(tensor: Tensor) -> bool:
    """Say whether a tensor holds neither NaN nor infinity; float8 e4m3fn included."""
    if tensor.dtype == torch.float8_e4m3fn:  # it has no infinity, and NaN is all ones
        return not bool((tensor.view(torch.uint8) & 0x7F).eq(0x7F).any())
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def write_shards(
    sources: Iterable[Source],
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    compress: bool = False,
    metadata: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write weights as one file, or as shards and their index; one tensor is in memory at a time.

    Args:
        sources: the tensors, in order.
        folder: made if absent.
        shard_bytes: size that no shard exceeds, unless one tensor does.
        compress: add ``.zst`` to every file.
        metadata: texts in the headers.
        progress: told the bytes that have been made.

    Returns:
        The weight files.

    Raises:
        MissingPackage: ``compress`` without zstandard.
    """
    groups: list[list[Source]] = [[]]
    for source in sources:
        if groups[-1] and total_bytes(groups[-1]) + source.nbytes > shard_bytes:
            groups.append([])
        groups[-1].append(_counted(source, progress))
    names = [SINGLE]
    if len(groups) > 1:
        names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    suffix = COMPRESSED if compress else ""
    for name, group in zip(names, groups, strict=True):
        write_stream(folder / (name + suffix), group, metadata or {})
    if len(groups) > 1:
        _write_index(folder / INDEX, names, groups)
    return [folder / (name + suffix) for name in names]


def _counted(source: Source, progress: Progress | None) -> Source:
    if progress is None:
        return source

    def make() -> Tensor:
        tensor = source.make()
        progress(source.nbytes)
        return tensor

    return Source(source.name, source.dtype, source.shape, make)


def _write_index(path: Path, names: Sequence[str], groups: Sequence[Sequence[Source]]) -> None:
    total = sum(total_bytes(group) for group in groups)
    placed = {s.name: name for name, group in zip(names, groups, strict=True) for s in group}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": placed}, indent=2)
    write_text(path, text + "\n")
