"""The verb `train-agent`: agents that learn in a world, or in its real game."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from magi_world.cli.evaluate import RealGame
from magi_world.cli.output import emit_json, emit_pairs
from magi_world.cli.scoring import check_record, play_and_record
from magi_world.cli.settings import parse_settings
from magi_world.cli.worlds import AsJson, Device, DType
from magi_world.errors import AgentError

if TYPE_CHECKING:
    from magi_world.agents.fitted_q import Args as FittedQArgs
    from magi_world.agents.ppo_agent import PPOAgent
    from magi_world.training.store import Store
    from magi_world.world import World as LoadedWorld

World = Annotated[str, typer.Option(help="A world's name, or a folder with one.")]


class Kind(StrEnum):
    """What kind of agent is trained."""

    PPO = "ppo"
    FITTED_Q = "fitted-q"
    LINEAR = "linear"


_CLIPS, _SOON = 4000, 8


def train_agent(
    world: World = "doom-take-cover",
    *,
    out: Annotated[Path, typer.Option(help="Folder for the agent and its TensorBoard log.")],
    kind: Annotated[
        Kind,
        typer.Option(
            help="A network by PPO; the same by Q learning on moments of the world's data, whose "
            "actions are dreamed one chunk ahead; or a linear map by CMA-ES in the dream."
        ),
    ] = Kind.PPO,
    real: Annotated[
        bool, typer.Option("--real", help="Learn in the real game, seen through the world's VAE.")
    ] = False,
    self_play: Annotated[
        bool,
        typer.Option("--self-play", help="Learn all players of a world against itself (ppo)."),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from OUT, with its settings; time adds up.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Chunks to play, all slots together (ppo).")
    ] = None,
    generations: Annotated[
        int | None, typer.Option(min=1, help="Updates of the strategy (linear).")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.0, help="Stop after so long, if nothing else ends it.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seeds weights, actions and dreams; 1 by default.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Scale of the dream's noise; 1 by default.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other setting of agents/ppo.py, fitted_q.py or linear_training.py.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Settings of this world's agents: a shipped recipe's name or a TOML file; the "
            "world's own where one ships."
        ),
    ] = None,
    starts_from: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a train-world run: dreams begin in clips of its data, not only in the "
            "world's own; --kind fitted-q learns on its moments."
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="With --kind fitted-q, in place of --starts-from: folder of datasets, which are "
            "read and encoded into OUT; again for more."
        ),
    ] = None,
    values: Annotated[
        Path | None,
        typer.Option(
            help="With --kind fitted-q: folder of such an agent to begin with, by whose values it "
            "learns; the recipe's section is fitted-q-held."
        ),
    ] = None,
    moments: Annotated[
        Path | None,
        typer.Option(
            help="With --kind fitted-q: folder of such an agent whose dreamed moments are taken in "
            "place of new ones; it learned from the same data, so --starts-from can name it too, "
            "or from the first of these datasets: then only the others are dreamed."
        ),
    ] = None,
    clips: Annotated[
        int, typer.Option(min=1, help="Clips for --starts-from; some 0.5 MB of memory each.")
    ] = _CLIPS,
    eventful: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of those clips behind which a point, a hit or an end comes soon.",
        ),
    ] = 0.0,
    soon: Annotated[
        int, typer.Option(min=1, help="Chunks within which it happens, for --eventful.")
    ] = _SOON,
    record: Annotated[
        Path | None,
        typer.Option(
            help="File, such as docs/results/NAME.json: at its end the agent is scored in dream "
            "and real game on final seeds, and the rows are added there."
        ),
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Episodes of each place for --record; 100 by default.")
    ] = None,
    game: RealGame = None,
    device: Device = None,
    dtype: DType = None,
    as_json: AsJson = False,
) -> None:
    """Train an agent inside a world; only --real asks the real game.

    Options here go before the recipe's settings, those before the defaults of the training. It can
    be stopped at any time; --resume goes on from the last checkpoint.

    Example: magi-world train-agent --world run/world --out agent --steps 60000 --set reward=world
    """
    from magi_world.agents import fitted_q, linear_training, ppo, selfplay
    from magi_world.agents.checkpoint import resumed_settings
    from magi_world.agents.evaluation import load_agents
    from magi_world.agents.fitted_q_files import check_moments, described
    from magi_world.agents.ppo_real import REAL_SETTINGS
    from magi_world.agents.recipe import available, recipe_settings
    from magi_world.cli.games import real_game
    from magi_world.disk import check_folder
    from magi_world.world import load

    if kind is not Kind.PPO and (real or steps is not None):
        name = "'--real'" if real else "'--steps'"
        raise typer.BadParameter(f"is not known to --kind {kind.value}", param_hint=name)
    if self_play and (kind is not Kind.PPO or real):
        raise typer.BadParameter("goes with --kind ppo in the dream", param_hint="'--self-play'")
    if kind is not Kind.LINEAR and generations is not None:
        raise typer.BadParameter("goes with --kind linear", param_hint="'--generations'")
    if eventful and (starts_from is None or kind is Kind.FITTED_Q):
        raise typer.BadParameter("goes with clips of --starts-from", param_hint="'--eventful'")
    if soon != _SOON and not eventful:
        raise typer.BadParameter("goes with --eventful", param_hint="'--soon'")
    if clips != _CLIPS and (starts_from is None or kind is Kind.FITTED_Q):
        raise typer.BadParameter("goes with clips of --starts-from", param_hint="'--clips'")
    if data and (kind is not Kind.FITTED_Q or starts_from is not None):
        raise typer.BadParameter(
            "goes with --kind fitted-q, without --starts-from", param_hint="'--data'"
        )
    for name, folder in (("'--values'", values), ("'--moments'", moments)):
        if folder is not None and (kind is not Kind.FITTED_Q or resume):
            raise typer.BadParameter("goes with --kind fitted-q, when it begins", param_hint=name)
    read_before = resume and (out / "store").exists()
    if kind is Kind.FITTED_Q and not (data or starts_from or read_before):
        raise typer.BadParameter(
            "or --starts-from is needed: moments are drawn from data", param_hint="'--data'"
        )
    if resume and recipe is not None:
        raise typer.BadParameter("OUT's settings go on with --resume", param_hint="'--recipe'")
    if episodes is not None and record is None:
        raise typer.BadParameter("goes with --record", param_hint="'--episodes'")
    if self_play and record is not None:
        raise typer.BadParameter("evaluate-selfplay scores players", param_hint="'--record'")
    check_folder(out)
    check_record(record)
    if not resume and (out / "agent.json").exists():
        raise AgentError(f"{out} holds an agent already: --resume it or choose another folder")
    given = {"seed": seed, "temperature": temperature}
    settings: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
    if minutes is not None or steps is not None or generations is not None:
        length = {
            Kind.PPO: {"total_steps": steps}, Kind.LINEAR: {"generations": generations},
            Kind.FITTED_Q: {},
        }  # fmt: skip
        settings |= {**length[kind], "minutes": minutes}
    module = {Kind.PPO: ppo, Kind.FITTED_Q: fitted_q, Kind.LINEAR: linear_training}[kind]
    settings |= parse_settings(setting or [], module.Args)
    loaded = scored = load(world, device=device, dtype=dtype)
    scored_in = real_game(loaded, game) if record is not None else None
    if resume:
        settings = resumed_settings(out, selfplay.KIND if self_play else kind.value) | settings
    else:
        section = "ppo-real" if real else selfplay.KIND if self_play else kind.value
        section = fitted_q.HELD if values is not None else section
        of_world = loaded.name if loaded.name.replace("-", "_") in available() else None
        if (named := recipe or of_world) is not None:
            settings = recipe_settings(named, section) | settings
        if real:
            settings = REAL_SETTINGS | settings
        if self_play:
            settings = selfplay.SETTINGS | settings
    if starts_from is not None and kind is not Kind.FITTED_Q:
        from magi_world.training.bank import with_more_clips

        if real:
            raise typer.BadParameter("is not known to --real", param_hint="'--starts-from'")
        loaded = with_more_clips(loaded, starts_from, clips, eventful=eventful, soon=soon)
    if self_play:
        selfplay.train(loaded, ppo.Args(**settings), out, resume=resume)
    elif kind is Kind.PPO:
        make_game = real_game(loaded, game) if real else None
        ppo.train(loaded, ppo.Args(**settings), out, make_game=make_game, resume=resume)
    elif kind is Kind.FITTED_Q:
        checked = fitted_q.Args(**settings)
        fitted_q.check(loaded, checked)  # before an hour of data is read
        valued_by = None if values is None else _values_of(loaded, values, checked)
        if moments is not None:
            check_moments(moments, described(loaded, checked), checked)
        store = _data_of(loaded, data, starts_from, out)
        fitted_q.train(
            loaded, checked, out, store=store, values=valued_by, moments=moments, resume=resume
        )
    else:
        linear_training.train(loaded, linear_training.Args(**settings), out, resume=resume)
    if record is not None:
        play_and_record(
            scored, load_agents(scored, [str(out)]), where=["dream", "real"],
            episodes=episodes or 100, seeds="final", make_game=scored_in, batch=100, record=record,
        )  # fmt: skip
    summary = json.loads((out / "agent.json").read_text(encoding="utf-8"))
    shown = {"out": str(out), **summary["trained"]}
    if as_json:
        emit_json(shown)
    else:
        emit_pairs(shown)


def _values_of(world: "LoadedWorld", folder: Path, args: "FittedQArgs") -> "PPOAgent":
    """The agent whose values a training is to learn by, checked before data is read."""
    from magi_world.agents.fitted_q_files import check_values, described
    from magi_world.agents.ppo_agent import PPOAgent

    agent = PPOAgent.load(folder, device=world.device)
    agent.check_fits(world)
    check_values(agent, described(world, args), args)
    return agent


def _data_of(world: "LoadedWorld", data: list[Path] | None, run: Path | None, out: Path) -> "Store":
    """Encoded data: that which is named, a run's, or that which was read into `out` before."""
    from rich.console import Console

    from magi_world.cli.games import dataset_folders
    from magi_world.training.bank import encoded_store
    from magi_world.training.encoding import read_encoded

    if data:
        return read_encoded(world, dataset_folders(data), out, Console(stderr=True))
    return encoded_store(world, run or out)
