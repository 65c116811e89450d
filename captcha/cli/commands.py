"""The commands: each parses its arguments, calls one job and prints the outcome.

Heavy modules (torch, MLflow, OpenCV) are imported inside the commands, so that --help answers at once.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from captcha.cli.options import (
    NAMING,
    VERSIONS,
    Characters,
    DataArgument,
    EngineOption,
    Json,
    Length,
    Model,
    Name,
    Pattern,
    Problems,
    Reason,
    Texts,
    VersionOrRun,
    bounded_beam_width,
    existing_images,
    folder_or_none,
    known_of_texts,
    path_or_none,
    with_settings,
)
from captcha.cli.terminal import (
    LINES,
    adapt_summary,
    audit_summary,
    budget_table,
    compare_runs,
    compare_summary,
    complain,
    crossval_summary,
    decision_lines,
    decisions_table,
    difference_table,
    evaluation_summary,
    known_lines,
    move_line,
    print_json,
    runs_table,
    say_loading,
    score_summary,
    sync_summary,
    train_summary,
    tune_summary,
    versions_table,
)
from captcha.settings import (
    CHAMPION_URI,
    MAX_HEIGHT,
    MODEL_NAME,
    NONE,
    PROMOTION_LEVEL,
    SEEDS,
    AdaptSettings,
    AuditSettings,
    BudgetSettings,
    CrossvalSettings,
    DistillSettings,
    TrainSettings,
    TuneSettings,
)

if TYPE_CHECKING:
    from captcha.jobs.train import TrainOutcome

DEFAULTS = TrainSettings()


@with_settings(TrainSettings)
def train(*, as_json: Json = False, **settings: Any) -> None:
    """Train a recogniser in a tracked run, test it, register it."""
    LINES.on_stderr = as_json
    checked = TrainSettings(**settings)
    say_loading("PyTorch and MLflow")
    from captcha.jobs.train import train as job

    _tell(job(checked), as_json)


def _tell(outcome: "TrainOutcome", as_json: bool) -> None:
    if as_json:
        names = {name: getattr(outcome, name) for name in ("run_id", "model_name", "model_version")}
        of_all = {"all": outcome.metrics_of_all} if outcome.metrics_of_all else {}
        print_json(outcome.metrics | names | of_all)
    else:
        typer.echo(train_summary(outcome))


@with_settings(DistillSettings)
def distill(*, as_json: Json = False, **settings: Any) -> None:
    """Train a small, fast student on what a trained model reads, and register it."""
    LINES.on_stderr = as_json
    checked = DistillSettings(**settings)
    say_loading("PyTorch and MLflow")
    from captcha.jobs.distill import distill as job

    _tell(job(checked), as_json)


@with_settings(AdaptSettings)
def adapt(*, as_json: Json = False, **settings: Any) -> None:
    """Adapt a trained model to images without labels (self-training), and register the result."""
    LINES.on_stderr = as_json
    checked = AdaptSettings(**settings)
    say_loading("PyTorch and MLflow")
    from captcha.jobs.adapt import adapt as job

    outcome = job(checked)
    if as_json:
        print_json(asdict(outcome))
    else:
        typer.echo(adapt_summary(outcome))


@with_settings(BudgetSettings)
def budget(*, as_json: Json = False, **settings: Any) -> None:
    """Measure exact match against the number of labels trained on, with drawn images and without."""
    LINES.on_stderr = as_json
    checked = BudgetSettings(**settings)
    say_loading("PyTorch and MLflow")
    from captcha.jobs.budget import budget as job
    from captcha.jobs.budget import points
    from captcha.tracking.view import view_of

    rows = job(checked)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        typer.echo(f"{budget_table(points(rows))}\n\n{compare_runs(view_of(rows[0].run_id))}")


@with_settings(CrossvalSettings)
def crossval(*, as_json: Json = False, **settings: Any) -> None:
    """Measure a training on all images: each is read by a model trained on the others."""
    LINES.on_stderr = as_json
    checked = CrossvalSettings(**settings)
    say_loading("PyTorch and MLflow")
    from captcha.jobs.crossval import crossval as job

    outcome = job(checked)
    if as_json:
        print_json(outcome.as_json())
    else:
        typer.echo(crossval_summary(outcome))


@with_settings(AuditSettings)
def audit(*, as_json: Json = False, **settings: Any) -> None:
    """Find the labels of a folder that are probably wrong: those that cross-validation reads otherwise."""
    LINES.on_stderr = as_json
    checked = AuditSettings(**settings)
    say_loading("PyTorch and MLflow")
    from captcha.jobs.audit import audit as job

    outcome = job(checked)
    if as_json:
        print_json(asdict(outcome))
    else:
        typer.echo(audit_summary(outcome))


@with_settings(TuneSettings)
def tune(*, as_json: Json = False, **settings: Any) -> None:
    """Search for the settings that validate best, alone or with other processes, and register the best."""
    LINES.on_stderr = as_json
    checked = TuneSettings(**settings)
    say_loading("PyTorch, MLflow and Optuna")
    from captcha.jobs.tune import tune as job

    outcome = job(checked)
    if as_json:
        print_json(asdict(outcome))
    else:
        typer.echo(tune_summary(outcome))


def evaluate(
    data: DataArgument,
    model: Model = CHAMPION_URI,
    problems: Problems = "stop",
    engine: EngineOption = "auto",
    length: Length = NONE,
    characters: Characters = NONE,
    texts: Texts = NONE,
    pattern: Pattern = NONE,
    as_json: Json = False,
) -> None:
    """Measure a trained model on a folder of labelled images, without those that its training saw."""
    LINES.on_stderr = as_json
    constraints = known_of_texts(length, characters, texts, pattern)
    say_loading("MLflow")
    from captcha.jobs.evaluate import evaluate as job
    from captcha.tracking.view import view_of

    outcome = job(data, model, problems, engine, constraints)
    if as_json:
        print_json(outcome.as_json())
    else:
        typer.echo(f"{evaluation_summary(outcome)}\n\n{compare_runs(view_of(outcome.run_id))}")


ACCEPTED = {True: "accepted", False: "doubtful", None: "no threshold"}


def predict(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="images to read, or folders of them")],
    model: Model = CHAMPION_URI,
    decoder: Annotated[
        Literal["greedy", "beam"],
        typer.Option(
            help="greedy (most likely path), or beam (likeliest text); always beam where texts are known in part"
        ),
    ] = "greedy",
    beam_width: Annotated[
        int, typer.Option(min=1, callback=bounded_beam_width, help="texts that beam keeps at each frame")
    ] = 10,
    engine: EngineOption = "auto",
    min_confidence: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="confidence from which on a text is accepted; without it, the model's own"),
    ] = None,
    length: Length = NONE,
    characters: Characters = NONE,
    texts: Texts = NONE,
    pattern: Pattern = NONE,
    as_json: Json = False,
) -> None:
    """Read images with a trained model.

    Prints file, text, confidence (0 to 1) and whether the text is accepted, separated by tabs; exits with 1 if a file
    could not be read.
    """
    LINES.on_stderr = True
    from captcha.data.folders import images_in
    from captcha.jobs.predict import predict as job

    images: list[Path] = []
    for file in files:
        found = images_in(file) if file.is_dir() else [file]
        images += found
        if not found:
            raise typer.BadParameter(f"no images in {file.absolute()}")
    known = known_of_texts(length, characters, texts, pattern)
    readings = job(images, model, decoder, beam_width, engine, min_confidence, known)
    rows: list[dict[str, Any]] = []
    for file, reading in zip(images, readings, strict=True):
        if isinstance(reading, ValueError):
            complain(str(reading))
            rows.append({"file": str(file), "error": str(reading)})
        else:
            rows.append({"file": str(file)} | asdict(reading))
            if not as_json:
                typer.echo(f"{file}\t{reading.text}\t{reading.confidence:.4f}\t{ACCEPTED[reading.accepted]}")
    if as_json:
        print_json(rows)
    if any("error" in row for row in rows):
        raise typer.Exit(1)


def score(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="folder of images, with its sub-folders; Parquet file, or a folder of them"
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(metavar="OUTPUT", help="folder of Parquet: a new one, or one that the same model has begun"),
    ],
    model: Model = CHAMPION_URI,
    engine: Annotated[
        Literal["local", "spark"], typer.Option(help="local: this process; spark: Spark's workers")
    ] = "local",
    master: Annotated[
        str,
        typer.Option(help="where Spark runs, as local[2] or spark://HOST:7077; none leaves it to Spark's own settings"),
    ] = NONE,
    as_json: Json = False,
) -> None:
    """Read any number of images into a folder of Parquet: path, text, confidence, accepted and error.

    An image that cannot be read is a row with its error. The same command goes on where it was stopped.
    """
    LINES.on_stderr = as_json
    say_loading("MLflow")
    from captcha.jobs.score import score as job

    outcome = job(source, output, model, engine, None if master == NONE else master)
    if as_json:
        print_json(outcome.as_json())
    else:
        typer.echo(score_summary(outcome))


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="model to export, written as for predict's --model")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="new folder to write to")],
) -> None:
    """Export a model into a folder that reads without MLflow, PyTorch and captcha."""
    from captcha.jobs.export import export as job

    typer.echo(job(model, out))


def serve(
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="model to serve, written as for predict; what an alias names is followed as it moves"
        ),
    ] = CHAMPION_URI,
    host: Annotated[str, typer.Option(help="address to serve at; 0.0.0.0 is every one")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to serve at; 0 is any that is free")] = 5001,
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=path_or_none, help="API keys that may ask, one a line; none lets anybody ask"
        ),
    ] = NONE,  # type: ignore[assignment]  # the parser makes it None
    allowed_hosts: Annotated[
        str, typer.Option(help="names of this server, by commas, that a Host header may have beside its address")
    ] = "",
    engine: EngineOption = "auto",
) -> None:
    """Serve a model over HTTP with MLflow's scoring application, behind limits, keys and figures."""
    LINES.on_stderr = True
    say_loading("MLflow")
    from captcha.jobs.serve import serve as job

    names = [name.strip() for name in allowed_hosts.split(",") if name.strip()]
    job(model, host, port, keys, names, typer.echo, engine)


def register(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="run whose model to register")],
    name: Name = MODEL_NAME,
) -> None:
    """Register the model of a run."""
    from captcha.tracking.registry import register as job

    _, _, message = job(run_id, name)
    typer.echo(message)


def runs(
    stale: Annotated[
        bool, typer.Option("--stale", help="those alone that MLflow takes for running, but whose process is gone")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the runs that are under way, and those that were cut off and can be resumed."""
    from captcha.tracking.runs import listed_runs

    rows = listed_runs(stale)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        typer.echo(runs_table(rows))


def sync(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder of a run below mlruns/unfinished")],
    as_json: Json = False,
) -> None:
    """Send what a run has logged while its tracking server was away."""
    LINES.on_stderr = as_json
    from captcha.jobs.sync import sync as job

    outcome = job(folder)
    if as_json:
        print_json(asdict(outcome))
    else:
        typer.echo(sync_summary(outcome))


def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="registered model; without it, all")] = None,
    as_json: Json = False,
) -> None:
    """List the registered versions and what they read; of one model also how its champions came about."""
    from captcha.tracking.versions import moves, versions

    rows = versions(name)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        typer.echo(versions_table(rows) + (decisions_table(rows, moves(name)) if name else ""))


def show(named: VersionOrRun, as_json: Json = False) -> None:
    """Show what is known of a version or a run."""
    from captcha.tracking.versions import show as look_up

    known = look_up(named)
    if as_json:
        print_json(asdict(known))
    else:
        typer.echo(known_lines(known))


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=f"one of the two: {NAMING}")],
    second: Annotated[str, typer.Argument(metavar="B", help="the other, named in the same way")],
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DIR",
            callback=lambda value: None if value is None else existing_images(value),
            help="folder of labelled images that both read; without it, their settings and metrics are compared",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two versions or runs, by settings or on a folder."""
    LINES.on_stderr = as_json
    if data is None:
        from captcha.tracking.versions import differences

        difference = differences(first, second)
        if as_json:
            print_json(asdict(difference))
        else:
            typer.echo(difference_table(difference, first, second))
        return
    from captcha.jobs.compare import compare as job

    outcome = job(first, second, data)
    if as_json:
        print_json(asdict(outcome))
    else:
        typer.echo(compare_summary(outcome))


def promote(
    version: Annotated[str, typer.Argument(metavar="VERSION", help=VERSIONS)],
    test: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            callback=lambda value: None if value is None else existing_images(value),
            help="folder of labelled images that both versions read; without it, those of the test of its training",
        ),
    ] = None,
    level: Annotated[
        float, typer.Option(min=0, max=1, help="p of the exact McNemar test below which it becomes champion")
    ] = PROMOTION_LEVEL,
    no_worse: Annotated[
        float | None,
        typer.Option(
            metavar="MARGIN",
            min=0,
            max=1,
            help="loss of exact match, as 0.02, that is allowed if it is smaller or faster",
        ),
    ] = None,
    without_evidence: Annotated[
        str | None, typer.Option(metavar="REASON", help="make it champion whatever it reads; why, for the history")
    ] = None,
) -> None:
    """Make a version the champion if it reads more than the champion. Exits with 1 if it does not.

    Both read the same images, which neither was trained on, and an exact McNemar test decides.
    """
    if without_evidence is not None and (test is not None or no_worse is not None):
        raise typer.BadParameter("--without-evidence reads no images: leave out --test and --no-worse")
    if without_evidence is not None and not without_evidence.strip():
        raise typer.BadParameter("--without-evidence needs a reason, for the history")
    from captcha.tracking.promotion import Rule
    from captcha.tracking.promotion import promote as job

    decision = job(version, test, Rule(level, no_worse), without_evidence)
    typer.echo(decision_lines(decision))
    if not decision.promoted:
        raise typer.Exit(1)


def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="registered model")] = MODEL_NAME, reason: Reason = ""
) -> None:
    """Make the former champion the champion again."""
    from captcha.tracking.champion import rollback as job

    typer.echo(move_line(*job(name, reason)))


def check(
    data: DataArgument,
    vocabulary: Annotated[str, typer.Option(help="characters that labels may hold; none allows all")] = NONE,
    height: Annotated[
        int,
        typer.Option(
            min=1, max=MAX_HEIGHT, help="height in pixels to resize images to; it limits the length of labels"
        ),
    ] = DEFAULTS.height,
    problems: Problems = "stop",
    as_json: Json = False,
) -> None:
    """Report what a folder of labelled images, or Parquet, holds, and what is wrong with it.

    With --problems leave-out, report what it holds without the images that have a problem. Exits with 1 if an error
    stands in the way of training, or no image is left.
    """
    LINES.on_stderr = as_json
    from captcha.data.problems import format_facts, format_left_out, format_problems
    from captcha.data.sources import parse_images
    from captcha.reading.vocabulary import Vocabulary

    characters = None if vocabulary == NONE else Vocabulary(vocabulary)
    leave_out = problems == "leave-out"
    samples, found, facts = parse_images(data).check(height, characters, leave_out)
    if as_json:
        sizes = {f"{w}x{h}": count for (w, h), count in facts.sizes.items()}
        print_json(vars(facts) | {"sizes": sizes, "problems": [asdict(problem) for problem in found]})
    else:
        counted = format_left_out(found, len(samples)) if leave_out else ""
        parts = (format_facts(facts), format_problems(found, leave_out=leave_out), counted)
        typer.echo("\n".join(filter(None, parts)))
    if not samples or (not leave_out and any(problem.fatal for problem in found)):
        raise typer.Exit(1)


def draw(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="new or empty folder to write the images to")],
    count: Annotated[int, typer.Option(min=1, help="how many images")] = 1000,
    style: Annotated[
        str, typer.Option(help="kaptcha, tilted, outlined, textured, or a .toml file that describes one")
    ] = "kaptcha",
    seed: Annotated[
        int, typer.Option(min=0, max=SEEDS - 1, help="the same seed draws the same images")
    ] = DEFAULTS.seed,
    fonts: Annotated[
        Path | None,
        typer.Option(metavar="DIR", parser=folder_or_none, help="draw with the .ttf and .otf fonts below it"),
    ] = NONE,  # type: ignore[assignment]  # the parser makes it None
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", parser=path_or_none, help="write a PNG with some of the images")
    ] = NONE,  # type: ignore[assignment]
    beside: Annotated[
        Path | None,
        typer.Option(metavar="DIR", parser=folder_or_none, help="folder of images to show beside the drawn ones"),
    ] = NONE,  # type: ignore[assignment]
) -> None:
    """Draw labelled captchas into a folder to train on, in a built-in style or your own."""
    if beside and not sheet:
        raise typer.BadParameter("--beside needs --sheet, the file to show them on")
    if sheet and (sheet.suffix.lower() != ".png" or not sheet.absolute().parent.is_dir()):
        raise typer.BadParameter(f"--sheet must be a .png file in an existing folder, not {sheet.absolute()}")
    LINES.on_stderr = True
    from captcha.jobs.draw import draw as job

    typer.echo(job(out, style, count, seed, fonts=fonts, sheet=sheet, beside=beside))


def pack(
    data: DataArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="new or empty folder to write the shards to")],
    problems: Problems = "stop",
) -> None:
    """Pack labelled images into Parquet shards, which a training reads without a file for each image.

    Shards that others wrote are packed anew: a training reads small row groups fast.
    """
    LINES.on_stderr = True
    from captcha.jobs.pack import pack as job

    typer.echo(job(data, out, problems))
