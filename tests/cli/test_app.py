"""The command line; where a command's function is replaced, the test says that it uses a stand-in."""

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, get_args

import onnx.parser
import pytest
from mlflow.exceptions import MlflowException

from captcha import __version__
from captcha.cli import app as cli
from captcha.cli import commands, terminal
from captcha.cli.options import EngineOption
from captcha.evaluation.calibration import ConfidenceFigures
from captcha.evaluation.out_of_fold import OutOfFold, OutOfFoldFigures, Suspect
from captcha.jobs import audit, compare, crossval, evaluate, predict, score, train, tune
from captcha.jobs.audit import AuditOutcome
from captcha.jobs.compare import CompareOutcome, Differing
from captcha.jobs.crossval import CrossvalOutcome
from captcha.jobs.evaluate import EvaluateOutcome
from captcha.jobs.score import ScoreOutcome
from captcha.jobs.train import TrainOutcome
from captcha.jobs.tune import SeedResult, TuneOutcome
from captcha.reading import recognizer
from captcha.reading.constraints import Constraints
from captcha.reading.engine import Engine
from captcha.reading.images import ImageError
from captcha.reading.recognizer import Reading, save_recognizer
from captcha.reading.vocabulary import Vocabulary
from captcha.settings import AuditSettings, CrossvalSettings, TrainSettings, TuneSettings
from captcha.tracking import champion, promotion, registry, versions, view
from captcha.tracking.champion import Move
from captcha.tracking.promotion import Counts, Decision, Rule
from captcha.tracking.runs import RegistryError
from captcha.tracking.versions import Difference, Known, Measured, Version

HEAVY = ("torch", "mlflow", "pandas", "cv2", "onnxruntime", "matplotlib", "rich")
FIGURES = {"exact_match": 0.99, "exact_match_low": 0.95, "exact_match_high": 0.998, "cer": 0.002, "n": 100, "wrong": 1}

Capture = pytest.CaptureFixture[str]


def run(*arguments: str) -> int:
    """Return the exit code of the command line, run in this process."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    return int(stopped.value.code or 0)


def raiser(error: BaseException) -> Any:
    """A stand-in for any function, which raises the error."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.fixture(autouse=True)
def _keep_signal_handler() -> Any:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_version_is_printed(capsys: Capture) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"captcha {__version__}\n"


def test_a_shell_can_complete_commands_and_options() -> None:
    variables = {"_CAPTCHA_COMPLETE": "complete_bash", "COMP_WORDS": "captcha tra", "COMP_CWORD": "1"}
    script = "from captcha.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | variables, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["train"]


REGISTRY = ("models", "show", "compare", "register", "promote", "rollback")


@pytest.mark.parametrize(
    "command",
    ["", "train", "adapt", "budget", "crossval", "audit", "tune", "evaluate", "predict", "score", "check", *REGISTRY],
)
def test_help_imports_nothing_heavy(command: str) -> None:
    code = f"""
import sys
from captcha.cli.app import main
try:
    main([*{command.split()!r}, "--help"])
finally:
    print("imported:", *(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: captcha")
    assert done.stderr.strip() == "imported:"


def test_without_arguments_the_help_is_printed(capsys: Capture) -> None:
    assert run() == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {command} " in printed for command in ("train", "evaluate", "predict", "register", "check"))


def test_every_setting_is_explained_with_its_default(capsys: Capture) -> None:
    run("train", "--help")
    help_text = " ".join(capsys.readouterr().out.split())
    for name, field in TrainSettings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in help_text
        assert field.description is not None
        assert field.description in help_text
        if field.default is not False:
            assert f"[default: {'none' if field.default is None else field.default}]" in help_text


def test_train_trains_as_told_and_prints_what_came_of_it(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    configs: list[TrainSettings] = []

    def stand_in(settings: TrainSettings) -> TrainOutcome:
        configs.append(settings)
        logging.getLogger("captcha.jobs.train").info("epoch 1")
        logging.getLogger("captcha.jobs.train").warning("not %s", "yet")
        return TrainOutcome("abc", FIGURES, "m", 3, "registered", "x.png")

    monkeypatch.setattr(train, "train", stand_in)
    monkeypatch.setattr(commands, "train_summary", lambda outcome: f"done: {outcome.message}")
    assert run("train") == 0
    assert capsys.readouterr().out == "epoch 1\nwarning: not yet\ndone: registered\n"

    assert run("train", "--json", "--pretrained", "--epochs", "3", "--vocabulary", "none") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == FIGURES | {"run_id": "abc", "model_name": "m", "model_version": 3}
    assert printed.err == "epoch 1\nwarning: not yet\n"
    assert configs == [TrainSettings(), TrainSettings(pretrained=True, epochs=3)]


def test_the_option_takes_the_engines_that_there_are() -> None:
    """The command line does not import the engines for its help, so it repeats their names."""
    assert get_args(get_args(EngineOption)[0]) == get_args(Engine)


def test_evaluate_prints_the_figures(monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path) -> None:
    asked: list[object] = []

    of_all = {**FIGURES, "exact_match": 0.995, "n": 300}
    confidence = ConfidenceFigures(100, 1, 0.012, 0.03, 0.005, 0.009, 0.97, 98, 0, 0.0301)
    outcome = EvaluateOutcome("r1", "models:/m/2", 2, "d1", FIGURES, of_all, 5000, None, confidence)

    def stand_in(folder: str, model: str, problems: str, engine: str, known: object) -> EvaluateOutcome:
        asked.append((folder, model, problems))
        return outcome

    monkeypatch.setattr(evaluate, "evaluate", stand_in)
    monkeypatch.setattr(view, "view_of", lambda run_id: f"the view of {run_id}")
    monkeypatch.setattr(commands, "compare_runs", lambda view: f"open {view}")
    assert run("evaluate", str(tmp_path)) == 0
    assert capsys.readouterr().out == (
        "exact match 99.00% (95 % interval 95.00% to 99.80%), 1 of 100 wrong, character error rate 0.20%\n"
        "training saw 200 of the folder's 300 images, which are left out here; of all 300, 99.50% are read exactly\n"
        "expected calibration error 1.20%, Brier score 0.0050; 98 of 100 texts are accepted (98.00%), 0 wrong among "
        "them, which proves that at most 3.01% of such texts are (at 95 % confidence)\n"
        "\nopen the view of r1\n"
    )
    assert run("evaluate", str(tmp_path), "--model", "models:/m/2", "--problems", "leave-out", "--json") == 0
    assert json.loads(capsys.readouterr().out) == FIGURES | {
        "run_id": "r1",
        "model": "models:/m/2",
        "version": 2,
        "data_digest": "d1",
        "overlap": 200,
        "training_pixels_unknown": None,
        "confidence": confidence.as_dict(),
        "all": of_all,
    }
    assert asked == [
        (str(tmp_path), "models:/captcha-crnn@champion", "stop"),
        (str(tmp_path), "models:/m/2", "leave-out"),
    ]


def test_crossval_prints_a_table_of_the_seeds(monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path) -> None:
    asked: list[CrossvalSettings] = []
    rows = [
        OutOfFoldFigures(seed, right, 4, 0.25, 0.95, edits, 20, 0.01, 0.3)
        for seed, right, edits in ((0, 3, 2), (None, 3.5, 1))
    ]
    readings = [OutOfFold("a.png", "a", "a", 0.9, 0.8, True, -0.1, 0, 0)]
    confidence = ConfidenceFigures(8, 1, 0.0123, 0.0456, 0.01, 0.02, 0.9, 6, 1, None)

    def stand_in(settings: CrossvalSettings) -> CrossvalOutcome:
        asked.append(settings)
        return CrossvalOutcome("r1", "d1", readings, rows, confidence)

    monkeypatch.setattr(crossval, "crossval", stand_in)
    monkeypatch.setattr(view, "view_of", lambda run_id: f"the view of {run_id}")
    monkeypatch.setattr(terminal, "compare_runs", lambda view: f"open {view}")
    assert run("crossval", str(tmp_path), "--folds", "4", "--seeds", "2") == 0
    assert capsys.readouterr().out.splitlines() == [
        "",
        "seed  right of  exact match  95 % interval     characters wrong of  error rate  95 % interval",
        "0     3 of 4    75.00%       25.00% to 95.00%  2 of 20              10.000%     1.000% to 30.000%",
        "mean  3.5 of 4  87.50%       25.00% to 95.00%  1 of 20              5.000%      1.000% to 30.000%",
        "the intervals of the mean are those of one seed's images",
        "expected calibration error 1.23% (of the raw probabilities 4.56%); "
        "6 of 8 texts are accepted, 1 wrong among them",
        "",
        "open the view of r1",
        "every reading is in   run r1: out_of_fold.json",
    ]
    assert run("crossval", str(tmp_path), "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["run_id"], printed["data_digest"]) == ("r1", "d1")
    assert printed["confidence"] == confidence.as_dict()
    figures = [(each["seed"], each["exact_match"], each["cer"], each["exact_match_low"]) for each in printed["figures"]]
    assert figures == [(0, 0.75, 0.1, 0.25), (None, 0.875, 0.05, 0.25)]
    assert [settings.given() for settings in asked] == [{"data", "folds", "seeds"}, {"data"}]
    assert run("crossval", "draw:kaptcha") == 2
    assert (
        "draw:kaptcha is a style, and a folder is needed: captcha draw DIR --style kaptcha" in capsys.readouterr().err
    )
    assert run("crossval", str(tmp_path), "--folds", "1") == 2


def test_tune_prints_the_best_trial_its_seeds_and_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    asked: list[TuneSettings] = []
    seeds = [SeedResult(1, "r1", 0.5, 8, 10), SeedResult(2, "r2", 0.25, 9, 10)]
    values = {"learning_rate": 0.00123456, "batch_size": 8}
    counts = {"complete": 3, "fail": 1}

    def stand_in(settings: TuneSettings) -> TuneOutcome:
        asked.append(settings)
        shares = {"learning_rate": 0.75, "batch_size": 0.25}
        return TuneOutcome("r0", "s", counts, 2, 0.3, values, shares, seeds, "r2", "m", 4, "m version 4", "a.png")

    monkeypatch.setattr(tune, "tune", stand_in)
    monkeypatch.setattr(view, "view_of", lambda run_id: f"the view of {run_id}")
    monkeypatch.setattr(terminal, "next_commands", lambda name, version, example, view: f"{name} {version} {view}")
    assert run("tune", str(tmp_path), "--trials", "3", "--seeds", "2") == 0
    assert capsys.readouterr().out.splitlines() == [
        "",
        "trial 2 of the study s validates best, with a loss of 0.3000 (3 complete, 1 fail)",
        "",
        "               best      importance",
        "learning_rate  0.001235  75%",
        "batch_size     8         25%",
        "",
        "seed  validation loss  test images read",
        "1     0.5000           8 of 10",
        "2     0.2500           9 of 10           registered",
        "",
        "m version 4",
        "",
        "m 4 the view of r0",
    ]
    assert run("tune", str(tmp_path), "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["chosen"], printed["values"], printed["seeds"][1]["right"]) == ("r2", values, 9)
    assert asked == [TuneSettings(data=str(tmp_path), trials=3, seeds=2), TuneSettings(data=str(tmp_path))]
    assert run("tune", str(tmp_path), "--trials", "0") == 2


def test_audit_prints_the_suspects(monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path) -> None:
    asked: list[AuditSettings] = []
    found = [Suspect("a.png", "97", "07", 7.25, True), *(Suspect(f"{i}.png", "4", "", 1.0, False) for i in range(20))]

    def stand_in(settings: AuditSettings) -> AuditOutcome:
        asked.append(settings)
        corrected = "d/labels-corrected.csv" if settings.apply else None
        return AuditOutcome("r2", "r1", 60, found, corrected)

    monkeypatch.setattr(audit, "audit", stand_in)
    assert run("audit", str(tmp_path), "--crossval", "r1", "--apply") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == [
        "file    label  proposed   score  sure",
        "a.png   97     07         7.25   yes",
        "0.png   4      (nothing)  1.00",
    ]
    assert lines[-5:] == [
        "and 1 more",
        "",
        "21 of 60 labels are doubtful, the models are sure of 1 of these",
        "the table and a picture are in run r2: suspects.csv, suspects.png",
        "d/labels-corrected.csv has the sure ones corrected: as labels.csv it counts",
    ]
    assert run("audit", str(tmp_path), "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["suspects"][0] == {"file": "a.png", "label": "97", "proposed": "07", "score": 7.25, "sure": True}
    assert asked == [AuditSettings(data=str(tmp_path), crossval="r1", apply=True), AuditSettings(data=str(tmp_path))]
    assert run("audit", str(tmp_path), "--crossval", "r1", "--folds", "3") == 2
    assert "made already: leave out --folds" in capsys.readouterr().err


def test_predict_reads_the_others_where_one_file_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    for name in ("b.png", "a.PNG", "notes.txt"):
        (tmp_path / name).touch()
    asked: list[object] = []

    def stand_in(files: list[Path], *options: object) -> list[Reading | ImageError]:
        assert options[:4] == ("models:/captcha-crnn@champion", "beam", 10, "auto")
        assert options[5] is None
        asked.append(options[4])
        reading = Reading("2b", 0.875, [0.9, 0.95], 0.75, True)
        return [ImageError(f"{f}: empty\nfile") if f.name == "b.png" else reading for f in files]

    monkeypatch.setattr(predict, "predict", stand_in)
    assert run("predict", str(tmp_path), "x.png", "--decoder", "beam") == 1
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'a.PNG'}\t2b\t0.8750\taccepted\nx.png\t2b\t0.8750\taccepted\n"
    assert printed.err == f"captcha: {tmp_path / 'b.png'}: empty file\n"

    assert run("predict", "x.png", str(tmp_path / "b.png"), "--decoder", "beam", "--json") == 1
    assert json.loads(capsys.readouterr().out) == [
        {
            "file": "x.png",
            "text": "2b",
            "confidence": 0.875,
            "character_confidences": [0.9, 0.95],
            "probability": 0.75,
            "accepted": True,
        },
        {"file": str(tmp_path / "b.png"), "error": f"{tmp_path / 'b.png'}: empty\nfile"},
    ]
    assert run("predict", "x.png", "--decoder", "beam", "--min-confidence", "0.25") == 0
    assert asked == [None, None, 0.25]


def test_score_asks_for_what_is_given_and_says_what_was_read(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    asked: list[tuple[object, ...]] = []

    def stand_in(*arguments: object) -> ScoreOutcome:
        asked.append(arguments)
        return ScoreOutcome("0123", "models:/captcha-crnn/3", "out", images=50, errors=2, before=7, seconds=4.0)

    monkeypatch.setattr(score, "score", stand_in)
    assert run("score", str(tmp_path), "out") == 0
    assert capsys.readouterr().out == (
        "50 images read by models:/captcha-crnn/3 in 4.0 seconds (12.5 a second), 2 of them errors\n"
        "7 were there already, and were not read again\n"
        "the rows are in out, the figures in run 0123\n"
    )
    assert run("score", "a.parquet", "out", "--engine", "spark", "--master", "local[2]", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["images"], printed["errors"], printed["before"], printed["images_per_second"]) == (50, 2, 7, 12.5)
    champion = "models:/captcha-crnn@champion"
    assert asked == [
        (str(tmp_path), Path("out"), champion, "local", None),
        ("a.parquet", Path("out"), champion, "spark", "local[2]"),
    ]


@pytest.mark.parametrize("bad", ["1.01", "-0.1", "nan", "high"])
def test_a_least_confidence_that_is_none_is_one_line(bad: str, capsys: Capture) -> None:
    assert run("predict", "x.png", "--min-confidence", bad) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--min-confidence" in line


def test_what_is_known_of_the_texts_reaches_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []

    def stand_in(*options: object) -> NoReturn:
        asked.append(options[-1])
        raise RegistryError("asked")

    monkeypatch.setattr(predict, "predict", stand_in)
    monkeypatch.setattr(evaluate, "evaluate", stand_in)
    (tmp_path / "texts.txt").write_text("ab\nbc\n")
    given = ["--length", "2", "--characters", "abc", "--texts", str(tmp_path / "texts.txt"), "--pattern", ".b"]
    for arguments in (["predict", "x.png"], ["evaluate", str(tmp_path)]):
        assert run(*arguments, *given) == 2
        assert run(*arguments, "--length", "none") == 2
    assert asked == [Constraints("2", "abc", "ab\nbc\n", ".b"), None] * 2


@pytest.mark.parametrize("width", ["101", "1000000"])
def test_a_beam_is_no_wider_than_a_server_allows(width: str, capsys: Capture) -> None:
    assert run("predict", "x.png", "--decoder", "beam", "--beam-width", width) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{width} is more than 100" in line


def test_predict_reads_a_folders_own_images_in_order_and_leaves_hidden_ones_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("b.png", "a.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "below.png").touch()
    asked: list[Path] = []

    def stand_in(files: list[Path], *options: object) -> list[Reading | ImageError]:
        asked.extend(files)
        return [Reading("2b", 0.875, [0.9, 0.95]) for _ in files]

    monkeypatch.setattr(predict, "predict", stand_in)
    assert run("predict", str(tmp_path), str(tmp_path / ".hidden.png")) == 0
    assert asked == [tmp_path / name for name in ("a.jpg", "b.png", ".hidden.png")]  # hidden ones are read by name


def test_predict_has_the_recognizers_decoders_and_defaults() -> None:
    ours, theirs = signature(commands.predict).parameters, signature(recognizer.Recognizer.read).parameters
    assert get_args(get_args(ours["decoder"].annotation)[0]) == get_args(recognizer.Decoder)
    assert ours["decoder"].default == theirs["decoder"].default
    assert ours["beam_width"].default == theirs["beam_width"].default


def test_register_prints_what_was_done(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(registry, "register", lambda run_id, name: (name, 3, f"{name} 3 from {run_id}"))  # a stand-in
    assert run("register", "abc") == 0
    assert run("register", "abc", "--name", "other") == 0
    assert capsys.readouterr().out == "captcha-crnn 3 from abc\nother 3 from abc\n"


TEST = Measured("folder", 0.99, 0.95, 0.998, 0.002, 100)
THIRD = Version("captcha-crnn", 3, ["best", "champion"], TEST, 4_171_401, "2026-01-31", "better than version 1")
UNTESTED = Version("another", 12, [], None, None, "2026-01-30")


def test_models_are_a_table(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    rows = [UNTESTED, THIRD]
    monkeypatch.setattr(versions, "versions", lambda name: [row for row in rows if name in (None, row.name)])
    monkeypatch.setattr(versions, "moves", lambda name: ["2026-01-31 23:59:59 UTC promoted 1 → 3: better"])
    assert run("models") == 0
    assert capsys.readouterr().out.splitlines() == [
        "model         version  aliases         exact match  95 % interval     images  tested on  size    registered",
        "another       12                                                                                 2026-01-30",
        "captcha-crnn  3        best, champion  99.00%       95.00% to 99.80%  100     folder     4.2 MB  2026-01-31",
    ]
    assert run("models", "captcha-crnn", "--json") == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["version"], row["aliases"], row["test"]["low"], row["bytes"]) == (3, THIRD.aliases, 0.95, 4171401)
    assert run("models", "captcha-crnn") == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "",
        "version 3  better than version 1",
        "",
        "champion  2026-01-31 23:59:59 UTC promoted 1 → 3: better",
    ]
    rows.clear()
    assert run("models") == 0
    assert capsys.readouterr().out == "no model is registered yet: captcha train registers one\n"


def test_what_is_known_of_a_version_is_a_line_for_each_thing(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    known = Known(
        run_id="abc",
        run_name="a name",
        status="FINISHED",
        job="train",
        versions=[THIRD],
        settings={"data": "folder", "epochs": "6", "backbone": "compact"},
        data="folder",
        backbone="compact",
        vocabulary=None,
        parent="models:/captcha-crnn/1",
        test=TEST,
        metrics={"val/loss": 0.5},
        evaluations=[Measured("other", 0.5, None, None, None, None, "def", "2026-02-01")],
        moves=["2026-01-31 23:59:59 UTC promoted 1 → 3: better"],
        links=["http://host/page"],
    )
    monkeypatch.setattr(versions, "show", lambda named: known)
    assert run("show", "champion") == 0
    assert capsys.readouterr().out.splitlines() == [
        "version       captcha-crnn 3, best, champion, registered 2026-01-31, 4.2 MB",
        "run           abc, a name, FINISHED",
        "test          exact match 99.00% (95.00% to 99.80%) of 100 images of folder, character error rate 0.20%",
        "evaluated     exact match 50.00% on other; 2026-02-01, run def",
        "data          folder",
        "settings      epochs 6, backbone compact",
        "judged        better than version 1",
        "started from  models:/captcha-crnn/1",
        "backbone      compact",
        "champion      2026-01-31 23:59:59 UTC promoted 1 → 3: better",
        "page          http://host/page",
    ]
    assert run("show", "3", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["run_id"], shown["settings"]["epochs"], shown["metrics"]) == ("abc", "6", {"val/loss": 0.5})


def test_two_versions_stand_side_by_side(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    same = Difference({"seed": ("0", "1"), "recipe.x": (None, "2")}, {"test/cer": (0.0, 0.123456)}, True)
    found = [same, Difference({}, {}, False), same]
    monkeypatch.setattr(versions, "differences", lambda first, second: found.pop(0))
    assert run("compare", "2", "champion") == 0
    assert capsys.readouterr().out.splitlines() == [
        "setting   2  champion",
        "seed      0  1",
        "recipe.x     2",
        "",
        "metric, last value  2  champion",
        "test/cer            0  0.1235",
    ]
    assert run("compare", "2", "champion") == 0
    printed = capsys.readouterr().out
    assert "(all are the same)" in printed
    assert printed.endswith("\nThe two were tested on different images: compare them on a folder, DIR.\n")
    assert run("compare", "2", "champion", "--json") == 0
    assert json.loads(capsys.readouterr().out)["settings"] == {"seed": ["0", "1"], "recipe.x": [None, "2"]}


def test_a_comparison_on_a_folder_prints_counts_p_and_what_differs(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    images = [Differing("x.png", "00042", "00042", ""), *(Differing(f"{i}.png", "b", "a", "b") for i in range(22))]
    outcome = CompareOutcome(
        "abc", ("v2", "v3"), ("models:/m/2", "models:/m/3"), (0.5, 0.71), 49, 1, 22, 28, 0.00123456, images
    )
    asked: list[object] = []

    def stand_in(*arguments: object) -> CompareOutcome:
        asked.append(arguments)
        return outcome

    monkeypatch.setattr(compare, "compare", stand_in)
    assert run("compare", "2", "m@best", str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:9] == [
        "          v3 right  v3 wrong",
        "v2 right  49        1",
        "v2 wrong  22        28",
        "",
        "exact match: v2 50.00%, v3 71.00%; exact McNemar p = 0.00123",
        "",
        "file    label  v2     v3",
        "x.png   00042  00042  (nothing)",
        "0.png   b      a      b",
    ]
    assert lines[-3:] == ["and 3 more", "", "the table and a picture are in run abc: compare.json, compare.png"]
    assert run("compare", "2", "m@best", str(tmp_path), "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["p"], len(printed["images"]), printed["images"][0]["label"]) == (0.00123456, 23, "00042")
    assert asked == [("2", "m@best", str(tmp_path))] * 2
    assert run("compare", "2", "3", str(tmp_path / "none")) == 2
    assert capsys.readouterr().err == f"captcha: Invalid value for 'DIR': no such folder: {tmp_path / 'none'}\n"


def test_a_rollback_is_one_line_from_and_to(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(champion, "rollback", lambda name, reason: (name, Move("", 3, 2, reason, True)))
    assert run("rollback") == 0
    assert run("rollback", "m", "--reason", "it misreads m") == 0
    assert capsys.readouterr().out.splitlines() == [
        "captcha-crnn: the champion has moved back, version 3 → version 2",
        "m: the champion has moved back, version 3 → version 2 (it misreads m)",
    ]


def test_a_promotion_shows_what_both_read_and_ends_with_1_where_nothing_moves(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    asked: list[tuple[object, ...]] = []

    def promoted(named: str, folder: str | None, rule: Rule, without_evidence: str | None) -> Decision:
        asked.append((named, folder, rule, without_evidence))
        counts = None if without_evidence else Counts(90, 7, 1, 2, 0.07, 3, "d1", 2)
        why = f"without evidence: {without_evidence}" if without_evidence else "97 of 100 read"
        return Decision("m", 3, 2, rule.level > 0.07 or not counts, why, counts, "3 images are left out")

    monkeypatch.setattr(promotion, "promote", promoted)
    assert run("promote", "m/3") == 1
    assert run("promote", "m/3", "--test", str(tmp_path), "--level", "0.1", "--no-worse", "0.02") == 0
    assert run("promote", "m/3", "--without-evidence", "it reads m") == 0
    assert asked == [
        ("m/3", None, Rule(), None),
        ("m/3", str(tmp_path), Rule(0.1, 0.02), None),
        ("m/3", None, Rule(), "it reads m"),
    ]
    table = ["                 version 3 right  version 3 wrong", "version 2 right  90               1"]
    assert capsys.readouterr().out.splitlines() == [
        *table,
        "version 2 wrong  7                2",
        "",
        "m: version 2 stays champion: 97 of 100 read; 3 images are left out",
        *table,
        "version 2 wrong  7                2",
        "",
        "m: the champion has moved, version 2 → version 3 (97 of 100 read; 3 images are left out)",
        "m: the champion has moved, version 2 → version 3 (without evidence: it reads m; 3 images are left out)",
    ]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--without-evidence", " "], "--without-evidence needs a reason, for the history"),
        (["--without-evidence", "x", "--no-worse", "0.1"], "--without-evidence reads no images: leave out --test and "),
        (["--test", "nowhere"], "Invalid value for '--test': no such folder: "),
        (["--level", "2"], "Invalid value for '--level': Input should be less than or equal to 1"),
    ],
)
def test_options_of_a_promotion_that_cannot_be_meant_are_one_line(
    options: list[str], line: str, capsys: Capture
) -> None:
    assert run("promote", "m/3", *options) == 2
    assert re.fullmatch(rf"captcha: [^\n]*{re.escape(line)}[^\n]*\n", capsys.readouterr().err)


def test_check_counts_and_ends_with_1_on_an_error(capsys: Capture, captcha_folder: Path) -> None:
    assert run("check", str(captcha_folder)) == 0
    assert "60" in capsys.readouterr().out

    (captcha_folder / "999.png").write_bytes(b"")
    assert run("check", str(captcha_folder)) == 1
    assert "999.png" in capsys.readouterr().out

    assert run("check", str(captcha_folder), "--json") == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["images"], facts["lengths"], facts["sizes"]) == (60, {"3": 60}, {"96x32": 60})
    assert [(problem["file"], problem["fatal"]) for problem in facts["problems"]] == [("999.png", True)]


def test_check_shows_what_is_left_and_ends_with_1_if_that_is_nothing(
    capsys: Capture, captcha_folder: Path, spoil: Callable[[Path, Path], Path], tmp_path: Path
) -> None:
    assert run("check", str(captcha_folder), "--problems", "leave-out") == 0
    clean = capsys.readouterr().out
    spoilt = spoil(captcha_folder, tmp_path / "spoilt")
    assert run("check", str(spoilt)) == 1
    assert "error: torn.png" in capsys.readouterr().out

    assert run("check", str(spoilt), "--problems", "leave-out") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(clean)
    lines = printed.removeprefix(clean).splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["left out"] * 4
    assert lines[-1] == "left out 4 of 64 images: 2 contradicting labels, 1 empty label, 1 unreadable image"

    assert run("check", str(spoilt), "--problems", "leave-out", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["images"], len(facts["problems"])) == (60, 4)

    for file in captcha_folder.iterdir():
        file.write_bytes(b"torn")
    assert run("check", str(captcha_folder), "--problems", "leave-out") == 1
    assert capsys.readouterr().out.endswith("left out 60 of 60 images: 60 unreadable image\n")


def test_check_names_characters_outside_the_vocabulary(capsys: Capture, captcha_folder: Path) -> None:
    assert run("check", str(captcha_folder), "--vocabulary", "012345678") == 1
    assert "049.png" in capsys.readouterr().out
    assert run("check", str(captcha_folder), "--vocabulary", "0123456789") == 0
    assert "049.png" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "--epoch", "3"], "No such option: --epoch .*--epochs"),
        (["trian"], "No such command 'trian'.*'train'"),
        (["train", "--epochs", "0"], "--epochs: .*greater than or equal to 1"),
        (["train", "--batch-size", "0"], "--batch-size: .*greater than or equal to 1"),
        (["train", "--epochs", "many"], "'--epochs': .*valid integer"),
        (["train", "--backbone", "vgg"], "'--backbone': 'vgg' .*'resnet18', 'compact'"),
        (["train", "--pretrained", "--backbone", "compact"], "pretrained weights .* not for compact"),
        (["train", "--problems", "skip"], "'--problems': 'skip' .*'stop', 'leave-out'"),
        (["train", "--data", ""], "'--data': it is empty"),
        (["train", "--vocabulary", ""], "--vocabulary: .*at least 1 character"),
        (["evaluate"], "Missing argument 'DIR'"),
        (["evaluate", "no/such"], f"'DIR': no such folder: {Path.cwd() / 'no/such'}"),
        (["check", __file__], f"'DIR': not a folder: {__file__}"),
        (["check", str(Path(__file__).parent), "--height", "1000000000"], "'--height': .* less than or equal to 256"),
        (["predict", str(Path(__file__).parent)], f"no images in {Path(__file__).parent}"),
        (["predict", "x.png", "--model", "file:///etc"], "'file:///etc' names no model: there is no such folder; use"),
        (["predict", "x.png", "--model", "http://127.0.0.1:9/x"], "'http://127.0.0.1:9/x' names no model: "),
        (["predict", "x.png", "--length", "6-4"], "the length must be a number of characters such as 5"),
        (["evaluate", str(Path(__file__).parent), "--texts", "x.txt"], "x.txt cannot be read: No such file"),
        (["train", "--epochs", "1000000000"], "--epochs: .* less than or equal to 100000"),
        (["train", "--batch-size", "1000000000"], "--batch-size: .* less than or equal to 4096"),
        (["check", str(Path(__file__).parent), "--vocabulary", "aba"], "characters twice: 'a'"),
    ],
)
def test_what_a_person_can_mend_is_one_line(arguments: list[str], line: str, capsys: Capture) -> None:
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(f"captcha: .*{line}.*\n", printed.err)


@pytest.mark.parametrize(
    "error",
    [
        ImageError("x\n  y"),
        RegistryError("x y"),
        MlflowException("x\ny"),
        MlflowException("x y\n[SQL: SELECT 1]\n(Background on this error at: https://x)"),
        PermissionError("x y"),
    ],
    ids=repr,
)
def test_errors_for_people_show_no_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(train, "train", raiser(error))  # a stand-in
    assert run("train") == 2
    assert capsys.readouterr().err == "captcha: x y\n"


def test_no_line_holds_the_password_of_a_server(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    error = MlflowException(
        "API request to https://me:secret@host/api/2.0 failed, postgresql://me:secret@host/runs too"
    )
    monkeypatch.setattr(train, "train", raiser(error))  # a stand-in
    assert run("train") == 2
    assert capsys.readouterr().err == (
        "captcha: API request to https://host/api/2.0 failed, postgresql://host/runs too\n"
    )


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        MlflowException("(sqlite3.Op…) database or disk is full\n[SQL: x]"),
    ],
    ids=repr,
)
def test_a_full_disk_is_one_line_with_its_place(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))  # a stand-in
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "train", raiser(error))
    assert run("train") == 2
    assert capsys.readouterr().err == (
        f"captcha: {'No space left on device' if isinstance(error, OSError) else 'database or disk is full'}: "
        f"free some space on the disk of {tmp_path}\n"
    )


def test_a_command_leaves_nothing_in_the_temporary_folder(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    stripes = (Path(__file__).parents[1] / "reading" / "stripes.onnxtxt").read_text()
    save_recognizer(tmp_path / "model", onnx.parser.parse_model(stripes).SerializeToString(), Vocabulary("abc"), 16)
    image, temporary, database = write_image(tmp_path / "a.png"), tmp_path / "temporary", tmp_path / "mlflow.db"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "MLFLOW_TRACKING_URI": f"sqlite:///{database}"}
    for code, command in (
        (0, ("predict", image, "--model", tmp_path / "model")),
        (2, ("predict", image, "--model", "models:/nobody/1")),
        (0, ("draw", tmp_path / "drawn", "--count", 2)),
        (2, ("evaluate", tmp_path / "drawn", "--model", "nobody")),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "captcha", *map(str, command)], env=environment, capture_output=True, text=True
        )
        assert (done.returncode, list(temporary.iterdir())) == (code, []), done.stderr
        assert done.stderr.count("\n") == (code == 2) or code == 0


@pytest.mark.parametrize("error", [ValueError("from a library"), RuntimeError("x"), KeyError("x")], ids=repr)
def test_faults_of_the_program_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "train", raiser(error))  # a stand-in
    with pytest.raises(type(error)):
        cli.main(["train"])


def test_a_relative_folder_under_mlflow_run_is_explained(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    assert run("train", "--data", "images of nobody") == 2
    assert "under mlflow run a relative path starts at the project" in capsys.readouterr().err
    assert run("train", "--data", "/images of nobody") == 2
    assert "relative" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sent", "code", "line"),
    [(signal.SIGINT, 130, "captcha: interrupted\n"), (signal.SIGTERM, 143, "captcha: terminated\n")],
)
def test_a_signal_unwinds_the_command_and_is_one_line(sent: signal.Signals, code: int, line: str) -> None:
    program = """
import signal, sys, time
from types import ModuleType
import captcha.jobs

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
stand_in = ModuleType("captcha.jobs.train")
def train(settings):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("unwound", flush=True)
stand_in.train = train
sys.modules["captcha.jobs.train"] = captcha.jobs.train = stand_in
from captcha.cli.app import main
main(["train"])
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (code, "unwound\n", line)
