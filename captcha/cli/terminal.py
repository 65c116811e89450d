"""What commands print, and the handler that prints the jobs' log messages."""

import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from captcha.settings import CHAMPION, project_root

if TYPE_CHECKING:  # heavy imports, loaded already by the job whose outcome is printed
    from captcha.evaluation.plots import BudgetPoint
    from captcha.jobs.adapt import AdaptOutcome
    from captcha.jobs.evaluate import EvaluateOutcome
    from captcha.jobs.train import TrainOutcome

UNDER_MLFLOW_RUN = "MLFLOW_RUN_ID" in os.environ  # MLflow removes it once the run is taken up, so it is read early
"""Whether `mlflow run` started this process: its folder and PATH are then not those of the person's shell."""


class Lines(logging.Handler):
    """Prints the package's log messages, warnings with a prefix; on standard error where JSON is printed."""

    def __init__(self) -> None:
        super().__init__()
        self.on_stderr = False

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message, above the bar if there is one."""
        from tqdm import tqdm  # loaded already by the job that says something

        prefix = "" if record.levelno < logging.WARNING else "warning: "
        with tqdm.external_write_mode(sys.stderr if self.on_stderr else sys.stdout):
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


def say_loading(libraries: str) -> None:
    """Say on a terminal what the command is busy with before it can say anything else: imports take seconds."""
    if sys.stderr.isatty():
        typer.echo(f"loading {libraries} …", err=True)


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
{exact_match_line("the test split", outcome.metrics)}{_of_all(outcome)}
{outcome.message}

{next_commands(outcome.model_name, outcome.model_version, outcome.example)}"""


def adapt_summary(outcome: "AdaptOutcome") -> str:
    """Return the closing lines of a self-training."""
    line = exact_match_line("the images held out", outcome.metrics) if outcome.metrics else ""
    measured = f"\n{line}{_of_all(outcome)}" if line else ""
    return (
        f"\nthe model of round {outcome.rounds} is confident of {outcome.confident} of {outcome.images} images, "
        f"the model it began with was confident of {outcome.confident_before}{measured}\n{outcome.message}"
        + (
            f"\n\n{next_commands(outcome.model_name, outcome.model_version, outcome.example)}"
            if outcome.model_version
            else ""
        )
    )


def _of_all(outcome: "TrainOutcome | AdaptOutcome") -> str:
    """Return a line with the figure of all test images where training saw some of them, and left those out."""
    if not (of_all := outcome.metrics_of_all):
        return ""
    left_out = of_all["n"] - outcome.metrics["n"]
    return "\n" + exact_match_line(f"these and those left out, {left_out:.0f} that training saw", of_all)


def exact_match_line(images: str, metrics: Mapping[str, float]) -> str:
    """Return how many of these images were read exactly, with the interval."""
    return (
        f"exact match on {images}: {metrics['exact_match']:.2%} of {metrics['n']:.0f} images "
        f"(95 % interval {metrics['exact_match_low']:.2%} to {metrics['exact_match_high']:.2%})"
    )


def evaluation_summary(outcome: "EvaluateOutcome") -> str:
    """Return the metrics of an evaluation in one line, and in another what is known of overlap with the training."""
    metrics = outcome.metrics
    return (
        f"exact match {metrics['exact_match']:.2%} "
        f"(95 % interval {metrics['exact_match_low']:.2%} to {metrics['exact_match_high']:.2%}), "
        f"{metrics['wrong']} of {metrics['n']} wrong, character error rate {metrics['cer']:.2%}\n{outcome.checked()}"
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


def next_commands(name: str, version: int, example: str, view: str | None = None) -> str:
    """Return the commands that compare the runs, serve this version of the model, and read an image with it.

    Args:
        name: the registered model's.
        version: of the model.
        example: absolute path of an image.
        view: link to a saved view of the runs.
    """
    from captcha.tracking.registry import is_champion

    uri = shlex.quote(f"models:/{name}" + (f"@{CHAMPION}" if is_champion(name, version) else f"/{version}"))
    serve = f"{_tracking(Path.cwd())}{_mlflow_on_path()} models serve -m {uri} --env-manager local -p 5001"
    predict = f"{_tracking(project_root())}{_captcha()} predict {_from_here(Path(example))} --model {uri}"
    return f"""{compare_runs(view)}
serve the model       {serve}
read one image        {predict}"""


def compare_runs(view: str | None = None) -> str:
    """Return the lines that say how to see the runs; `view` is the link to a saved view of them."""
    from captcha.tracking.runs import tracking_uri

    uri = tracking_uri()
    if uri.startswith("http"):  # a server, which shows its runs itself
        return f"compare the runs      {view or uri}"
    # `mlflow ui` reads no MLFLOW_TRACKING_URI.
    store = f" --backend-store-uri {shlex.quote(uri)}" if _tracking(Path.cwd()) else ""
    return f"compare the runs      {_program('mlflow')} ui{store}" + (f"\nsee all runs          {view}" if view else "")


def _tracking(folder: Path) -> str:
    """Return the variable by which a command finds these runs; "" for one that finds them in folder/mlflow.db anyway.

    MLflow looks in the working folder, captcha in the project.
    """
    from captcha.tracking.runs import tracking_uri

    uri = tracking_uri()
    found = uri == f"sqlite:///{folder / 'mlflow.db'}" and not UNDER_MLFLOW_RUN
    return "" if found else f"MLFLOW_TRACKING_URI={shlex.quote(uri)} "


def _program(name: str) -> str:
    """Return how the person's shell calls a program of this Python."""
    program = Path(sys.executable).parent / name
    on_path = not UNDER_MLFLOW_RUN and shutil.which(name) == str(program)
    return name if on_path else _from_here(program)


def _mlflow_on_path() -> str:
    """Return how the person's shell calls mlflow where it starts programs that must be on PATH beside it."""
    called = _program("mlflow")
    return called if called == "mlflow" else f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH mlflow"


def _captcha() -> str:
    """Return how the person's shell calls captcha; environments that `mlflow run` makes have no such program."""
    if Path(sys.executable).with_name("captcha").exists():
        return _program("captcha")
    return f"PYTHONPATH={shlex.quote(str(project_root()))} {_program(Path(sys.executable).name)} -m captcha"


def _from_here(path: Path) -> str:
    """Return an absolute path as the person's shell takes it, short if it lies below the shell's folder."""
    below = path.is_relative_to(Path.cwd()) and not UNDER_MLFLOW_RUN
    return shlex.quote(str(path.relative_to(Path.cwd()) if below else path))
