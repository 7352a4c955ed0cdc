# mypy: disable-error-code="arg-type,index,misc,unused-ignore"
"""The video DiT's own code paths; its numbers are checked by the golden cases."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from magi_world.config import DiTConfig
from magi_world.errors import ConfigError
from magi_world.kernels.attention import AttnSlices
from magi_world.models.dit import ChunkInputs, DiTOutput, VideoDiT
from magi_world.models.forward import LinearMemory
from magi_world.models.layers import KVMemory
from tests.tiny_world import make_tiny_world

CONFIG = DiTConfig(
    num_layers=2, hidden_size=32, ffn_hidden_size=24, num_attention_heads=4, num_query_groups=2,
    kv_channels=8, caption_channels=12, caption_max_length=20,
)  # fmt: skip
SIZE = (2, 4, 6)  # latent frames, rows, columns of a chunk
N = 2 * 2 * 3  # tokens of one


def build(config: DiTConfig = CONFIG) -> VideoDiT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dit = VideoDiT(config).eval().requires_grad_(False)
        for parameter in dit.parameters():  # zeros and ones would hide mistakes
            parameter += 0.1 * torch.randn_like(parameter)
    return dit


@pytest.fixture(scope="module")
def dit() -> VideoDiT:
    return build()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(
    dit: VideoDiT,
    x: Tensor,
    *,
    t: list[float] | None = None,
    dropped: list[bool] | None = None,
    first: list[int] | None = None,
    attend: list[tuple[int, ...]] | None = None,
    captions: list[Tensor] | None = None,
    dt: list[float] | None = None,
    memory: KVMemory | None = None,
) -> DiTOutput:
    G = len(x)
    captions = captions or [draw(3 + g, 12, seed=50 + g) for g in range(G)]
    ends = torch.tensor([0, *[len(c) for c in captions]]).cumsum(0).tolist()
    inputs = ChunkInputs(
        x=x,
        t=torch.tensor(t or [0.25] * G),
        dropped=torch.tensor(dropped or [False] * G),
        rotary=dit.rotary(torch.tensor(first or [0] * G), SIZE),
        caption=dit.caption_kv(torch.cat(captions)),
        attend=AttnSlices.from_list(attend or [(g * N, g * N + N) * 2 + (0,) for g in range(G)]),
        cross=AttnSlices.from_list([(g * N, g * N + N, *ends[g : g + 2], 0) for g in range(G)]),
        dt=None if dt is None else torch.tensor(dt),
    )
    return dit(inputs, memory)  # type: ignore[no-any-return]


def test_shapes(dit: VideoDiT) -> None:
    x = draw(3, 16, *SIZE)
    velocity, hidden = run(dit, x)
    assert velocity.shape == x.shape and velocity.dtype == torch.float32
    assert hidden.shape == (3, N, 32)


def test_chunks_without_common_slices_are_independent(dit: VideoDiT) -> None:
    x = draw(3, 16, *SIZE)
    captions = [draw(3 + g, 12, seed=g) for g in range(3)]
    keywords = {"t": [0.0, 0.4, 0.9], "dropped": [False, True, False], "first": [0, 7, 3]}
    together = run(dit, x, captions=captions, **keywords)  # type: ignore[arg-type]
    for g in range(3):
        one = {name: values[g : g + 1] for name, values in keywords.items()}
        alone = run(dit, x[g : g + 1], captions=captions[g : g + 1], **one)  # type: ignore[arg-type]
        torch.testing.assert_close(together.velocity[g : g + 1], alone.velocity)
        torch.testing.assert_close(together.hidden[g : g + 1], alone.hidden)


@pytest.mark.parametrize("change", ["x", "t", "dropped", "first", "caption", "history", "dt"])
def test_everything_that_conditions_a_chunk_reaches_it(dit: VideoDiT, change: str) -> None:
    # chunk 1 sees chunk 0; what is changed belongs to chunk 1, but for the history
    x = draw(2, 16, *SIZE)
    see = [(0, N, 0, N, 0), (N, 2 * N, 0, 2 * N, 0)]
    captions = [draw(4, 12, seed=1), draw(5, 12, seed=2)]
    base = run(dit, x, attend=see, captions=captions)
    other = x.clone()
    if change in ("x", "history"):
        other[1 if change == "x" else 0] += 0.1
    changed = run(
        dit,
        other,
        attend=see,
        captions=[captions[0], captions[1] + 0.5 * (change == "caption")],
        t=[0.25, 0.5] if change == "t" else None,
        dropped=[False, True] if change == "dropped" else None,
        first=[0, 2] if change == "first" else None,
        dt=[1.0, 2.0] if change == "dt" else None,
    )
    assert (changed.velocity[1] - base.velocity[1]).abs().max() > 1e-5
    if change not in ("history", "dt"):
        torch.testing.assert_close(changed.velocity[0], base.velocity[0])


def test_patches_are_those_of_the_convolution(dit: VideoDiT) -> None:
    x = draw(2, 16, *SIZE)
    tokens = dit.x_embedder(x).permute(0, 2, 3, 4, 1).reshape(-1, 32)
    torch.testing.assert_close(dit._embed(x), tokens)


def test_half_of_the_channels_outside_the_model() -> None:
    config = replace(CONFIG, in_channels=32, half_channel_vae=True, out_channels=32)
    dit, x = build(config), draw(1, 16, *SIZE)
    doubled = torch.cat([x, x], dim=1)
    tokens = dit.x_embedder(doubled).permute(0, 2, 3, 4, 1).reshape(-1, 32)
    torch.testing.assert_close(dit._embed(x), tokens)
    assert run(dit, x).velocity.shape == x.shape


def test_the_rescale_factor_acts_on_both_ends() -> None:
    plain, x = build(), draw(1, 16, *SIZE)
    scaled = build(replace(CONFIG, x_rescale_factor=4.0))
    torch.testing.assert_close(
        run(scaled, x / 4).velocity, run(plain, x).velocity / 4, rtol=1e-5, atol=1e-6
    )


def test_the_bfloat16_recipe_keeps_some_parts_in_float32() -> None:
    dit = build()
    assert dit.to_recipe(torch.bfloat16) is dit
    assert dit.block_dtype == torch.bfloat16
    kept = {name for name, p in dit.named_parameters() if p.dtype == torch.float32}
    layer = "videodit_blocks.layers.0."
    for name in (
        "x_embedder.weight", "t_embedder.mlp.0.weight", "y_embedder.null_caption_embedding",
        "rope.bands", "final_linear.linear.weight", "videodit_blocks.final_layernorm.weight",
        layer + "self_attention.q_layernorm.weight", layer + "self_attn_post_norm.weight",
    ):  # fmt: skip
        assert name in kept
    for name in ("self_attention.linear_qkv.q.weight", "mlp.linear_fc1.weight"):
        assert layer + name not in kept
    x = draw(1, 16, *SIZE)
    velocity = run(dit, x).velocity
    assert velocity.dtype == torch.float32
    torch.testing.assert_close(velocity, run(build(), x).velocity, rtol=0.1, atol=0.1)


def test_a_full_memory_says_so(dit: VideoDiT) -> None:
    memory = LinearMemory(layers=2, rows=N, groups=2, head_dim=8)
    memory.past = N
    with pytest.raises(ConfigError, match=f"holds {N} rows, {2 * N} are needed"):
        run(dit, draw(1, 16, *SIZE), memory=memory)


def test_every_parameter_learns() -> None:
    dit = build().requires_grad_(True)
    x = draw(2, 16, *SIZE)
    run(dit, x, dropped=[True, False]).velocity.square().mean().backward()
    # the clip's captions are given here, so the null caption's rows but the last two stay out
    without = [name for name, p in dit.named_parameters() if p.grad is None]
    assert without == []


def test_the_previous_chunk_belongs_to_models_that_read_it() -> None:
    reading = make_tiny_world().dit
    deaf = make_tiny_world(previous_chunk=False).dit
    x = draw(1, 16, 1, 8, 8)
    tokens = draw(3, reading.config.caption_channels)
    for dit, previous in ((reading, None), (deaf, x)):
        inputs = ChunkInputs(
            x=x, t=torch.tensor([0.0]), dropped=torch.tensor([False]),
            rotary=dit.rotary(torch.tensor([0]), (1, 8, 8)), caption=dit.caption_kv(tokens),
            attend=AttnSlices.from_list([(0, 16, 0, 16, 0)]),
            cross=AttnSlices.from_list([(0, 16, 0, 3, 0)]), previous=previous,
        )  # fmt: skip
        with pytest.raises(ConfigError, match="previous_chunk"):
            dit(inputs)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_token_reads_the_previous_chunk_around_its_own_places(patch_size: int) -> None:
    """One row and column of it on every side, and nothing of the noisy chunk beside its own."""
    dit = make_tiny_world(previous_around=1, patch_size=patch_size).dit
    x, previous = draw(1, 16, 1, 8, 8), draw(1, 16, 1, 8, 8, seed=9)
    across = 8 // patch_size

    def read(changed: str) -> set[tuple[int, int]]:
        """Tokens that look at the place in row 4, column 4."""
        there = {"x": x, "previous": previous}
        there[changed] = there[changed].clone()
        there[changed][0, :, 0, 4, 4] += 1
        moved_T = (
            (dit._embed(there["x"], there["previous"]) - dit._embed(x, previous)).abs().amax(1)
        )
        return {divmod(int(token), across) for token in (moved_T > 1e-6).nonzero()}

    own = 4 // patch_size
    assert read("x") == {(own, own)}
    near = {1: (3, 4, 5), 2: (1, 2)}[patch_size]  # the last row of a patch of two is no border
    assert read("previous") == {(row, column) for row in near for column in near}


def test_a_kept_place_is_the_previous_chunks_own() -> None:
    """With every place kept, the predicted chunk is the one before, without any noise."""
    dit = make_tiny_world().dit
    with torch.no_grad():
        dit.keep.weight.zero_()
        dit.keep.bias.fill_(60.0)
    x, previous = draw(2, 16, 1, 8, 8), draw(2, 16, 1, 8, 8, seed=9)
    tokens = draw(3, dit.config.caption_channels)
    t = torch.tensor([0.0, 0.5])
    inputs = ChunkInputs(
        x=x, t=t, dropped=torch.tensor([False, False]),
        rotary=dit.rotary(torch.tensor([0, 1]), (1, 8, 8)), caption=dit.caption_kv(tokens),
        attend=AttnSlices.from_list([(0, 32, 0, 32, 0)]),
        cross=AttnSlices.from_list([(0, 32, 0, 3, 0)]), previous=previous,
    )  # fmt: skip
    with torch.no_grad():
        velocity = dit(inputs).velocity
    # going on at this velocity until t = 1 arrives at the predicted chunk
    arrived = x + velocity * (1 - t).view(-1, 1, 1, 1, 1)
    assert torch.allclose(arrived, previous, atol=1e-5)
