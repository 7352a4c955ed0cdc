# mypy: disable-error-code="arg-type,assignment,func-returns-value,unused-ignore"
"""What breaks or is wrong leaves no trace in a rollout."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from magi_world.checkpoints.world_format import Bank, empty_bank
from magi_world.errors import (
    ConfigError,
    NotReset,
    PromptError,
    ResetOptionError,
)
from magi_world.world import World
from tests.sampling.rollouts import LEFT, SHAPE, generators, pictures, ready, unchanged
from tests.sampling.variants import variant

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
        (None, "got None"),
        (iter([LEFT] * 2), "got <list_iterator"),
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
        ({"latents": torch.zeros(SHAPE)}, ResetOptionError, "latents are torch.float32"),
        (
            {"latents": torch.zeros(1, *SHAPE, dtype=torch.int32)},
            ResetOptionError,
            "latents are torch.int",
        ),
        ({"latents": 3.0}, ResetOptionError, r"latents are torch.float32 \(\)"),
        ({"latents": "x"}, ResetOptionError, "no array of numbers"),
        ({"seeds": [1]}, ConfigError, "1 seeds for 2 slots"),
        ({"seeds": 1}, ConfigError, "seeds 1: a list of 2"),
        ({"seeds": [1, 2**64]}, ConfigError, "seed 18446744073709551616"),
        ({"seeds": [1, -1]}, ConfigError, "seed -1"),
        ({"slots": []}, ConfigError, r"slots \[\]"),
        ({"slots": [0, 0]}, ConfigError, r"slots \[0, 0\]: one or more different"),
        ({"slots": [2]}, ConfigError, r"slots \[2\]: .*0…1"),
        ({"slots": [-1]}, ConfigError, r"slots \[-1\]"),
        ({"slots": [0.7]}, ConfigError, r"slots \[0.7\]"),
        ({"slots": [True]}, ConfigError, r"slots \[True\]"),
        ({"slots": "0"}, ConfigError, "slots '0'"),
        ({"slots": 1}, ConfigError, "slots 1: one or more different"),
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
        ({"seeds": 1}, "seeds 1: a list of 2"),
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
    for prompts in ([LEFT], None, iter([LEFT] * 2)):
        with pytest.raises(PromptError, match="2 prompts are needed"):
            rollout.observe(torch.zeros(2, *SHAPE), prompts)
    for latents in (None, np.full((2, *SHAPE), "x")):
        with pytest.raises(ConfigError, match="latents"):
            rollout.observe(latents, [LEFT] * 2)
    with pytest.raises(PromptError, match="empty"):
        rollout.observe(torch.zeros(2, *SHAPE), [LEFT, ""])
    assert unchanged(rollout, twin)


def test_arrays_are_latents_too(tiny_world: World) -> None:
    """Environments that observe latents hand out arrays."""
    rollout, twin = ready(tiny_world, 2, 1), ready(tiny_world, 2, 1)
    latents = torch.randn(2, *SHAPE)
    rollout.observe(latents.numpy(), [LEFT] * 2)
    twin.observe(latents, [LEFT] * 2)
    assert unchanged(rollout, twin)
    rollout.reset(latents=latents.numpy())
    twin.reset(latents=latents)
    assert unchanged(rollout, twin)
