"""Verbs that make worlds: `collect` data, `train-world`, `train-words`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from magi_world.cli.output import emit_json, emit_pairs
from magi_world.cli.settings import stage_settings
from magi_world.cli.worlds import AsJson


def collect(
    game: Annotated[
        str,
        typer.Argument(
            help="The real game to play: a shipped one, or your own adapter as "
            "package.module:Class or path/to/file.py:Class."
        ),
    ] = "doom-take-cover",
    *,
    out: Annotated[Path, typer.Option(help="Folder for Minari datasets.")],
    chunks: Annotated[int, typer.Option(min=1, help="Chunks to play.")] = 100_000,
    name: Annotated[
        str | None, typer.Option(help="Dataset's name; the game's with -v0 by default.")
    ] = None,
    first_episode: Annotated[
        int, typer.Option(min=0, help="Number of the first episode; it decides the seeds.")
    ] = 0,
    horizon: Annotated[
        int | None,
        typer.Option(min=1, help="Cut episodes after so many chunks; else they end by themselves."),
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option(
            help="An agent's folder, or a world's name: it plays an equal share (sampled)."
        ),
    ] = None,
    agent_share: Annotated[
        float, typer.Option(help="How many times as much as each of the others the agent plays.")
    ] = 1.0,
    world: Annotated[
        str | None, typer.Option(help="World through which the agent sees; GAME's by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Play the real game and keep every chunk as a Minari dataset.

    Sticky random actions and, in Doom, blind sweeps and players who mostly stand still, in equal
    parts, and an agent if one is given; in Pong sticky random players and ones that follow the
    ball. The same arguments give the same data; a second collection
    takes a first episode beyond the first one's. Twenty episodes are the least that train-world
    takes, because it holds out every twentieth.

    Example: magi-world collect game.py:MyGame --out data --chunks 8000
    """
    from magi_world.cli.games import SeesLatents, game_maker, mixture
    from magi_world.training import collect as collecting

    make_game = game_maker(game)
    played = make_game()
    player: Any = None
    for option, given in (("agent-share", agent_share != 1.0), ("world", world is not None)):
        if given and agent is None:
            raise typer.BadParameter("goes with --agent", param_hint=f"'--{option}'")
    if agent is not None:
        from magi_world import agents
        from magi_world.envs.games import check_fits
        from magi_world.world import load
        from magi_world.worlds import available

        if world is None and played.name not in available():
            raise typer.BadParameter("is needed: the agent sees through it", param_hint="'--world'")
        seen_through = load(world or played.name)
        check_fits(played, seen_through.card, seen_through.config)
        player = agents.load(agent, world=seen_through, greedy=False)
        if player.observations == "latent":
            player = SeesLatents(player, seen_through)
    result = collecting.collect(
        lambda: played,
        mixture(played, player, agent_share),
        dataset_id=name or f"{played.name}-v0",
        root=out,
        chunks=chunks,
        first_episode=first_episode,
        horizon=horizon,
    )
    summary = {
        "dataset": result.dataset_id,
        "path": str(result.path),
        "episodes": result.episodes,
        "chunks": result.chunks,
        "real_tics": result.real_tics,
        "by_behaviour": result.by_behaviour,
    }
    if as_json:
        emit_json(summary)
    else:
        emit_pairs({key: value for key, value in summary.items() if key != "by_behaviour"})


def train_world(
    recipe: Annotated[
        str, typer.Argument(help="A recipe that ships, or a TOML file.")
    ] = "doom_take_cover",
    *,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder with Minari datasets, or with videos and their prompts.csv, in or below "
            "it; again for more."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, TensorBoard and the world.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoints in OUT; needs no --data.")
    ] = False,
    stage: Annotated[
        list[str] | None,
        typer.Option(help="Run only this stage (vae, dit, outcome); again for more."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="World whose weights the run begins with; stages not run are its own."),
    ] = None,
    init_part: Annotated[
        list[str] | None,
        typer.Option(
            help="Begin only with this part of that world (vae, text, dit, outcome); again for "
            "more. A DiT of another shape can so learn on the latents of a known VAE."
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.NAME=VALUE", help="Replace a value of the recipe's stages."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a world on data of a real game: VAE, then video model, then outcome heads.

    It can be stopped at any time; --resume goes on bit for bit where it was, with the
    recipe and --set as they are given, and says what of them has changed.

    Example: magi-world train-world recipe.toml --data data --out run --set dit.steps=500
    """
    from magi_world.cli.games import dataset_folders
    from magi_world.training.recipe import load_recipe
    from magi_world.training.run import STAGES
    from magi_world.training.run import train_world as train

    if not data and not resume:
        raise typer.BadParameter("is needed unless --resume goes on", param_hint="'--data'")
    world = train(
        load_recipe(recipe, **stage_settings(setting or [], STAGES)),
        dataset_folders(data or []),
        out,
        resume=resume,
        stages=stage or STAGES,
        init=init,
        init_parts=init_part or None,
    )
    summary = {"world": str(world.folder), "name": world.name, **world.card["training"]}
    if as_json:
        emit_json(summary)
    else:
        emit_pairs(summary)


def train_words(
    recipe: Annotated[
        str, typer.Argument(help="A recipe that ships, or a TOML file, with a section [words].")
    ] = "doom_take_cover",
    *,
    world: Annotated[
        str, typer.Option(help="World that learns: a name, or a folder. It stays as it is.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for checkpoint, TensorBoard and the new world.")
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in OUT.")
    ] = False,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Replace a value of the section [words]."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Teach a trained world more wordings of its prompts.

    Only its text encoder learns, on the clips that the world ships with: told a new
    wording it must make what it makes when told the prompt. Tells how far wordings
    were, and are, from doing so: 0 does the same, 1 is as far off as another prompt.

    Example: magi-world train-words recipe.toml --world run/world --out worded
    """
    from magi_world.cli.settings import parse_settings
    from magi_world.training.recipe import WordsSettings, load_recipe
    from magi_world.training.words import train_words as train

    words = {"words": parse_settings(setting or [], WordsSettings)} if setting else {}
    learned = train(load_recipe(recipe, **words), world, out, resume=resume)
    training = learned.card["training"]
    kept = ("words_steps", "words_minutes", "wordings", "wording_error")
    summary: dict[str, Any] = {"world": str(learned.folder), "name": learned.name}
    summary |= {key: training[key] for key in kept}
    if as_json:
        emit_json(summary)
    else:
        counts, errors = summary.pop("wordings"), summary.pop("wording_error")
        summary |= {f"wordings of {prompt!r}": count for prompt, count in counts.items()}
        for name, error in errors.items():
            told = f"{error['before']:.3f} before, {error['now']:.3f} now"
            summary[f"error of {name.replace('_', '-')}"] = told
        emit_pairs(summary)
