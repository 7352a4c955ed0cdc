"""PPO: estimates against slow twins, what the actor sees, learning in a world of a few lines."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_world.agents.ppo import Args, train
from magi_world.agents.ppo_actor import Actor, DreamSlots
from magi_world.agents.ppo_agent import (
    extend_history,
    flatten_chunk,
    start_history,
)
from magi_world.agents.ppo_learning import advantages, blend
from magi_world.errors import AgentError, ConfigError
from magi_world.world import World
from tests.agents.fork import PROMPTS, SMALL, Fork, fork_world, new_agent

# --- estimates ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**31), length=st.integers(1, 7), slots=st.integers(1, 3),
    gamma=st.floats(0, 1), gae_lambda=st.floats(0, 1),
)  # fmt: skip
def test_advantages_are_the_sum_of_discounted_errors(
    seed: int, length: int, slots: int, gamma: float, gae_lambda: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    reward, value, following, going = torch.rand(4, length, slots, generator=generator).double()
    cut = torch.rand(length, slots, generator=generator) < 0.3
    found = advantages(reward, value, following, going, cut, gamma=gamma, gae_lambda=gae_lambda)
    for b in range(slots):
        for t in range(length):
            expected, weight = 0.0, 1.0
            for k in range(t, length):
                discount = gamma * float(going[k, b])
                error = reward[k, b] + discount * following[k, b] - value[k, b]
                expected += weight * float(error)
                weight *= gae_lambda * discount
                if cut[k, b]:
                    break
            assert float(found[t, b]) == pytest.approx(expected, abs=1e-9)


def test_a_horizon_is_not_a_death() -> None:
    """Both slots are cut off after their chunk: the one that lives keeps the value behind it."""
    zero, behind, going = torch.zeros(1, 2), torch.full((1, 2), 5.0), torch.tensor([[1.0, 0.0]])
    cut = torch.tensor([[True, True]])
    found = advantages(zero, zero, behind, going, cut, gamma=0.9, gae_lambda=1.0)
    assert found.tolist() == [[4.5, 0.0]]


@pytest.mark.parametrize("gae_lambda", [0.9, 1.0])
def test_expected_ends_have_the_mean_of_drawn_ones_and_less_variance(gae_lambda: float) -> None:
    """Every chunk ends with the same probability, so the true value is known: -p / (1 - g(1 - p)).

    With that value both estimates of the advantage have mean zero.
    """
    length, slots, probability, gamma = 60, 20_000, 0.2, 0.95
    truth = -probability / (1 - gamma * (1 - probability))
    generator = torch.Generator().manual_seed(0)
    dead = torch.rand(length, slots, generator=generator) < probability
    value = torch.full((length, slots), truth)
    estimates = {}
    for name, ended in (("drawn", dead.float()), ("expected", torch.full_like(value, probability))):
        estimates[name] = advantages(
            -ended, value, value, 1 - ended, dead, gamma=gamma, gae_lambda=gae_lambda
        )[0]
    spread = {name: float(estimate.std()) for name, estimate in estimates.items()}
    for name, estimate in estimates.items():
        assert abs(float(estimate.mean())) < 5 * spread[name] / slots**0.5 + 1e-6
    assert spread["expected"] < 0.1 * spread["drawn"]


def test_expected_ends_tell_actions_apart_as_drawn_ones_do() -> None:
    """With a wrong value function too: the mean difference between two actions is the same."""
    slots, gamma = 40_000, 0.95
    probability = torch.tensor([0.1, 0.4]).repeat_interleave(slots)[None]  # action 0, action 1
    dead = torch.rand(probability.shape, generator=torch.Generator().manual_seed(1)) < probability
    value, following = torch.full_like(probability, 0.3), torch.full_like(probability, -0.5)
    difference = {}
    for name, ended in (("drawn", dead.float()), ("expected", probability)):
        found = advantages(-ended, value, following, 1 - ended, dead, gamma=gamma, gae_lambda=0.9)[
            0
        ]
        difference[name] = float(found[:slots].mean() - found[slots:].mean())
    assert difference["expected"] == pytest.approx(0.3 * (1 - gamma * 0.5), abs=1e-5)
    assert difference["drawn"] == pytest.approx(difference["expected"], abs=0.01)


# --- what the agent sees -----------------------------------------------------------------------


def test_history_begins_full_and_slides() -> None:
    first, second, third = (torch.full((1, 16, 2, 4, 4), float(i)) for i in range(3))
    stack = start_history(flatten_chunk(first), 2)
    assert stack.shape == (1, 64, 4, 4)
    assert (stack == 0).all()
    stack = extend_history(stack, flatten_chunk(second))
    stack = extend_history(stack, flatten_chunk(third))
    assert (stack[:, :32] == 1).all()
    assert (stack[:, 32:] == 2).all()


def test_flattened_chunk_keeps_time_order() -> None:
    latents = torch.arange(2.0).view(1, 1, 2, 1, 1).expand(1, 16, 2, 4, 4)
    flat = flatten_chunk(latents)
    assert (flat[:, :16] == 0).all()
    assert (flat[:, 16:] == 1).all()


# --- the actor ---------------------------------------------------------------------------------


def collect(world: Any, **settings: Any) -> tuple[Actor, Any, Any]:
    args = Args(**(SMALL | {"observation_noise": 0.0} | settings))
    generator = torch.Generator().manual_seed(0)
    actor = Actor(DreamSlots(world, args, generator, {}), args, generator)
    network = new_agent().network
    return actor, actor.collect(network), network


def rollout_of(actor: Actor) -> Any:
    slots: Any = actor.slots
    return slots.rollout


def test_actor_restarts_slots_at_the_horizon() -> None:
    actor, samples, network = collect(fork_world(danger=0.0, horizon=5))
    assert samples.cut.nonzero()[:, 0].unique().tolist() == [4, 9, 14]
    assert (samples.continues == 1).all()
    assert list(actor.recent) == [(20.0, 5)] * 24
    # The chunk after a cut is a reset chunk: both places of its history are the same.
    after = samples.stack[5]
    assert torch.equal(after[:, :16], after[:, 16:])
    assert not torch.equal(samples.stack[7][:, :16], samples.stack[7][:, 16:])
    with torch.no_grad():
        value = network(samples.stack.flatten(0, 1))[1].view(16, 8)
    torch.testing.assert_close(samples.value, value)
    torch.testing.assert_close(samples.next_value[0], value[1])
    assert not torch.equal(samples.next_value[4], value[5])  # the chunk before the reset counts


def test_actor_restarts_only_the_slots_that_ended() -> None:
    actor, samples, _ = collect(fork_world(danger=0.5))
    rollout = rollout_of(actor)
    cuts = [row.nonzero().squeeze(1).tolist() for row in samples.cut]
    assert rollout.resets == [list(range(8)), *(slots for slots in cuts if slots)]
    assert 0 < sum(map(len, cuts)) < samples.cut.numel()
    assert len(actor.recent) == sum(map(len, cuts))


def test_clips_of_the_bank_bring_their_history() -> None:
    world = fork_world(danger=0.0, horizon=5)
    actor, samples, _ = collect(world, starts="any", num_slots=40)
    rollout = rollout_of(actor)
    assert set(rollout.clips) == {0, 1, 2} and len(rollout.clips) == 4 * 40
    for step in (0, 5, 10):
        begun = samples.stack[step].unflatten(1, (2, 16))
        first = rollout.clips[8 * step : 8 * step + 40]
        places = [[0.0, 0.0] if clip == 0 else [10.0 * clip + 1, 10.0 * clip + 2] for clip in first]
        assert begun[:, :, 0, 0, 0].tolist() == places


@pytest.mark.parametrize("expected", [True, False])
def test_what_is_learned_from(expected: bool) -> None:
    world = fork_world(danger=0.5)
    actor, samples, _ = collect(world, expected_termination=expected)
    if expected:
        assert samples.reward.unique().tolist() == [-0.5, 0.0]
        assert torch.equal(samples.continues, 1 + samples.reward)
    else:
        assert samples.reward.unique().tolist() == [-1.0, 0.0]
        assert torch.equal(samples.continues == 0, samples.cut)
    survival = collect(world, reward="survival", expected_termination=expected)[1]
    assert (survival.reward == 1.0).all()
    assert torch.equal(survival.continues, samples.continues)
    shaped = collect(world, signal_weights={"damage": -0.01}, expected_termination=True)[1]
    torch.testing.assert_close(shaped.reward, 2 * (shaped.continues - 1))
    slots: Any = actor.slots
    assert slots.full_reward == 4.0


def test_settings_reach_the_rollout() -> None:
    world = fork_world()
    collect(world, temperature=1.3, denoising_steps=2, starts="opening")
    assert world.asked == {"temperature": 1.3, "steps": 2, "starts": "opening"}


# --- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("expected", [True, False])
def test_learns_to_take_the_open_side(expected: bool, tmp_path: Path) -> None:
    args = Args(
        seed=1, total_steps=4_000, num_slots=16, num_steps=16, history=2, channels=(8, 8),
        hidden=32, learning_rate=2e-3, expected_termination=expected, starts="opening",
    )  # fmt: skip
    agent = train(fork_world(), args, tmp_path, show=False)
    rollout = Fork(64, range(64), 1.0)
    agent.reset(64)
    latents = rollout.reset(range(64)).latents
    right = 0
    for _ in range(5):
        actions = agent.act(latents)
        right += int((torch.from_numpy(actions) == rollout.open_B).sum())
        latents = rollout.step([PROMPTS[action] for action in actions]).latents
    assert right > 0.95 * 5 * 64


def test_training_repeats_and_leaves_random_state_alone(tmp_path: Path) -> None:
    args = Args(**SMALL)
    state = torch.get_rng_state()
    for name in ("a", "b"):
        train(fork_world(), args, tmp_path / name, show=False)
    train(fork_world(), dataclasses.replace(args, seed=2), tmp_path / "c", show=False)
    assert torch.equal(torch.get_rng_state(), state)
    files = [(tmp_path / name / "agent.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_training_in_a_real_rollout_repeats(tiny_world: World, tmp_path: Path) -> None:
    """The tiny world ends slots by draw and by horizon, from openings and from later clips."""
    args = Args(**(SMALL | {"total_steps": 256, "temperature": 1.2, "starts": "any"}))
    for name in ("a", "b"):
        agent = train(tiny_world, args, tmp_path / name, show=False)
    files = [(tmp_path / name / "agent.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]
    agent.check_fits(tiny_world)
    latents = tiny_world.rollout(2, seeds=[0, 1]).reset().latents
    agent.reset(2, seed=0)
    assert set(agent.act(latents)) <= {0, 1, 2}


def test_training_writes_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = train(fork_world(), Args(**SMALL), tmp_path)
    described = json.loads((tmp_path / "agent.json").read_text())
    assert described["world"] == "fork"
    assert described["prompts"] == PROMPTS
    assert described["trained"]["steps"] == 512
    assert described["trained"]["updates"] == 4
    assert Args(**(described["args"] | {"channels": (8, 8)})) == Args(**SMALL)
    assert list(tmp_path.glob("*.partial")) == []
    assert list((tmp_path / "tensorboard").iterdir())
    assert agent.policy == "sampled"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "512 steps" in captured.err


def test_minutes_end_the_training(tmp_path: Path) -> None:
    args = Args(**(SMALL | {"total_steps": None, "minutes": 1e-6}))
    train(fork_world(), args, tmp_path, show=False)
    assert json.loads((tmp_path / "agent.json").read_text())["trained"]["updates"] == 1


def test_the_average_moves_towards_the_newest() -> None:
    old, new = new_agent().network, new_agent().network
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(1.0)
    before = old.policy.weight.clone()
    blend(old, new, 0.75)
    torch.testing.assert_close(old.policy.weight, before + 0.25)


def test_a_world_that_teaches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="no outcome heads"):
        train(fork_world(outcome=False), Args(**SMALL), tmp_path, show=False)
    with pytest.raises(AgentError, match=r"no signals \['armour'\].*damage"):
        args = Args(**SMALL, signal_weights={"armour": 1.0})
        train(fork_world(), args, tmp_path, show=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"total_steps": None}, "budget"),
        ({"total_steps": 0}, "total_steps 0"),
        ({"minutes": -1.0}, "minutes -1.0"),
        ({"num_slots": 0}, "num_slots 0"),
        ({"gamma": 1.5}, "gamma 1.5"),
        ({"reward": "score"}, "score"),
        ({"num_slots": 1, "num_steps": 2}, "minibatches"),
        ({"horizon": 0}, "horizon 0"),
        ({"starts": "middle"}, "middle"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Args(**wrong)
