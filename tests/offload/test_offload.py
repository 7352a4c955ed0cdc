"""Weights and keys in host memory: the same numbers, less on the device."""

import copy
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from magi_world.config import DiTConfig
from magi_world.envs.vector_env import WorldVectorEnv
from magi_world.errors import ConfigError
from magi_world.kernels.attention import AttnSlices
from magi_world.models.dit import ChunkInputs, VideoDiT
from magi_world.models.inplace import InPlaceLayers
from magi_world.offload import DeviceRows, HostRows, OnDemand, WeightStream, place, stream_layers
from tests.tiny_world import make_tiny_world

CPU = torch.device("cpu")
CONFIG = DiTConfig(
    num_layers=5, hidden_size=32, ffn_hidden_size=32, num_attention_heads=2, num_query_groups=1,
    kv_channels=16, caption_channels=16, caption_max_length=8, in_channels=4, out_channels=4,
)  # fmt: skip


class Shared(nn.Module):
    """A buffer, two dtypes and one weight under two names."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 3), nn.Linear(3, 3)
        self.down.weight = self.up.weight
        self.gain = nn.Parameter(torch.randn(5, dtype=torch.bfloat16))
        self.register_buffer("scale", torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.up(x)) * self.scale + self.gain.float().sum()
        return out


def make_dit() -> VideoDiT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VideoDiT(CONFIG).eval()


def inputs(dit: VideoDiT, seed: int) -> ChunkInputs:
    g = torch.Generator().manual_seed(seed)
    return ChunkInputs(
        x=torch.randn(1, 4, 1, 4, 4, generator=g),
        t=torch.rand(1, generator=g),
        dropped=torch.tensor([False]),
        rotary=dit.rotary(torch.tensor([0]), (1, 4, 4)),
        caption=dit.caption_kv(torch.randn(3, 16, generator=g)),
        attend=AttnSlices.from_list([(0, 4, 0, 4, 0)]),
        cross=AttnSlices.from_list([(0, 4, 0, 3, 0)]),
    )


# ---------------------------------------------------------------- modules


@torch.inference_mode()
def test_a_module_comes_in_for_a_call() -> None:
    module = Shared()
    plain, x = copy.deepcopy(module), torch.randn(2, 3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    guest = OnDemand(module, "cpu")
    at_home = module.up.weight.data_ptr()
    for _ in range(2):
        with guest:
            inside = module.up.weight.data_ptr()
            with guest:
                assert torch.equal(module(x), plain(x))
            assert module.up.weight.data_ptr() == inside != at_home
        assert module.up.weight.data_ptr() == at_home
    assert module.down.weight is module.up.weight
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())
    # five blocks of 64 bytes: the shared weight counts once
    assert guest.nbytes == 5 * 64


@torch.inference_mode()
def test_an_error_inside_sends_the_module_home() -> None:
    module = Shared()
    guest = OnDemand(module, "cpu")
    at_home = module.up.weight.data_ptr()
    with pytest.raises(RuntimeError), guest:
        module(torch.randn(2, 4))
    assert module.up.weight.data_ptr() == at_home


# ---------------------------------------------------------------- layers


@pytest.fixture
def one_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamed layers never work in place; with this, the others don't either."""
    monkeypatch.setattr(InPlaceLayers, "fits", lambda layers, hidden: False)


@torch.inference_mode()
def test_layers_in_place_and_streamed_ones_agree_to_rounding() -> None:
    dit = make_dit()
    plain = copy.deepcopy(dit)
    stream_layers(dit, "cpu")
    expected, got = plain(inputs(plain, 0)), dit(inputs(dit, 0))
    torch.testing.assert_close(got.velocity, expected.velocity, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_streamed_layers_compute_the_same(one_forward: None) -> None:
    dit = make_dit()
    plain = copy.deepcopy(dit)
    layers, captions = stream_layers(dit, "cpu")
    for seed in range(3):
        expected, got = plain(inputs(plain, seed)), dit(inputs(dit, seed))
        assert torch.equal(got.velocity, expected.velocity)
        assert torch.equal(got.hidden, expected.hidden)
    state = dit.state_dict()
    assert all(torch.equal(state[name], t) for name, t in plain.state_dict().items())
    # every layer once per forward, and the first of the next one
    assert layers.copies == 3 * 5 + 1
    assert layers.device_bytes * 5 == layers.host_bytes * 2
    assert captions.host_bytes == 5 * 32 * 32 * 4
    layers.close()
    captions.close()
    assert torch.equal(dit(inputs(dit, 0)).velocity, plain(inputs(plain, 0)).velocity)


@torch.inference_mode()
def test_layers_of_different_sizes_share_two_places() -> None:
    """As in a quantised model, whose first and last layers are not."""
    units: list[nn.Module] = [nn.Linear(4, 4), nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4, False)]
    plain = [copy.deepcopy(unit) for unit in units]
    stream = WeightStream(units, "cpu")
    x = torch.randn(2, 4)
    for index in (0, 1, 2, 2, 0, 2, 1, 1, 0):  # any order works
        y = x.bfloat16() if index == 1 else x
        assert torch.equal(units[index](y), plain[index](y))
    assert stream.device_bytes == 2 * 128


@torch.inference_mode()
def test_a_failed_layer_does_not_break_the_next_forward() -> None:
    units = [nn.Linear(4, 4) for _ in range(3)]
    plain = [copy.deepcopy(unit) for unit in units]
    WeightStream(units, "cpu")
    with pytest.raises(RuntimeError):
        units[1](torch.randn(2, 5))
    x = torch.randn(2, 4)
    for unit, reference in zip(units, plain, strict=True):
        assert torch.equal(unit(x), reference(x))


@pytest.mark.parametrize("count", [0, 1, 2])
@torch.inference_mode()
def test_few_layers(count: int) -> None:
    units = [nn.Linear(4, 4) for _ in range(count)]
    plain = [copy.deepcopy(unit) for unit in units]
    stream = WeightStream(units, "cpu")
    for _ in range(3):
        for unit, reference in zip(units, plain, strict=True):
            x = torch.randn(2, 4)
            assert torch.equal(unit(x), reference(x))
    assert stream.copies == count  # they all stay


# ---------------------------------------------------------------- keys and values


@st.composite
def forwards(draw: st.DrawFn) -> tuple[int, list[list[int]], list[bool]]:
    layers = draw(st.integers(1, 5))
    steps = draw(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True),
                          min_size=1, max_size=6))  # fmt: skip
    edits = draw(st.lists(st.booleans(), min_size=len(steps), max_size=len(steps)))
    return layers, steps, edits


@settings(max_examples=50)
@given(forwards())
def test_rows_on_the_host_are_those_on_the_device(
    case: tuple[int, list[list[int]], list[bool]],
) -> None:
    layers, steps, edits = case
    n, shape = 2, (layers, 12, 1, 3)
    host = HostRows(shape, torch.float32, CPU)
    device = DeviceRows(shape, torch.float32, CPU)
    for places, edit in zip(steps, edits, strict=True):
        ranges: Sequence[tuple[int, int]] = [(p * n, (p + 1) * n) for p in places]
        for rows in (host, device):
            rows.open(ranges)
        for layer in range(layers):
            k, v = torch.randn(2, n * len(places), 1, 3)
            for got, expected in zip(host.extend(layer, k, v), device.extend(layer, k, v),
                                     strict=True):  # fmt: skip
                assert torch.equal(got, expected)
        if edit:
            for rows in (host, device):
                rows.edit()
                rows.keys_LRKD[:, :n] = 0
    host.edit()
    assert torch.equal(host.keys_LRKD, device.keys_LRKD)
    assert torch.equal(host.values_LRKD, device.values_LRKD)
    assert host.device_bytes == min(2, layers) * 2 * 12 * 3 * 4


# ---------------------------------------------------------------- worlds


@pytest.mark.parametrize(("layers", "idle"), [(True, True), (True, False), (False, True)])
def test_a_placed_world_dreams_the_same(layers: bool, idle: bool, one_forward: None) -> None:
    plain, placed = make_tiny_world(), place(make_tiny_world(), "cpu", layers=layers, idle=idle)
    a, b = plain.rollout(2, seeds=[1, 2]), placed.rollout(2, seeds=[1, 2])
    assert torch.equal(a.reset().frames, b.reset().frames)
    for prompt in ("strafe left", "strafe right"):
        one, other = a.step([prompt] * 2), b.step([prompt] * 2)
        assert torch.equal(one.latents, other.latents)
        assert torch.equal(one.frames, other.frames)
        assert torch.equal(one.reward, other.reward)
    frames = torch.randint(0, 256, (1, 4, 64, 64, 3), dtype=torch.uint8)
    assert torch.equal(plain.encode(frames), placed.encode(frames))
    WorldVectorEnv(1, placed).reset(seed=0)  # which moves nothing
    with pytest.raises(ConfigError, match="can be neither moved nor cast"):
        placed.to(dtype="bfloat16")
    with pytest.raises(ConfigError, match="can be neither moved nor cast"):
        place(placed, "cpu")


def test_a_device_that_is_not_there_is_named() -> None:
    world = make_tiny_world()
    with pytest.raises(ConfigError, match="device 'nowhere' cannot be used"):
        place(world, "nowhere")
    world.to("cpu")  # nothing was moved
