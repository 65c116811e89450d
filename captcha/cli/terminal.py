"""What commands print, and the handler that prints the jobs' log messages."""

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from captcha.settings import CHAMPION, project_root

if TYPE_CHECKING:  # heavy imports, loaded already by the job whose outcome is printed
    from captcha.evaluation.plots import BudgetPoint
    from captcha.jobs.adapt import AdaptOutcome
    from captcha.jobs.train import TrainOutcome


class Lines(logging.Handler):
    """Prints the package's log messages, warnings with a prefix; on standard error where JSON is printed."""

    def __init__(self) -> None:
        super().__init__()
        self.on_stderr = False

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        prefix = "" if record.levelno < logging.WARNING else "warning: "
        typer.echo(prefix + record.getMessage(), err=self.on_stderr)


LINES = Lines()


def show_messages() -> None:
    """Send the package's log messages to the terminal, and of MLflow's only warnings and errors."""
    # Variables, as MLflow is imported later, and sets its loggers then. Whoever has set them gets what they asked for.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    package = logging.getLogger("captcha")
    package.setLevel(logging.INFO)
    package.propagate = False
    if LINES not in package.handlers:
        package.addHandler(LINES)


def complain(message: str) -> str:
    """Print an error as one line, and return that."""
    line = " ".join(message.replace("Value error, ", "").split())  # pydantic's prefix tells a person nothing
    typer.echo(f"captcha: {line}", err=True)
    return line


def print_json(content: object) -> None:
    """Print JSON for scripts."""
    typer.echo(json.dumps(content, ensure_ascii=False, indent=2))


def train_summary(outcome: "TrainOutcome") -> str:
    """Return the closing lines of a training: the test's exact match, the model, the next commands."""
    return f"""
{exact_match_line("the test split", outcome.metrics)}
{outcome.message}

{next_commands(outcome.model_name, outcome.model_version, outcome.example)}"""


def adapt_summary(outcome: "AdaptOutcome") -> str:
    """Return the closing lines of a self-training."""
    measured = "\n" + exact_match_line("the images held out", outcome.metrics) if outcome.metrics else ""
    return (
        f"\nthe model of round {outcome.rounds} is confident of {outcome.confident} of {outcome.images} images, "
        f"the model it began with was confident of {outcome.confident_before}{measured}\n{outcome.message}"
        + (
            f"\n\n{next_commands(outcome.model_name, outcome.model_version, outcome.example)}"
            if outcome.model_version
            else ""
        )
    )


def exact_match_line(images: str, metrics: Mapping[str, float]) -> str:
    """Return how many of these images were read exactly, with the interval."""
    return (
        f"exact match on {images}: {metrics['exact_match']:.2%} of {metrics['n']:.0f} images "
        f"(95 % interval {metrics['exact_match_low']:.2%} to {metrics['exact_match_high']:.2%})"
    )


def evaluation_line(metrics: Mapping[str, float]) -> str:
    """Return the metrics of an evaluation in one line."""
    return (
        f"exact match {metrics['exact_match']:.2%} "
        f"(95 % interval {metrics['exact_match_low']:.2%} to {metrics['exact_match_high']:.2%}), "
        f"{metrics['wrong']} of {metrics['n']} wrong, character error rate {metrics['cer']:.2%}"
    )


def budget_table(points: "Sequence[BudgetPoint]") -> str:
    """Return the curve of a label budget as a table."""
    lines = ["labels  trained on           exact match  95 % interval        right of      seconds"]
    for point in points:
        interval = f"{point.low:.2%} to {point.high:.2%}"
        lines.append(
            f"{point.labels:6}  {point.arm.replace('_', ' '):19}  {point.right / point.n:11.2%}  {interval:19}  "
            f"{point.right:5} of {point.n:<5}  {point.seconds:6.0f}"
        )
    return "\n".join(lines)


def next_commands(name: str, version: int, example: str) -> str:
    """Return the commands that compare the runs, serve this version of the model, and read an image with it."""
    from captcha.tracking.registry import is_champion

    uri = f"models:/{name}" + (f"@{CHAMPION}" if is_champion(name, version) else f"/{version}")
    return f"""compare the runs      {_command("mlflow")} ui
serve the model       {_command("mlflow")} models serve -m {uri} --env-manager local -p 5001
read one image        {_command("captcha")} predict {example} --model {uri}"""


def _command(tool: str) -> str:
    """Return the command by which a person's shell, in this working folder, calls a tool on these runs."""
    from captcha.tracking.runs import tracking_uri

    folder = Path(sys.executable).parent
    # A .venv inside the project is on PATH while make runs, not in the shell that make was called from.
    if str(folder) not in os.environ.get("PATH", "").split(os.pathsep) or project_root() in folder.parents:
        tool = os.path.relpath(folder / tool)
    # Unless told otherwise, MLflow takes the mlflow.db of the working folder.
    uri = tracking_uri()
    return tool if uri == f"sqlite:///{Path.cwd() / 'mlflow.db'}" else f"MLFLOW_TRACKING_URI={uri} {tool}"
