"""The table that is quoted, and its plot, from the rows that `agents/results.py` keeps.

Rows of one label, policy, world and kind of training make one line; its seeds are trainings that
differ in nothing else. The quoted scores are those on final seeds; rows on validation seeds only
add to what a line says that it cost, unless the table is asked for just those.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from magi_world.agents.evaluation import Row, digits, format_difference
from magi_world.errors import AgentError, missing_package
from magi_world.evaluation.scores import Returns, difference, estimate, iqm, ratio

Line = dict[str, Any]

ORDER = (
    "no-op", "uniform", "sticky", "best sweep", "linear controller", "PPO in the dream",
    "Q learning in the dream", "PPO in the real game",
)  # fmt: skip
"""labels from top to bottom; one that goes on behind such a label follows it, others come last"""
PLACES = ("dream", "real")


def make_lines(rows: Sequence[Row], seeds: str = "final") -> list[Line]:
    """Gather the rows on those seeds, "final" or "validation", into the lines of the table.

    A line holds `label`, `policy`, `world` and `vae` (hashes), `seeds` (how many trainings),
    `steps` and `real_tics` (mean of a training), `validation_tics` (all together), `dream` and
    `real` (None, or `episodes`, `mean` and `iqm`, these two with `value`, `low` and `high`),
    `by_seed` (mean return of each training by place), `above_sweep` (None, or how far the real mean
    lies above that of the best sweep, with its interval), `below_best` (the same beside the line of
    the highest real mean; None for that line itself and for blind players, who do not count) and
    `dream_over_real` (None, or the ratio of the means of those trainings that have both, with its
    interval).

    Raises:
        AgentError: no row is on those seeds.
    """
    chosen = [row for row in rows if row["seeds"] == seeds]
    if not chosen:
        raise AgentError(f"none of the {len(rows)} recorded rows is on {seeds} seeds")
    groups = [(group, _by_training(group)) for group in _groups(chosen)]
    sweeps, bests = _best_sweeps(chosen), _best_seeing(groups)
    lines = []
    for group, scores in groups:
        first = group[0]
        sweep, best = sweeps.get(first["game"]), bests.get(first["game"])
        trainings = {row["seed"]: row for row in group}.values()
        real = list(scores["real"].values())
        above = below = None
        if real and sweep is not None and first["kind"] != "sweep":
            above = asdict(difference(real, [sweep]))
        seeing = first["policy"] != "blind"
        if real and seeing and best is not None and scores["real"] is not best:
            below = asdict(difference(real, list(best.values())))
        lines.append(
            {
                "label": first["label"],
                "policy": first["policy"],
                "world": _first(row["world_hash"] for row in group),
                "vae": _first(row["vae_hash"] for row in group),
                "seeds": 0 if first["seed"] is None else len(trainings),
                "steps": _mean(row["steps"] for row in trainings),
                "real_tics": _mean(row["real_tics"] for row in trainings),
                "validation_tics": _validation_tics(group, rows),
                **{place: _score(scores[place]) for place in PLACES},
                "by_seed": _by_seed(scores),
                "above_sweep": above,
                "below_best": below,
                "dream_over_real": _dream_over_real(scores),
            }
        )
    return sorted(lines, key=lambda line: (_rank(line["label"]), line["label"], line["policy"]))


def by_place(rows: Sequence[Row], seeds: str = "final") -> list[tuple[str, str, str, list[float]]]:
    """Label, policy, place and all returns on those seeds of each line, in the table's order."""
    found = []
    for group in _groups([row for row in rows if row["seeds"] == seeds]):
        label, policy = group[0]["label"], group[0]["policy"]
        for place in PLACES:
            returns = [value for row in group if row["where"] == place for value in row["returns"]]
            if returns:
                found.append((label, policy, place, returns))
    return sorted(found, key=lambda one: (_rank(one[0]), *one[:3]))


def format_lines(lines: Sequence[Line], seeds: str = "final") -> Table:
    """The lines as one table for people, some 190 columns wide.

    On validation seeds, where settings are compared, differences are those to the best line. A
    column of numbers that no line has is left out.
    """
    several = len({line["world"] for line in lines if line["world"]}) > 1
    table = Table(
        box=box.SIMPLE,
        title=f"Return of an episode, on {seeds} seeds",
        caption="in brackets 95 % bootstrap intervals over seeds and, within them, episodes",
    )
    for name in ("agent", "policy", *(["world"] if several else [])):
        table.add_column(name, overflow="fold")
    beside = "above sweep" if seeds == "final" else "below the best"
    numbers = (
        "in the dream", "in reality", "dream / real", "IQM of seeds", beside, "n", "seeds",
        "steps", "real tics", "validation",
    )  # fmt: skip
    n = digits(line[place]["mean"]["high"] for line in lines for place in PLACES if line[place])
    rows = []
    for line in lines:
        real, share = line["real"], line["dream_over_real"]
        above = line["above_sweep" if seeds == "final" else "below_best"]
        cells = [
            _interval(line["dream"], "mean", n),
            _interval(real, "mean", n),
            "" if share is None else _interval({"ratio": share}, "ratio", 2),
            _interval(real, "iqm", n) if line["seeds"] > 1 else "",
            "" if above is None else format_difference(**above, n=n) + _verdict(above, seeds),
            str((real or line["dream"])["episodes"]),
            str(line["seeds"] or ""),
            _count(line["steps"]),
            _count(line["real_tics"]),
            _count(line["validation_tics"]),
        ]
        rows.append(cells)
    kept = [column for column in range(len(numbers)) if any(cells[column] for cells in rows)]
    for column in kept:
        table.add_column(numbers[column], justify="right", no_wrap=True)
    for line, cells in zip(lines, rows, strict=True):
        world = [(line["world"] or "")[:6]] if several else []
        words = [line["label"], line["policy"], *world, *(cells[column] for column in kept)]
        table.add_row(*map(Text, words))  # Text, because brackets in a plain string are markup
    return table


def format_replayed(rows: Sequence[Row]) -> Table:
    """What `replay` found, as one table for people."""
    table = Table(box=box.SIMPLE, title="Played again: mean return")
    for name in ("agent", "where"):
        table.add_column(name, overflow="fold")
    for name in ("recorded", "replayed", "same returns"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("note", overflow="fold")
    n = digits(row["recorded"] for row in rows)
    for row in rows:
        played = "same" in row
        table.add_row(
            Text(f"{row['label']} ({row['agent']})"),
            row["where"],
            f"{row['recorded']:.{n}f}",
            f"{row['replayed']:.{n}f}" if played else "",
            f"{row['same']} of {row['episodes']}" if played else "",
            row["note"],
        )
    return table


def plot_lines(lines: Sequence[Line], path: Path) -> None:
    """Draw the real return of each training over its dreamed one, with both intervals of a line.

    Raises:
        AgentError: no line has both, or a picture of a kind that Matplotlib does not draw.
        MissingPackage: Matplotlib is absent.
    """
    both = [line for line in lines if line["dream"] and line["real"]]
    if not both:
        raise AgentError("no agent was scored in the dream and in reality: nothing to plot")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package("matplotlib", "eval", "the plot") from error
    figure = Figure(figsize=(7.0, 7.5), layout="constrained")
    kinds = FigureCanvasAgg(figure).get_supported_filetypes()
    if path.suffix[1:] not in kinds:
        raise AgentError(f"{path} is no picture that can be drawn: end it in .png, .pdf or .svg")
    axes = figure.add_subplot()
    colours = [f"C{index}" for index in range(10)]
    markers = "os^DvPX*"
    for index, line in enumerate(both):
        x, y = line["dream"]["mean"], line["real"]["mean"]
        style: dict[str, Any] = {
            "color": colours[index % len(colours)], "marker": markers[index // len(colours) % 8],
        }  # fmt: skip
        axes.errorbar(
            x["value"],
            y["value"],
            xerr=[[x["value"] - x["low"]], [x["high"] - x["value"]]],
            yerr=[[y["value"] - y["low"]], [y["high"] - y["value"]]],
            label=f"{line['label']} ({line['policy']})",
            capsize=2,
            **style,
        )
        points = [place for place in line["by_seed"].values() if len(place) == len(PLACES)]
        if len(points) > 1:
            axes.scatter(
                [point["dream"] for point in points], [point["real"] for point in points],
                s=12, alpha=0.6, **style,
            )  # fmt: skip
    limit = max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([0, limit], [0, limit], color="grey", linewidth=0.8, linestyle="--", zorder=0)
    axes.set(
        xlabel="return in the dream", ylabel="return in reality",
        xlim=(0, limit), ylim=(0, limit), aspect="equal",
    )  # fmt: skip
    figure.legend(fontsize="small", loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of one line together.

    What was played in the real game belongs to the lines of all worlds of that VAE, and what no
    world has a part in to those of every world of the game.
    """
    shared: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("label", "policy", "kind", "args_hash", "game"))
        shared.setdefault(key, []).append(row)
    groups = []
    for alike in shared.values():
        seen = [row for row in alike if row["vae_hash"]]
        worlds = dict.fromkeys((*_eyes(row), row["world_hash"]) for row in seen)
        dreamed = {line[:2] for line in worlds if line[2]}
        lines = [line for line in worlds if line[2] or line[:2] not in dreamed]
        for *eyes, world in lines or [(None, None, None)]:
            groups.append(
                [
                    row for row in alike
                    if row["world_hash"] in (None, world)
                    and (row["vae_hash"] is None or _eyes(row) == tuple(eyes))
                ]
            )  # fmt: skip
    return groups


def _eyes(row: Row) -> tuple[Any, Any]:
    """Through what an agent saw, and where it was trained."""
    return row["vae_hash"], row["trained_world"]


def _by_training(group: Sequence[Row]) -> dict[str, dict[Any, Returns]]:
    """Returns of a line by place and seed of the training."""
    return {
        place: {row["seed"]: row["returns"] for row in group if row["where"] == place}
        for place in PLACES
    }


def _first(hashes: Iterable[str | None]) -> str | None:
    return next((known for known in hashes if known), None)


def _mean_of(by_seed: Mapping[Any, Returns]) -> float:
    return estimate(list(by_seed.values())).value


def _best_sweeps(rows: Sequence[Row]) -> dict[str, Returns]:
    """Returns of the best sweep in each real game."""
    best: dict[str, Returns] = {}
    for row in rows:
        if row["kind"] == "sweep" and row["where"] == "real":
            known = best.setdefault(row["game"], row["returns"])
            best[row["game"]] = max(known, row["returns"], key=lambda one: sum(one) / len(one))
    return best


def _best_seeing(
    groups: Sequence[tuple[Sequence[Row], Mapping[str, dict[Any, Returns]]]],
) -> dict[str, dict[Any, Returns]]:
    """Returns by seed of the line with the highest mean in each real game, blind ones left out."""
    best: dict[str, dict[Any, Returns]] = {}
    for group, scores in groups:
        if scores["real"] and group[0]["policy"] != "blind":
            known = best.setdefault(group[0]["game"], scores["real"])
            if _mean_of(scores["real"]) > _mean_of(known):
                best[group[0]["game"]] = scores["real"]
    return best


def _validation_tics(group: Sequence[Row], rows: Sequence[Row]) -> int:
    """Tics that choosing cost: what the rows declare, and rows of the label on validation seeds."""
    declared = max(int(row["validation_tics"]) for row in group)
    label, game = group[0]["label"], group[0]["game"]
    return declared + sum(
        int(row["played_tics"])
        for row in rows
        if row["seeds"] == "validation" and row["label"] == label and row["game"] == game
    )


def _score(by_seed: Mapping[Any, Returns]) -> dict[str, Any] | None:
    seeds = list(by_seed.values())
    if not seeds:
        return None
    return {
        "episodes": sum(map(len, seeds)),
        "mean": asdict(estimate(seeds)),
        "iqm": asdict(estimate(seeds, iqm)),
    }


def _dream_over_real(scores: Mapping[str, Mapping[Any, Returns]]) -> dict[str, float] | None:
    both = [seed for seed in scores["dream"] if seed in scores["real"]]
    if not both:
        return None
    share = ratio(*([scores[place][seed] for seed in both] for place in PLACES))
    return None if math.isnan(share.value) else asdict(share)


def _by_seed(scores: Mapping[str, Mapping[Any, Returns]]) -> dict[str, dict[str, float]]:
    means: dict[str, dict[str, float]] = {}
    for place, by_seed in scores.items():
        for seed, returns in by_seed.items():
            means.setdefault(str(seed), {})[place] = sum(returns) / len(returns)
    return means


def _mean(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known)) if known else None


def _verdict(apart: Mapping[str, float], seeds: str) -> str:
    """What a comparison of settings says where its interval holds 0."""
    unsure = seeds != "final" and apart["low"] <= 0 <= apart["high"]
    return ", not distinguishable" if unsure else ""


def _interval(score: Mapping[str, Any] | None, name: str, n: int) -> str:
    if score is None:
        return ""
    value, low, high = (score[name][key] for key in ("value", "low", "high"))
    return f"{value:.{n}f} [{low:.{n}f}, {high:.{n}f}]"


def _count(number: int | None) -> str:
    return f"{number:,}" if number else ""


def _rank(label: str) -> int:
    """Place of a label in `ORDER`; a longer one that begins like an entry belongs to it."""
    ranks = [index for index, name in enumerate(ORDER) if label.startswith(name)]
    return max(ranks, default=len(ORDER))
