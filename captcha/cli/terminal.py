"""What commands print, and the handler that prints the jobs' log messages."""

import json
import logging
import os
import re
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
    from captcha.jobs.audit import AuditOutcome
    from captcha.jobs.compare import CompareOutcome
    from captcha.jobs.crossval import CrossvalOutcome
    from captcha.jobs.evaluate import EvaluateOutcome
    from captcha.jobs.score import ScoreOutcome
    from captcha.jobs.sync import SyncOutcome
    from captcha.jobs.train import TrainOutcome
    from captcha.jobs.tune import TuneOutcome
    from captcha.tracking.champion import Move
    from captcha.tracking.promotion import Decision
    from captcha.tracking.runs import Listed
    from captcha.tracking.versions import Difference, Known, Measured, Version


NOTHING = "(nothing)"

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
    line = without_passwords(" ".join(message.replace("Value error, ", "").split()))  # pydantic's prefix tells nothing
    typer.echo(f"captcha: {line}", err=True)
    return line


def without_passwords(text: str) -> str:
    """Return a text whose URIs have neither name nor password."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


def print_json(content: object) -> None:
    """Print JSON for scripts."""
    typer.echo(json.dumps(content, ensure_ascii=False, indent=2))


def train_summary(outcome: "TrainOutcome") -> str:
    """Return the closing lines of a training: the test's exact match, the model, the next commands."""
    from captcha.tracking.view import view_of

    return f"""
{exact_match_line("the test split", outcome.metrics)}{_of_all(outcome)}
{outcome.message}

{next_commands(outcome.model_name, outcome.model_version, outcome.example, view_of(outcome.run_id))}"""


def adapt_summary(outcome: "AdaptOutcome") -> str:
    """Return the closing lines of a self-training."""
    line = exact_match_line("the images held out", outcome.metrics) if outcome.metrics else ""
    measured = f"\n{line}{_of_all(outcome)}" if line else ""
    from captcha.tracking.view import view_of

    told = (
        f"\nthe model of round {outcome.rounds} is confident of {outcome.confident} of {outcome.images} images, "
        f"the model it began with was confident of {outcome.confident_before}{measured}\n{outcome.message}\n\n"
    )
    view = view_of(outcome.run_id)
    if outcome.model_version is None:
        return told + compare_runs(view)
    return told + next_commands(outcome.model_name, outcome.model_version, outcome.example, view)


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
        f"{metrics['wrong']} of {metrics['n']} wrong, character error rate {metrics['cer']:.2%}\n{outcome.checked()}\n"
        f"{outcome.confident()}"
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


def crossval_summary(outcome: "CrossvalOutcome") -> str:
    """Return the figures of a cross-validation as a table, and where its readings are."""
    header = ["seed", "right of", "exact match", "95 % interval", "characters wrong of", "error rate", "95 % interval"]
    rows = [
        [
            "mean" if each.seed is None else str(each.seed),
            f"{each.right:g} of {each.n}",
            f"{each.exact_match:.2%}",
            f"{each.exact_match_low:.2%} to {each.exact_match_high:.2%}",
            f"{each.edits:g} of {each.characters}",
            f"{each.cer:.3%}",
            f"{each.cer_low:.3%} to {each.cer_high:.3%}",
        ]
        for each in outcome.figures
    ]
    from captcha.tracking.view import view_of

    note = "\nthe intervals of the mean are those of one seed's images" if len(rows) > 1 else ""
    of = outcome.confidence
    confident = (
        f"expected calibration error {of.ece:.2%} (of the raw probabilities {of.ece_raw:.2%}); "
        f"{of.accepted} of {of.readings} texts are accepted, {of.accepted_wrong} wrong among them"
    )
    return (
        f"\n{_table([header, *rows])}{note}\n{confident}\n\n{compare_runs(view_of(outcome.run_id))}\n"
        f"every reading is in   run {outcome.run_id}: out_of_fold.json"
    )


def tune_summary(outcome: "TuneOutcome") -> str:
    """Return the best trial's values, beside how important each is, its seeds as a table, and the model registered."""
    from captcha.tracking.view import view_of

    values = [
        [name, f"{value:.4g}" if isinstance(value, float) else str(value), f"{outcome.importances.get(name, 0):.0%}"]
        for name, value in outcome.values.items()
    ]
    seeds = [
        [
            str(each.seed),
            f"{each.validation_loss:.4f}",
            f"{each.right} of {each.n}",
            "registered" if each.run_id == outcome.chosen else "",
        ]
        for each in outcome.seeds
    ]
    counted = ", ".join(f"{count} {state}" for state, count in outcome.trials.items())
    return f"""
trial {outcome.best_trial} of the study {outcome.study} validates best, with a loss of {outcome.validation_loss:.4f} \
({counted})

{_table([["", "best", "importance"], *values])}

{_table([["seed", "validation loss", "test images read", ""], *seeds])}

{outcome.message}

{next_commands(outcome.model_name, outcome.model_version, outcome.example, view_of(outcome.run_id))}"""


def audit_summary(outcome: "AuditOutcome", shown: int = 20) -> str:
    """Return the suspects that come first, where all are, and what was corrected."""
    found = outcome.suspects
    where = f"the table and a picture are in run {outcome.run_id}: suspects.csv, suspects.png"
    if not found:
        return f"\nall {outcome.images} labels are read as they are: there is nothing to doubt"
    header = ["file", "label", "proposed", "score", "sure"]
    rows = [
        [each.file, each.label, each.proposed or NOTHING, f"{each.score:.2f}", "yes" if each.sure else ""]
        for each in found[:shown]
    ]
    more = f"\nand {len(found) - shown} more" if len(found) > shown else ""
    sure = sum(each.sure for each in found)
    corrected = (
        f"\n{outcome.corrected} has the sure ones corrected: as labels.csv it counts" if outcome.corrected else ""
    )
    doubted = f"{len(found)} of {outcome.images} labels are doubtful, the models are sure of {sure} of these"
    return f"\n{_table([header, *rows])}{more}\n\n{doubted}\n{where}{corrected}"


def score_summary(outcome: "ScoreOutcome") -> str:
    """Return how many images were scored, how fast, and where the rows are."""
    before = f"\n{outcome.before} were there already, and were not read again" if outcome.before else ""
    return (
        f"{outcome.images} images read by {outcome.model} in {outcome.seconds:.1f} seconds "
        f"({outcome.images_per_second:.1f} a second), {outcome.errors} of them errors{before}\n"
        f"the rows are in {outcome.output}, the figures in run {outcome.run_id}"
    )


def runs_table(runs: "Sequence[Listed]") -> str:
    """Return runs that have not ended as a table."""
    if not runs:
        return "no run is under way, and none was cut off"
    header = ["run", "name", "status", "job", "waiting", "to go on"]
    rows = [
        [each.run_id, each.name, each.status, _text(each.job), str(each.waiting), _text(each.resume)] for each in runs
    ]
    return _table([header, *rows])


def sync_summary(outcome: "SyncOutcome") -> str:
    """Return what was sent, and what goes on with the run."""
    sent = f"run {outcome.run_id}: {outcome.entries} waiting entries sent, its status is {outcome.status}"
    return sent + (f"\n\ngo on with it  {outcome.command}" if outcome.command else "")


def versions_table(versions: "Sequence[Version]") -> str:
    """Return registered versions as a table."""
    if not versions:
        return "no model is registered yet: captcha train registers one"
    header = [
        "model",
        "version",
        "aliases",
        "exact match",
        "95 % interval",
        "images",
        "tested on",
        "size",
        "registered",
    ]
    rows = []
    for each in versions:
        test = each.test
        measured = (
            [f"{test.exact_match:.2%}", _interval(test), _text(test.images), _text(test.data)] if test else [""] * 4
        )
        size = "" if each.bytes is None else _megabytes(each.bytes)
        rows.append([each.name, str(each.version), ", ".join(each.aliases), *measured, size, each.date])
    return _table([header, *rows])


def known_lines(known: "Known") -> str:
    """Return what is known of a version or a run, a line for each thing, without those that are not known."""
    lines: list[tuple[str, str | None]] = []
    for each in known.versions:
        aliases = "".join(f", {alias}" for alias in each.aliases)
        size = "" if each.bytes is None else f", {_megabytes(each.bytes)}"
        lines.append(("version", f"{each.name} {each.version}{aliases}, registered {each.date}{size}"))
    lines += [
        ("run", known.run_id and f"{known.run_id}, {known.run_name}, {known.status}"),
        ("test", _measured_line(known.test) if known.test else None),
        ("metrics", None if known.test else ", ".join(f"{key} {value:.4g}" for key, value in known.metrics.items())),
        *(("evaluated", _measured_line(each)) for each in known.evaluations),
        ("data", known.data),
        (
            "settings",
            ", ".join(f"{key} {value}" for key, value in known.settings.items() if key != "data") or "defaults",
        ),
        *(("judged", each.decision) for each in known.versions),
        ("started from", known.parent),
        ("backbone", known.backbone),
        ("vocabulary", known.vocabulary),
        *((CHAMPION, move) for move in known.moves),
        *(("page", link) for link in known.links),
    ]
    return "\n".join(f"{name:14}{value}" for name, value in lines if value)


def difference_table(difference: "Difference", first: str, second: str) -> str:
    """Return the settings that differ and the metrics of two versions or runs, side by side."""
    settings = [[key, *map(_text, pair)] for key, pair in difference.settings.items()]
    metrics = [
        [key, *("" if value is None else f"{value:.4g}" for value in pair)] for key, pair in difference.metrics.items()
    ]
    tested = (
        ""
        if difference.same_test is not False
        else "\nThe two were tested on different images: compare them on a folder, DIR."
    )
    return (
        _table([["setting", first, second], *(settings or [["(all are the same)", "", ""]])])
        + "\n\n"
        + _table([["metric, last value", first, second], *metrics])
        + tested
    )


def decisions_table(versions: "Sequence[Version]", moves: Sequence[str]) -> str:
    """Return how the versions of a model were judged, and the moves of its champion, below the table of them."""
    judged = [[f"version {each.version}", each.decision] for each in versions if each.decision]
    return (f"\n\n{_table(judged)}" if judged else "") + "".join(["\n", *(f"\n{CHAMPION}  {line}" for line in moves)])


def decision_lines(decision: "Decision") -> str:
    """Return what has become of a challenger: the table of a comparison, and the move or why there is none."""
    name, version, former = decision.name, decision.version, decision.former
    table = ""
    if counts := decision.counts:
        both, alone = (counts.both, counts.only_champion), (counts.only_challenger, counts.neither)
        table = _counts_table(f"version {former}", f"version {version}", both, alone) + "\n\n"
    if not decision.promoted:
        stays = f"version {former} stays {CHAMPION}" if former else f"version {version} does not become {CHAMPION}"
        return f"{table}{name}: {stays}: {decision.told}"
    was = f"version {former}" if former else "none"
    return f"{table}{name}: the {CHAMPION} has moved, {was} → version {version} ({decision.told})"


def _counts_table(first: str, second: str, first_right: tuple[int, int], first_wrong: tuple[int, int]) -> str:
    """Return how many images two models read right and wrong, each pair being those that the second reads and not."""
    return _table(
        [
            ["", f"{second} right", f"{second} wrong"],
            [f"{first} right", *map(str, first_right)],
            [f"{first} wrong", *map(str, first_wrong)],
        ]
    )


def compare_summary(outcome: "CompareOutcome", shown: int = 20) -> str:
    """Return the closing lines of a comparison: counts, p, and the images that one of the two alone reads."""
    first, second = outcome.names
    images = [[each.file, each.label, each.first or NOTHING, each.second or NOTHING] for each in outcome.images]
    more = f"\nand {len(images) - shown} more" if len(images) > shown else ""
    counts = _counts_table(first, second, (outcome.both, outcome.only_first), (outcome.only_second, outcome.neither))
    return (
        f"{counts}\n\n"
        f"exact match: {first} {outcome.exact_match[0]:.2%}, {second} {outcome.exact_match[1]:.2%}; "
        f"exact McNemar p = {outcome.p:.3g}\n\n"
        + (_table([["file", "label", first, second], *images[:shown]]) + more + "\n\n" if images else "")
        + f"the table and a picture are in run {outcome.run_id}: compare.json, compare.png"
    )


def move_line(name: str, move: "Move") -> str:
    """Return what a rollback has done."""
    former = "none" if move.before is None else f"version {move.before}"
    reason = f" ({move.reason})" if move.reason else ""
    return f"{name}: the {CHAMPION} has moved back, {former} → version {move.after}{reason}"


def _measured_line(measured: "Measured") -> str:
    cer = "" if measured.cer is None else f", character error rate {measured.cer:.2%}"
    interval = f" ({text})" if (text := _interval(measured)) else ""
    images = "" if measured.images is None else f" of {measured.images} images"
    where = "" if measured.data is None else f" {'of' if images else 'on'} {measured.data}"
    when = "" if measured.date is None else f"; {measured.date}, run {measured.run_id}"
    return f"exact match {measured.exact_match:.2%}{interval}{images}{where}{cer}{when}"


def _interval(measured: "Measured") -> str:
    low, high = measured.low, measured.high
    return "" if low is None or high is None else f"{low:.2%} to {high:.2%}"


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells in columns, two spaces between them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def next_commands(name: str, version: int, example: str, view: str) -> str:
    """Return the commands that compare the runs, serve this version of the model, and read an image with it.

    Args:
        name: the registered model's.
        version: of the model.
        example: absolute path of an image.
        view: link to the saved view of the runs.
    """
    from captcha.tracking.registry import is_champion

    uri = shlex.quote(f"models:/{name}" + (f"@{CHAMPION}" if is_champion(name, version) else f"/{version}"))
    serve = f"{_tracking(Path.cwd())}{_mlflow_on_path()} models serve -m {uri} --env-manager local -p 5001"
    predict = f"{_tracking(project_root())}{_captcha()} predict {_from_here(Path(example))} --model {uri}"
    return f"""{compare_runs(view)}
serve the model       {serve}
read one image        {predict}"""


def compare_runs(view: str) -> str:
    """Return the lines that say how to see the runs; `view` is the link to the saved view of them."""
    from captcha.tracking.runs import tracking_uri

    uri = tracking_uri()
    if uri.startswith("http"):  # a server, which shows its runs itself
        return f"compare the runs      {view}"
    # `mlflow ui` reads no MLFLOW_TRACKING_URI.
    store = f" --backend-store-uri {shlex.quote(uri)}" if _tracking(Path.cwd()) else ""
    return f"compare the runs      {_program('mlflow')} ui{store}\nthen open             {view}"


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
