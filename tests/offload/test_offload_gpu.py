"""The same on a card: equal numbers, and only two layers there at a time."""

import copy

import pytest
import torch
from torch import nn

from magi_world.offload import DeviceRows, HostRows, OnDemand, WeightStream

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")


def layers(count: int, width: int) -> list[nn.Module]:
    return [nn.Linear(width, width).bfloat16() for _ in range(count)]


@torch.inference_mode()
def test_streamed_layers_overlap_and_stay_right() -> None:
    units = layers(12, 2048)
    plain = [copy.deepcopy(unit).to(CUDA) for unit in units]
    stream = WeightStream(units, CUDA)
    x = torch.randn(4096, 2048, dtype=torch.bfloat16, device=CUDA)
    for _ in range(3):
        got = expected = x
        for unit, reference in zip(units, plain, strict=True):
            got, expected = unit(got), reference(expected)
        assert torch.equal(got, expected)
    assert stream.device_bytes * 6 == stream.host_bytes


@torch.inference_mode()
def test_an_idle_module_takes_no_memory() -> None:
    module = layers(1, 4096)[0]
    guest = OnDemand(module, CUDA)
    before = torch.cuda.memory_allocated()
    with guest:
        assert torch.cuda.memory_allocated() >= before + guest.nbytes
        module(torch.randn(2, 4096, dtype=torch.bfloat16, device=CUDA))
    assert torch.cuda.memory_allocated() < before + guest.nbytes


@torch.inference_mode()
def test_rows_on_the_host_are_those_on_the_device() -> None:
    shape, n = (6, 4096, 2, 64), 512
    host, device = (kind(shape, torch.bfloat16, CUDA) for kind in (HostRows, DeviceRows))
    for step in range(20):
        place = step % 8
        for rows in (host, device):
            rows.open([(place * n, (place + 1) * n)])
        for layer in range(6):
            k, v = torch.randn(2, n, 2, 64, dtype=torch.bfloat16, device=CUDA)
            sums = [
                tuple(x.double().sum() for x in rows.extend(layer, k, v)) for rows in (host, device)
            ]
            assert sums[0] == sums[1]
    host.edit()
    assert torch.equal(host.keys_LRKD, device.keys_LRKD.cpu())
    assert torch.equal(host.values_LRKD, device.values_LRKD.cpu())
