"""A whole training on a few dozen pictures: three stages, a world at the end, and resuming."""

import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from magi_world.checkpoints.tensors import read_tensors
from magi_world.errors import CheckpointError, DatasetError, RecipeError
from magi_world.training import dit_stage, run
from magi_world.training.dit_stage import DiTStage
from magi_world.training.episodes import FIRST_SEED, EpisodeData
from magi_world.training.outcome_stage import generate_examples
from magi_world.training.recipe import Recipe, load_recipe
from magi_world.training.recording import recording
from magi_world.training.run import train_world
from magi_world.training.store import Store, build_store, open_store
from magi_world.world import World, load

PROMPTS = ["rest", "left", "right"]
SIZE = 32
RECIPE = """
[card]
name = "toy"
game = "Toy"
description = "A square that moves."
prompts = ["rest", "left", "right"]
horizon = 20
reward_range = [0.0, 4.0]

[card.paraphrases]
"rest" = ["wait"]
"left" = ["go left", "to the left"]

[config]
height = 32
width = 32
fps = 35

[config.vae]
video_size = 32
video_length = 4
patch_size = 8
patch_length = 4
embed_dim = 16
depth = 1
num_heads = 2
mlp_ratio = 1.0
ln_in_attn = false
use_final_proj = true

[config.dit]
num_layers = 2
hidden_size = 16
ffn_hidden_size = 16
num_attention_heads = 2
num_query_groups = 1
kv_channels = 8
caption_channels = 8
caption_max_length = 257

[config.text]
d_model = 8
d_ff = 8
d_kv = 4
num_heads = 2
num_layers = 1

[config.sampling]
kv_range = 3
num_steps = 2
scale_factor = 1.0
null_prompt_tokens = 4

[config.outcome]
hidden_size = 32
num_queries = 2
signals = ["damage"]

[vae]
steps = 4
batch_size = 4
checkpoint_minutes = 0.0
sample_every = 2

[dit]
steps = 4
batch_size = 2
sequence = 4
paraphrases = 2
checkpoint_minutes = 0.0
sample_every = 2

[outcome]
steps = 4
batch_size = 8
chunks = 64
checkpoint_minutes = 0.0
"""


def episode(number: int, knows_health: bool = True) -> EpisodeData:
    """A white square on grey that the actions move; it dies in every second episode."""
    rng = np.random.default_rng(number)
    steps = 9 + number % 4
    actions = rng.integers(0, 3, steps)
    frames = np.full((steps + 1, 4, SIZE, SIZE, 3), 90, np.uint8)
    x = 12
    for chunk in range(steps + 1):
        for frame in range(4):
            if chunk:
                x = int(np.clip(x + [0, -1, 1][actions[chunk - 1]], 0, 24))
            frames[chunk, frame, 8:16, x : x + 8] = 230
    dies = number % 2 == 0
    valid = np.full(steps + 1, 4)
    valid[-1] = 2 if dies else 4
    health = np.linspace(100, 0 if dies else 40, steps + 1, dtype=np.float32)
    return EpisodeData(
        seed=FIRST_SEED + number, behaviour="toy", frames=frames, actions=actions,
        rewards=valid[1:].astype(np.float32), valid_frames=valid,
        health=health if knows_health else None, terminated=dies, truncated=not dies,
    )  # fmt: skip


def record(root: Path, numbers: Sequence[int], **keywords: Any) -> Path:
    """Write episodes as a Minari dataset."""
    with recording(
        root, "toy-v0", shape=(4, SIZE, SIZE, 3), num_actions=3, description="toy"
    ) as recorder:
        for number in numbers:
            recorder.add(episode(number, **keywords))
    return root / "toy-v0"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 episodes; the seeds of numbers 19 and 39 are held out."""
    return record(tmp_path_factory.mktemp("data"), [*range(22), 38, 39])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("recipe") / "toy.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return load_recipe(path)


def train(recipe: Recipe, data: Path | None, out: Path, **keywords: Any) -> World:
    folders = [] if data is None else [data]
    return train_world(recipe, folders, out, console=Console(file=io.StringIO()), **keywords)


@pytest.fixture(scope="module")
def trained(recipe: Recipe, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run from beginning to end."""
    out: Path = tmp_path_factory.mktemp("run") / "whole"
    train(recipe, data, out)
    return out


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {
        f"{path.name}:{name}": tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in read_tensors(path).items()
    }


def same_world(one: Path, other: Path) -> bool:
    mine, theirs = tensors_of(one / "world"), tensors_of(other / "world")
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


# -------------------------------------------------------------------- the world


def test_the_world_can_be_loaded_and_stepped(trained: Path) -> None:
    world = load(trained / "world")
    assert world.card["prompts"] == PROMPTS and world.config.chunk_frames == 4
    rollout = world.rollout(2, seeds=[0, 1])
    first = rollout.reset()
    assert first.frames.shape == (2, 4, SIZE, SIZE, 3)
    chunk = rollout.step(["left", "somewhere else"])
    assert chunk.latents.isfinite().all() and list(chunk.signals) == ["damage"]


def test_the_card_says_what_was_done(trained: Path, recipe: Recipe) -> None:
    card = json.loads((trained / "world" / "world.json").read_text(encoding="utf-8"))
    store = open_store(trained / "store")
    assert card["data"] == {**store.summary(), "datasets": {"toy-v0": card["data"]["real_tics"]}}
    assert card["data"]["episodes"] == 24 and card["data"]["held_out_episodes"] == 2
    assert card["training"]["recipe"] == "toy"
    for stage in ("vae", "dit", "outcome"):
        assert card["training"][f"{stage}_steps"] == 4
        assert card["training"][f"{stage}_minutes"] >= 0
    assert card["horizon"] == 20 and card["fps"] == 35
    assert recipe.config.sampling.scale_factor == 1.0  # the recipe itself is left alone
    assert "scale_factor" not in recipe.card


def test_latents_have_unit_deviation(trained: Path) -> None:
    world, store = load(trained / "world"), open_store(trained / "store")
    latents = store.latents().astype(np.float32)
    assert latents.shape == (len(store.action), *world.config.latent_shape)
    assert latents[~store.held_out].std() == pytest.approx(1.0, abs=2e-3)
    encoded = world.encode(np.ascontiguousarray(store.frames[:6])).numpy()
    # the world's weights are rounded to bfloat16, the store's latents are not
    assert np.abs(encoded - latents[:6]).max() < 0.05 * np.abs(latents[:6]).max()


def test_the_bank_holds_the_openings_and_clips(trained: Path) -> None:
    world, store = load(trained / "world"), open_store(trained / "store")
    bank = world.bank
    assert bank.num_openings == 1  # every episode begins with the same picture
    assert bank.latents[0].shape[0] == 1 and bank.prompts[0] == ("rest",)
    assert len(bank) > 20
    latents = torch.from_numpy(store.latents()).bfloat16().float()
    training = np.flatnonzero(~store.held_out)
    ends = set((store.offsets[1:] - 1).tolist())
    seen = set()
    length = world.config.sampling.kv_range - 1  # what the next chunk can see
    for index in range(1, len(bank)):
        clip, prompts = bank.clip(index)
        assert clip.shape[0] == length == len(prompts)
        rows = [row for row in training if torch.equal(latents[row], clip[0])]
        fits = [row for row in rows if torch.equal(latents[row : row + length], clip)]
        assert fits  # consecutive chunks of a training episode, in no case its last
        assert any(not ends & set(range(row, row + length)) for row in fits)
        assert any(
            prompts == tuple(PROMPTS[a] for a in store.action[row : row + length]) for row in fits
        )
        seen.add(clip.numpy().tobytes())
    assert len(seen) > 10


def test_what_a_run_leaves_behind(trained: Path) -> None:
    for stage in ("vae", "dit", "outcome"):
        assert (trained / f"{stage}.checkpoint.safetensors").is_file()
        assert list((trained / "tensorboard" / stage).glob("events.*"))
    assert not list(trained.rglob("*partial*"))


# -------------------------------------------------------------------- resuming


def test_a_run_is_not_overwritten(trained: Path, recipe: Recipe, data: Path) -> None:
    with pytest.raises(RecipeError, match="holds a run already: resume it"):
        train(recipe, data, trained)


def test_a_finished_run_resumes_to_the_same_world(
    trained: Path, recipe: Recipe, tmp_path: Path
) -> None:
    before = tensors_of(trained / "world")
    train(recipe, None, trained, resume=True)  # the store has the data
    after = tensors_of(trained / "world")
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_stage_by_stage_is_all_at_once(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "parts"
    train(recipe, data, out, stages=["vae"])
    with pytest.raises(RecipeError, match="stage 'dit' is not finished"):
        train(recipe, data, out, stages=["outcome"], resume=True)
    train(recipe, data, out, stages=["dit"], resume=True)
    train(recipe, data, out, stages=["outcome"], resume=True)
    assert same_world(trained, out)


def test_an_interrupted_run_resumes_to_the_same_world(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss: Callable[..., Any] = DiTStage.loss
    calls: Iterator[int] = iter(range(100))

    def interrupted(self: DiTStage, generator: torch.Generator) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return loss(self, generator)

    monkeypatch.setattr(DiTStage, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, data, tmp_path)
    assert not (tmp_path / "world").exists()
    torch.manual_seed(7)
    train(recipe, data, tmp_path, resume=True)
    assert same_world(trained, tmp_path)


def test_a_vae_that_learns_on_makes_new_latents(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    train(recipe, data, tmp_path, stages=["vae"])
    store = open_store(tmp_path / "store")
    before = store.latents()
    longer = replace(recipe, vae=replace(recipe.vae, steps=8))
    world = train(longer, data, tmp_path, stages=["vae"], resume=True)
    assert not np.array_equal(store.latents(), before)
    encoded = world.encode(np.ascontiguousarray(store.frames[:4])).numpy()
    latents = store.latents()[:4].astype(np.float32)
    assert np.abs(encoded - latents).max() < 0.05 * np.abs(latents).max()


def test_a_store_of_other_data_is_refused(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    train(recipe, data, tmp_path / "run", stages=["vae"])
    other = record(tmp_path / "other", range(20))
    with pytest.raises(RecipeError, match="other data"):
        train(recipe, other, tmp_path / "run", stages=["vae"], resume=True)


# -------------------------------------------------------------------- beginning with a world


def test_a_run_may_begin_with_a_world(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    """The VAE and the scale stay, the DiT goes on from where it was."""
    gentle = replace(recipe, dit=replace(recipe.dit, steps=1, learning_rate=1e-9))
    world = train(gentle, data, tmp_path, stages=["dit"], init=trained / "world")
    before, after = tensors_of(trained / "world"), tensors_of(tmp_path / "world")
    assert not (tmp_path / "vae.checkpoint.safetensors").exists()
    for name in before:
        if name.startswith(("vae", "dit", "text", "outcome")):
            assert torch.equal(before[name], after[name]), name
    first = load(trained / "world")
    assert world.config.sampling == first.config.sampling
    assert world.card["training"]["begun_with"] == {**first.card["training"], "real_tics": 0}
    datasets = world.card["data"]["datasets"]
    assert sum(datasets.values()) == world.card["data"]["real_tics"] > 0
    assert world.card["training"]["dit_steps"] == 1
    again = train(
        gentle, data, tmp_path, stages=["dit", "outcome"], init=trained / "world", resume=True
    )
    assert again.card["training"]["outcome_steps"] == 4


def test_the_tics_of_earlier_worlds_are_counted_once(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    """Data that an earlier world had and this one has too counts once, other data is added."""
    earlier = load(trained / "world")
    (name, tics), *_ = earlier.card["data"]["datasets"].items()
    earlier.card["data"]["datasets"] = {name: tics, "other-v0": 50}
    earlier.card["data"]["real_tics"] = earlier.card["data"]["real_tics"] + 50
    earlier.card["training"]["begun_with"] = {"real_tics": 7}
    earlier.save(tmp_path / "earlier")
    gentle = replace(recipe, dit=replace(recipe.dit, steps=1))
    world = train(gentle, data, tmp_path / "run", stages=["dit"], init=tmp_path / "earlier")
    assert world.card["training"]["begun_with"]["real_tics"] == 57


def test_a_world_of_another_shape_is_no_beginning(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    assert recipe.config.outcome is not None
    wider = replace(recipe.config, outcome=replace(recipe.config.outcome, hidden_size=48))
    with pytest.raises(CheckpointError, match="cannot be begun with"):
        train(replace(recipe, config=wider), data, tmp_path, init=trained / "world")
    bare = replace(recipe.config, outcome=None)
    train(replace(recipe, config=bare), data, tmp_path / "bare")
    with pytest.raises(CheckpointError, match="no outcome to begin with"):
        train(recipe, data, tmp_path / "full", init=tmp_path / "bare" / "world")


# -------------------------------------------------------------------- histories of its own


def test_histories_are_in_part_the_models_own(trained: Path, recipe: Recipe) -> None:
    world, store = load(trained / "world"), open_store(trained / "store")
    stages = {
        share: DiTStage(world, store, replace(recipe.dit, own_history=share, copies=2))
        for share in (0.0, 1.0)
    }
    seen = {}
    for share, stage in stages.items():
        given: list[Tensor] = []
        history = stage._history

        def spy(x: Tensor, *rest: Any, history: Any = history, given: Any = given) -> Tensor:
            out: Tensor = history(x, *rest)
            given.append((out != x).flatten(1).any(1))
            return out

        stage._history = spy  # type: ignore[assignment, method-assign]
        for seed in range(6):
            loss, _ = stage.loss(torch.Generator().manual_seed(seed))
            assert loss.isfinite() and loss.requires_grad
        seen[share] = torch.cat(given).float().mean().item()
    assert seen[0.0] == 0.0
    assert 0.2 < seen[1.0] < 0.8


def test_deep_histories_follow_generated_chunks(
    trained: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At depth k a chunk is generated over chunks that were generated at depth k - 1."""
    world, store = load(trained / "world"), open_store(trained / "store")
    stage = DiTStage(world, store, replace(recipe.dit, own_history=1.0, own_depth=3))
    given: list[Tensor] = []

    def count_up(world: World, shape: Any, history: Tensor, noise: Tensor, **_: Any) -> Tensor:
        given.append(history)
        S, L = shape  # one more than the chunk before it
        later: Tensor = history.unflatten(0, (S, L)).roll(1, dims=1).flatten(0, 1) + 1
        return later

    monkeypatch.setattr(dit_stage, "generate_one_step_ahead", count_up)
    x = torch.zeros(2 * 6, *world.config.latent_shape)
    depths = set()
    for seed in range(12):
        given.clear()
        history = stage._history(x, (2, 6), {}, torch.Generator().manual_seed(seed))
        assert len(given) <= 3 and torch.equal(given[0], x)
        assert history.unflatten(0, (2, 6))[:, 0].eq(0).all()  # nothing comes before the first
        assert history.max() <= len(given)
        depths.add(len(given))
    assert depths == {1, 2, 3}


def test_unusual_places_of_the_chunk_before_weigh_more(trained: Path, recipe: Recipe) -> None:
    world, store = load(trained / "world"), open_store(trained / "store")
    stage = DiTStage(world, store, replace(recipe.dit, unusual_weight=2.0))
    history = stage.mean_CPHW.repeat(2 * 5, 1, 1, 1, 1)
    history[1 * 5 + 2, :, 0, 1, 1] += 3.0  # sequence 1, chunk 2
    weight = stage._unusual(history, (2, 5)).unflatten(0, (2, 5))
    assert weight.mean().item() == pytest.approx(1.0, abs=0.1)
    usual = weight[0, 1, 0, 0]
    assert weight[1, 3, :3, :3].gt(2 * usual).all()  # the place and those beside it, one later
    weight[1, 3, :3, :3] = usual
    assert torch.allclose(weight[:, 1:], usual.expand_as(weight[:, 1:]))


def test_the_energy_objective_trains_the_worlds_own_sampler(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    settings = replace(
        recipe.dit, objective="energy", copies=2, own_history=1.0, own_depth=2, steps=2
    )
    energetic = replace(recipe, dit=settings)
    world = train(energetic, data, tmp_path, stages=["dit"], init=trained / "world")
    assert world.card["training"]["dit_steps"] == 2
    stage = DiTStage(world, open_store(trained / "store"), settings)
    loss, scalars = stage.loss(torch.Generator().manual_seed(0))
    loss.backward()
    assert 0 < loss.item() < 2 and set(scalars) == {"first_chunk", "last_chunk"}
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in world.dit.layers[0].parameters()
    )


def test_a_shallower_world_is_a_beginning(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    config = replace(recipe.config, dit=replace(recipe.config.dit, num_layers=4))
    gentle = replace(recipe, config=config, dit=replace(recipe.dit, steps=1, learning_rate=1e-9))
    world = train(gentle, data, tmp_path, stages=["dit"], init=trained / "world")
    assert len(world.dit.layers) == 4
    rows = [w.rollout(2, seeds=[1, 2]) for w in (world, load(trained / "world"))]
    first, deep = (row.reset(prompt="go left").latents for row in rows)
    assert torch.allclose(first, deep, atol=1e-4)


# -------------------------------------------------------------------- other data, other recipes


@pytest.mark.parametrize(
    ("stages", "words"),
    [(["vea"], r"unknown stages \['vea'\]; known are"), ([], "stages")],
)
def test_wrong_stages(
    recipe: Recipe, data: Path, tmp_path: Path, stages: list[str], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        train(recipe, data, tmp_path, stages=stages)


def test_data_without_health_teaches_no_signals(recipe: Recipe, tmp_path: Path) -> None:
    data = record(tmp_path / "data", range(20), knows_health=False)
    world = train(recipe, data, tmp_path / "run")
    assert world.config.outcome is not None and world.config.outcome.signals == ()


def test_data_without_a_held_out_part_says_so(recipe: Recipe, tmp_path: Path) -> None:
    data = record(tmp_path / "data", range(10))
    with pytest.raises(DatasetError, match="held.out"):
        train(recipe, data, tmp_path / "run")


def test_episodes_that_are_too_short_are_named(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    long = replace(recipe, dit=replace(recipe.dit, sequence=30))
    with pytest.raises(DatasetError, match="no episode has 30 chunks"):
        train(long, data, tmp_path / "a")
    # the outcome stage needs a sequence behind the reset chunk and another end than the last one
    longer = replace(recipe, dit=replace(recipe.dit, sequence=13))
    with pytest.raises(DatasetError, match="15 chunks"):
        train(longer, data, tmp_path / "b")


def test_a_recipe_without_a_text_encoder_is_refused(
    recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="no text encoder"):
        train(replace(recipe, config=replace(recipe.config, text=None)), data, tmp_path)


def test_a_world_may_have_no_outcome_heads(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    world = train(replace(recipe, config=replace(recipe.config, outcome=None)), data, tmp_path)
    rollout = world.rollout(1, seeds=[0])
    rollout.reset()
    chunk = rollout.step(["left"])
    assert world.outcome is None and (chunk.reward == 0).all() and not chunk.terminated.any()
    assert not (tmp_path / "outcome.checkpoint.safetensors").exists()


def test_a_stage_that_learns_on_does_not_leave_later_ones_behind(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(trained, tmp_path / "run"))
    longer = replace(recipe, dit=replace(recipe.dit, steps=6))
    with pytest.raises(RecipeError, match="later stages.*outcome.checkpoint.safetensors"):
        train(longer, data, out, resume=True)
    (out / "outcome.checkpoint.safetensors").unlink()
    world = train(longer, data, out, resume=True)
    assert world.card["training"]["dit_steps"] == 6


# -------------------------------------------------------------------- outcome examples


def long_store(folder: Path, world: World) -> Store:
    """A store of random latents: 60 training episodes of 20 to 50 chunks, half of them die."""
    rng = np.random.default_rng(0)

    def episodes() -> Iterator[EpisodeData]:
        for number in range(60):
            one = episode(number)
            steps = int(rng.integers(20, 50))
            yield replace(
                one, frames=np.zeros((steps + 1, 4, 1, 1, 3), np.uint8),
                actions=rng.integers(0, 3, steps), rewards=np.full(steps, 4, np.float32),
                valid_frames=np.full(steps + 1, 4), health=np.full(steps + 1, 90, np.float32),
            )  # fmt: skip

    store = build_store(episodes(), folder, lambda seed: False, 60 * 51)
    shape = (len(store.action), *world.config.latent_shape)
    np.save(store.latents_path, rng.standard_normal(shape).astype(np.float16))
    return store


def test_weighted_examples_are_as_deadly_as_the_data(trained: Path, tmp_path: Path) -> None:
    world = load(trained / "world")
    store = long_store(tmp_path, world)
    examples = generate_examples(world, store, length=8, chunks=800, held_out=False, seed=0)
    assert {name: len(tensor) for name, tensor in examples.items()} == dict.fromkeys(
        ["hidden", "reward", "terminal", "signals", "weight"], len(examples["weight"])
    )
    weight, terminal = examples["weight"], examples["terminal"]
    share = float((weight * terminal).sum() / weight.sum())
    assert share == pytest.approx(store.terminal.mean(), rel=0.15)
    assert terminal.mean() > 2 * store.terminal.mean()  # ends are drawn more often


def test_examples_are_generated_one_step_ahead(trained: Path, tmp_path: Path) -> None:
    """The generated half of the examples is what rollouts over the real history give."""
    from magi_world.training import outcome_stage

    world = load(trained / "world")
    S, L = 2, 6
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(S * L, *world.config.latent_shape, generator=generator)
    action = torch.randint(3, (S * L,), generator=generator)
    with torch.inference_mode():
        x, hidden = outcome_stage._one_step_ahead(
            world, real, action, (S, L), outcome_stage._captions(world),
            torch.Generator().manual_seed(5),
        )  # fmt: skip
        judged = world.judge(x, hidden[S * L :], [None] * (S * L))
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(5))
    rollout = world.rollout(S, seeds=range(S))
    rollout.reset(prompt="rest")
    for slot in range(S):
        rollout.cache.clear(slot)
    rollout.time = [0] * S
    by_time = [t.unflatten(0, (S, L)) for t in (real, noise, x)]
    probability = judged.termination_probability.view(S, L)
    for i in range(L):
        prompts = [PROMPTS[int(a)] for a in action.view(S, L)[:, i]]
        ahead = rollout.fork(range(S))
        with torch.no_grad():
            places = ahead._places(range(S))
            mine = ahead.sampler.denoise(by_time[1][:, i], prompts, places)
        torch.testing.assert_close(mine, by_time[2][:, i], rtol=1e-4, atol=1e-4)
        seen = ahead.observe(by_time[2][:, i], prompts).termination_probability
        torch.testing.assert_close(seen, probability[:, i], rtol=1e-4, atol=1e-4)
        rollout.observe(by_time[0][:, i], prompts)


def test_stages_of_one_process_do_not_disturb_each_other(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    """Masks that generation has used under inference mode serve training again."""
    wide = replace(recipe, dit=replace(recipe.dit, batch_size=16))  # as many as are generated
    train(wide, data, tmp_path / "one")
    train(wide, data, tmp_path / "two")
    assert same_world(tmp_path / "one", tmp_path / "two")


def test_modules_of_run_name_all_stages() -> None:
    assert run.STAGES == ("vae", "dit", "outcome")
