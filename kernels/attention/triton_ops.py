"""Attention through our own Triton kernels: chooses tile sizes and launches.

Runs on CUDA devices from sm_80. With ``TRITON_INTERPRET=1`` in the environment before triton is
first imported it also runs on a CPU, slowly and in float32 and float16 only: the interpreter's
bfloat16 arithmetic is wrong.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from magi_world.kernels.attention.autograd import Kernel, Settings, row_delta, run
from magi_world.kernels.attention.call import Call, Refusal, import_refusal
from magi_world.kernels.attention.device_slices import DeviceSlices, TileTensors, tile_plan
from magi_world.kernels.attention.slices import AttnSlices
from magi_world.kernels.device import capability, interpreted

MAX_WIDTH = 256
"""largest head width"""
SMALLEST_SIDE = 16
"""fewest rows or keys of a tile, what a matrix instruction takes"""


@dataclass(frozen=True)
class TileConfig:
    """How a kernel is compiled: rows and keys of a tile, warps, pipeline stages."""

    rows: int
    keys: int
    warps: int
    stages: int


def tile_config(
    kernel: str, width: int, dtype: torch.dtype, capability: int, *, capped: bool = False
) -> TileConfig:
    """Tile sizes that keep a tile in registers and shared memory without spilling.

    Args:
        kernel: ``forward``, ``dq`` or ``dkv``.
        width: head width D.
        dtype: of q, k and v.
        capability: of the device, 80 for sm_80; 0 for the interpreter, which is quicker on few
            tiles.
        capped: whether there is a softcap, whose derivative takes registers.
    """
    if capability == 0:
        return TileConfig(64, 32, 4, 1)
    if dtype == torch.float32:
        return _float32_tiles(kernel, width)
    roomy = capability // 10 in (9, 10, 11)  # 227 KiB of shared memory; sm_120 has 99
    if kernel == "forward":
        if width <= 128:
            keys = 128 if width <= 64 and capability // 10 == 9 and not capped else 64
            return TileConfig(128, keys, 8 if width > 64 else 4, 3)
        return TileConfig(128, 64, 8, 2) if roomy else TileConfig(64, 32, 8, 2)
    return _backward_tiles(kernel, width, capability, capped)


def _backward_tiles(kernel: str, width: int, capability: int, capped: bool) -> TileConfig:
    """Found by compiling: what spills near the limit follows no rule."""
    new, roomy = capability >= 90, capability // 10 in (9, 10, 11)
    if width <= 64 and kernel == "dq":
        return TileConfig(64, 64, 8 if capped and not roomy else 4, 2)
    if width <= 64:
        high = roomy or width <= 32 or (new and not capped)
        wide = capped or (width <= 32 and not roomy)
        return TileConfig(64 if high else 32, 64, 8 if wide else 4, 2)
    spills = capped and kernel == "dkv" and new
    if width <= 128 and new:
        return TileConfig(32 if spills and capability // 10 == 9 else 64, 64, 8, 2)
    return TileConfig(32, 32, 8 if spills else 4, 1)


def _float32_tiles(kernel: str, width: int) -> TileConfig:
    """Float32 is multiplied without matrix instructions, which takes registers; as above."""
    if width > 64:
        return TileConfig(16, 16, 4, 1)
    if kernel != "dkv":
        return TileConfig(32, 32, 4, 1)
    if width <= 16:
        return TileConfig(16, 32, 4, 1)
    return TileConfig(32, 32, 8, 1) if width <= 32 else TileConfig(16, 16, 4, 1)


@dataclass(frozen=True)
class _Launch:
    """What all three launches of a call share."""

    slices: AttnSlices | DeviceSlices
    shape: tuple[int, int]
    capability: int
    override: TileConfig | None

    def tiles(
        self, kernel: str, q: Tensor, softcap: float
    ) -> tuple[TileConfig, Tensor, TileTensors]:
        """The configuration of a kernel, the slices and the lists that it walks."""
        config = self.override
        if config is None:
            capped = bool(softcap)
            config = tile_config(kernel, q.shape[2], q.dtype, self.capability, capped=capped)
        plan = tile_plan(self.slices, self.shape, (config.rows, config.keys), q.device)
        return config, plan.slices, plan.by_key if kernel == "dkv" else plan.by_query


def _arguments(
    config: TileConfig, lists: TileTensors, q: Tensor, k: Tensor, v: Tensor, settings: Settings
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What every kernel takes behind its own tensors."""
    D = q.shape[2]
    positional = (
        lists.starts, lists.splits, lists.ends, lists.tiles, lists.owners, lists.order,
        settings.scale, settings.softcap or 1.0,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], q.shape[0], k.shape[0], q.shape[1],
    )  # fmt: skip
    named = {
        "SHARE": q.shape[1] // k.shape[1],
        "D": D,
        "BM": config.rows,
        "BN": config.keys,
        "BD": max(16, 1 << (D - 1).bit_length()),
        "CAPPED": bool(settings.softcap),
        "PRECISION": "ieee",  # float32 means float32
        "num_warps": config.warps,
        "num_stages": config.stages,
    }
    return positional, named


def _forward(
    q: Tensor, k: Tensor, v: Tensor, sink_H: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor]:
    from magi_world.kernels.attention.triton_kernels import attention_forward

    launch: _Launch = settings.plan
    T, H, D = q.shape
    out = torch.empty(T, H, D, dtype=q.dtype, device=q.device)
    lse = torch.empty(T, H, dtype=torch.float32, device=q.device)
    if T == 0:
        return out, lse
    config, slices, lists = launch.tiles("forward", q, settings.softcap)
    positional, named = _arguments(config, lists, q, k, v, settings)
    sink = lse if sink_H is None else sink_H.contiguous()
    with torch.cuda.device_of(q):
        attention_forward[(lists.order.numel(), H)](
            q, k, v, sink, out, lse, slices, *positional, SINK=sink_H is not None, **named
        )
    return out, lse


def _backward(
    d_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    from magi_world.kernels.attention.triton_kernels import attention_dkv, attention_dq

    launch: _Launch = settings.plan
    d_q, d_k, d_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if q.shape[0] == 0:
        return d_q, d_k.zero_(), d_v.zero_()
    delta = row_delta(d_out, d_lse, out).contiguous()
    d_out = d_out.contiguous()
    lse = lse.masked_fill(lse == -math.inf, math.inf)  # exp(s - lse) is 0 where nothing is seen
    config, slices, lists = launch.tiles("dq", q, settings.softcap)
    positional, named = _arguments(config, lists, q, k, v, settings)
    with torch.cuda.device_of(q):
        attention_dq[(lists.order.numel(), q.shape[1])](
            q, k, v, d_out, lse, delta, d_q, slices, *positional, **named
        )
    if k.shape[0]:
        config, slices, lists = launch.tiles("dkv", q, settings.softcap)
        positional, named = _arguments(config, lists, q, k, v, settings)
        with torch.cuda.device_of(q):
            attention_dkv[(lists.order.numel(), k.shape[1])](
                q, k, v, d_out, lse, delta, d_k, d_v, slices, *positional, **named
            )
    return d_q, d_k, d_v


_KERNEL = Kernel(_forward, _backward)


def prepared(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    slices: AttnSlices | DeviceSlices,
    scale: float,
    softcap: float,
    config: TileConfig | None = None,
) -> tuple[Kernel, Settings, tuple[Tensor, Tensor, Tensor]]:
    """The kernel, what it is told, and q, k and v as it reads them."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_THD, k_TGD, v_TGD))
    launch = _Launch(slices, (q.shape[0], k.shape[0]), capability(q.device), config)
    return _KERNEL, Settings(scale, softcap, launch), (q, k, v)


def attention_triton(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    slices: AttnSlices | DeviceSlices,
    *,
    scale: float,
    softcap: float = 0.0,
    sink: Tensor | None = None,
    config: TileConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`magi_world.kernels.attention.attention`.

    ``config`` replaces the tile sizes of all kernels.
    """
    kernel, settings, read = prepared(q_THD, k_TGD, v_TGD, slices, scale, softcap, config)
    return run(kernel, *read, sink, settings)


def refuses(call: Call, slices: AttnSlices) -> Refusal | None:
    """Why a call cannot be taken, or None."""
    if call.device.type == "cuda" and call.capability < 80:
        return Refusal(f"needs sm_80 or newer, not sm_{call.capability}")
    if call.device.type != "cuda" and not (call.device.type == "cpu" and interpreted()):
        return Refusal(
            "needs a CUDA device (or TRITON_INTERPRET=1 set before triton is first imported)"
        )
    if call.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return Refusal(f"takes float32, float16 and bfloat16, not {call.dtype}")
    if call.dtype == torch.bfloat16 and call.device.type == "cpu":
        return Refusal("is wrong in bfloat16 in triton's interpreter")
    if call.width > MAX_WIDTH:
        return Refusal(f"takes head widths up to {MAX_WIDTH}, not {call.width}")
    return import_refusal("triton", "cuda")
