"""Rows of results as they lie on disk, made up."""

from typing import Any

from magi_world.agents.evaluation import Row


def a_row(**changes: Any) -> Row:
    row: Row = {
        "label": "PPO in the dream", "agent": "docs/results/agents/a", "kind": "ppo",
        "policy": "sampled", "where": "real", "seeds": "final", "first_seed": 10_000, "width": 10,
        "world": "tiny", "game": "Toy", "world_hash": None, "vae_hash": "v1",
        "trained_world": "w1",
        "args_hash": "a", "seed": 1, "steps": 1_000, "generations": None, "real_tics": 5_000,
        "validation_tics": 0, "played_tics": 700, "returns": [100.0, 200.0, 400.0],
    }  # fmt: skip
    return row | changes


def blind(label: str, kind: str, **changes: Any) -> Row:
    row = a_row(
        label=label, agent=kind, kind=kind, policy="blind", vae_hash=None, trained_world=None,
        seed=None, steps=None, real_tics=0,
    )  # fmt: skip
    return row | changes


def dreamed(world: str) -> Row:
    """What a row of the dream has that others have not."""
    return {"where": "dream", "world_hash": world, "vae_hash": "v1"}
