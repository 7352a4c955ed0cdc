"""A long life of many slots: resets, forks and restores at random, and nobody feels anybody else.

The long form makes a million chunks; run it alone, memory is compared:

    pytest -m slow tests/envs/test_soak.py
"""

import gc

import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence as equal

from magi_world.envs.vector_env import WorldVectorEnv
from magi_world.evaluation.bench import resident_bytes
from magi_world.world import World

SLOTS = 64


def new_env(world: World) -> WorldVectorEnv:
    return WorldVectorEnv(SLOTS, world, actions="discrete", observations="latent")


class Soak:
    """One environment, a twin to compare with, and the dice."""

    def __init__(self, world: World, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.env, self.twin = new_env(world), new_env(world)
        self.env.reset(seed=seed)
        self.done = dict.fromkeys(("steps", "resets", "forks", "restores", "compared"), 0)

    def some(self) -> list[int]:
        count = int(self.rng.integers(1, SLOTS // 4))
        return [int(slot) for slot in self.rng.choice(SLOTS, count, replace=False)]

    def actions(self) -> np.ndarray:
        return self.rng.integers(3, size=SLOTS)

    def step(self) -> None:
        self.env.step(self.actions())
        self.done["steps"] += 1

    def reset(self) -> None:
        """Some slots begin anew, every other time with seeds."""
        slots = self.some()
        seed = int(self.rng.integers(2**31)) if self.done["resets"] % 2 else None
        self.env.reset(seed=seed, options={"reset_mask": np.isin(np.arange(SLOTS), slots)})
        self.done["resets"] += 1

    def fork(self) -> None:
        """A branch lives for a while; the environment notices nothing."""
        slots = self.some()
        before = self.env.rollout.state_dict()
        branch = self.env.rollout.fork(slots, seeds=range(len(slots)))
        branch.reset([0])
        branch.step(["strafe left"] * len(slots))
        after = self.env.rollout.state_dict()
        assert all(before["cache"][name].equal(after["cache"][name]) for name in before["cache"])
        assert before["generators"].equal(after["generators"])
        self.done["forks"] += 1

    def restore(self) -> None:
        """The environment goes two steps, back, and the same two steps again."""
        state, plan = self.env.get_state(), [self.actions(), self.actions()]
        first = [self.env.step(actions) for actions in plan]
        self.env.set_state(state)
        assert equal([self.env.step(actions) for actions in plan], first, exact=True)
        self.done["steps"] += 4
        self.done["restores"] += 1

    def compare(self) -> None:
        """One slot beside its 63 companions, and beside 63 others who do other things."""
        slot = int(self.rng.integers(SLOTS))
        self.twin.set_state(self.env.get_state())
        others = np.arange(SLOTS) != slot
        seed = int(self.rng.integers(2**31))
        self.twin.reset(seed=seed, options={"reset_mask": others})
        for _ in range(3):
            actions = self.actions()
            changed = np.where(others, self.actions(), actions)
            one, other = self.env.step(actions), self.twin.step(changed)
            for part, twin in zip(one[:4], other[:4], strict=True):
                assert equal(part[slot], twin[slot], exact=True)
            self.done["steps"] += 2
        self.done["compared"] += 1

    def run(self, slot_steps: int) -> list[int]:
        """Go on for so many slot-steps; resident bytes after every tenth of them."""
        memory = []
        for tenth in range(1, 11):
            while self.done["steps"] * SLOTS < slot_steps * tenth / 10:
                self.step()
                for chance, event in (
                    (0.2, self.reset),
                    (0.05, self.fork),
                    (0.05, self.restore),
                    (0.05, self.compare),
                ):
                    if self.rng.random() < chance:
                        event()
            gc.collect()
            memory.append(resident_bytes())
        return memory


def test_a_short_soak(tiny_world: World) -> None:
    soak = Soak(tiny_world, seed=0)
    soak.run(64 * 20)
    for event in (soak.reset, soak.fork, soak.restore, soak.compare):
        event()
    assert all(soak.done.values())


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_million_slot_steps(tiny_world: World) -> None:
    soak = Soak(tiny_world, seed=1)
    memory = soak.run(1_000_000)
    print(soak.done, [round(b / 2**20, 1) for b in memory])
    assert memory[-1] < 1.02 * memory[1]  # the first tenth fills caches
    assert soak.done["compared"] > 100
