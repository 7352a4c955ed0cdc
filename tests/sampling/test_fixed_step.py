"""Steps on fixed buffers, compiled and captured ones: the same chunks as the ordinary step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magi_world.errors import ConfigError
from magi_world.kernels.attention import AttnSlices
from magi_world.kernels.attention.triton_ops import tile_config
from magi_world.sampling.rollout import Rollout
from magi_world.world import World
from tests.tiny_world import PROMPTS, make_tiny_world

# torch's compiler uses parts of torch that torch calls deprecated
compiles = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SEEDS = [3, 4]


def plain(world: World, backend: str | None, steps: int = 2) -> Rollout:
    """A rollout on fixed buffers whose pass is not compiled, or by this backend of the compiler."""
    rollout = world.rollout(2, seeds=SEEDS, steps=steps, compile=True)
    fixed = rollout._fixed
    assert fixed is not None
    fixed._pass = fixed._forward
    if backend is not None:
        fixed._pass = torch.compile(fixed._forward, fullgraph=True, dynamic=False, backend=backend)
    return rollout


def chunks(rollout: Rollout, count: int = 6) -> list[tuple[Tensor, ...]]:
    """Latents and outcome of some chunks; the ring of the cache goes round once."""
    rollout.reset()
    found: list[tuple[Tensor, ...]] = []
    for index in range(count):
        prompts = [PROMPTS[index % 3], PROMPTS[(index + 1) % 3]]
        chunk = rollout.step(prompts)
        found.append((chunk.latents, chunk.reward, chunk.termination_probability, chunk.terminated))
    return found


@pytest.mark.parametrize("steps", [1, 2])
def test_fixed_buffers_change_nothing(tiny_world: World, steps: int) -> None:
    ordinary = chunks(tiny_world.rollout(2, seeds=SEEDS, steps=steps))
    for mine, theirs in zip(chunks(plain(tiny_world, None, steps)), ordinary, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))


def test_two_passes_a_step() -> None:
    world = make_tiny_world()
    sampling = replace(world.config.sampling, guidance_scale=1.5)
    world.config = replace(world.config, sampling=sampling)
    ordinary = chunks(world.rollout(2, seeds=SEEDS, steps=2), 3)
    for mine, theirs in zip(chunks(plain(world, None), 3), ordinary, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [8, 64, 128, 256])
@pytest.mark.parametrize(("tokens", "places"), [(256, 9), (1536, 5)])
def test_there_is_room_for_a_slot_that_sees_its_whole_ring(
    tiny_world: World, dtype: torch.dtype, width: int, tokens: int, places: int
) -> None:
    """Whatever tiles the kernels of a GPU take."""
    fixed = plain(tiny_world, None)._fixed
    assert fixed is not None
    mask = fixed._slices(1, tokens, places * tokens, 2)
    mask.fill(AttnSlices.from_list([(0, tokens, 0, places * tokens, 0)]))
    for capability in (80, 90, 100, 120):
        for kernel in ("forward", "dq", "dkv"):
            config = tile_config(kernel, width, dtype, capability)
            entries = mask.plan((config.rows, config.keys)).by_query.ends[-1]
            assert entries == -(-tokens // config.rows) * -(-places * tokens // config.keys)


@compiles
def test_a_traced_step_has_one_graph_for_all_chunks(tiny_world: World) -> None:
    graphs = 0

    def count(graph: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph

    torch.compiler.reset()
    rollout = plain(tiny_world, None)
    fixed = rollout._fixed
    assert fixed is not None
    fixed._pass = torch.compile(fixed._forward, fullgraph=True, dynamic=False, backend=count)
    ordinary = chunks(tiny_world.rollout(2, seeds=SEEDS, steps=2))
    for mine, theirs in zip(chunks(rollout), ordinary, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert graphs <= 2  # the denoising pass reads a buffer, the clean pass what that gave


@pytest.mark.slow
@compiles
def test_a_compiled_step_agrees(tiny_world: World) -> None:
    ordinary = chunks(tiny_world.rollout(2, seeds=SEEDS))
    compiled = chunks(tiny_world.rollout(2, seeds=SEEDS, compile=True))
    for mine, theirs in zip(compiled, ordinary, strict=True):
        torch.testing.assert_close(mine[:3], theirs[:3], rtol=1e-4, atol=1e-4)


def test_saved_states_do_not_know_of_it(tiny_world: World) -> None:
    rollout = plain(tiny_world, None)
    chunks(rollout, 2)
    ordinary = tiny_world.rollout(2, seeds=SEEDS, steps=2)
    ordinary.load_state_dict(rollout.state_dict())
    mine, theirs = rollout.step(PROMPTS[:2]), ordinary.step(PROMPTS[:2])
    assert torch.equal(mine.latents, theirs.latents)
    fork = rollout.fork([0, 1])
    assert torch.equal(fork.step(PROMPTS[:2]).latents, ordinary.step(PROMPTS[:2]).latents)


def test_frames_that_a_step_decoded_are_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_tiny_world()
    rollout = plain(world, None)
    rollout.reset()
    fixed = rollout._fixed
    assert fixed is not None
    step, decode, calls = fixed.step, world.decode, 0

    def decoding(*given: Any) -> Any:  # as a captured step does
        chunk = step(*given)
        assert chunk.frames.is_inference()
        return chunk

    def counted(latents: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return decode(latents)

    monkeypatch.setattr(fixed, "step", decoding)
    monkeypatch.setattr(world, "decode", counted)
    chunk = rollout.step(PROMPTS[:2])
    assert torch.equal(chunk.frames, decode(chunk.latents)) and calls == 1
    assert not chunk.frames.is_inference()


def test_what_cannot_be_is_named(tiny_world: World) -> None:
    with pytest.raises(ConfigError, match="cuda_graph=True needs a CUDA device"):
        tiny_world.rollout(cuda_graph=True)
    with pytest.raises(ConfigError, match="exclude each other"):
        tiny_world.rollout(compile=True, cuda_graph=True)


def test_a_compiler_must_be_there(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler"):
        tiny_world.rollout(compile=True)


@pytest.mark.gpu
def test_a_captured_step_agrees() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    world = make_tiny_world().to("cuda")
    ordinary = chunks(world.rollout(2, seeds=SEEDS))
    captured = world.rollout(2, seeds=SEEDS, cuda_graph=True)
    for mine, theirs in zip(chunks(captured), ordinary, strict=True):
        torch.testing.assert_close(mine[:3], theirs[:3], rtol=1e-3, atol=1e-3)
    chunk = captured.step(PROMPTS[:2])
    assert torch.equal(chunk.frames, world.decode(chunk.latents))
