"""The embedded world dreams the same chunk on every backend that takes its dtype."""

from typing import Any

import pytest
import torch

import magi_world
from magi_world.kernels.attention import default_backend
from magi_world.kernels.attention.call import import_refusal
from magi_world.sampling.chunk import Chunk

WORLD = "doom-take-cover"
ON_CPU: list[Any] = ["reference", "cpu", "sdpa", "flex"]


def dreamed(backend: Any, chunks: int, device: str = "cpu") -> Chunk:
    world = magi_world.load(WORLD, device=device)
    prompts = list(world.card["prompts"])
    with default_backend(backend):
        rollout = world.rollout(2, seeds=[0, 1])
        rollout.reset()
        for index in range(chunks):
            chunk = rollout.step([prompts[index % len(prompts)]] * 2)
    return chunk


@pytest.fixture(scope="module")
def expected() -> Chunk:
    return dreamed("auto", 3)


@pytest.mark.parametrize("backend", ON_CPU)
def test_every_backend_on_a_cpu(backend: str, expected: Chunk) -> None:
    chunk = dreamed(backend, 3)
    torch.testing.assert_close(chunk.latents, expected.latents, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(chunk.reward, expected.reward, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs the kernels themselves")
def test_our_triton_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    chunk = dreamed("triton", 1)
    torch.testing.assert_close(chunk.latents, dreamed("auto", 1).latents, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "flex", "sdpa", "reference"])
def test_every_backend_on_a_gpu(backend: str, expected: Chunk) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if backend == "triton" and (refused := import_refusal("triton", "cuda")) is not None:
        pytest.skip(refused.reason)
    chunk = dreamed(backend, 3, "cuda")
    torch.testing.assert_close(chunk.latents.cpu(), expected.latents, rtol=1e-2, atol=1e-2)
