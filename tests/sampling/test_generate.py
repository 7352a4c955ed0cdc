# mypy: disable-error-code="arg-type"
"""Whole videos: what they are made of, what they share with rollouts, what may not change them."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from magi_world.errors import ConfigError, PromptError
from magi_world.sampling.generate import (
    ChunkPrompt,
    GenerateSettings,
    Savings,
    generate,
)
from magi_world.text.special_tokens import TokenOptions
from magi_world.world import World
from tests.sampling.tiny_magi1 import SIZE, WIDTH, F, close, latents, pinned, tiny_magi1, video
from tests.tiny_world import PROMPTS

# ------------------------------------------------------------------------ savings


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("compat", [None, "magi-1"])
@pytest.mark.parametrize("window", [1, 2, 4, 8])
def test_what_is_saved_changes_nothing(distilled: bool, compat: Any, window: int) -> None:
    world = tiny_magi1(distilled=distilled)
    keywords = {"chunks": 7, "window": window, "compat": compat, "prefix": pinned(11)}
    published = video(world, savings=Savings.none(), **keywords)
    frugal = video(world, **keywords)
    one, other = (torch.cat([c.latents for c in v], dim=1) for v in (published, frugal))
    assert close(one, other)
    # chunk-passes of denoising are all of the published ones when none is left out
    assert sum(published.passes.denoising.values()) == published.passes.published_denoising
    assert frugal.passes.run < published.passes.run or distilled
    assert frugal.passes.flops < published.passes.flops


@pytest.mark.parametrize("ranges", [{}, {"kv_ranges": (1,)}])
def test_no_unseen_prefix_where_a_chunk_reads_the_one_before(
    tiny_world: World, ranges: dict[str, Any]
) -> None:
    prefix = torch.randn(16, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    made = [
        generate(
            tiny_world, PROMPTS[1], num_frames=8, prefix=prefix,
            settings=GenerateSettings(seed=1, clean_kv_range=1, savings=savings, **ranges),
        )
        for savings in (Savings(), Savings(unseen_prefix=False))
    ]  # fmt: skip
    one, other = (torch.cat([c.latents for c in video], dim=1) for video in made)
    assert torch.equal(one, other)


def test_the_cache_holds_what_can_be_seen() -> None:
    world = tiny_magi1()
    for window, places in ((1, 5), (4, 8)):
        assert video(world, window=window, chunks=20).sampler.cache.places == places
    wide = video(world, window=4, chunks=20, kv_ranges=(9, 4, 3, 2))
    assert wide.sampler.cache.places == 12
    assert video(world, window=4, chunks=20, max_kv_range=7).sampler.cache.places == 10
    # a video of few chunks has a place for each of them
    assert video(world, window=4, chunks=6).sampler.cache.places == 6
    assert video(world, window=4, chunks=6, kv_ranges=()).sampler.cache.places == 6


@pytest.mark.parametrize("compat", [None, "magi-1"])
@pytest.mark.parametrize(
    "ranges", [((5, 5, 5, 5), -1), ((1, 1, 1, 1), 1), ((2, 6, 1, 3), 4), ((3,), 3)]
)
def test_any_ranges_fit_the_ring(ranges: tuple[tuple[int, ...], int], compat: Any) -> None:
    world = tiny_magi1()
    kv_ranges, clean = ranges
    keywords = {"chunks": 8, "kv_ranges": kv_ranges, "clean_kv_range": clean, "compat": compat}
    whole = Savings(fixed_cache=False)
    assert close(latents(world, **keywords), latents(world, savings=whole, **keywords))


@pytest.mark.parametrize("prefix", [0, 1, 4, 5, 9, 13, 18])
def test_prefixes_of_any_length_in_any_cache(prefix: int) -> None:
    world = tiny_magi1()
    given = {"prefix": pinned(prefix)} if prefix else {}
    whole = Savings(fixed_cache=False, unseen_prefix=False)
    for clean in (1, 3):
        keywords = {"chunks": 3, "window": 2, "clean_kv_range": clean, **given}
        one = latents(world, **keywords)
        assert one.shape[1] == 3 * WIDTH
        assert close(one, latents(world, savings=whole, **keywords))


def test_rows_on_the_host_give_the_same_bits() -> None:
    world = tiny_magi1()
    assert torch.equal(latents(world), latents(world, kv_on_host=True))


def test_counters_of_a_window_of_one() -> None:
    generation = video(tiny_magi1(), chunks=4, window=1)
    list(generation)
    passes = generation.passes
    assert passes.saved == pytest.approx(1 / 6)
    assert passes.published_denoising == 4 * 8 * 3
    # three clean passes: the last chunk needs none; the published ones run text and null
    assert (passes.clean, passes.published_clean) == (3, 6)
    assert passes.captions == 2  # the prompt and the null caption
    assert "16.7%" in str(passes)


# ------------------------------------------------------------------------ compat


def test_a_distilled_model_does_not_feel_its_clean_pass() -> None:
    for steps in (8, 12, 16):
        world = tiny_magi1(distilled=True, num_steps=steps)
        noise = pinned(5 * WIDTH)
        assert close(latents(world, noise=noise), latents(world, noise=noise, compat="magi-1"))


def test_a_base_model_differs_where_it_is_said_to() -> None:
    world, noise = tiny_magi1(), pinned(3 * WIDTH)
    one = latents(world, chunks=3, noise=noise, window=1)
    other = latents(world, chunks=3, noise=noise, window=1, compat="magi-1")
    assert close(one[:, :WIDTH], other[:, :WIDTH])  # no finished chunk is fed yet
    assert not close(one[:, WIDTH:], other[:, WIDTH:])


def test_an_image_leads_its_video() -> None:
    world, image = tiny_magi1(), pinned(1)
    sane = list(video(world, chunks=3, prefix=image))
    assert torch.equal(sane[0].latents[:, :1], image)
    assert sum(len(chunk.frames) for chunk in sane) == 3 * F
    drifted = list(video(world, chunks=3, prefix=image, compat="magi-1"))
    assert len(drifted) == 4
    assert not close(drifted[0].latents[:, :1], image)


@pytest.mark.parametrize("prefix", range(1, 8))
def test_a_video_is_continued_and_left_out(prefix: int) -> None:
    chunks = list(video(tiny_magi1(), chunks=2, prefix=pinned(prefix), from_image=False))
    assert sum(len(chunk.frames) for chunk in chunks) == 2 * F
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert chunks[0].latents.shape[1] == WIDTH - prefix % WIDTH


def test_the_last_chunk_is_cut() -> None:
    chunks = list(generate(tiny_magi1(), "a", num_frames=F + 3))
    assert [len(chunk.frames) for chunk in chunks] == [F, 3]
    assert [chunk.latents.shape[1] for chunk in chunks] == [WIDTH, 1]


def test_the_published_code_draws_all_noise_at_once() -> None:
    world = tiny_magi1()
    noise = torch.randn(16, 3 * WIDTH, 4, 6, generator=torch.Generator().manual_seed(9))
    one = latents(world, chunks=3, seed=9, compat="magi-1")
    assert torch.equal(one, latents(world, chunks=3, noise=noise, compat="magi-1"))
    with pytest.raises(ConfigError, match="give num_frames"):
        generate(world, "a", num_frames=None, settings=GenerateSettings(compat="magi-1"))


# ------------------------------------------------------------------------ rollouts


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("steps", [8, 12])
def test_a_rollout_makes_the_same_video(distilled: bool, steps: int) -> None:
    world = tiny_magi1(distilled=distilled)
    prompts = ["a", "b", "c", "d", "e", "f", "g"]
    rollout = world.rollout(1, seeds=[3], steps=steps)
    chunks = [rollout.reset(prompt="a").latents[0]]
    chunks += [rollout.step([prompt]).latents[0] for prompt in prompts[1:]]
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randn(SIZE, generator=generator)]
    for _ in prompts[1:]:  # a step draws once more, for the end of an episode
        noise.append(torch.randn(SIZE, generator=generator))
        torch.rand((), generator=generator)
    one = latents(
        world, prompts, len(prompts), noise=torch.cat(noise, dim=1), window=1, num_steps=steps
    )
    assert close(one, torch.cat(chunks, dim=1))


@pytest.mark.parametrize("distilled", [False, True])
def test_slots_of_a_rollout_are_apart(distilled: bool) -> None:
    world = tiny_magi1(distilled=distilled)
    both = world.rollout(2, seeds=[3, 4])
    alone = world.rollout(1, seeds=[4])
    both.reset(prompt="a")
    alone.reset(prompt="a")
    both.reset(slots=[0], prompt="b")
    for prompt in ("a", "b", "c", "d", "e", "f"):
        rows, row = both.step(["z", prompt]), alone.step([prompt])
        assert close(rows.latents[1], row.latents[0])
        assert (rows.reward == 0).all() and not rows.terminated.any()


def test_a_rollout_never_ends_so_it_cannot_be_seen_whole() -> None:
    world = tiny_magi1(noise2clean_kvrange=())
    with pytest.raises(ConfigError, match="a rollout never ends"):
        world.rollout(1)
    with pytest.raises(ConfigError, match="without end cannot be seen whole"):
        video(world, chunks=None)
    assert len(list(video(world, chunks=3))) == 3
    assert video(world, ["a", "b"], chunks=None).num_chunks == 2


def test_other_worlds_generate_too(tiny_world: World) -> None:
    rollout = tiny_world.rollout(1, seeds=[3])
    chunks = [rollout.reset(prompt=PROMPTS[0]).latents[0]]
    chunks += [rollout.step([PROMPTS[i % 3]]).latents[0] for i in range(1, 7)]
    generator = torch.Generator().manual_seed(3)
    shape = tiny_world.config.latent_shape
    noise = [torch.randn(shape, generator=generator)]
    for _ in range(6):
        noise.append(torch.randn(shape, generator=generator))
        torch.rand((), generator=generator)
    made = generate(
        tiny_world, [PROMPTS[i % 3] for i in range(7)], num_frames=28,
        noise=torch.cat(noise, dim=1),
    )  # fmt: skip
    assert close(torch.cat([c.latents for c in made], dim=1), torch.cat(chunks, dim=1))
    with pytest.raises(ConfigError, match="window 2: this world reads its previous chunk finished"):
        generate(tiny_world, "left", num_frames=20, settings=GenerateSettings(window=2))
    for name, value in (("compat", "magi-1"), ("text_scales", (1.0,))):
        with pytest.raises(ConfigError, match=f"{name} is for MAGI-1 checkpoints"):
            generate(tiny_world, "left", num_frames=8, settings=GenerateSettings(**{name: value}))


# ------------------------------------------------------------------------ prompts and ranges


def test_a_prompt_rules_its_chunk_and_what_follows() -> None:
    world = tiny_magi1()
    one = latents(world, ["a", "a", "a", "a"], 4)
    other = latents(world, ["a", "a", "b", "a"], 4)
    assert torch.equal(one[:, : 2 * WIDTH], other[:, : 2 * WIDTH])
    assert not close(one[:, 2 * WIDTH : 3 * WIDTH], other[:, 2 * WIDTH : 3 * WIDTH])


def test_an_iterator_is_read_as_the_window_moves() -> None:
    taken: list[str] = []

    def prompts() -> Iterator[str]:
        for name in "abcdefghij":
            taken.append(name)
            yield name

    generation = video(tiny_magi1(), prompts(), chunks=None, window=4)
    assert taken == [] and generation.num_chunks is None
    chunks = []
    for chunk in generation:
        chunks.append(chunk)
        assert len(taken) == min(chunk.index + 4, 10)
    assert [chunk.prompt for chunk in chunks] == list("abcdefghij")
    assert close(
        torch.cat([c.latents for c in chunks], dim=1),
        latents(tiny_magi1(), list("abcdefghij"), 10),
    )


def test_an_endless_video_keeps_no_more_with_time() -> None:
    generation = video(tiny_magi1(), itertools.cycle("abc"), chunks=None, window=2)
    sampler = generation.sampler
    held = []
    for chunk in itertools.islice(generation, 30):
        held.append((len(sampler.x), len(generation._source._kept), len(sampler.model._prepared)))
        assert chunk.latents.shape == SIZE
    assert len(set(held[5:])) <= 2 and max(held[20:]) <= max(held[5:20])
    assert sampler.cache.keys_LRKD.shape[1] == 6 * sampler.cache.tokens


def test_a_chunk_with_narrow_ranges_starts_a_new_shot() -> None:
    world = tiny_magi1()
    noise = pinned(WIDTH).repeat(1, 4, 1, 1)
    prompts = ["a", "b", ChunkPrompt("a", kv_ranges=(1, 1, 1, 1)), "b"]
    for distilled in (False, True):
        world = tiny_magi1(distilled=distilled)
        made = latents(world, prompts, 4, noise=noise)
        first, third = made[:, :WIDTH], made[:, 2 * WIDTH : 3 * WIDTH]
        assert close(first, third)  # time counts from the start of what is seen
        assert not close(latents(world, ["a", "b", "a", "b"], 4, noise=noise), made)


def test_a_chunk_may_see_as_far_as_was_said_at_the_start() -> None:
    world = tiny_magi1()
    far = ["a"] * 7 + [ChunkPrompt("a", kv_ranges=(8, 8, 8, 8))]
    with pytest.raises(ConfigError, match="sized for 5: give max_kv_range at the start"):
        video(world, far, 8)
    with pytest.raises(ConfigError, match="ask for the whole video"):
        video(world, [ChunkPrompt("a", kv_ranges=())], 1)
    with pytest.raises(ConfigError, match="not a multiple of the 3 KV ranges"):
        video(world, [ChunkPrompt("a", kv_ranges=(1, 2, 3))], 1)
    one = latents(world, far, 8, max_kv_range=8)
    whole = latents(world, far, 8, max_kv_range=8, savings=Savings(fixed_cache=False))
    assert close(one, whole)
    assert not close(one[:, -WIDTH:], latents(world, "a", 8)[:, -WIDTH:])


def test_duration_tokens_count_the_chunks_left() -> None:
    options = TokenOptions(quality="hq", duration="auto")
    world = tiny_magi1(options=options)
    text: Any = world.text
    video(world, chunks=3)
    assert text.embedded == [("a", 2), ("a", 1), ("a", 0)]
    text.embedded.clear()
    list(itertools.islice(video(world, chunks=None), 12))
    assert text.embedded == [("a", None)]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a", "b"], "2 prompts for 3 chunks"),
        (["a"] * 4, "4 prompts for 3 chunks"),
        ([], "0 prompts for 3 chunks"),
        ("", "cannot be used"),
        (["a", "", "b"], "cannot be used"),
        (["a", 3, "b"], "cannot be used"),
        (7, "a text or texts are needed"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_at_once(prompts: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        video(tiny_magi1(), prompts, 3)


def test_an_iterator_that_ends_early_is_named() -> None:
    generation = video(tiny_magi1(), iter("ab"), 3)
    with pytest.raises(PromptError, match="ended after 2 of 3 chunks"):
        list(generation)
