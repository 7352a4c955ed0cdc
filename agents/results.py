"""Rows of results on disk: what an agent is, what it cost, and the return of each episode.

`magi-world evaluate-agent --record` writes them, one file of rows a topic under `docs/results`;
`agents/results_table.py` makes the table that is quoted of them, and `replay` plays them again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from magi_world.agents import FROZEN, Agent, load
from magi_world.agents.evaluation import BLIND, Row, evaluate_agents
from magi_world.agents.files import STARTS, settings_hash, vae_hash, world_hash
from magi_world.agents.frozen import Frozen
from magi_world.agents.random_agent import Sweep
from magi_world.disk import write_text
from magi_world.errors import AgentError
from magi_world.evaluation.scores import difference
from magi_world.training.collect import Game
from magi_world.world import World

IDENTITY = (
    "label", "kind", "policy", "where", "seeds", "first_seed", "game", "world_hash", "vae_hash",
    "trained_world", "args_hash", "seed", "real_tics",
)  # fmt: skip
"""what tells rows apart: of two rows that agree in all of it the later one stays"""

_NEEDED = (*IDENTITY, "agent", "steps", "validation_tics", "played_tics", "width", "returns")
_LABELS = {"noop": "no-op", "random": "uniform", "sticky": "sticky", "sweep": "best sweep"}
_SAME = 1e-3  # tics by which the return of a replayed episode may differ and still be the same


def result_row(
    world: World,
    agent: Agent,
    played: Row,
    *,
    label: str | None = None,
    validation_tics: int = 0,
    width: int,
) -> Row:
    """A row for the disk, from one of `evaluate_agents`.

    Args:
        world: where the agent played, or what it saw the real game through.
        agent: who played.
        played: the row of `evaluate_agents`.
        label: the line of the table to which the row belongs; None names it after the agent.
        validation_tics: tics of the real game that choosing this agent cost, beside those that
            rows on validation seeds tell of.
        width: episodes played side by side.

    Returns:
        The row: `label`, `agent` (its name or folder), `kind`, `policy`, `where`, `seeds`,
        `first_seed`, `width`, `world`, `game`, `world_hash` (of the world that it dreamed in, None
        in the real game), `vae_hash` (of what it saw through, None where a blind agent played the
        real game), `trained_world` (the hash of the world that it was trained in), `args_hash` and
        `seed` of its training, `steps`, `generations`, `real_tics` (that its training used, or that
        its world was made of), `validation_tics`, `played_tics` and `returns`.
    """
    inner = agent.agent if isinstance(agent, Frozen) else agent
    about = _about(inner, played["agent"])
    blind, real = isinstance(inner, BLIND), played["where"] == "real"
    if label is None:
        label = _label(about) + (", frozen" if inner is not agent else "")
    if isinstance(inner, Sweep):
        validation_tics += _sweep_tics(world)
    trained = about.get("trained", {})
    return {
        "label": label,
        "agent": _portable(played["agent"]),
        "kind": (FROZEN if inner is not agent else "") + about["kind"],
        "policy": played["policy"],
        "where": played["where"],
        "seeds": played["seeds"],
        "first_seed": played["first_seed"],
        "width": width,
        "world": world.name,
        "game": world.card["game"],
        "world_hash": None if real else world_hash(world),
        "vae_hash": None if real and blind else vae_hash(world),
        "trained_world": about.get("world_hash"),
        "args_hash": about["args_hash"],
        "seed": about.get("args", {}).get("seed"),
        "steps": trained.get("steps"),
        "generations": trained.get("generations"),
        "real_tics": _real_tics(about, world.card),
        "validation_tics": validation_tics,
        "played_tics": played["real_tics"],
        "returns": [round(tics, 3) for tics in played["returns"]],
    }


def record(path: Path, row: Row) -> None:
    """Add a row to a file, in place of the one with the same `IDENTITY`.

    The file, JSON with one row a line, is written under a temporary name and then renamed.
    """
    rows = read_rows(path) if path.exists() else []
    kept = [old for old in rows if identity(old) != identity(row)]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in [*kept, row])
    write_text(path, f"[\n{lines}\n]\n")


def identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a row from others."""
    return tuple(row.get(key) for key in IDENTITY)


def read_rows(path: Path) -> list[Row]:
    """Read the rows of one file.

    Raises:
        AgentError: it holds no rows.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AgentError(f"{path} holds no results: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise AgentError(f"{path} holds no results: it is no list of rows")
    for row in rows:
        if missing := [key for key in _NEEDED if key not in row]:
            raise AgentError(
                f"{path} holds no results as this version records them: a row lacks "
                f"{', '.join(missing)}"
            )
    return list(rows)


def read_results(folder: Path) -> list[Row]:
    """Read the rows of all files in a folder, by the files' names.

    Raises:
        AgentError: there are none, or a file holds something else.
    """
    rows = [row for path in sorted(folder.glob("*.json")) for row in read_rows(path)]
    if not rows:
        raise AgentError(f"no results in {folder}: evaluate-agent --record FILE writes them")
    return rows


def replay(
    world: World,
    rows: Sequence[Row],
    make_game: Callable[[], Game] | None,
    *,
    show: bool = True,
) -> list[Row]:
    """Play recorded rows again, with the same seeds and the same number of games side by side.

    Returns one row each: `label`, `agent`, `where`, `note`, `recorded` and `replayed` (means),
    `low` and `high` (95 % bootstrap interval of the difference), `same` and `episodes` (how many
    returns are the same, of how many). On the machine that recorded them all are; on another one
    rounding sets games apart. Where the world or the agent is not the recorded one, or is not here,
    nothing is played, and `note` says so.
    """
    return [_replay(world, row, make_game, show) for row in rows]


def _replay(world: World, row: Row, make_game: Callable[[], Game] | None, show: bool) -> Row:
    told = {key: row[key] for key in ("label", "agent", "where")}
    recorded = row["returns"]
    result = told | {"note": "", "recorded": float(np.mean(recorded)), "episodes": len(recorded)}
    hashes = (("world_hash", world_hash), ("vae_hash", vae_hash))
    if any(row[name] not in (None, of(world)) for name, of in hashes):
        return result | {"note": "recorded with another world"}
    try:
        agent = load(row["agent"], world=world, greedy=row["policy"] == "greedy")
    except AgentError as error:
        return result | {"note": f"cannot be played: {error}"}
    (played,) = evaluate_agents(
        world, {row["agent"]: agent}, where=[row["where"]], episodes=len(recorded),
        seeds=row["seeds"], make_game=make_game, batch=row["width"], games=row["width"], show=show,
    )  # fmt: skip
    found = result_row(world, agent, played, label=row["label"], width=row["width"])
    changed = [key for key in IDENTITY if found[key] != row[key]]
    if changed:
        return result | {"note": f"the agent is another one: {', '.join(changed)} changed"}
    apart = difference([found["returns"]], [recorded])
    same = np.isclose(found["returns"], recorded, rtol=0, atol=_SAME)
    return result | {
        "replayed": float(np.mean(found["returns"])),
        "low": apart.low,
        "high": apart.high,
        "same": int(same.sum()),
    }


def _about(agent: Agent, name: str) -> dict[str, Any]:
    """What `agent.json` says of a trained agent, or the like for a baseline, with `args_hash`."""
    about: dict[str, Any] = dict(getattr(agent, "description", {}))
    if not about:
        about = {"kind": name.removeprefix(FROZEN)}
        about["args"] = {"period": agent.period} if isinstance(agent, Sweep) else {}
    settings = {"kind": about["kind"], "trained_in": about.get("trained_in"), **about["args"]}
    settings |= {name: about[name] for name in (STARTS,) if name in about}
    return about | {"args_hash": settings_hash(settings)}


def _label(about: Mapping[str, Any]) -> str:
    """The line of the table to which an agent belongs unless told otherwise."""
    if about["kind"] == "linear":
        updates = about.get("trained", {}).get("generations")
        several = "" if updates == 1 else "s"
        return "linear controller" + (f", {updates:,} generation{several}" if updates else "")
    if about["kind"] not in ("ppo", "fitted-q"):
        return _LABELS.get(about["kind"], str(about["kind"]))
    if about.get("trained_in") == "real":
        return "PPO in the real game"
    temperature = about["args"].get("temperature", 1.0)
    name = "PPO" if about["kind"] == "ppo" else "Q learning"
    return f"{name} in the dream" + ("" if temperature == 1.0 else f", τ {temperature:g}")


def _real_tics(about: Mapping[str, Any], card: Mapping[str, Any]) -> int:
    """Tics of the real game behind an agent: its own, its world's, or none.

    A world's are those of its data and, where its card gives `real_tics` for the world that it was
    begun with, of that one's. An agent's own are also those of data that it dreams on from and the
    world did not learn from.
    """
    if "trained" not in about:
        return 0
    if about.get("trained_in") == "real":
        return int(about["trained"]["real_tics"])
    begun_with = card.get("training", {}).get("begun_with", {})
    own = int(about["trained"].get("real_tics", 0))
    return own + int(card.get("data", {}).get("real_tics", 0)) + int(begun_with.get("real_tics", 0))


def _sweep_tics(world: World) -> int:
    """Tics of the real game that the choice of the sweep's period cost, as the card tells it."""
    sweeps = world.card.get("sweeps", {}).values()
    chunk = world.config.chunk_frames
    return sum(round(row["n"] * (row["mean"] + chunk)) for row in sweeps)


def _portable(name: str) -> str:
    """An agent's folder as seen from the current one, where it lies below it; else the name."""
    prefix = FROZEN if name.startswith(FROZEN) else ""
    path = Path(name.removeprefix(FROZEN))
    if not path.is_dir() or not path.resolve().is_relative_to(Path.cwd()):
        return name
    return prefix + path.resolve().relative_to(Path.cwd()).as_posix()
