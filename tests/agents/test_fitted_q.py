"""Q learning on moments whose dreams are known: a door that must be opened before it is passed."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from magi_world.agents.files import describe
from magi_world.agents.fitted_q import Args
from magi_world.agents.fitted_q_data import Data, Mirror, discounted, exchanged
from magi_world.agents.fitted_q_files import KIND
from magi_world.agents.fitted_q_learning import (
    FittedQ,
    action_values,
    measure,
    targets,
    update,
    worth,
)
from magi_world.agents.guide import Guide
from magi_world.agents.moments import Moments
from magi_world.errors import ConfigError, DatasetError
from magi_world.world import World

SHUT, OPEN, BEHIND = range(3)
OPENS, PASSES = 1, 2
SHAPE = (2, 1, 2, 2)
SMALL: dict[str, Any] = {
    "batch_size": 32, "history": 2, "channels": (8, 8), "hidden": 16, "observation_noise": 0.1,
    "gamma": 0.9, "target": 0.95, "average": 0.9, "updates": 600, "weight_decay": 0.0,
}  # fmt: skip


class Chunks:
    """What a store has to give."""

    def __init__(self, state_M: Tensor) -> None:
        self._latents = picture(state_M).half().numpy()
        self.offsets = np.arange(0, len(state_M) + 1, 4)  # episodes of four chunks

    def latents(self) -> Any:
        return self._latents


def picture(state: Tensor) -> Tensor:
    """Latents in which a state is to be seen, `[..., Z, P, h, w]`."""
    codes = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    return codes[state][..., None, None, None].expand(*state.shape, *SHAPE)


def door(count: int = 400) -> tuple[Moments, Chunks]:
    """Passing an open door gives 1; a shut one must be opened first, which gives nothing."""
    generator = torch.Generator().manual_seed(0)
    state_M = torch.randint(2, (count,), generator=generator)
    row = torch.arange(2, count)
    now = state_M[row - 1]
    following = torch.stack([now, torch.full_like(now, OPEN), now], dim=1)
    following[now == OPEN, PASSES] = BEHIND
    passed = following == BEHIND
    moments = Moments(
        row=row, following=picture(following)[:, :, None].half(), reward=passed[:, :, None].float(),
        continues=(~passed)[:, :, None].float(),
    )  # fmt: skip
    return moments, Chunks(state_M)


def training(**settings: Any) -> FittedQ:
    args = Args(**(SMALL | settings))
    description = {
        "kind": KIND, "prompts": ["wait", "open", "pass"], "latent_shape": list(SHAPE),
        "history": args.history, "channels": list(args.channels), "hidden": args.hidden,
        "greedy": args.greedy,
    }  # fmt: skip
    return FittedQ(description, args, torch.device("cpu"))


def test_values_reach_further_than_a_chunk() -> None:
    learner = training()
    moments, chunks = door()
    data = Data(moments, chunks, learner.args, torch.device("cpu"))  # type: ignore[arg-type]
    for _ in range(learner.args.updates):
        update(learner, data.draw(32, learner.generator))
    stack_BChw = picture(torch.tensor([[SHUT, SHUT], [OPEN, OPEN]])).transpose(2, 3).flatten(1, 3)
    value_BA = action_values(learner.average, learner.average.body(stack_BChw))
    expected = torch.tensor([[0.81, 0.9, 0.81], [0.9, 0.9, 1.0]])  # discounts of 0.9
    assert torch.allclose(value_BA, expected, atol=0.03)
    assert measure(learner, data)["charts/share_of_gain"] > 0.99


def test_the_agent_plays_the_best_action(tmp_path: Any) -> None:
    learner = training(updates=300)
    moments, chunks = door()
    data = Data(moments, chunks, learner.args, torch.device("cpu"))  # type: ignore[arg-type]
    for _ in range(300):
        update(learner, data.draw(32, learner.generator))
    agent = learner.agent()
    agent.reset(2)
    acts = agent.act(picture(torch.tensor([SHUT, OPEN])))
    assert np.array_equal(acts, [OPENS, PASSES])
    # a softer agent's log-probabilities are closer to each other
    soft = dataclasses.replace(learner.args, softness=10.0)
    stack_BChw = torch.zeros(1, 4, 2, 2)
    sharp_A = agent.network(stack_BChw)[0][0]
    learner.args = soft
    soft_A = learner.agent().network(stack_BChw)[0][0]
    assert torch.allclose((soft_A - soft_A.mean()) * 500, sharp_A - sharp_A.mean(), atol=1e-3)


def test_targets_are_those_of_the_whole_stack() -> None:
    """The first layer sees shared chunks once, which must not change what it says."""
    learner = training()
    moments, chunks = door(60)
    data = Data(moments, chunks, learner.args, torch.device("cpu"))  # type: ignore[arg-type]
    batch = data.draw(16, learner.generator)
    batch = batch._replace(stack=torch.randn_like(batch.stack))
    network = learner.network
    stacks = [
        torch.cat([batch.stack[:, 2:], batch.following[:, action]], dim=1) for action in range(3)
    ]
    best = torch.stack([action_values(network, network.body(s)).amax(1) for s in stacks], dim=1)
    expected = batch.reward + 0.9 * batch.continues * best
    assert torch.allclose(targets(network, batch, 0.9), expected, atol=1e-5)


def test_a_soft_value_lies_between_mean_and_best() -> None:
    """With equal values it is theirs, with far ones the best; it is not drawn up by noise."""
    value_NA = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 5.0], [0.0, 0.1, 0.0]])
    assert torch.equal(worth(value_NA, 0.0), value_NA.amax(1))
    soft_N = worth(value_NA, 0.1)
    assert torch.allclose(soft_N[:2], value_NA[:2].amax(1))
    e = torch.e
    assert soft_N[2].item() == pytest.approx(0.1 * e / (e + 2))
    noise_NA = 0.05 * torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    assert worth(noise_NA, 0.0).mean() > 2 * worth(noise_NA, 0.1).mean() > 0

    learner = training()
    moments, chunks = door(60)
    data = Data(moments, chunks, learner.args, torch.device("cpu"))  # type: ignore[arg-type]
    batch = data.draw(16, learner.generator)
    best_BA, soft_BA = (targets(learner.network, batch, 0.9, softness) for softness in (0.0, 1.0))
    assert (soft_BA <= best_BA).all() and (soft_BA < best_BA).any()
    assert torch.equal(soft_BA[batch.continues == 0], best_BA[batch.continues == 0])


def test_what_is_seen_in_a_mirror_is_learned_too() -> None:
    """A light that is always on the left teaches what to do where it is on the right."""
    learner = training(updates=200, history=1)
    on_the_left = torch.zeros(300, *SHAPE)
    on_the_left[..., 0] = 1.0
    on_the_right = on_the_left.flip(-1)
    chunks = Chunks(torch.zeros(300, dtype=torch.int64))
    chunks._latents = on_the_left.half().numpy()
    row = torch.arange(1, 300)
    reward = torch.tensor([0.0, 1.0, -1.0]).expand(len(row), 3)  # to the light, away from it
    moments = Moments(
        row=row, following=on_the_left[1:, None, None].expand(-1, 3, 1, -1, -1, -1, -1).half(),
        reward=reward[:, :, None], continues=torch.zeros(len(row), 3, 1),
    )  # fmt: skip
    action_A = exchanged({"left": "right"}, ["wait", "left", "right"])
    mirror = Mirror(on_the_right.half().numpy(), action_A)
    data = Data(moments, chunks, learner.args, torch.device("cpu"), mirror=mirror)  # type: ignore[arg-type]
    for _ in range(200):
        update(learner, data.draw(32, learner.generator))
    for light, expected_A in ((on_the_left, [0.0, 1.0, -1.0]), (on_the_right, [0.0, -1.0, 1.0])):
        stack_BChw = light[:1].transpose(1, 2).flatten(1, 2)
        value_BA = action_values(learner.average, learner.average.body(stack_BChw))
        assert torch.allclose(value_BA[0], torch.tensor(expected_A), atol=0.1)


def test_mirrors_exchange_prompts_of_the_world() -> None:
    prompts = ["stay", "left", "right", "up"]
    assert exchanged({}, prompts).tolist() == [0, 1, 2, 3]
    assert exchanged({"left": "right"}, prompts).tolist() == [0, 2, 1, 3]
    assert exchanged({"left": "right", "right": "left", "up": "up"}, prompts).tolist() == [
        0, 2, 1, 3,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="'down', which is none of"):
        exchanged({"up": "down"}, prompts)
    with pytest.raises(ConfigError, match="'up' or 'left' with two"):
        exchanged({"left": "right", "up": "left"}, prompts)


def test_what_follows_is_discounted_chunk_by_chunk() -> None:
    reward = torch.tensor([[[1.0, 2.0, 4.0]]])
    continues = torch.tensor([[[1.0, 0.5, 0.5]]])
    moments = Moments(torch.zeros(1), torch.zeros(1, 1, 3, *SHAPE), reward, continues)
    reward_NA, continues_NA = discounted(moments, 0.9)
    assert reward_NA.item() == pytest.approx(1 + 0.9 * 2 + 0.81 * 0.5 * 4)
    assert 0.9 * continues_NA.item() == pytest.approx(0.9**3 * 0.25)


@pytest.mark.parametrize("hold", [1, 2, 3])
def test_stacks_end_with_what_was_dreamed(hold: int) -> None:
    """With two chunks in view: the newest one dreamed and what came before it."""
    learner = training(hold=hold)
    moments, chunks = door(60)
    following = torch.randn(len(moments), 3, hold, *SHAPE)
    rest = torch.rand(2, len(moments), 3, hold)
    moments = Moments(moments.row, following.half(), rest[0], rest[1])
    data = Data(moments, chunks, learner.args, torch.device("cpu"))  # type: ignore[arg-type]
    index_B = torch.arange(16)
    real_BZPhw = torch.from_numpy(chunks.latents())[moments.row[index_B] - 1].float()
    real_BAkZPhw = real_BZPhw[:, None, None].expand(-1, 3, 1, -1, -1, -1, -1)
    seen = torch.cat([real_BAkZPhw, following[:16].half().float()], dim=2)[:, :, -2:]
    network = learner.network
    hidden = network.body(seen.transpose(3, 4).flatten(2, 4).flatten(0, 1))
    best_BA = action_values(network, hidden).amax(1).unflatten(0, (16, 3))
    reward_NA, continues_NA = discounted(moments, 0.9)
    expected = reward_NA[:16] + 0.9 * continues_NA[:16] * best_BA
    assert torch.allclose(targets(network, data.batch(index_B), 0.9), expected, atol=1e-5)


def test_its_value_is_that_of_the_best_action(tiny_world: World) -> None:
    args = Args(history=2, channels=(4, 4), hidden=8, softness=0.05)
    description = describe(tiny_world, KIND, "dream") | {
        "history": 2, "channels": [4, 4], "hidden": 8, "greedy": True,
    }  # fmt: skip
    learner = FittedQ(description, args, torch.device("cpu"))
    torch.nn.init.normal_(learner.average.policy.weight, generator=learner.generator)
    guide = Guide(learner.agent(), tiny_world)
    channels = 2 * tiny_world.config.latent_shape[0] * tiny_world.config.latent_shape[1]
    stack_BChw = torch.randn(5, channels, *tiny_world.config.latent_shape[2:])
    actions, worth = guide.ask(stack_BChw)
    value_BA = action_values(learner.average, learner.average.body(stack_BChw))
    assert actions.tolist() == value_BA.argmax(1).tolist()
    assert torch.allclose(worth, guide.unit * (value_BA.amax(1) + 1), atol=1e-3)


def test_too_few_moments_are_refused() -> None:
    moments, chunks = door(20)
    with pytest.raises(DatasetError, match="fewer than one batch of 32"):
        Data(moments, chunks, Args(**SMALL), torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("moments", 0, "moments 0 is below 1"),
        ("updates", -1, "updates -1 is below 1"),
        ("gamma", 1.5, "gamma 1.5 is outside"),
        ("earliest", -1, "earliest -1 is below 0"),
        ("softness", 0.0, "softness 0.0 is not above 0"),
        ("minutes", 0.0, "minutes 0.0 is not above 0"),
        ("reward", "fame", "reward 'fame' is not one of"),
        ("channels", (4,), "channels"),
    ],
)
def test_settings_that_cannot_work_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Args(**{name: value})
