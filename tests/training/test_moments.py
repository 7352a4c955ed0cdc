"""Moments of a run's data, and the agent that learns from them."""

import dataclasses
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from magi_world import agents
from magi_world.agents import moments as module
from magi_world.agents.fitted_q import Args, train
from magi_world.agents.fitted_q_files import KIND
from magi_world.agents.moments import Dreamer, dream_moments, sequence_length, sequences
from magi_world.agents.ppo_actor import learned_from
from magi_world.checkpoints.tensors import read_tensors
from magi_world.cli import main
from magi_world.errors import AgentError, ConfigError, DatasetError
from magi_world.sampling.chunk import Chunk
from magi_world.training.bank import encoded_store
from magi_world.training.encoding import mirrored_latents
from magi_world.training.prepare import tics_by_source
from magi_world.training.store import Store
from magi_world.training.teacher_forcing import (
    concatenate_captions,
    generate_one_step_ahead,
)
from magi_world.world import World, load
from tests.training.toy import SMALL_FITTED_Q as SMALL
from tests.training.toy import record

HISTORY = 4


def judge(chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor]:
    return chunk.reward, 1 - chunk.termination_probability


def dreamer(world: World, store: Store, **keywords: Any) -> Dreamer:
    return Dreamer(world, store, judge, history=HISTORY, **keywords)


def test_sequences_keep_every_moment_of_long_episodes(store: Store) -> None:
    length = sequence_length(store, HISTORY)
    assert length == 11  # the median of the toy's episodes, which have 10 to 13 chunks
    starts = sequences(store, length, HISTORY, torch.Generator())
    kept = {int(s) + at for s in starts for at in range(HISTORY, length)}
    expected: set[int] = set()
    for episode in store.episodes(held_out=False):
        first, end = int(store.offsets[episode]), int(store.offsets[episode + 1])
        if end - first >= length:
            expected |= set(range(first + HISTORY, end))
    assert kept == expected


def test_moments_can_begin_later_in_an_episode(store: Store) -> None:
    starts = sequences(store, 6, HISTORY, torch.Generator(), earliest=7)
    first = torch.from_numpy(store.offsets)
    age = starts + HISTORY - first[torch.searchsorted(first, starts, right=True) - 1]
    assert age.min() == 7
    with pytest.raises(DatasetError, match="no episode has 6 chunks from chunk 96 on"):
        sequences(store, 6, HISTORY, torch.Generator(), earliest=100)


def test_episodes_shorter_than_a_history_are_refused(store: Store) -> None:
    with pytest.raises(DatasetError, match="no more than 11 chunks: there is no moment with 11"):
        sequence_length(store, 11)


def test_an_action_that_was_taken_leads_where_it_would_one_step_ahead(
    world: World, store: Store
) -> None:
    """Every action has its prompt, and the moments have the history that the game had."""
    one = dreamer(world, store, temperature=0.0)
    start_S = sequences(store, one.length, HISTORY, torch.Generator())[:2]
    found = one.dream(start_S, torch.Generator())
    assert found.following.shape[:3] == (2 * (one.length - HISTORY), 3, 1)
    assert found.row.tolist() == [
        start + at for start in start_S.tolist() for at in range(HISTORY, one.length)
    ]
    row_G = (start_S[:, None] + torch.arange(one.length)).flatten()
    real = torch.from_numpy(store.latents())[row_G].float()
    captions = [world.caption(prompt) for prompt in one.prompts]
    with torch.inference_mode():
        x = generate_one_step_ahead(
            world, (2, one.length), real, torch.zeros_like(real),
            captions=(concatenate_captions(captions), [c[0][0].shape[0] for c in captions]),
            choice_G=torch.from_numpy(store.action)[row_G],
            dropped_G=torch.zeros(len(row_G), dtype=torch.bool),
        )  # fmt: skip
    at = {int(row): i for i, row in enumerate(row_G)}
    for i, row in enumerate(found.row.tolist()):
        dreamed = found.following[i, int(store.action[row]), 0].float()
        assert torch.allclose(dreamed, x[at[row]], atol=2e-2, rtol=2e-3)
    apart = (found.following[:, 1] - found.following[:, 2]).abs().amax((1, 2, 3, 4, 5))
    assert (apart > 0).any()  # prompts matter at all
    low, high = world.card["reward_range"]
    assert ((found.reward >= low) & (found.reward <= high)).all()
    assert ((found.continues >= 0) & (found.continues <= 1)).all()


def test_a_held_action_is_dreamed_on(world: World, store: Store) -> None:
    one, held = (dreamer(world, store, temperature=0.0, hold=hold) for hold in (1, 3))
    start_S = sequences(store, one.length, HISTORY, torch.Generator())[:2]
    short, long = one.dream(start_S, torch.Generator()), held.dream(start_S, torch.Generator())
    assert long.following.shape[2] == long.reward.shape[2] == long.continues.shape[2] == 3
    assert torch.equal(long.following[:, :, :1], short.following)
    start = int(start_S[1])
    rollout = world.rollout(1, seeds=[0], temperature=0.0)
    rollout.reset(
        latents=store.latents()[start : start + HISTORY].astype(np.float32),
        prompts=[one.prompts[action] for action in store.action[start : start + HISTORY]],
    )
    for k in range(3):
        chunk = rollout.step([one.prompts[2]])
        found = long.following[one.length - HISTORY, 2, k]
        assert torch.allclose(found.float(), chunk.latents[0], atol=2e-2, rtol=2e-3)
        reward = long.reward[one.length - HISTORY, 2, k].item()
        assert reward == pytest.approx(chunk.reward.item(), abs=1e-4)


def test_no_noise_is_one_future(world: World, store: Store) -> None:
    one = dreamer(world, store, temperature=0.0, steps=1)
    start_S = sequences(store, one.length, HISTORY, torch.Generator())[:1]
    a, b = (one.dream(start_S, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert torch.equal(a.following, b.following)


def test_a_dream_goes_on_where_it_was_stopped(
    world: World, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PART", 1)
    monkeypatch.setattr(module, "_TOGETHER", 2)
    one = dreamer(world, store)
    told: list[int] = []
    few = dream_moments(one, store, tmp_path, count=1, seed=3, say=told.append)
    assert len(few) == 14 and told == [14]
    first = tmp_path / "0000.safetensors"
    was = first.stat().st_mtime_ns
    more = dream_moments(one, store, tmp_path, count=15, seed=3, say=told.append)
    assert len(more) == 28 and first.stat().st_mtime_ns == was
    assert torch.equal(more.following[:14], few.following)
    again = dream_moments(one, store, tmp_path / "again", count=15, seed=3)
    assert all(
        torch.equal(x, y) for x, y in zip(vars(more).values(), vars(again).values(), strict=True)
    )
    starts = sequences(store, one.length, HISTORY, torch.Generator())
    twice = dream_moments(one, store, tmp_path, count=14 * len(starts), seed=3)
    times = torch.bincount(twice.row)
    assert times[times > 0].min() == 2  # more than there are: all again, with other noise
    row = int(twice.row[0])
    one_time, other = (twice.row == row).nonzero()[:2].squeeze(1).tolist()
    assert not torch.equal(twice.following[one_time], twice.following[other])
    first.write_bytes(b"damaged")
    with pytest.raises(AgentError, match="take it away, and it is dreamed again"):
        dream_moments(one, store, tmp_path, count=1, seed=3)


def test_workers_dream_the_same(
    world: World, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PART", 1)
    monkeypatch.setattr(module, "_TOGETHER", 2)
    importable = partial(learned_from, args=Args(**SMALL), full_reward=1.0)  # this file may not be
    one = Dreamer(world, store, importable, history=HISTORY)
    alone = dream_moments(one, store, tmp_path / "alone", count=40, seed=3)
    shared = dream_moments(one, store, tmp_path / "shared", count=40, seed=3, workers=2)
    for name, value in vars(alone).items():
        other = getattr(shared, name)
        assert torch.allclose(value.float(), other.float(), atol=5e-3), name  # float16
    assert torch.equal(alone.row, shared.row)
    assert len(list((tmp_path / "shared").iterdir())) == 3


def die(chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor]:
    os._exit(1)


def test_a_worker_that_dies_is_told(world: World, store: Store, tmp_path: Path) -> None:
    one = Dreamer(world, store, die, history=HISTORY)
    with pytest.raises(AgentError, match="a worker that dreamed moments has died"):
        dream_moments(one, store, tmp_path, count=1, seed=3, workers=2)


def test_training_leaves_an_agent_that_can_go_on(
    world: World, store: Store, tmp_path: Path
) -> None:
    args = Args(**SMALL)
    agent = train(world, args, tmp_path / "one", store=store, show=False)
    assert agent.greedy and agent.description["kind"] == KIND
    told = json.loads((tmp_path / "one" / "agent.json").read_text())
    assert told["trained_in"] == "dream"
    assert told["trained"]["updates"] == 6 and "dreaming_seconds" in told["trained"]
    assert (
        told["trained"]["steps"] == 3 * len(sequences(store, 11, HISTORY, torch.Generator())) * 7
    )  # all that there are
    loaded = agents.load(tmp_path / "one", world=world)
    loaded.reset(2)
    acts = loaded.act(np.zeros((2, *world.config.latent_shape), np.float32))
    assert acts.shape == (2,)

    (tmp_path / "one" / "agent.json").unlink()
    with pytest.raises(AgentError, match="holds moments of another training"):
        train(world, Args(**SMALL | {"seed": 2}), tmp_path / "one", store=store, show=False)
    train(world, Args(**SMALL | {"updates": 3}), tmp_path / "two", store=store, show=False)
    train(world, args, tmp_path / "two", store=store, resume=True, show=False)
    again = json.loads((tmp_path / "two" / "agent.json").read_text())
    assert again["trained"]["updates"] == 6
    weights = (tmp_path / "two" / "agent.safetensors").read_bytes()
    kept = Args(**SMALL | {"margin": 0.01})  # how it plays may change when it has learned
    train(world, kept, tmp_path / "two", store=store, resume=True, show=False)
    again = json.loads((tmp_path / "two" / "agent.json").read_text())
    assert again["margin"] == 0.5 and again["args"]["margin"] == 0.01
    assert (tmp_path / "two" / "agent.safetensors").read_bytes() == weights
    with pytest.raises(AgentError, match="has gamma 0.95, not 0.9"):
        train(
            world, Args(**SMALL | {"gamma": 0.9}), tmp_path / "two", store=store, resume=True,
            show=False,
        )  # fmt: skip
    with pytest.raises(AgentError, match="no signals"):
        bad = Args(**SMALL | {"signal_weights": {"fame": 1.0}})
        train(world, bad, tmp_path / "three", store=store, show=False)
    assert not (tmp_path / "three").exists()


def test_an_agent_learns_by_the_values_of_another(
    world: World, store: Store, tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(world, Args(**SMALL), tmp_path / "first", store=store, show=False)
    held = Args(**SMALL | {"hold": 2, "updates": 4})
    train(world, held, tmp_path / "held", store=store, values=first, show=False)
    told = json.loads((tmp_path / "held" / "agent.json").read_text())
    assert told["values_of"] == {key: first.description[key] for key in ("args", "trained")}
    assert told["trained"]["steps"] == 3 * first.description["trained"]["steps"]  # both together

    def part(name: str, folder: str) -> dict[str, torch.Tensor]:
        tensors = read_tensors(tmp_path / folder / "training.safetensors")
        return {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(name + ".")}

    kept, before = part("target", "held"), part("average", "first")
    for key in before:
        assert torch.allclose(kept[key], before[key], atol=2e-3), key  # saved in 16 bits
    learned = part("network", "held")
    assert any(not torch.equal(learned[key], kept[key]) for key in kept)

    longer = dataclasses.replace(held, updates=6)
    train(world, longer, tmp_path / "held", store=store, resume=True, show=False)
    again = json.loads((tmp_path / "held" / "agent.json").read_text())
    assert again["trained"]["updates"] == 6 and again["values_of"] == told["values_of"]
    assert all(torch.equal(part("target", "held")[key], kept[key]) for key in kept)

    other = dataclasses.replace(held, gamma=0.5)
    with pytest.raises(AgentError, match=r"values of an agent with gamma 0.95, not 0.5"):
        train(world, other, tmp_path / "no", store=store, values=first, show=False)
    assert not (tmp_path / "no").exists()
    words = ["train-agent", "--world", str(trained / "world"), "--starts-from", str(trained)]
    words += ["--kind", "fitted-q", "--values", str(tmp_path / "first"), "--json"]
    settings = {k: v for k, v in SMALL.items() if k not in ("channels", "signal_weights")}
    sets = [f"--set={k}={v}" for k, v in (settings | {"hold": 2, "updates": 2}).items()]
    sets += ["--set=channels=[4,4]", '--set=signal_weights={"damage": -1.0}']
    assert main([*words, *sets, "--out", str(tmp_path / "told")]) == 0
    assert json.loads(capsys.readouterr().out)["updates"] == 2
    assert main([*words, *sets, "--set=hidden=16", "--out", str(tmp_path / "no")]) == 2
    assert "values of an agent with hidden 8, not 16" in capsys.readouterr().err
    assert main([*words, "--resume", "--out", str(tmp_path / "told")]) == 2
    assert "when it begins" in capsys.readouterr().err


def test_a_mirror_shows_the_frames_of_the_data(world: World, store: Store, tmp_path: Path) -> None:
    (tmp_path / "latents.npy").write_bytes(store.latents_path.read_bytes())
    other = dataclasses.replace(store, folder=tmp_path)
    mirrored = mirrored_latents(world, other, Console(quiet=True))
    assert mirrored.shape == store.latents().shape
    frames = np.ascontiguousarray(store.frames[5:6, :, :, ::-1])
    expected = world.encode(frames)[0].cpu().numpy()
    assert np.allclose(mirrored[5].astype(np.float32), expected, atol=5e-3)
    was = (tmp_path / "mirrored.npy").stat().st_mtime_ns
    mirrored_latents(world, other, Console(quiet=True))
    assert (tmp_path / "mirrored.npy").stat().st_mtime_ns == was

    prompts = world.card["prompts"]
    args = Args(**SMALL, mirror={prompts[1]: prompts[2]})
    agent = train(world, args, tmp_path / "agent", store=other, show=False)
    assert agent.description["args"]["mirror"] == {prompts[1]: prompts[2]}
    bad = Args(**SMALL, mirror={prompts[1]: "fly"})
    with pytest.raises(ConfigError, match="'fly', which is none of"):
        train(world, bad, tmp_path / "no", store=store, show=False)
    assert not (tmp_path / "no").exists()


def test_two_trainings_are_the_same(world: World, store: Store, tmp_path: Path) -> None:
    for name in ("one", "two"):
        train(world, Args(**SMALL), tmp_path / name, store=store, show=False)
    one, two = ((tmp_path / n / "agent.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two


def test_data_can_be_other_than_the_worlds(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is read into the agent's folder, and its tics are the agent's own if they are new."""
    other = record(tmp_path / "other", range(40, 60), name="toy-other-v0")
    words = ["train-agent", "--world", str(trained / "world"), "--kind", "fitted-q", "--json"]
    words += ["--set=moments=40", "--set=updates=2", "--set=batch_size=16", "--set=history=2"]
    assert main([*words, "--out", str(tmp_path / "known"), "--data", str(data)]) == 0
    assert json.loads(capsys.readouterr().out)["real_tics"] == 0
    new = ["--data", str(data), "--data", str(other)]
    out = tmp_path / "new"
    assert main([*words, "--out", str(out), *new]) == 0
    told = json.loads(capsys.readouterr().out)
    world = load(trained / "world")
    both = encoded_store(world, out)
    assert told["real_tics"] == sum(tics_by_source(both).values()) - int(
        encoded_store(world, trained).valid.sum()
    )
    said = json.loads((out / "agent.json").read_text())
    assert said["data"] == {"toy-other-v0": told["real_tics"]}
    held, values = tmp_path / "held", ["--values", str(out), "--set=hold=2"]
    assert main([*words, "--out", str(held), "--data", str(data), *values]) == 0
    assert json.loads(capsys.readouterr().out)["real_tics"] == told["real_tics"]
    # the latents are those that the world's training saw, but for its weights' bfloat16
    first = encoded_store(world, trained).latents().astype(np.float32)
    assert np.allclose(both.latents()[: len(first)], first, atol=0.05)
    assert main([*words[:-3], "--set=batch_size=16", "--set=history=2", "--set=moments=40",
                 "--set=updates=3", "--out", str(out), "--resume"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["updates"] == 3
    both_named = [*words, "--out", str(tmp_path / "no"), *new, "--starts-from", str(trained)]
    assert main(both_named) == 2
    assert "without --starts-from" in capsys.readouterr().err


def test_the_command_trains_and_says_what_it_needs(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train-agent", "--world", str(trained / "world"), "--kind", "fitted-q"]
    words += ["--out", str(tmp_path / "agent")]
    assert main(words) == 2
    assert "--starts-from" in capsys.readouterr().err
    words += ["--starts-from", str(trained)]
    assert main([*words, "--steps", "3"]) == 2
    assert "is not known to --kind fitted-q" in capsys.readouterr().err
    assert main([*words, "--eventful", "0.5"]) == 2
    assert "goes with clips" in capsys.readouterr().err
    settings = [f"--set={k}={v}" for k, v in SMALL.items() if k in ("moments", "updates")]
    assert main([*words, *settings, "--set", "batch_size=16", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["updates"] == 6
    assert main([*words, "--resume", "--set", "updates=8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["updates"] == 8
