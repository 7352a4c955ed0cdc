"""Tensor files: safetensors only, memory-mapped, loaded whole or not at all."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from magi_world.errors import CheckpointError

_SHOWN = 4  # names of offending tensors in one message


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """Read all tensors of a file, memory-mapped.

    Raises:
        CheckpointError: the file is absent, truncated or no safetensors file.
    """
    return read_tensors_and_metadata(path)[0]


def read_tensors_and_metadata(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a file and the texts of its header; see :func:`read_tensors`."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no weight file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from None


def load_module(module: nn.Module, path: Path | str, *, prefix: str = "") -> None:
    """Load a module strictly from the tensors of a file whose names begin with ``prefix``.

    Everything is checked before anything is changed; values are converted to the dtypes of the
    module's parameters.

    Raises:
        CheckpointError: a missing or extra tensor, a wrong shape, a NaN or infinity.
    """
    tensors = {
        name[len(prefix) :]: tensor
        for name, tensor in read_tensors(path).items()
        if name.startswith(prefix)
    }
    load_tensors(module, tensors, f"{path}")


def load_tensors(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Load a module strictly from tensors; ``source`` names them in errors.

    Raises:
        CheckpointError: as :func:`load_module`.
    """
    expected = module.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys())
    if missing:
        raise CheckpointError(
            f"{source}: {len(missing)} tensors are missing: {some_names(missing)}"
        )
    if extra:
        raise CheckpointError(f"{source}: {len(extra)} tensors are unknown: {some_names(extra)}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, "
                f"expected {tuple(expected[name].shape)}"
            )
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinity")
    module.load_state_dict(tensors)


def some_names(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, temporary, metadata)
    temporary.chmod(0o644)  # safetensors writes for the owner alone, but weights are shared
    os.replace(temporary, path)


def as_bfloat16(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors with floating ones rounded to bfloat16, as worlds store them."""
    return {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        for name, tensor in module.state_dict().items()
    }


def compact(tensor: Tensor) -> Tensor:
    """The tensor in bfloat16 where that changes no value, else as it is."""
    if tensor.dtype not in (torch.float32, torch.float64):
        return tensor
    rounded = tensor.to(torch.bfloat16)
    return rounded if torch.equal(rounded.to(tensor.dtype), tensor) else tensor
