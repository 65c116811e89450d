"""The command line: its commands, signals, exit codes, and one line for each error."""

import gc
import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError

from captcha import CaptchaError, __version__
from captcha.cli import commands
from captcha.cli.terminal import complain, show_messages, without_passwords
from captcha.data.disk import full_disk
from captcha.settings import project_root
from captcha.tracking import signals

TORCHRUN = "TORCHELASTIC_RUN_ID"
"""A variable that torchrun sets for each process that it starts."""

app = typer.Typer(
    help="Train, track, register and serve recognisers of text CAPTCHAs (CRNN + CTC) with MLflow.",
    rich_markup_mode=None,  # plain lines, and no import of rich
    pretty_exceptions_enable=False,
)
for command in (
    commands.train,
    commands.distill,
    commands.adapt,
    commands.budget,
    commands.crossval,
    commands.audit,
    commands.tune,
    commands.evaluate,
    commands.predict,
    commands.score,
    commands.export,
    commands.serve,
    commands.compare,
    commands.runs,
    commands.sync,
    commands.models,
    commands.show,
    commands.register,
    commands.promote,
    commands.rollback,
    commands.check,
    commands.draw,
    commands.pack,
):
    app.command()(command)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"captcha {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="print the version and exit", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before the command."""
    if TORCHRUN in os.environ and context.invoked_subcommand != "train":
        raise CaptchaError(
            f"torchrun starts several processes, and {context.invoked_subcommand} takes one: leave it out"
        )


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command that the arguments name and exit.

    Exit codes: 0, done; 1, done with complaints; 2, one line says why not; 3, done, but the
    tracking server does not have it all yet; 129, 130, 143: SIGHUP, Ctrl-C, SIGTERM.
    """
    show_messages()
    signals.listen()
    rank = int(os.environ.get("RANK", "0")) if TORCHRUN in os.environ else 0
    if rank:  # rank 0 says what all do
        logging.getLogger("captcha").setLevel(logging.ERROR)
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    said = "This command tracks nothing."
    try:
        code = app(arguments, prog_name="captcha", standalone_mode=False) or 0
    except typer.TyperException as error:
        said = complain(error.format_message())
        code = 2
    except Exception as error:
        if (explanation := _explain(error, arguments)) is None:
            raise
        said = complain(f"rank {rank}: {explanation}" if rank else explanation)
        code = getattr(error, "exit_code", 2)
    except SystemExit as error:
        code = error.code
    signals.heed()
    if code in signals.ENDED:
        said = complain(signals.ENDED[code])
    if "MLFLOW_RUN_ID" in os.environ and not rank:  # MLflow removes it once a job has taken up the run
        _tag_unused_run(arguments, said, "KILLED" if code in signals.ENDED else None)
    # Python's last collections would look through a million objects of MLflow's: a second in which nothing is done.
    gc.freeze()
    sys.exit(code)


def _tag_unused_run(arguments: Sequence[str], said: str, status: str | None) -> None:
    """Let the run that `mlflow run` made say why it is empty: this command has none, or failed before its own began.

    A second process does it: this one may have been ended in the middle of an import, and some modules load only once.
    """
    tags = {
        "mlflow.runName": arguments[0],
        "mlflow.note.content": without_passwords(f"{said} `captcha {shlex.join(arguments)}`"),
    }
    program = "import json, sys; from captcha.tracking import runs; runs.tag_unused_run(*json.loads(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, json.dumps([tags, status])], stderr=subprocess.DEVNULL)


def _explain(error: Exception, arguments: Sequence[str]) -> str | None:
    """Return the line for an error that a person can cause and mend, None for a fault of the program."""
    if isinstance(error, ValidationError):
        return "; ".join(
            "".join(f"--{field}: ".replace("_", "-") for field in detail["loc"]) + detail["msg"]
            for detail in error.errors()
        )
    # Neither is imported to ask: what they raised has imported them.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if not kinds & {"MlflowException", "SQLAlchemyError"} and not isinstance(error, CaptchaError | OSError):
        return None
    database = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///").partition("sqlite:///")[2]
    named = [each for each in (*arguments, tempfile.gettempdir(), database) if not each.startswith("-")]
    written = [*map(Path, named), project_root() / "mlruns"]
    return full_disk(error, written) or str(error).partition("[SQL:")[0]  # SQLAlchemy's statement tells nobody anything
