"""The command `magi-world`: thin verbs around the package.

Data goes to standard output (`--json` for machines), words and progress to standard error; what is
wrong with an argument is said in one line, with exit code 2. Verbs import what they need when they
run, so that `--help` answers at once.
"""

import sys
from collections.abc import Sequence

import typer

from magi_world.cli import (
    bench,
    checkpoints,
    evaluate,
    evaluate_agent,
    evaluate_planner,
    generate,
    plan,
    selfplay,
    train,
    train_agent,
    worlds,
)
from magi_world.cli.output import say
from magi_world.errors import MagiWorldError

app = typer.Typer(
    name="magi-world",
    help="Generated worlds as reinforcement-learning environments.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("worlds")(worlds.worlds)
app.command("rollout")(worlds.rollout)
app.command("collect")(train.collect)
app.command("train-world")(train.train_world)
app.command("train-words")(train.train_words)
app.command("train-agent")(train_agent.train_agent)
app.command("evaluate-agent")(evaluate_agent.evaluate_agent)
app.command("evaluate-planner")(evaluate_planner.evaluate_planner)
app.command("evaluate-selfplay")(selfplay.evaluate_selfplay)
app.command("evaluate")(evaluate.evaluate)
app.command("calibrate")(checkpoints.calibrate)
app.command("make-checkpoint")(checkpoints.make_checkpoint)
app.command("generate")(generate.generate)
app.command("plan")(plan.plan)
app.add_typer(bench.app, name="bench")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    `arguments` are those of the process when None; without any the help is shown.
    """
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    command = typer.main.get_command(app)
    try:
        code = command.main(args=given, prog_name="magi-world", standalone_mode=False)
    except typer.TyperException as error:
        return _fail(error.format_message())
    except MagiWorldError as error:
        return _fail(str(error))
    except OSError as error:  # of the user's files: no permission, a full disk, a file for a folder
        return _fail(
            f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
        )
    except typer.Abort:
        return 1
    return int(code or 0)


def _fail(message: str) -> int:
    say("error: " + " ".join(message.split()))
    return 2
