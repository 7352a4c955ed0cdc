"""What the verb `evaluate` hands to the report, and how it prints what came back."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from magi_world.cli.output import emit_pairs, emit_table

if TYPE_CHECKING:
    from magi_world.evaluation.branches import Branch
    from magi_world.evaluation.report import Game as ReportGame
    from magi_world.evaluation.report import Player
    from magi_world.training.collect import Game
    from magi_world.world import World

LENGTH_SEED = 600_000
"""first of the seeds on which dreamed and real lengths are compared; nothing is chosen by them"""

ALWAYS = ("noop", "sticky")
"""policies that every game has"""
PSNR_COLUMNS = ("psnr_1", "psnr_5", "psnr_20", "clips", "auc", "ends", "chunks")


def parse_counts(text: str | None, option: str) -> tuple[int, ...]:
    """Numbers from 1 with commas between; nothing for None.

    Raises:
        BadParameter: anything else; it names the option.
    """
    parts = [] if text is None else text.split(",")
    counts = tuple(int(part) if part.strip().isdecimal() else 0 for part in parts)
    if min(counts, default=1) < 1:
        raise typer.BadParameter(
            f"{text!r} is not numbers from 1 with commas between, such as 1,32",
            param_hint=f"'{option}'",
        )
    return counts


def report_game(
    world: "World",
    game: str | None,
    *,
    lengths: bool,
    sweeps: bool,
    films: bool,
    branches: bool,
    episodes: int,
    batch: int,
    steps: int | None,
) -> "ReportGame":
    """What the report needs of policies and of the real game, wired from agents and the game.

    The players are the no-op, sticky random, the blind sweep if its period is known, and the
    world's own agent if one ships with it. Only a shipped game is swept: in one's own the actions
    need not be left and right. In a world with players nobody plays: `evaluate-selfplay` does.
    """
    from magi_world import agents
    from magi_world.agents.evaluation import play_dream, play_real
    from magi_world.agents.random_agent import Sweep
    from magi_world.cli.games import real_game
    from magi_world.envs.games import GAMES
    from magi_world.evaluation.report import Game as ReportGame
    from magi_world.evaluation.report import Player
    from magi_world.evaluation.variants import with_sampling
    from magi_world.players import players_of

    if players_of(world.card):  # the policies here are those of one agent
        return ReportGame()
    shipped = world.name in GAMES
    sweeps = sweeps and shipped
    if not (lengths or sweeps or films or branches):
        return ReportGame()
    # films need no real game
    make_game: Any = real_game(world, game) if lengths or sweeps or branches else None
    dreamt = world if steps is None else with_sampling(world, num_steps=steps)

    always: dict[str, Any] = {name: agents.load(name, world=world) for name in ALWAYS}
    own = {"agent": agents.load(world.name, world=world)} if agents.has_agent(world) else {}

    def players(period: int | None) -> "Mapping[str, Player]":
        swept = {} if period is None or not shipped else {"sweep": Sweep(period)}
        chosen = always | swept | own
        common: dict[str, Any] = {"episodes": episodes, "first_seed": LENGTH_SEED}
        return {
            name: Player(
                policy=agent,
                dream=partial(play_dream, dreamt, agent, batch=batch, **common),
                real=partial(play_real, make_game, world, agent, **common),
            )
            for name, agent in chosen.items()
        }

    def play_sweep(period: int, first_seed: int, episodes: int) -> Any:
        return play_real(make_game, world, Sweep(period), episodes=episodes, first_seed=first_seed)

    return ReportGame(
        players=players,
        lengths=lengths,
        films=films,
        play_sweep=play_sweep if sweeps else None,
        branch=branch_player(make_game) if branches else None,
    )


def branch_player(make_game: "Callable[[], Game]") -> "Branch":
    """Plays branches of real episodes; the game starts with the first one and then stays."""
    from magi_world.evaluation.branches import Outcome

    games: list[Game] = []

    def play(seed: int, before: Sequence[int], action: int, chunks: int) -> Outcome:
        game = games[0] if games else make_game()
        games[:] = [game]
        chunk = game.reset(seed)
        for earlier in before:
            chunk = game.step(earlier)
        health, reward = chunk.health, 0.0
        for _ in range(chunks):
            chunk = game.step(action)
            reward += float(chunk.reward)  # games with players are not branched
            if chunk.terminated or chunk.truncated:
                break
        return Outcome(reward, (health - chunk.health) / 100)

    return play


def print_report(report: Mapping[str, Any]) -> None:
    """Print the numbers that a person looks at first, then the tables."""
    if "reconstruction" in report:
        emit_pairs(headline(report))
        _print_table("termination by predicted probability", calibration_rows(report), (
            "from", "to", "predicted", "observed", "observed_low", "observed_high", "events", "n",
        ))  # fmt: skip
        title = "hazard by depth of the dream, counted while the real episode goes on"
        _print_table(title, hazard_rows(report), (
            "depth", "n", "ends", "ends_predicted", "ends_ratio", "ends_low", "ends_high",
            "hits", "damage", "damage_predicted", "damage_ratio", "damage_low", "damage_high",
        ))  # fmt: skip
        if "branches" in report:
            title = (
                f"held actions over {report['branches']['chunks']} chunks: what the dream's choice "
                "really gives"
            )
            _print_table(title, branch_rows(report), (
                "of", "n", "deciding", "random", "chosen", "best", "captured", "low", "high",
            ))  # fmt: skip
        title = "percent of pixels that move, and that move and are bright; ratios dream / real"
        _print_table(title, pixel_rows(report), (
            "depth", "n", "real", "vae", "dream", "ratio", "low", "high", "bright_real",
            "bright_vae", "bright_dream", "bright_ratio", "bright_low", "bright_high",
        ))  # fmt: skip
        title = (
            "share of the real bright moving pixels that are so in place: a fireball where it is"
        )
        if places := place_rows(report):
            _print_table(title, places, ("depth", "dream", "low", "high", "vae"))
        title = "share of the bright spots, by their size in pixels, that are there too"
        if spots := spot_rows(report):
            _print_table(title, spots, ("depth", "pixels", "n", "dream", "low", "high", "vae"))
    if "kv_ranges" in report:
        table = report["kv_ranges"]
        title = (
            f"KV ranges, chunks; clips behind {table['prefix_chunks']} real chunks; DiT and heads "
            f"were trained at {', '.join(map(str, table['trained_at']))}"
        )
        _print_table(title, table["rows"], ("kv_range", *PSNR_COLUMNS))
    if "denoising_steps" in report:
        table = report["denoising_steps"]
        title = (
            f"denoising steps; hazard over {table['histories']} histories; frames of one slot, "
            f"agent steps with latents of {table['wide']} slots"
        )
        _print_table(title, table["rows"], (
            "steps", *PSNR_COLUMNS, "hazard_ratio", "hazard_low", "hazard_high", "hazard_ends",
            "hazard_n", "frames_per_s", "agent_steps_per_s",
        ))  # fmt: skip


def _print_table(title: str, rows: Any, columns: tuple[str, ...]) -> None:
    print(f"\n{title}")
    emit_table(rows, columns)


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a report that a person looks at first, by a short name."""
    return {
        **_picture_lines(report),
        **_place_lines(report.get("places", {})),
        **_end_lines(report),
        **_prompt_lines(report["prompt_effect"]),
        **_length_lines(report),
    }


def calibration_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The reliability bins of the termination probability."""
    rows: list[dict[str, Any]] = report["termination"]["calibration"]
    return rows


def hazard_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Ends and damage by depth, one flat row each; damage in players' whole health."""
    rows = []
    for depth, row in report["hazard"]["depths"].items():
        flat: dict[str, Any] = {"depth": depth, "n": row["n"]}
        for name, events, happened in (("ends", "ends", "ends"), ("damage", "hits", "damage")):
            sums = row[name]
            if sums is not None:
                low, high = sums["ratio_interval"]
                flat |= {
                    happened: sums["happened"], events: sums["events"],
                    f"{name}_predicted": sums["predicted"], f"{name}_ratio": sums["ratio"],
                    f"{name}_low": low, f"{name}_high": high,
                }  # fmt: skip
        rows.append(flat)
    return rows


def branch_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the dream's choice of an action earns, for reward and damage, one flat row each."""
    rows = []
    for name in ("reward", "damage"):
        row = report["branches"][name]
        if row is not None:
            low, high = row["captured_interval"]
            rows.append({"of": name, **row, "low": low, "high": high})
    return rows


def pixel_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Shares of moving and of bright moving pixels by depth, in percent, one flat row each."""
    rows = []
    for depth, row in report["hazard"]["depths"].items():
        flat: dict[str, Any] = {"depth": depth, "n": row.get("moving", {}).get("n", 0)}
        for name, start in (("moving", ""), ("bright_moving", "bright_")):
            if name in row:
                low, high = row[name]["ratio_interval"]
                flat |= {start + view: 100 * row[name][view] for view in ("real", "vae", "dream")}
                flat |= {f"{start}ratio": row[name]["ratio"], f"{start}low": low}
                flat[f"{start}high"] = high
        rows.append(flat)
    return rows


def place_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Bright moving pixels in their place by depth, one flat row each; none of older reports."""
    rows = []
    for depth, row in report["hazard"]["depths"].items():
        if (placed := row.get("bright_in_place")) is not None:
            low, high = placed["ratio_interval"]
            flat = {"depth": depth, "dream": placed["ratio"], "vae": placed["vae"]}
            rows.append({**flat, "low": low, "high": high})
    return rows


def spot_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Shares of bright spots found again by depth and size, one flat row each; none of older
    reports, and none of sizes that did not occur."""
    return [
        {
            "depth": depth, "pixels": size, "n": spots["n"], "dream": spots["ratio"],
            "vae": spots["vae"], "low": spots["ratio_interval"][0],
            "high": spots["ratio_interval"][1],
        }
        for depth, row in report["hazard"]["depths"].items()
        for size, spots in row.get("spots", {}).items()
        if spots["n"]
    ]  # fmt: skip


def _picture_lines(report: Mapping[str, Any]) -> dict[str, Any]:
    coding, ahead = report["reconstruction"], report["prediction"]
    mask = (
        f"change > {coding['moving_threshold']} of 255 within the chunk, "
        f"{100 * coding['moving_share']:.1f} % of pixels"
    )
    names = (("vae", "VAE"), ("pca", "patch PCA"))
    lines: dict[str, Any] = {}
    for key, name in names:
        lines[f"{name} PSNR, pooled, dB (n={coding['n']})"] = coding[key]["psnr"]
        lines[f"{name} PSNR, mean over chunks, dB (n={coding['n']})"] = coding[key]["mean_psnr"]
    for key, name in names:
        lines[f"{name} PSNR on moving pixels ({mask}), pooled, dB (n={coding['n']})"] = coding[key][
            "moving_psnr"
        ]
        lines[
            f"{name} PSNR on moving pixels, mean over chunks, dB (n={coding['moving_chunks']})"
        ] = coding[key]["moving_mean_psnr"]
    for distance, row in ahead["psnr_at"].items():
        name = f"open loop PSNR after {distance} chunks, dB (n={ahead['n']})"
        lines[name] = row["dream"]
        lines[f"copy-last PSNR after {distance} chunks, dB (n={ahead['n']})"] = row["copy_last"]
    return lines


def _place_lines(places: Mapping[str, Any]) -> dict[str, Any]:
    """Where things are, in pixels of a frame from where they really are."""
    views = {"VAE": places["vae"]} if places else {}
    for distance, row in places.get("dream", {}).items():
        views[f"dream after {distance} chunks"] = row
    lines: dict[str, Any] = {}
    for view, things in views.items():
        for thing, row in things.items():
            lines[f"{thing} off its place, {view}, px (n={row['n']})"] = (
                f"mean {_number(row['mean'])}, median {_number(row['median'])}, "
                f"missed {_number(row['missed'])}, invented {_number(row['invented'])}"
            )
    return lines


def _end_lines(report: Mapping[str, Any]) -> dict[str, Any]:
    ahead = report["termination"]
    count = f"(n={ahead['n']}, {ahead['terminal']} terminal chunks)"
    lines = {
        f"termination AUC, one dream {count}": ahead["auc"],
        f"termination AUC, mean of {ahead['draws']} dreams {count}": ahead["auc_expected"],
        f"AUC of the episode's age {count}": ahead["auc_age"],
    }
    everything = list(report["hazard"]["depths"].items())[-1]
    depth, ends = everything[0], everything[1]["ends"]
    low, high = ends["ratio_interval"]
    lines[f"ends predicted / happened, depth {depth} (n={ends['n']}, {ends['events']} ends)"] = (
        f"{_number(ends['ratio'])} [{_number(low)}, {_number(high)}]"
    )
    points = report.get("points") or {"players": {}}
    for player, row in points["players"].items():
        for kind in ("won", "lost"):
            name = f"points {kind} by {player} that the heads see one chunk ahead (n={row[kind]})"
            lines[name] = row[f"{kind}_seen"]
    return lines


def _prompt_lines(effect: Mapping[str, Any]) -> dict[str, Any]:
    lines: dict[str, Any] = {}
    groups = [
        (name, effect[name])
        for name in ("real_held_out", "real_clips_through_vae", "dreamed_with_real_actions")
    ]
    drawn = effect["drawn_actions"]
    groups += [
        (f"drawn actions, {name}", row)
        for name, row in drawn.items()
        if isinstance(row, dict) and "accuracy" in row
    ]
    for name, row in groups:
        each = ", ".join(f"{action} {own['n']}" for action, own in row["per_action"].items())
        lines[f"action named, {name.replace('_', ' ')} (n={row['n']}: {each})"] = row["accuracy"]
        if "of_real" in row:
            lines[f"  dreamed / real held-out, {name.replace('_', ' ')}"] = row["of_real"]
    if "unseen_minus_seen" in drawn:
        gain = drawn["unseen_minus_seen"]
        low, high = gain["interval"]
        lines[f"unseen minus seen paraphrases, points (n={gain['n']})"] = (
            f"{_number(gain['points'])} [{_number(low)}, {_number(high)}]"
        )
    for text, row in effect["no_action"].items():
        shares = ", ".join(f"{name} {_number(share)}" for name, share in row["named"].items())
        lines[f"{text!r} is taken for (n={row['n']})"] = shares
    return lines


def _length_lines(report: Mapping[str, Any]) -> dict[str, Any]:
    lines: dict[str, Any] = {}
    for name, row in report.get("lengths", {}).items():
        for place in ("dream", "real"):
            lines[f"return of {name}, {place} (n={row[place]['n']})"] = row[place]["mean"]
        low, high = row["ratio_interval"]
        lines[f"return of {name}, dream / real (n={row['dream']['n']}, {row['real']['n']})"] = (
            f"{_number(row['ratio'])} [{_number(low)}, {_number(high)}]"
        )
    if "sweep_period" in report:
        lines["best sweep period, chunks"] = report["sweep_period"]
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
