"""The verb `evaluate-planner`: a planner in dream and game, beside players who see nothing."""

import time
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from magi_world.cli.evaluate import RealGame
from magi_world.cli.evaluate_agent import Seeds, print_table
from magi_world.cli.output import emit_json, emit_table
from magi_world.cli.scoring import GAMES
from magi_world.cli.worlds import AsJson, Device, DType, Steps

if TYPE_CHECKING:
    from magi_world.agents.planner import Planner

NAME = "planner"
BLIND = ("noop", "random", "sticky")
"""players beside a planner, unless others are named"""


class Method(StrEnum):
    """How sequences of prompts are searched."""

    CEM = "cem"
    SHOOTING = "shooting"
    HOLD = "hold"
    POLICY = "policy"


DRAWN = (Method.CEM, Method.SHOOTING)
"""methods that draw as many futures as they are told; the others have one a prompt"""


class Timed:
    """An agent whose answers are timed; it plays like the planner inside."""

    def __init__(self, agent: "Planner") -> None:
        self.agent = agent
        self.seconds, self.answers = 0.0, 0
        self._live = 0

    @property
    def observations(self) -> str:
        """The form that the planner reads."""
        return self.agent.observations

    @property
    def policy(self) -> str:
        """How the planner chooses, as tables print it."""
        return self.agent.policy

    def reset(self, n: int, seed: int | None = None) -> None:
        """Begin n episodes."""
        self.agent.reset(n, seed)
        self._live = n

    def retire(self, rows: Sequence[int]) -> None:
        """Plan no more for these rows, whose episodes have ended."""
        self.agent.retire(rows)
        self._live -= len(rows)

    def act(self, observations: Any) -> Any:
        """Answer, and count one answer for every row whose episode goes on."""
        begin = time.perf_counter()
        actions = self.agent.act(observations)
        self.seconds += time.perf_counter() - begin
        self.answers += self._live
        return actions


def evaluate_planner(
    world: Annotated[
        str, typer.Option(help="A world's name, or a folder with one.")
    ] = "doom-take-cover",
    method: Annotated[Method, typer.Option(help="How prompts are searched.")] = Method.CEM,
    futures: Annotated[int, typer.Option(min=1, help="Futures imagined at once, K.")] = 16,
    dreams: Annotated[
        int, typer.Option(min=1, help="Times that each future is imagined; the mean counts.")
    ] = 1,
    horizon: Annotated[int, typer.Option(min=1, help="Chunks that each looks ahead.")] = 4,
    commit: Annotated[
        int, typer.Option(min=1, help="Chunks of a plan that are carried out before the next.")
    ] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the cross-entropy method.")] = 3,
    elites: Annotated[int, typer.Option(min=1, help="Best futures that a round is fit to.")] = 4,
    signal: Annotated[
        list[str] | None,
        typer.Option(help="NAME=WEIGHT adds a signal of the world to the reward; again for more."),
    ] = None,
    guide: Annotated[
        str | None,
        typer.Option(
            help="Folder of an agent of PPO or Q learning, or the world's name for its own: its "
            "value counts beyond the horizon, with its discount and its weights of signals, and "
            "its policy goes on after the first prompt of --method policy."
        ),
    ] = None,
    steps: Steps = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Scale of the noise of what is imagined; that of the dream by default."
        ),
    ] = None,
    agent: Annotated[
        list[str] | None,
        typer.Option(help="Played beside it; noop, random and sticky by default."),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of each agent and place.")] = 20,
    real: Annotated[bool, typer.Option("--real", help="Only in the real game.")] = False,
    dream: Annotated[bool, typer.Option("--dream", help="Only in the dream.")] = False,
    seeds: Annotated[
        Seeds, typer.Option(help="final (10,000 + i) or validation (20,000 + i, for choosing).")
    ] = Seeds.FINAL,
    batch: Annotated[int, typer.Option(min=1, help="Dreams played side by side.")] = GAMES,
    game: RealGame = None,
    device: Device = None,
    dtype: DType = None,
    as_json: AsJson = False,
) -> None:
    """Plan in the world, act on the best, and print the returns beside those of blind players.

    Everything is planned in the dream; in the real game the planner sees each real chunk encoded.
    """
    from magi_world import agents
    from magi_world.agents.evaluation import evaluate_agents, format_table, load_agents
    from magi_world.agents.guide import Guide
    from magi_world.agents.planner import Planner
    from magi_world.cli.games import real_game
    from magi_world.evaluation.metrics import difference_interval
    from magi_world.world import load

    weights = parse_weights(signal or [])
    where = ["dream", "real"] if real == dream else ["real"] if real else ["dream"]
    loaded = load(world, device=device, dtype=dtype)
    make_game = real_game(loaded, game) if "real" in where else None  # asked before hours of dreams
    guiding = None if guide is None else Guide(agents.load(guide, world=loaded), loaded)
    gamma = 1.0
    if guiding is not None:
        gamma, weights = guiding.gamma, weights or dict(guiding.signal_weights)
    search = Planner(
        loaded, guide=guiding, method=method.value, futures=futures, dreams=dreams, horizon=horizon,
        commit=commit, rounds=rounds, elites=min(elites, futures), gamma=gamma,
        signal_weights=weights, steps=steps, temperature=temperature,
    )  # fmt: skip
    rows = []
    for place in where:
        timed = Timed(search)
        others = load_agents(loaded, list(BLIND) if agent is None else agent)
        played = evaluate_agents(
            loaded, {**others, NAME: timed},
            where=[place], episodes=episodes, seeds=seeds.value, batch=batch, games=GAMES,
            make_game=make_game if place == "real" else None,
        )  # fmt: skip
        planned = next(row for row in played if row["agent"] == NAME)
        best = max((row for row in played if row["agent"] != NAME), key=lambda row: row["mean"])
        low, high = difference_interval(planned["returns"], best["returns"])
        planned |= {
            "n": episodes, "method": method.value,
            "futures": futures if method in DRAWN else len(search.prompts), "guide": guide,
            "dreams": dreams, "plan_horizon": horizon, "commit": commit,
            "rounds": rounds if method == Method.CEM else 1,
            "denoising_steps": loaded.config.sampling.num_steps if steps is None else steps,
            "temperature": 1.0 if temperature is None else temperature,
            "signal_weights": weights, "seconds_per_action": timed.seconds / timed.answers,
            "best_other": best["agent"], "above_best": planned["mean"] - best["mean"],
            "above_best_low": low, "above_best_high": high,
        }  # fmt: skip
        rows += played
    if as_json:
        emit_json(rows)
        return
    print_table(format_table(rows))
    emit_table(
        [row for row in rows if row["agent"] == NAME],
        (
            "where", "n", "method", "guide", "futures", "dreams", "plan_horizon", "commit",
            "rounds", "denoising_steps", "temperature", "seconds_per_action", "best_other",
            "above_best", "above_best_low", "above_best_high",
        ),
    )  # fmt: skip


def parse_weights(given: list[str]) -> dict[str, float]:
    """Read `NAME=WEIGHT` options; raises typer's `BadParameter` for anything else."""
    weights = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            raise typer.BadParameter(
                f"{text!r} is not NAME=WEIGHT", param_hint="'--signal'"
            ) from None
    return weights
