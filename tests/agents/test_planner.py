"""Planning: what is searched, what is imagined, and that chance is not foreseen."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magi_world.agents.planner import Planner, PlannerSettings
from magi_world.errors import AgentError, NotReset, ResetOptionError
from magi_world.world import World
from tests.tiny_duel import make_tiny_duel

PROMPTS = ["stand still", "strafe left", "strafe right"]


class Lock:
    """A rollout that pays for entering a code, `pay` at its last number, and may be deadly."""

    device = torch.device("cpu")

    def __init__(self, code: Sequence[int], batch_size: int = 1, deadly: int | None = None) -> None:
        self.code, self.batch_size, self.deadly = list(code), batch_size, deadly
        self.right = np.zeros(batch_size, int)
        self.forks: list[Lock] = []
        self.entered: list[list[int]] = []
        self.asked: dict[str, Any] = {}

    def fork(self, slots: Sequence[int], seeds: Sequence[int], **asked: Any) -> "Lock":
        fork = Lock(self.code, len(slots), self.deadly)
        fork.right = self.right[list(slots)].copy()
        fork.asked = {"seeds": list(seeds), **asked}
        self.forks.append(fork)
        return fork

    def step(self, prompts: Sequence[str]) -> SimpleNamespace:
        actions = np.array([PROMPTS.index(prompt) for prompt in prompts])
        self.entered.append(actions.tolist())
        now = [self.code[k] if k < len(self.code) else -1 for k in self.right]
        hit = actions == now
        self.right = np.where(hit, self.right + 1, self.right)
        dead = np.zeros(len(actions)) if self.deadly is None else actions == self.deadly
        return SimpleNamespace(
            reward=torch.tensor(hit & (self.right == len(self.code)), dtype=torch.float32),
            termination_probability=torch.tensor(dead, dtype=torch.float32),
            signals={"damage": torch.tensor(actions == 0, dtype=torch.float32)},
            latents=torch.tensor(actions, dtype=torch.float32)[:, None],
        )


def planner(**keywords: Any) -> Planner:
    """A planner over `Lock`'s prompts."""
    outcome = SimpleNamespace(signals=("damage",))
    world: Any = SimpleNamespace(
        card={"prompts": PROMPTS}, name="lock", config=SimpleNamespace(outcome=outcome)
    )
    made = Planner(world, **keywords)
    made.reset(1, seed=0)
    return made


def lock(code: Sequence[int], **keywords: Any) -> Any:
    return Lock(code, **keywords)


@settings(max_examples=20)
@given(code=st.lists(st.integers(0, 2), min_size=3, max_size=3), seed=st.integers(0, 99))
def test_both_searches_find_what_pays(code: list[int], seed: int) -> None:
    for method in ("shooting", "cem"):
        search = planner(method=method, horizon=3, futures=400, sticky=0.0)
        search.reset(1, seed=seed)
        plan = search.plan(lock(code))
        assert plan.sequences.tolist() == [code] and plan.actions.tolist() == code[:1]
        assert plan.returns.tolist() == [1.0]


def test_rounds_draw_after_the_best() -> None:
    """The cross-entropy method finds a code that as many blind draws do not."""
    code = [1, 2, 0, 1, 2, 0]

    class Hints(Lock):
        def fork(self, slots: Sequence[int], seeds: Sequence[int], **asked: Any) -> Lock:
            fork = super().fork(slots, seeds, **asked)
            step = fork.step

            def hinted(prompts: Sequence[str]) -> SimpleNamespace:
                before = fork.right.copy()
                chunk = step(prompts)
                chunk.reward = torch.tensor(fork.right - before, dtype=torch.float32)
                return chunk

            fork.step = hinted  # type: ignore[method-assign]
            return fork

    found = {}
    searches: dict[str, dict[str, Any]] = {
        "cem": {"futures": 40, "rounds": 8, "elites": 6},
        "shooting": {"method": "shooting", "futures": 320},
    }
    for name, keywords in searches.items():
        scores = []
        for seed in range(10):
            search = planner(horizon=6, sticky=0.0, **keywords)
            search.reset(1, seed=seed)
            hints: Any = Hints(code)
            scores.append(float(search.plan(hints).returns[0]))
        found[name] = np.mean(scores)
    assert found["cem"] > found["shooting"]


def test_a_death_ends_what_is_counted() -> None:
    """The deadly number opens the lock one chunk later: nobody lives to see it."""
    assert planner(horizon=2, futures=60).plan(lock([1, 2])).returns.tolist() == [1.0]
    assert planner(horizon=2, futures=60).plan(lock([1, 2], deadly=1)).returns.tolist() == [0.0]
    assert planner(horizon=2, futures=60).plan(lock([1, 2], deadly=2)).returns.tolist() == [1.0]


def test_discount_signals_and_value() -> None:
    code = [1, 1]
    assert planner(horizon=2, futures=60, gamma=0.5).plan(lock(code)).returns.tolist() == [0.5]
    hurt = planner(horizon=2, futures=60, signal_weights={"damage": 3.0}).plan(lock(code))
    assert hurt.sequences.tolist() == [[0, 0]] and hurt.returns.tolist() == [6.0]

    def value(latents: Tensor) -> Tensor:
        assert latents.shape == (60, 2, 1)
        return 10.0 * (latents[:, -1, 0] == 2)

    valued = planner(horizon=2, futures=60, gamma=0.5, value=value).plan(lock(code))
    assert valued.sequences[0, -1] == 2 and valued.returns.tolist() == [2.5]
    doomed = planner(horizon=2, futures=60, value=value).plan(lock(code, deadly=2))
    assert doomed.returns.tolist() == [1.0]  # what comes after a death is worth nothing


@pytest.mark.parametrize("method", ["cem", "shooting"])
def test_a_plan_is_carried_over(method: str) -> None:
    search, here = planner(method=method, horizon=3, futures=50), lock([1, 2, 1])
    plan = search.plan(here)
    following = lock([2, 1])
    search.plan(following)
    first = [row[0] for row in following.forks[0].entered]
    assert first == [*plan.sequences[0, 1:], plan.sequences[0, -1]]
    search.reset(1, seed=1)
    fresh = lock([2, 1])
    search.plan(fresh)
    assert [row[0] for row in fresh.forks[0].entered] != first  # a new episode, a new plan


def test_futures_share_a_rounds_noise_and_rounds_differ() -> None:
    search = planner(futures=5, rounds=3, steps=2, temperature=0.5)
    search.reset(2, seed=7)
    here = lock([1], batch_size=4)
    search.plan(here, slots=[3, 1])
    seeds = [fork.asked["seeds"] for fork in here.forks]
    assert len(seeds) == 3 and all(fork.batch_size == 10 for fork in here.forks)
    rows = [set(round_seeds[start : start + 5]) for round_seeds in seeds for start in (0, 5)]
    assert all(len(row) == 1 for row in rows) and len(set.union(*rows)) == 6
    assert here.forks[0].asked["steps"] == 2 and here.forks[0].asked["temperature"] == 0.5


# ---------------------------------------------------------------- in a world


def small(world: World, **keywords: Any) -> Planner:
    return Planner(world, **({"futures": 4, "horizon": 2, "rounds": 2, "elites": 2} | keywords))


def test_holding_asks_each_prompt_and_dreams_are_averaged() -> None:
    search = planner(method="hold", horizon=2, dreams=3, signal_weights={"damage": -1.0})
    world = lock([2])
    plan = search.plan(world)
    # one row, three prompts, each dreamed three times: standing still costs damage, right pays
    assert world.forks[0].entered == [[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 2
    seeds = world.forks[0].asked["seeds"]
    assert seeds[:3] == seeds[3:6] == seeds[6:] and len(set(seeds)) == 3
    assert plan.actions.tolist() == [2] and plan.returns.tolist() == [1.0]

    class Chancy(Lock):
        """Pays what the noise says, the same to everybody, and nothing to the first prompt."""

        def fork(self, slots: Sequence[int], seeds: Sequence[int], **asked: Any) -> Lock:
            fork = super().fork(slots, seeds, **asked)
            luck = torch.tensor([float(seed % 7) for seed in seeds])

            def step(prompts: Sequence[str]) -> SimpleNamespace:
                chunk = Lock.step(fork, prompts)
                moved = torch.tensor([prompt != PROMPTS[0] for prompt in prompts])
                chunk.reward = luck * moved
                return chunk

            fork.step = step  # type: ignore[method-assign]
            return fork

    chancy: Any = Chancy([0], 2)
    search = planner(method="hold", horizon=1, dreams=2)
    search.reset(2, seed=5)
    plan = search.plan(chancy)
    drawn = np.array(chancy.forks[0].asked["seeds"]).reshape(2, 3, 2) % 7
    assert plan.returns.tolist() == drawn[:, 1].mean(axis=1).tolist()


def test_chance_is_not_foreseen_and_the_rollout_is_not_touched(tiny_world: World) -> None:
    rollout = tiny_world.rollout(2, seeds=[4, 5])
    rollout.reset()
    rollout.step(PROMPTS[:2])
    before = rollout.state_dict()
    seen: list[Tensor] = []

    def value(latents: Tensor) -> Tensor:
        seen.append(latents[:, 0])
        return torch.zeros(len(latents))

    search = small(tiny_world, value=value)
    for seed in (4, 0):  # the rollout's own seed too
        search.reset(2, seed=seed)
        search.plan(rollout)
    after = rollout.state_dict()
    assert torch.equal(before["generators"], after["generators"])
    assert all(torch.equal(before["cache"][k], after["cache"][k]) for k in ("filled", "newest"))
    twins = {p: rollout.fork([0, 1]).step([p] * 2).latents for p in PROMPTS}
    for imagined in seen:
        for chunk in twins.values():  # whatever was done, no imagined chunk is the one to come
            assert (imagined[:, None] - chunk).abs().amax(dim=(-1, -2, -3, -4)).min() > 0.1


def test_real_chunks_are_planned_from(tiny_world: World) -> None:
    """What `act` was shown is a history observed chunk by chunk, under the actions returned."""
    torch.manual_seed(0)
    chunks = torch.randn(3, 2, *tiny_world.config.latent_shape)
    search, twin = small(tiny_world), small(tiny_world)
    search.reset(2, seed=3)
    twin.reset(2, seed=3)
    rollout = tiny_world.rollout(2, seeds=[8, 9])
    actions = None
    for chunk in chunks:
        if actions is None:
            for slot in (0, 1):
                rollout.reset([slot], latents=chunk[slot : slot + 1], prompts=["stand still"])
        else:
            rollout.observe(chunk, [PROMPTS[action] for action in actions])
        actions = search.act(chunk.numpy())
        assert actions.dtype == np.int64 and actions.shape == (2,)
        assert actions.tolist() == twin.plan(rollout).actions.tolist()
    search.reset(2, seed=3)
    again = search.act(chunks[0])
    search.reset(2, seed=3)
    assert search.act(chunks[0]).tolist() == again.tolist()


def test_a_history_of_latents(tiny_world: World) -> None:
    """It is the video that it was encoded from."""
    video = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    latents = tiny_world.encode(video.reshape(2, 4, 64, 64, 3))
    one, other = (tiny_world.rollout(1, seeds=[1]) for _ in range(2))
    first = one.reset(video=video, prompts=PROMPTS[:2])
    assert torch.equal(other.reset(latents=latents, prompts=PROMPTS[:2]).latents, first.latents)
    steps = [rollout.step(["strafe left"]).latents for rollout in (one, other)]
    assert torch.equal(*steps)
    for wrong, words in ((latents[:, :3], "expected"), (latents[:0], "expected")):
        with pytest.raises(ResetOptionError, match=words):
            one.reset(latents=wrong)
    with pytest.raises(ResetOptionError, match="1 prompts for a history of 2 chunks"):
        one.reset(latents=latents, prompts=PROMPTS[:1])
    with pytest.raises(ResetOptionError, match="at most one"):
        one.reset(latents=latents, clip=0)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"method": "luck"}, "method 'luck'"),
        ({"futures": 0}, "futures 0"),
        ({"horizon": 1.5}, "horizon 1.5"),
        ({"elites": 17}, "elites 17 of 16"),
        ({"gamma": 1.5}, "gamma 1.5"),
        ({"sticky": -1}, "sticky -1"),
        ({"signal_weights": {"joy": 1.0}}, r"no signals \['joy'\]"),
        ({"settings": PlannerSettings(), "futures": 3}, "give one form"),
    ],
)
def test_wrong_settings(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(AgentError, match=words):
        planner(**keywords)


@pytest.mark.parametrize("method", ["shooting", "hold"])
def test_only_refitting_needs_elites(method: str) -> None:
    search = planner(method=method, futures=2)
    search.reset(1, seed=0)
    search.plan(lock([1]))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda z: z.flatten(1).mean(1, keepdim=True), r"returned \(16, 1\)"),
        (lambda z: z.mean(), r"returned \(\)"),
        (lambda z: 3.0, "returned float"),
        (lambda z: z.flatten(1).mean(1) * torch.nan, "NaN or infinity"),
    ],
)
def test_a_value_is_one_number_a_future(tiny_world: World, value: Any, words: str) -> None:
    search = Planner(tiny_world, method="shooting", horizon=1, value=value)
    search.reset(1, seed=0)
    rollout = tiny_world.rollout(1, seeds=[0])
    rollout.reset()
    with pytest.raises(AgentError, match=words):
        search.plan(rollout)


def test_a_world_with_players_is_refused() -> None:
    with pytest.raises(AgentError, match="'pong-duel' has players"):
        Planner(make_tiny_duel())


def test_wrong_calls(tiny_world: World) -> None:
    search = small(tiny_world)
    latents = torch.zeros(1, *tiny_world.config.latent_shape)
    with pytest.raises(NotReset):
        search.act(latents)
    with pytest.raises(NotReset):
        search.plan(lock([1]))
    search.reset(2, seed=0)
    with pytest.raises(AgentError, match="expected"):
        search.act(latents)
    with pytest.raises(AgentError, match="1 slots, but the planner was reset for 2 rows"):
        search.plan(lock([1]))
    with pytest.raises(NotReset, match="never reset"):
        search.plan(tiny_world.rollout(2))
