"""The commands: each parses its arguments, calls one function and prints what that gives.

What is heavy (torch, MLflow, OpenCV) is imported inside the commands, so that --help answers at once.
"""

import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn

import typer
from pydantic import BaseModel, ValidationError

from captcha import CaptchaError
from captcha.settings import CHAMPION, MODEL_NAME, AdaptConfig, BudgetConfig, TrainConfig

DEFAULTS = TrainConfig()
# Exit codes by which a shell knows what ended a program.
HANG_UP = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
ENDED = {128 + HANG_UP: "hung up", 128 + signal.SIGINT: "interrupted", 128 + signal.SIGTERM: "terminated"}

app = typer.Typer(
    help="Train, track, register and serve recognisers of text CAPTCHAs (CRNN + CTC) with MLflow.",
    add_completion=False,
    rich_markup_mode=None,  # plain lines, and no import of rich
    pretty_exceptions_enable=False,
)


def _existing_folder(value: str) -> str:
    """Return the folder's name, or say which absolute path was looked at."""
    folder = Path(value)
    if value and (folder.is_dir() or value == "none" or value.startswith("draw:")):
        return value
    if not value:
        raise typer.BadParameter("it is empty, name a folder")
    message = f"{'not a folder' if folder.exists() else 'no such folder'}: {folder.absolute()}"
    if "MLFLOW_RUN_ID" in os.environ and not folder.is_absolute():  # `mlflow run` does not tell where it was called
        message += " (under mlflow run a relative path starts at the project; give an absolute one)"
    raise typer.BadParameter(message)


Folder = Annotated[
    str,
    typer.Argument(
        metavar="DIR",
        callback=_existing_folder,
        help="folder of images named by their label (2b827.png), or with a labels.csv (file,label)",
    ),
]
Model = Annotated[
    str, typer.Option(help="model to read with: models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON alone; all else goes to standard error")]


def _with_settings(config: type[BaseModel]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of a configuration, its default and help included, as **settings.

    What has no default is an argument, a folder.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is p.KEYWORD_ONLY]
        options = []
        for name, field in config.model_fields.items():
            is_folder = name.endswith("data")
            if field.is_required():
                option = typer.Argument(metavar="DIR", help=field.description, callback=_existing_folder)
            else:
                option = typer.Option(
                    "none" if field.default is None else field.default,
                    help=field.description,
                    callback=_existing_folder if is_folder else None,
                    # MLproject passes a value, not a flag; only for it, so help does not show the variable.
                    envvar=f"CAPTCHA_{name.upper()}" if field.annotation is bool else None,
                    show_envvar=False,
                )
            annotation = str if is_folder else field.annotation
            options.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)
            )
        command.__signature__ = inspect.Signature([*options, *own])  # type: ignore[attr-defined]
        return command

    return decorate


@app.command()
@_with_settings(TrainConfig)
def train(*, as_json: Json = False, **settings: Any) -> None:
    """Train a recogniser in a tracked run, test it, register it."""
    config = TrainConfig(**settings)
    from captcha.jobs import train as experiment

    outcome = experiment.train(config, echo=partial(typer.echo, err=as_json))
    if as_json:
        names = {name: getattr(outcome, name) for name in ("run_id", "model_name", "model_version")}
        _print_json(outcome.figures | names)
    else:
        typer.echo(outcome.summary())


@app.command()
@_with_settings(AdaptConfig)
def adapt(*, as_json: Json = False, **settings: Any) -> None:
    """Adapt a trained model to images without labels (self-training), and register what comes of it."""
    config = AdaptConfig(**settings)
    from captcha.jobs import adapt as adaptation

    outcome = adaptation.adapt(config, echo=partial(typer.echo, err=as_json))
    if as_json:
        _print_json(asdict(outcome))
    else:
        typer.echo(outcome.summary())


@app.command()
@_with_settings(BudgetConfig)
def budget(*, as_json: Json = False, **settings: Any) -> None:
    """Measure how many labels it takes: the curve of exact match against labels, with drawn images and without."""
    config = BudgetConfig(**settings)
    from captcha.jobs import budget

    rows = budget.budget(config, echo=partial(typer.echo, err=as_json))
    if as_json:
        _print_json([asdict(row) for row in rows])


@app.command()
def evaluate(data: Folder, model: Model = f"models:/{MODEL_NAME}@{CHAMPION}", as_json: Json = False) -> None:
    """Measure a registered model on a folder of labelled images."""
    from captcha.jobs.evaluate import evaluate as job

    figures = job(data, model, echo=partial(typer.echo, err=as_json))
    if as_json:
        _print_json(figures)
    else:
        typer.echo(
            f"exact match {figures['exact_match']:.2%} "
            f"(95 % interval {figures['exact_match_low']:.2%} to {figures['exact_match_high']:.2%}), "
            f"{figures['wrong']} of {figures['n']} wrong, character error rate {figures['cer']:.2%}"
        )


@app.command()
def predict(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="images to read, or folders of them")],
    model: Model = f"models:/{MODEL_NAME}@{CHAMPION}",
    decoder: Annotated[
        Literal["greedy", "beam"], typer.Option(help="greedy (most likely path), or beam (most likely text, slower)")
    ] = "greedy",
    beam_width: Annotated[int, typer.Option(min=1, help="texts that beam keeps at each frame")] = 10,
    as_json: Json = False,
) -> None:
    """Read images with a registered model.

    Prints file, text and confidence (0 to 1), separated by tabs; ends with 1 where a file could not be read.
    """
    from captcha.data.folders import images_in
    from captcha.jobs.predict import predict as job

    files = [image for file in files for image in (images_in(file) if file.is_dir() else [file])]
    readings = job(files, model, decoder, beam_width)
    rows: list[dict[str, Any]] = []
    for file, reading in zip(files, readings, strict=True):
        if isinstance(reading, ValueError):
            _complain(f"{file}: {reading}")
            rows.append({"file": str(file), "error": str(reading)})
        else:
            rows.append({"file": str(file)} | asdict(reading))
            if not as_json:
                typer.echo(f"{file}\t{reading.text}\t{reading.confidence:.4f}")
    if as_json:
        _print_json(rows)
    if any("error" in row for row in rows):
        raise typer.Exit(1)


@app.command()
def register(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="run whose model to register")],
    name: Annotated[str, typer.Option(help=TrainConfig.model_fields["name"].description)] = MODEL_NAME,
) -> None:
    """Register the model of a run."""
    from captcha.tracking import registry

    _, _, message = registry.register(run_id, name)
    typer.echo(message)


@app.command()
def check(
    data: Folder,
    vocabulary: Annotated[str, typer.Option(help="characters that labels may hold; none allows all")] = "none",
    height: Annotated[
        int, typer.Option(min=1, help="height in pixels that a model would get, which decides how long a label may be")
    ] = DEFAULTS.height,
    as_json: Json = False,
) -> None:
    """Say what is in a folder of labelled images and what is wrong.

    Ends with 1 where an error stands in the way of training.
    """
    from captcha.data.folders import read_samples
    from captcha.data.problems import format_facts, format_problems
    from captcha.reading.images import FRAME_STRIDE
    from captcha.reading.vocabulary import Vocabulary

    characters = None if vocabulary == "none" else Vocabulary(vocabulary)
    _, problems, facts = read_samples(Path(data), height, characters, FRAME_STRIDE)
    if as_json:
        sizes = {f"{w}x{h}": count for (w, h), count in facts.sizes.items()}
        _print_json(vars(facts) | {"sizes": sizes, "problems": [asdict(problem) for problem in problems]})
    else:
        typer.echo("\n".join(filter(None, (format_facts(facts), format_problems(problems)))))
    if any(problem.fatal for problem in problems):
        raise typer.Exit(1)


@app.command()
def draw(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="new or empty folder to write the images to")],
    count: Annotated[int, typer.Option(min=1, help="how many images")] = 1000,
    style: Annotated[
        str, typer.Option(help="kaptcha, tilted, outlined, textured, or a .toml file that describes one")
    ] = "kaptcha",
    seed: Annotated[int, typer.Option(min=0, help="the same seed draws the same images")] = DEFAULTS.seed,
    fonts: Annotated[
        Path | None,
        typer.Option(metavar="DIR", exists=True, file_okay=False, help="draw with the .ttf and .otf fonts below it"),
    ] = None,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE", help="write a PNG with some of the images")] = None,
    beside: Annotated[
        Path | None,
        typer.Option(metavar="DIR", exists=True, file_okay=False, help="images to show beside them on the sheet"),
    ] = None,
) -> None:
    """Draw labelled captchas: a folder to train on, of a style built in or your own."""
    if beside and not sheet:
        raise typer.BadParameter("--beside needs --sheet, the file to show them on")
    if sheet and (sheet.suffix.lower() != ".png" or not sheet.absolute().parent.is_dir()):
        raise typer.BadParameter(f"--sheet must be a .png file in an existing folder, not {sheet.absolute()}")
    from captcha.jobs.draw import draw as draw_captchas

    echo = partial(typer.echo, err=True)
    typer.echo(draw_captchas(out, style, count, seed, fonts=fonts, sheet=sheet, beside=beside, echo=echo))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command that the arguments name and exit.

    0: done; 1: done, with complaints; 2: one line says why not; 129, 130, 143: ended by SIGHUP, Ctrl-C, SIGTERM.
    """
    # An exception rather than death: the tracked run can end as KILLED.
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(HANG_UP) is not signal.SIG_IGN:  # which it is under nohup
        signal.signal(HANG_UP, _terminate)
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = app(arguments, prog_name="captcha", standalone_mode=False) or 0
    except typer.TyperException as error:
        _complain(error.format_message())
        code = 2
    except Exception as error:
        if (explanation := _explain(error)) is None:
            raise
        _complain(explanation)
        code = 2
    except SystemExit as error:
        code = error.code
    if code in ENDED:
        _complain(ENDED[code])
        _end_run_not_begun()
    sys.exit(code)


def _terminate(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signal_number)


def _end_run_not_begun() -> None:
    """Mark as KILLED the run that `mlflow run` has made, where this process did not come to take it up.

    MLflow takes the variable away when it does. Another process, because this one may have been ended in the middle
    of an import, and some modules load only once.
    """
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        program = "import mlflow, sys; mlflow.MlflowClient().set_terminated(sys.argv[1], 'KILLED')"
        subprocess.run([sys.executable, "-c", program, run_id], stderr=subprocess.DEVNULL)


def _explain(error: Exception) -> str | None:
    """Return the line for an error that a person can cause and mend, None for a fault of the program."""
    if isinstance(error, ValidationError):
        return "; ".join(
            "".join(f"--{field}: ".replace("_", "-") for field in detail["loc"]) + detail["msg"]
            for detail in error.errors()
        )
    # MLflow is not imported to ask: what it raised has imported it.
    from_mlflow = any(kind.__name__ == "MlflowException" for kind in type(error).__mro__)
    return str(error) if from_mlflow or isinstance(error, CaptchaError | OSError) else None


def _complain(message: str) -> None:
    line = " ".join(message.replace("Value error, ", "").split())  # pydantic's prefix tells a person nothing
    typer.echo(f"captcha: {line}", err=True)


def _print_json(content: object) -> None:
    typer.echo(json.dumps(content, ensure_ascii=False, indent=2))
