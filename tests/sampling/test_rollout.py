# mypy: disable-error-code="arg-type,assignment,func-returns-value,unused-ignore"
"""What reset, step and observe do: order, errors, histories, pictures, memory."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from magi_world.checkpoints.world_format import Bank, empty_bank
from magi_world.errors import (
    CheckpointError,
    ConfigError,
    NotReset,
    PromptError,
    ResetOptionError,
)
from magi_world.evaluation.bench import resident_bytes
from magi_world.kernels.attention import sdpa
from magi_world.models.text import TextEncoder
from magi_world.sampling.chunk import Chunk
from magi_world.sampling.rollout import Rollout
from magi_world.world import World, load
from tests.sampling.variants import variant
from tests.tiny_world import PROMPTS, make_tiny_world

SHAPE = (16, 1, 8, 8)
LEFT = PROMPTS[1]


def ready(world: World, width: int = 2, chunks: int = 3, **keywords: Any) -> Rollout:
    rollout = world.rollout(width, seeds=range(width), **keywords)
    rollout.reset()
    for index in range(chunks):
        rollout.step([PROMPTS[index % 3]] * width)
    return rollout


def pictures(frames: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (frames, 64, 64, 3), dtype=np.uint8)


def noise_of(world: World, generator: torch.Generator) -> Tensor:
    return torch.randn(world.config.latent_shape, generator=generator)


def generators(rollout: Rollout) -> Tensor:
    return torch.stack([generator.get_state() for generator in rollout.generators])


def unchanged(rollout: Rollout, twin: Rollout) -> bool:
    """Whether a rollout stands where its twin stands, and goes on as it does."""
    same = (
        torch.equal(generators(rollout), generators(twin))
        and torch.equal(rollout.chunk_index, twin.chunk_index)
        and rollout.time == twin.time
        and rollout.cache.filled == twin.cache.filled
        and rollout.cache.scratch == twin.cache.scratch
    )
    prompts = [LEFT] * rollout.batch_size
    one, other = rollout.step(prompts), twin.step(prompts)
    return same and torch.equal(one.latents, other.latents)


# -------------------------------------------------------------------- step


def test_the_order_of_draws(tiny_world: World) -> None:
    rollout = tiny_world.rollout(2, seeds=[11, 12], temperature=0.5)
    noises: list[Tensor] = []
    denoise = rollout.sampler.denoise

    def spy(noise: Tensor, *rest: Any) -> Tensor:
        noises.append(noise.clone())
        return denoise(noise, *rest)

    rollout.sampler.denoise = spy  # type: ignore[method-assign]
    rollout.reset()
    mine = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
    for generator in mine:
        torch.randint(1, (), generator=generator)  # which opening
    for _ in range(4):
        chunk = rollout.step([LEFT, PROMPTS[2]])
        expected = torch.stack([noise_of(tiny_world, generator) for generator in mine]) * 0.5
        assert torch.equal(noises.pop(), expected)
        draws = torch.stack([torch.rand((), generator=generator) for generator in mine])
        assert torch.equal(chunk.terminated, draws < chunk.termination_probability)
    assert torch.equal(generators(rollout), torch.stack([g.get_state() for g in mine]))


def test_a_world_without_heads_draws_all_the_same(tiny_world: World) -> None:
    card = {**tiny_world.card, "config": {**tiny_world.card["config"], "outcome": None}}
    world = World(card, bank=tiny_world.bank)
    world.dit.load_state_dict(tiny_world.dit.state_dict())
    assert isinstance(world.text, TextEncoder) and isinstance(tiny_world.text, TextEncoder)
    world.text.load_state_dict(tiny_world.text.state_dict())
    with_heads, without = ready(tiny_world), ready(world)
    one, other = with_heads.step([LEFT] * 2), without.step([LEFT] * 2)
    assert torch.equal(one.latents, other.latents)
    assert torch.equal(generators(with_heads), generators(without))
    assert (other.reward == 0).all() and (other.termination_probability == 0).all()
    assert not other.terminated.any() and other.signals == {}


def test_rows_of_a_step(tiny_world: World) -> None:
    rollout = ready(tiny_world, 3)
    chunk = rollout.step(PROMPTS)
    assert chunk.latents.shape == (3, *SHAPE) and chunk.latents.dtype == torch.float32
    assert chunk.reward.shape == (3,) and chunk.reward.dtype == torch.float32
    assert (chunk.reward >= 0).all() and (chunk.reward <= 4).all()
    probability = chunk.termination_probability
    assert probability.shape == (3,) and (probability >= 0).all() and (probability <= 1).all()
    assert chunk.terminated.shape == (3,) and chunk.terminated.dtype == torch.bool
    assert chunk.frames.shape == (3, 4, 64, 64, 3) and chunk.frames.dtype == torch.uint8
    assert torch.equal(chunk.frames, tiny_world.decode(chunk.latents))
    assert chunk.prompts == tuple(PROMPTS)
    assert rollout.chunk_index.tolist() == [4, 4, 4]


def test_reward_is_clipped_to_the_range_of_the_card(tiny_world: World) -> None:
    world = variant(tiny_world)

    def rewards(low: float, high: float) -> Tensor:
        world.card["reward_range"] = [low, high]
        rows = [ready(world, 4, chunks).step([LEFT] * 4).reward for chunks in range(4)]
        return torch.cat(rows)

    free = rewards(-1e6, 1e6)
    low, high = free.quantile(torch.tensor([0.25, 0.75])).tolist()
    assert low < high
    torch.testing.assert_close(rewards(low, high), free.clamp(low, high))


def test_frames_are_decoded_once_and_only_when_asked_for(
    tiny_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    decode = tiny_world.vae.decode
    monkeypatch.setattr(
        tiny_world.vae, "decode", lambda *args, **kw: decoded.append(1) or decode(*args, **kw)
    )
    rollout = ready(tiny_world)
    chunk = rollout.step([LEFT] * 2)
    assert decoded == []
    assert chunk.frames is chunk.frames
    assert decoded == [1]


def test_chunks_can_train_an_agent(tiny_world: World) -> None:
    rollout = ready(tiny_world)
    policy = torch.nn.Linear(64, 3)
    for chunk in (rollout.reset(), rollout.step([LEFT] * 2)):
        loss = policy(chunk.latents.flatten(2)).sum() * chunk.reward.sum()
        loss = loss + (policy(chunk.frames[:, -1, :, 0, 0].float()) * chunk.reward[:, None]).sum()
        loss.backward()
        chunk.reward.add_(1)  # a user's tensors are the user's
    assert policy.weight.grad is not None


def test_what_a_reset_returns_belongs_to_the_caller(tiny_world: World) -> None:
    rollout = ready(tiny_world)
    first = rollout.reset()
    kept = first.latents.clone(), first.frames.clone()
    first.latents.numpy().fill(9.0)
    first.frames.numpy().fill(9)
    again = rollout.reset(slots=[0])
    assert torch.equal(again.latents[0], kept[0][0]) and torch.equal(again.frames[0], kept[1][0])


def test_the_number_of_steps_is_the_worlds_or_given(tiny_world: World) -> None:
    calls: list[int] = []
    handle = tiny_world.dit.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        for steps, expected in ((None, 2), (1, 1), (5, 5)):
            rollout = ready(tiny_world, 1, 0, steps=steps)
            assert rollout.steps == expected
            calls.clear()
            rollout.step([LEFT])
            assert len(calls) == expected + 1  # and the clean pass
    finally:
        handle.remove()


def test_prompts_are_encoded_once(tiny_world: World) -> None:
    calls: list[int] = []
    world = variant(tiny_world)
    assert isinstance(world.text, TextEncoder)
    world.text.register_forward_pre_hook(lambda *_: calls.append(1))
    rollout = ready(world, 3, 0)
    calls.clear()
    for _ in range(3):
        rollout.step(["new words", "new words", "other words"])
    assert len(calls) == 2


@settings(max_examples=10)
@given(st.text(min_size=1, max_size=40).filter(str.isprintable))
def test_any_printable_text_is_a_prompt(tiny_world: World, prompt: str) -> None:
    rollout = ready(tiny_world, 1, 1)
    assert rollout.step([prompt]).latents.isfinite().all()


# -------------------------------------------------------------------- errors leave no trace


def test_before_the_first_reset(tiny_world: World) -> None:
    rollout = tiny_world.rollout(3, seeds=[0, 1, 2])
    before = generators(rollout)
    with pytest.raises(NotReset, match=r"slots \[0, 1, 2\] were never reset"):
        rollout.step([LEFT] * 3)
    rollout.reset(slots=[1])
    with pytest.raises(NotReset, match=r"slots \[0, 2\]"):
        rollout.step([LEFT] * 3)
    with pytest.raises(NotReset, match=r"slots \[2\]"):
        rollout.observe(torch.zeros(2, *SHAPE), [LEFT] * 2, slots=[1, 2])
    with pytest.raises(NotReset, match=r"slots \[1\]"):
        rollout.fork([1, 0]).step([LEFT] * 2)
    assert torch.equal(generators(rollout)[::2], before[::2])
    assert rollout.observe(torch.zeros(1, *SHAPE), [LEFT], slots=[1]).latents.shape == (1, *SHAPE)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([LEFT], "a list of 2 prompts, got 1"),
        ([LEFT] * 3, "a list of 2 prompts, got 3"),
        ([], "got 0"),
        ("go", "got the text 'go'"),
        ([LEFT, ""], "the prompt is empty"),
        ([LEFT, 3], "a prompt is text, got int"),
        ([None, LEFT], "a prompt is text, got NoneType"),
        ([LEFT, "a\tb"], "not printable"),
        ([LEFT, "é" * 129], "258 UTF-8 bytes"),
    ],
)
def test_a_wrong_prompt_changes_nothing(tiny_world: World, prompts: Any, words: str) -> None:
    rollout, twin = ready(tiny_world, 2, 1), ready(tiny_world, 2, 1)
    with pytest.raises(PromptError, match=words):
        rollout.step(prompts)
    assert unchanged(rollout, twin)


class Broken(Exception):
    """What a model raises in the middle of a step."""


@pytest.fixture
def break_at(tiny_world: World) -> Iterator[Callable[[int, BaseException], None]]:
    """Let the n-th forward of the DiT from now on raise."""
    handles: list[Any] = []

    def arm(count: int, error: BaseException) -> None:
        calls = iter(range(count + 1))

        def hook(*_: Any) -> None:
            if next(calls, None) == count:
                raise error

        # after the forward: the scratch place has been written
        handles.append(tiny_world.dit.register_forward_hook(hook))

    yield arm
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("error", [Broken(), KeyboardInterrupt()])
@pytest.mark.parametrize("call", [0, 1, 2])
def test_a_step_that_breaks_changes_nothing(
    tiny_world: World, break_at: Any, call: int, error: BaseException
) -> None:
    rollout, twin = ready(tiny_world, 2, 1), ready(tiny_world, 2, 1)
    break_at(call, error)
    with pytest.raises(type(error)):
        rollout.step([LEFT] * 2)
    assert unchanged(rollout, twin)


@pytest.mark.parametrize("call", [0, 1])
def test_an_observe_that_breaks_changes_nothing(
    tiny_world: World, break_at: Any, call: int
) -> None:
    rollout, twin = ready(tiny_world, 2, 1), ready(tiny_world, 2, 1)
    break_at(call, Broken())
    with pytest.raises(Broken):
        rollout.observe(torch.zeros(2, *SHAPE), [LEFT] * 2, slots=[1, 0])
    assert unchanged(rollout, twin)


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({"prompt": LEFT}, 2),  # in the second slot, behind the first one's noise
        ({"video": pictures(8)}, 1),
        ({"clip": 1}, 0),
        ({"prompt": LEFT, "seeds": [7, 8]}, 0),
    ],
)
def test_a_reset_that_breaks_changes_nothing(
    tiny_world: World, break_at: Any, options: dict[str, Any], call: int
) -> None:
    rollout, twin = ready(tiny_world, 2, 1), ready(tiny_world, 2, 1)
    break_at(call, Broken())
    with pytest.raises(Broken):
        rollout.reset(**options)
    assert unchanged(rollout, twin)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"clip": 0, "prompt": LEFT}, ResetOptionError, r"at most one of .*\['clip', 'prompt'\]"),
        ({"image": pictures(1)[0], "video": pictures(4)}, ResetOptionError, "at most one of"),
        ({"prompts": [LEFT]}, ResetOptionError, "captions of an image or video"),
        ({"prompts": [LEFT], "clip": 1}, ResetOptionError, "captions of an image or video"),
        ({"clip": 3}, ResetOptionError, "clip 3: one index of 0…2"),
        ({"clip": -1}, ResetOptionError, "clip -1"),
        ({"clip": True}, ResetOptionError, "clip True"),
        ({"clip": 1.5}, ResetOptionError, "clip 1.5"),
        ({"clip": "1"}, ResetOptionError, "clip '1'"),
        ({"clip": [0]}, ResetOptionError, r"clip \[0\].*for each of 2"),
        ({"clip": [0, 3]}, ResetOptionError, r"clip \[0, 3\]"),
        ({"clip": [[0], [1]]}, ResetOptionError, r"clip \[\[0\], \[1\]\]"),
        ({"image": pictures(1)[0] / 255.0}, ResetOptionError, "image is float64"),
        ({"image": pictures(1)[0, :32]}, ResetOptionError, r"image is uint8 \(32, 64, 3\)"),
        ({"image": pictures(2)}, ResetOptionError, r"image has shape \(2, 64, 64, 3\)"),
        ({"image": "left.png"}, ResetOptionError, "image is"),
        ({"image": [[1], [1, 2]]}, ResetOptionError, "image"),
        ({"video": pictures(3)}, ResetOptionError, "shorter than one chunk of 4 frames"),
        ({"video": pictures(4)[0]}, ResetOptionError, "video"),
        ({"video": pictures(8), "prompts": [LEFT]}, ResetOptionError, "1 prompts for a video of 2"),
        ({"video": pictures(4), "prompts": "x"}, ResetOptionError, "prompts"),
        ({"video": pictures(4), "prompts": 3}, ResetOptionError, "prompts"),
        ({"video": pictures(4), "prompts": [""]}, PromptError, "empty"),
        ({"prompt": ""}, PromptError, "empty"),
        ({"prompt": 7}, PromptError, "got int"),
        ({"seeds": [1]}, ConfigError, "1 seeds for 2 slots"),
        ({"seeds": [1, 2**64]}, ConfigError, "seed 18446744073709551616"),
        ({"seeds": [1, -1]}, ConfigError, "seed -1"),
        ({"slots": []}, ConfigError, r"slots \[\]"),
        ({"slots": [0, 0]}, ConfigError, r"slots \[0, 0\]: one or more different"),
        ({"slots": [2]}, ConfigError, r"slots \[2\]: .*0…1"),
        ({"slots": [-1]}, ConfigError, r"slots \[-1\]"),
    ],
)
def test_a_wrong_reset_changes_nothing(
    tiny_world: World, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    rollout, twin = ready(tiny_world, 2, 1), ready(tiny_world, 2, 1)
    with pytest.raises(error, match=words):
        rollout.reset(**{"seeds": [5, 6], **options} if "slots" not in options else options)
    assert unchanged(rollout, twin)


def test_a_world_without_openings_says_so(tiny_world: World) -> None:
    assert tiny_world.bank is not None
    clips = Bank(tiny_world.bank.latents, tiny_world.bank.prompts, num_openings=0)
    for bank, starts in ((clips, "opening"), (empty_bank(), "opening"), (empty_bank(), "any")):
        rollout = variant(tiny_world, bank=bank).rollout(1, seeds=[7], starts=starts)  # type: ignore[arg-type]
        before = generators(rollout)
        with pytest.raises(ResetOptionError, match="reset with image, video or prompt"):
            rollout.reset(seeds=[8])
        assert torch.equal(generators(rollout), before)
        assert rollout.reset(prompt=LEFT).latents.shape == (1, *SHAPE)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 1.5}, "batch_size 1.5"),
        ({"steps": 0}, "steps 0"),
        ({"steps": 2.5}, "steps 2.5"),
        ({"temperature": -0.5}, "temperature -0.5"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": "hot"}, "temperature 'hot'"),
        ({"starts": "clip"}, "starts 'clip' is not one of 'opening', 'any'"),
        ({"seeds": [1]}, "1 seeds for 2 slots"),
        ({"dtype": "float16"}, "dtype 'float16' is not one of"),
    ],
)
def test_wrong_settings_of_a_rollout(
    tiny_world: World, keywords: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_world.rollout(**{"batch_size": 2, **keywords})


@pytest.mark.parametrize("shape", [(2, 16, 1, 8, 4), (1, 16, 1, 8, 8), (2, 16, 2, 8, 8)])
def test_observed_latents_of_another_shape(tiny_world: World, shape: tuple[int, ...]) -> None:
    rollout, twin = ready(tiny_world, 2, 1), ready(tiny_world, 2, 1)
    with pytest.raises(ConfigError, match="latents .*expected"):
        rollout.observe(torch.zeros(shape), [LEFT] * 2)
    with pytest.raises(PromptError, match="2 prompts are needed"):
        rollout.observe(torch.zeros(2, *SHAPE), [LEFT])
    with pytest.raises(PromptError, match="empty"):
        rollout.observe(torch.zeros(2, *SHAPE), [LEFT, ""])
    assert unchanged(rollout, twin)


# -------------------------------------------------------------------- reset


def test_the_first_chunk_is_the_decoded_end_of_the_clip(tiny_world: World) -> None:
    bank = tiny_world.bank
    assert bank is not None
    rollout = tiny_world.rollout(3, seeds=[0, 1, 2])
    chunk = rollout.reset(clip=[0, 1, 2])
    for row in range(3):
        assert torch.equal(chunk.latents[row], bank.latents[row][-1])
        assert chunk.prompts[row] == bank.prompts[row][-1]
    assert torch.equal(chunk.frames[2], tiny_world.decode(bank.latents[2][-1:])[0])
    assert (chunk.reward == 0).all() and not chunk.terminated.any()
    assert rollout.chunk_index.tolist() == [0, 0, 0]
    assert rollout.cache.filled == [1, 3, 3]  # a KV range of 4 keeps the last 3 chunks
    assert rollout.time == [1, 3, 4]


@pytest.mark.parametrize("index", [np.int64(2), torch.tensor(2), [2, 2], np.array([2, 2])])
def test_a_clip_may_be_any_kind_of_integer(tiny_world: World, index: Any) -> None:
    rollout = tiny_world.rollout(2, seeds=[0, 1])
    assert torch.equal(rollout.reset(clip=index).latents, rollout.reset(clip=2).latents)


def test_only_the_named_slots_begin_anew(tiny_world: World) -> None:
    rollout, twin = ready(tiny_world, 4), ready(tiny_world, 4)
    chunk = rollout.reset(slots=[3, 1], seeds=[70, 71], clip=[1, 2])
    bank = tiny_world.bank
    assert bank is not None
    assert torch.equal(chunk.latents, torch.stack([bank.latents[1][-1], bank.latents[2][-1]]))
    assert rollout.chunk_index.tolist() == [3, 0, 3, 0]
    states, others = generators(rollout), generators(twin)
    assert torch.equal(states[[0, 2]], others[[0, 2]])
    for slot, seed in ((3, 70), (1, 71)):
        assert torch.equal(states[slot], torch.Generator().manual_seed(seed).get_state())
    size = 4 * tiny_world.config.tokens_per_chunk
    for slot in (0, 2):
        ring = slice(slot * size, (slot + 1) * size)
        assert torch.equal(rollout.cache.keys_LRKD[:, ring], twin.cache.keys_LRKD[:, ring])
    one, other = rollout.step([LEFT] * 4).latents, twin.step([LEFT] * 4).latents
    assert torch.equal(one[[0, 2]], other[[0, 2]])
    assert not torch.equal(one[1], other[1]) and not torch.equal(one[3], other[3])


def test_generators_go_on_without_seeds(tiny_world: World) -> None:
    rollout = ready(tiny_world, 1)
    first = rollout.reset(), rollout.step([LEFT])
    again = rollout.reset(), rollout.step([LEFT])
    assert torch.equal(first[0].latents, again[0].latents)  # there is one opening
    assert not torch.equal(first[1].latents, again[1].latents)
    reseeded = rollout.reset(seeds=[5]), rollout.step([LEFT])
    repeated = rollout.reset(seeds=[5]), rollout.step([LEFT])
    assert torch.equal(reseeded[1].latents, repeated[1].latents)


def test_unseeded_rollouts_differ(tiny_world: World) -> None:
    rollouts = [tiny_world.rollout(1) for _ in range(2)]
    for rollout in rollouts:
        rollout.reset()
    one, other = (rollout.step([LEFT]).latents for rollout in rollouts)
    assert not torch.equal(one, other)


def test_starts_decide_what_is_drawn(tiny_world: World) -> None:
    bank = tiny_world.bank
    assert bank is not None
    ends = torch.stack([clip[-1] for clip in bank.latents])

    def drawn(rollout: Rollout) -> list[int]:
        latents = rollout.reset().latents
        return [int((ends == row).all((1, 2, 3, 4)).nonzero()) for row in latents]

    openings = tiny_world.rollout(12, seeds=range(12))
    assert drawn(openings) + drawn(openings) == [0] * 24
    anything = tiny_world.rollout(12, seeds=range(12), starts="any")
    first = drawn(anything)
    assert set(first) == {0, 1, 2}
    generator = torch.Generator().manual_seed(3)
    assert first[3] == int(torch.randint(3, (), generator=generator))
    assert drawn(anything) != first


def test_an_image_is_repeated_to_fill_a_chunk(tiny_world: World) -> None:
    image = pictures(1)[0]
    rollout, other = ready(tiny_world), ready(tiny_world)
    chunk = rollout.reset(image=image)
    expected = tiny_world.encode(np.stack([image] * 4)[None])
    assert torch.equal(chunk.latents, expected.expand(2, -1, -1, -1, -1))
    assert chunk.prompts == (None, None)
    assert rollout.cache.filled == [1, 1] and rollout.chunk_index.tolist() == [0, 0]
    other.reset(video=np.stack([image] * 4))
    assert torch.equal(rollout.step([LEFT] * 2).latents, other.step([LEFT] * 2).latents)
    captioned = ready(tiny_world)
    captioned.reset(image=image, prompts=[PROMPTS[2]])
    assert not torch.equal(rollout.step([LEFT] * 2).latents, captioned.step([LEFT] * 2).latents)


def test_pictures_may_be_tensors_lists_or_read_only(tiny_world: World) -> None:
    image = pictures(1)[0]
    rollout = ready(tiny_world)
    expected = rollout.reset(image=image).latents
    frozen = image.copy()
    frozen.flags.writeable = False
    for form in (torch.from_numpy(image), frozen, np.asfortranarray(image)):
        assert torch.equal(rollout.reset(image=form).latents, expected)
    video = np.broadcast_to(image, (4, 64, 64, 3))
    assert torch.equal(rollout.reset(video=video).latents, expected)


@pytest.mark.parametrize("extra", [0, 1, 3])
def test_a_video_is_cropped_at_the_front(tiny_world: World, extra: int) -> None:
    video = pictures(20 + extra)
    rollout, other = ready(tiny_world), ready(tiny_world)
    prompts = [PROMPTS[i % 3] for i in range(5)]
    chunk = rollout.reset(video=video, prompts=prompts)
    assert torch.equal(chunk.latents[:1], tiny_world.encode(video[None, -4:]))
    assert chunk.prompts == (prompts[-1],) * 2
    assert rollout.cache.filled == [3, 3]  # longer than the KV range: its last chunks stay
    other.reset(video=video[extra:], prompts=prompts)
    assert torch.equal(rollout.step([LEFT] * 2).latents, other.step([LEFT] * 2).latents)


@pytest.mark.parametrize("chunks", [1, 2, 3, 5, 9])
def test_a_history_is_its_chunks_observed(tiny_world: World, chunks: int) -> None:
    """Whatever its length beside the KV range, partly filled caches included."""
    video = pictures(4 * chunks)
    prompts: list[str | None] = [[*PROMPTS, None][i % 4] for i in range(chunks)]
    rollout, other = ready(tiny_world, 1), ready(tiny_world, 1)
    rollout.reset(video=video, prompts=prompts)
    other.cache.clear(0)
    other.time = [0]
    for index, prompt in enumerate(prompts):
        other.observe(tiny_world.encode(video[None, 4 * index : 4 * index + 4]), [prompt])
    for _ in range(5):
        one, two = rollout.step([LEFT]), other.step([LEFT])
        torch.testing.assert_close(one.latents, two.latents, rtol=0, atol=1e-5)


def test_a_prompt_starts_from_nothing(tiny_world: World) -> None:
    rollout, other = ready(tiny_world), tiny_world.rollout(2, seeds=[0, 1])
    chunk = rollout.reset(seeds=[3, 4], prompt=LEFT)
    again = other.reset(seeds=[3, 4], prompt=LEFT)
    assert torch.equal(chunk.latents, again.latents)  # what was before leaves no trace
    assert not torch.equal(chunk.latents[0], chunk.latents[1])
    assert rollout.cache.filled == [1, 1] and rollout.chunk_index.tolist() == [0, 0]
    assert (chunk.reward == 0).all() and not chunk.terminated.any()
    assert chunk.prompts == (LEFT, LEFT)
    one, two = rollout.step([LEFT] * 2), other.step([LEFT] * 2)
    assert torch.equal(one.latents, two.latents)


# -------------------------------------------------------------------- observe


def test_observing_a_step_is_stepping(tiny_world: World) -> None:
    rollout = ready(tiny_world)
    twin = rollout.fork([0, 1])
    stepped = rollout.step([LEFT, PROMPTS[2]])
    before = generators(twin)
    observed = twin.observe(stepped.latents, [LEFT, PROMPTS[2]])
    assert torch.equal(generators(twin), before)  # nothing is drawn
    for name in ("latents", "reward", "termination_probability"):
        assert torch.equal(getattr(observed, name), getattr(stepped, name))
    assert not observed.terminated.any()
    assert twin.chunk_index.tolist() == rollout.chunk_index.tolist()
    for mine, theirs in zip(twin.generators, rollout.generators, strict=True):
        mine.set_state(theirs.get_state())
    assert unchanged(rollout, twin)


def test_observing_for_some_slots(tiny_world: World) -> None:
    rollout, twin = ready(tiny_world, 3), ready(tiny_world, 3)
    latents = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    chunk = rollout.observe(latents, [LEFT, None], slots=[2, 0])
    assert torch.equal(chunk.latents, latents) and chunk.prompts == (LEFT, None)
    assert rollout.chunk_index.tolist() == [4, 3, 4]
    one, other = rollout.step([LEFT] * 3).latents, twin.step([LEFT] * 3).latents
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[0], other[0]) and not torch.equal(one[2], other[2])


# -------------------------------------------------------------------- the cache


def test_what_lies_outside_the_history_is_never_seen(tiny_world: World) -> None:
    """Scratch and unused places hold garbage in one rollout and not in the other."""
    for start in ({"clip": 0}, {"clip": 2}, {"prompt": LEFT}, {"video": pictures(8)}):
        rollout, twin = ready(tiny_world), ready(tiny_world)
        for r in (rollout, twin):
            r.reset(**start)  # type: ignore[arg-type]
        for _ in range(5):
            cache, n = rollout.cache, tiny_world.config.tokens_per_chunk
            for slot in range(2):
                seen = set(cache._visible(slot, 0, None)) - {cache.scratch[slot]}
                for place in set(range(cache.places)) - seen:
                    first = (slot * cache.places + place) * n
                    cache.keys_LRKD[:, first : first + n] = 1e3
                    cache.values_LRKD[:, first : first + n] = -1e3
            one, other = rollout.step([LEFT] * 2), twin.step([LEFT] * 2)
            assert torch.equal(one.latents, other.latents)
            assert torch.equal(one.termination_probability, other.termination_probability)


def test_a_slot_recovers_from_nan(tiny_world: World) -> None:
    starts: list[dict[str, Any]] = [
        {"clip": 0}, {"prompt": LEFT}, {"image": pictures(1)[0]}, {"video": pictures(8)},
    ]  # fmt: skip
    for start in starts:
        rollout = ready(tiny_world)
        rollout.observe(torch.full((1, *SHAPE), torch.nan), [LEFT], slots=[1])
        assert rollout.step([LEFT] * 2).latents[0].isfinite().all()  # the other never notices
        rollout.reset(slots=[1], **start)
        for _ in range(4):
            assert rollout.step([LEFT] * 2).latents.isfinite().all()


def test_the_cache_ends_with_the_clean_pass(tiny_world: World) -> None:
    """Keys and values of a step are those of its clean chunk, whatever was denoised before."""
    rollout = ready(tiny_world, 1)
    scratch, n = rollout.cache.scratch[0], tiny_world.config.tokens_per_chunk
    chunk = rollout.step([LEFT])
    place = slice(scratch * n, (scratch + 1) * n)
    kept = rollout.cache.keys_LRKD[:, place].clone()
    twin = ready(tiny_world, 1)
    twin.observe(chunk.latents, [LEFT])
    assert torch.equal(twin.cache.keys_LRKD[:, place], kept)
    noisy = ready(tiny_world, 1)
    noisy.sampler.denoise(torch.zeros(1, *SHAPE), [LEFT], noisy._places([0]))
    assert not torch.equal(noisy.cache.keys_LRKD[:, place], kept)


def test_memory_and_shapes_of_a_step_stay_the_same(
    tiny_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = ready(tiny_world, 2, 4)  # the cache is full
    shapes: list[tuple[Any, ...]] = []
    group = sdpa._group_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float) -> Any:
        shapes.append((q.shape, k.shape, None if mask is None else mask.shape))
        return group(q, k, v, mask, scale)

    monkeypatch.setattr(sdpa, "_group_attention", spy)
    pointers = rollout.cache.keys_LRKD.data_ptr(), rollout.cache.values_LRKD.data_ptr()

    def step() -> list[tuple[Any, ...]]:
        shapes.clear()
        rollout.step([LEFT, PROMPTS[2]])
        return list(shapes)

    first = step()
    early = 0
    for index in range(200):
        assert step() == first
        if index == 60:
            early = resident_bytes()
    assert resident_bytes() <= 1.02 * early
    assert (rollout.cache.keys_LRKD.data_ptr(), rollout.cache.values_LRKD.data_ptr()) == pointers


def test_shapes_do_not_depend_on_the_length_of_histories(
    tiny_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[Any, ...]] = []
    group = sdpa._group_attention
    monkeypatch.setattr(
        sdpa,
        "_group_attention",
        lambda q, k, *rest: shapes.append((q.shape, k.shape)) or group(q, k, *rest),
    )
    seen = []
    for clip in ([0, 0], [0, 2], [1, 2]):
        rollout = ready(tiny_world, 2, 0)
        rollout.reset(clip=clip)
        shapes.clear()
        rollout.step([LEFT, LEFT])
        seen.append(list(shapes))
    assert seen[0] == seen[1] == seen[2]


# -------------------------------------------------------------------- guidance, captions, dtypes


def test_guidance_moves_away_from_the_null_caption(tiny_world: World) -> None:
    one_step = {"num_steps": 1, "null_prompt_tokens": 4}
    plain = ready(variant(tiny_world, **one_step), 2)
    guided = variant(tiny_world, guidance_scale=2.5, **one_step).rollout(2, seeds=[0, 1])
    guided.reset()
    guided.load_state_dict(plain.state_dict())
    noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        told = plain.sampler.denoise(noise, [LEFT] * 2, plain._places([0, 1]))
        free = plain.sampler.denoise(noise, [None] * 2, plain._places([0, 1]))
        mine = guided.sampler.denoise(noise, [LEFT] * 2, guided._places([0, 1]))
    assert not torch.allclose(told, free)
    # with one step of length 1 the guidance on velocities is a guidance on results
    torch.testing.assert_close(mine, free + 2.5 * (told - free), rtol=1e-4, atol=1e-5)
    assert guided.step([LEFT] * 2).latents.isfinite().all()


def test_clean_passes_may_take_the_null_caption(tiny_world: World) -> None:
    world = variant(tiny_world, clean_null_caption=True)
    rollout, plain = ready(world), ready(tiny_world)
    plain.load_state_dict(rollout.state_dict())
    chunk = rollout.step([LEFT] * 2)
    assert chunk.prompts == (LEFT, LEFT)
    observed = plain.observe(chunk.latents, [None] * 2)
    assert torch.equal(observed.termination_probability, chunk.termination_probability)
    assert torch.equal(plain.cache.keys_LRKD, rollout.cache.keys_LRKD)


def test_bfloat16_runs(tiny_world_path: Any, tiny_world: World) -> None:
    world = load(tiny_world_path, dtype="bfloat16")
    rollout, wide = ready(world), ready(tiny_world)
    assert rollout.cache.keys_LRKD.dtype == torch.bfloat16
    for _ in range(3):
        state = rollout.state_dict()
        chunk = rollout.step([LEFT] * 2)
        rollout.load_state_dict(state)
        again = rollout.step([LEFT] * 2)
        assert torch.equal(chunk.latents, again.latents)
        assert chunk.latents.dtype == chunk.reward.dtype == torch.float32
        assert chunk.frames.dtype == torch.uint8
    for r in (rollout, wide):
        r.reset(seeds=[1, 2])
    one, other = rollout.step([LEFT] * 2).latents, wide.step([LEFT] * 2).latents
    assert not torch.equal(one, other)
    assert (one - other).abs().max() < 0.05 * other.abs().max()


# -------------------------------------------------------------------- states and forks


def test_a_rollout_does_not_follow_its_world(tiny_world_path: Any) -> None:
    world = load(tiny_world_path)
    rollout = ready(world, 1, 0)
    world.to(dtype="bfloat16")
    moved = pytest.raises(ConfigError, match=r"moved to torch.bfloat16 .* make a new one")
    with moved:
        rollout.step([LEFT])
    with moved:
        rollout.reset()
    world.to(dtype="float32")
    rollout.step([LEFT])


def test_states_of_other_rollouts_are_refused(tiny_world: World) -> None:
    rollout, twin = ready(tiny_world), ready(tiny_world)
    state = rollout.state_dict()
    cases: list[tuple[dict[str, Any], str]] = [
        ({**state, "world": "pong"}, "a state of 'pong' in a rollout of"),
        (ready(tiny_world, 3).state_dict(), "a state of 3 slots in a rollout of 2"),
        (ready(variant(tiny_world, kv_range=2)).state_dict(), "cache keys .* do not fit"),
        ({"world": tiny_world.name}, "time"),
        ({}, "world"),
    ]
    for wrong, words in cases:
        with pytest.raises(CheckpointError, match=words):
            rollout.load_state_dict(wrong)
    assert unchanged(rollout, twin)


def test_a_fork_keeps_the_settings(tiny_world: World) -> None:
    rollout = ready(tiny_world, 2, 5, steps=3, temperature=0.7, starts="any")
    rollout.reset(slots=[1])
    fork = rollout.fork([1, 0, 1])
    assert (fork.steps, fork.temperature, fork.starts) == (3, 0.7, "any")
    assert fork.batch_size == 3 and fork.chunk_index.tolist() == [0, 5, 0]
    with torch.inference_mode():  # callers may be in any mode
        assert rollout.fork([0]).step([LEFT]).latents.isfinite().all()


@pytest.mark.parametrize(
    ("slots", "seeds", "words"),
    [
        ([], None, r"slots \[\]"),
        ([2], None, r"slots \[2\]: slots of 0…1"),
        ([-1], None, r"slots \[-1\]"),
        ([0, 1], [1], "1 seeds for 2 slots"),
    ],
)
def test_wrong_forks(tiny_world: World, slots: Any, seeds: Any, words: str) -> None:
    rollout, twin = ready(tiny_world), ready(tiny_world)
    with pytest.raises(ConfigError, match=words):
        rollout.fork(slots, seeds)
    assert unchanged(rollout, twin)


def test_a_rollout_never_ends_by_itself() -> None:
    world = make_tiny_world()
    assert world.outcome is not None
    with torch.no_grad():
        world.outcome.mlp_out.bias[1] = 100.0
    rollout = world.rollout(2, seeds=[0, 1])
    assert not rollout.reset().terminated.any()
    for index in range(1, 20):
        chunk: Chunk = rollout.step([LEFT] * 2)
        assert chunk.terminated.all()
        assert rollout.chunk_index.tolist() == [index] * 2
