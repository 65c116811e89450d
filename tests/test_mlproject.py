"""MLproject against the settings and the command line. MLflow itself composes the commands; none is run by it here."""

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.projects.utils import load_project

from captcha import CaptchaError
from captcha.cli import app as cli
from captcha.cli import commands
from captcha.jobs import adapt, audit, budget, crossval, distill, draw, train, tune
from captcha.settings import (
    CHAMPION,
    MODEL_NAME,
    AdaptSettings,
    AuditSettings,
    BudgetSettings,
    CrossvalSettings,
    DistillSettings,
    Settings,
    TrainSettings,
    TuneSettings,
)

ROOT = Path(__file__).parent.parent
PROJECT = load_project(str(ROOT))
ENTRY_POINTS: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> TrainSettings:
    """Return the configuration that a command line asks to train; a stand-in takes the place of the training."""
    configs: list[TrainSettings] = []

    def stand_in(settings: TrainSettings) -> None:
        configs.append(settings)

    monkeypatch.setattr(train, "train", stand_in)
    monkeypatch.setattr(commands, "train_summary", lambda outcome: "done")
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 0
    return configs[0]


def arguments_of(entry_point: str, folder: Path, **parameters: str) -> tuple[list[str], dict[str, str]]:
    """Return the arguments that MLflow's command hands to `python`, through a real bash, and the variables it sets.

    The python on PATH is a stand-in that prints its arguments.
    """
    stand_in = folder / "bin" / "python"
    stand_in.parent.mkdir(exist_ok=True)
    program = (
        "import json, os, sys\n"
        "flags = {name: value for name, value in os.environ.items() if name.startswith('CAPTCHA_')}\n"
        "print(json.dumps([sys.argv[1:], flags]))\n"
    )
    stand_in.write_text(f"#!{sys.executable}\n{program}")
    stand_in.chmod(0o755)
    command = PROJECT.get_entry_point(entry_point).compute_command(parameters, str(folder))
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("CAPTCHA_")}
    environment = inherited | {"PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=True)
    arguments, flags = json.loads(done.stdout)
    if arguments[1] == "torch.distributed.run":
        del arguments[:3]
    assert arguments[:2] == ["-m", "captcha"]
    return arguments[2:], flags


def config_of(
    monkeypatch: pytest.MonkeyPatch, folder: Path, entry_point: str = "main", **parameters: str
) -> TrainSettings:
    """Return the configuration that `mlflow run . -P …` asks to train."""
    arguments, flags = arguments_of(entry_point, folder, **parameters)
    assert set(flags) == {"CAPTCHA_PRETRAINED", "CAPTCHA_ALLOW_OVERLAP", "CAPTCHA_REGISTER_BEST"}
    for name, value in flags.items():
        monkeypatch.setenv(name, value)
    return run_command(monkeypatch, *arguments)


def defaults_of(entry_point: str) -> dict[str, str | None]:
    """Return the parameters of an entry point with their defaults, None where it has none."""
    parameters = ENTRY_POINTS[entry_point]["parameters"]
    return {name: None if each == "string" else each["default"] for name, each in parameters.items()}


def in_words(value: object) -> str:
    """Return a default as the settings and MLflow write it: log_params may repeat what mlflow run has logged."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize(
    ("entry_point", "settings_of"),
    [
        ("main", TrainSettings),
        ("distill", DistillSettings),
        ("adapt", AdaptSettings),
        ("budget", BudgetSettings),
        ("crossval", CrossvalSettings),
        ("audit", AuditSettings),
        ("tune", TuneSettings),
    ],
)
def test_a_job_has_the_names_and_written_defaults_of_its_settings(
    entry_point: str, settings_of: type[Settings]
) -> None:
    assert defaults_of(entry_point) == {
        name: None if field.is_required() else in_words(field.default)
        for name, field in settings_of.model_fields.items()
    }


@pytest.mark.parametrize("command", [commands.check, commands.draw])
def test_a_command_has_the_names_and_written_defaults_of_its_parameters(command: Callable[..., None]) -> None:
    parameters = inspect.signature(command).parameters
    assert defaults_of(command.__name__) == {
        name: None if parameter.default is parameter.empty else in_words(parameter.default)
        for name, parameter in parameters.items()
        if name != "as_json"
    }


def test_train_distributed_has_those_of_main_and_the_number_of_processes() -> None:
    assert defaults_of("train_distributed") == {"processes": "2", **defaults_of("main")}


def test_train_distributed_lets_torchrun_start_so_many_processes(tmp_path: Path) -> None:
    command = PROJECT.get_entry_point("train_distributed").compute_command({"processes": "3"}, str(tmp_path))
    assert " python -m torch.distributed.run --nproc-per-node=3 -m captcha train --data=draw:kaptcha " in command


def test_every_parameter_is_a_string_and_is_used() -> None:
    for entry_point in ENTRY_POINTS.values():
        parameters = entry_point["parameters"]
        assert {p if isinstance(p, str) else p["type"] for p in parameters.values()} == {"string"}
        assert set(re.findall(r"{(\w+)}", entry_point["command"])) == set(parameters)


@pytest.mark.parametrize("entry_point", ["main", "train_distributed"])
def test_main_alone_trains_with_the_defaults(entry_point: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert config_of(monkeypatch, tmp_path, entry_point) == TrainSettings()


@pytest.mark.parametrize(  # two starts that exclude each other
    ("entry_point", "start"),
    [
        ("main", {"pretrained": "true", "init": "none"}),
        ("main", {"pretrained": "false", "init": "models:/my model@champion"}),
        ("train_distributed", {"pretrained": "true", "init": "none"}),
    ],
)
def test_main_passes_every_parameter_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, entry_point: str, start: dict[str, str]
) -> None:
    folder = tmp_path / 'it\'s a $HOME; "folder" of ümläuts'
    folder.mkdir()
    wanted = {
        "data": str(folder),
        "val_data": str(folder),
        "test_data": str(folder),
        "problems": "leave-out",
        "name": "my model",
        "backbone": "resnet18",
        **start,
        "drawn": "my style.toml",
        "vocabulary": "-a'\"$ {é",
        "height": "48",
        "epochs": "3",
        "batch_size": "7",
        "learning_rate": "1e-2",
        "dropout": "0.2",
        "patience": "4",
        "seed": "5",
        "precision": "0.99",
        "image_memory": "7",
        "allow_overlap": "true",
        "resume": "auto",
        "checkpoint_minutes": "0.5",
        "register_best": "true",
    }
    assert set(wanted) == set(TrainSettings.model_fields)
    assert config_of(monkeypatch, tmp_path, entry_point, **wanted) == TrainSettings.model_validate(wanted)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(vocabulary=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8))
def test_any_vocabulary_survives_the_shell(vocabulary: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments, _ = arguments_of("main", tmp_path, vocabulary=vocabulary)
    assert run_command(monkeypatch, *arguments) == TrainSettings(vocabulary=vocabulary)


def test_a_misspelt_parameter_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, _ = arguments_of("main", tmp_path, epoch="3")
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "--epoch " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pretrained", "allow_overlap"])
def test_a_flag_that_is_no_boolean_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, flags = arguments_of("main", tmp_path, **{name: "imagenet"})
    for variable, value in flags.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert f"'--{name.replace('_', '-')}': " in capsys.readouterr().err


def settings_from(
    monkeypatch: pytest.MonkeyPatch, folder: Path, entry_point: str, job: ModuleType, **parameters: str
) -> Settings:
    """Return the settings that `mlflow run . -e ENTRY_POINT -P …` asks a job for; a stand-in takes the job's place."""
    arguments, variables = arguments_of(entry_point, folder, **parameters)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    asked: list[Settings] = []

    def stand_in(settings: Settings) -> NoReturn:
        asked.append(settings)
        raise CaptchaError("asked")

    monkeypatch.setattr(job, entry_point, stand_in)
    with pytest.raises(SystemExit):
        cli.main(arguments)
    return asked[0]


def test_distill_passes_every_parameter_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "some images"
    folder.mkdir()
    assert settings_from(monkeypatch, tmp_path, "distill", distill) == DistillSettings()
    wanted = {
        "data": str(folder),
        "teacher": "models:/my model/3",
        "val_data": str(folder),
        "test_data": "draw:tilted",
        "problems": "leave-out",
        "name": "my model",
        "drawn": "outlined",
        "epochs": "3",
        "batch_size": "7",
        "learning_rate": "1e-2",
        "patience": "4",
        "seed": "5",
        "precision": "0.99",
        "image_memory": "7",
        "allow_overlap": "true",
        "resume": "auto",
        "checkpoint_minutes": "0.5",
        "register_best": "true",
    }
    assert set(wanted) == set(DistillSettings.model_fields)
    assert settings_from(monkeypatch, tmp_path, "distill", distill, **wanted) == DistillSettings.model_validate(wanted)


def test_adapt_and_budget_pass_every_parameter_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "some images"
    folder.mkdir()
    assert settings_from(monkeypatch, tmp_path, "adapt", adapt, data=str(folder)) == AdaptSettings(data=str(folder))
    wanted = {
        "data": str(folder),
        "model": "models:/my model/3",
        "drawn": "my style.toml",
        "problems": "leave-out",
        "labelled": "true",
        "name": "my model",
        "length": "4-6",
        "characters": "a b'c",
        "texts": str(folder / "texts.txt"),
        "pattern": r"[a-c]{2,3}\d|x$y",
        "threshold": "0.8",
        "rounds": "2",
        "epochs": "3",
        "batch_size": "7",
        "learning_rate": "1e-2",
        "seed": "5",
        "precision": "0.99",
        "image_memory": "7",
        "allow_overlap": "true",
        "resume": "auto",
        "checkpoint_minutes": "0.5",
    }
    assert set(wanted) == set(AdaptSettings.model_fields)
    assert settings_from(monkeypatch, tmp_path, "adapt", adapt, **wanted) == AdaptSettings.model_validate(wanted)

    assert settings_from(monkeypatch, tmp_path, "budget", budget, data=str(folder)) == BudgetSettings(data=str(folder))
    wanted = {
        "data": str(folder),
        "problems": "leave-out",
        "labels": "0,7,all",
        "seeds": "2",
        "drawn": "my style.toml",
        "init": "models:/my model/3",
        "drawn_epochs": "4",
        "backbone": "compact",
        "epochs": "3",
        "resume": "auto",
        "checkpoint_minutes": "0.5",
    }
    assert set(wanted) == set(BudgetSettings.model_fields)
    assert settings_from(monkeypatch, tmp_path, "budget", budget, **wanted) == BudgetSettings.model_validate(wanted)


def test_crossval_and_audit_pass_every_parameter_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "some images"
    folder.mkdir()
    wanted = {
        "data": str(folder),
        "problems": "leave-out",
        "folds": "7",
        "seeds": "2",
        "drawn": "my style.toml",
        "init": "models:/my model/3",
        "backbone": "compact",
        "epochs": "3",
        "length": "4-6",
        "characters": "a b",
        "texts": "my texts.txt",
        "pattern": "[a-z]{5} x",
        "resume": "auto",
        "checkpoint_minutes": "0.5",
    }
    assert set(wanted) == set(CrossvalSettings.model_fields)
    found = settings_from(monkeypatch, tmp_path, "crossval", crossval, **wanted)
    assert found == CrossvalSettings.model_validate(wanted)
    wanted["apply"] = "true"
    found = settings_from(monkeypatch, tmp_path, "audit", audit, **wanted)
    assert found == AuditSettings.model_validate(wanted)
    named = {"data": str(folder), "problems": "leave-out", "crossval": "0" * 32}
    assert {*wanted, *named} == set(AuditSettings.model_fields)
    found = settings_from(monkeypatch, tmp_path, "audit", audit, **named)
    assert found == AuditSettings.model_validate(named)


def test_tune_passes_every_parameter_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "some images"
    folder.mkdir()
    assert settings_from(monkeypatch, tmp_path, "tune", tune) == TuneSettings()
    wanted = {
        "data": str(folder),
        "problems": "leave-out",
        "name": "my model",
        "trials": "7",
        "space": "my space.toml",
        "storage": "postgresql://host/a study?options=-c%20x",
        "study": "it's mine",
        "seeds": "2",
        "drawn": "my style.toml",
        "backbone": "compact",
        "epochs": "3",
    }
    assert set(wanted) == set(TuneSettings.model_fields)
    assert settings_from(monkeypatch, tmp_path, "tune", tune, **wanted) == TuneSettings.model_validate(wanted)


def test_draw_draws_as_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[tuple[object, ...], dict[str, object]]] = []

    def stand_in(*arguments: object, **options: object) -> str:
        asked.append((arguments, options))
        return "drawn"

    monkeypatch.setattr(draw, "draw", stand_in)
    out, sheet = tmp_path / "out of it", tmp_path / "a sheet.png"
    paths = {"fonts": str(tmp_path), "sheet": str(sheet), "beside": str(tmp_path)}
    for parameters in ({}, {"count": "7", "style": "my style.toml", "seed": "5"} | paths):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments_of("draw", tmp_path, out=str(out), **parameters)[0])
        assert stopped.value.code == 0
    assert asked == [
        ((out, "kaptcha", 1000, 0), {"fonts": None, "sheet": None, "beside": None}),
        ((out, "my style.toml", 7, 5), {"fonts": tmp_path, "sheet": sheet, "beside": tmp_path}),
    ]


def test_check_checks_as_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], draw_digits: Callable[..., Path]
) -> None:
    digits = draw_digits(tmp_path / "digits 0 to 9", 30)
    for vocabulary, code in (("none", 0), ("012345678", 1)):
        arguments = arguments_of("check", tmp_path, data=str(digits), vocabulary=vocabulary, height="32")[0]
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == code
    assert "09.png" in capsys.readouterr().out


def test_the_other_entry_points_call_their_commands(tmp_path: Path) -> None:
    champion = f"models:/{MODEL_NAME}@{CHAMPION}"
    called = {
        "evaluate": arguments_of("evaluate", tmp_path, data="a b")[0],
        "predict": arguments_of("predict", tmp_path, image="a b.png")[0],
        "score": arguments_of("score", tmp_path, input="a b", output="o", engine="spark", master="local[2]")[0],
        "register": arguments_of("register", tmp_path, run_id="abc")[0],
    }
    assert called == {
        "evaluate": ["evaluate", "a b", f"--model={champion}", "--problems=stop"]
        + [f"--{name}=none" for name in ("length", "characters", "texts", "pattern")]
        + ["--engine=auto"],
        "predict": ["predict", "a b.png", f"--model={champion}"],
        "score": ["score", "a b", "o", f"--model={champion}", "--engine=spark", "--master=local[2]"],
        "register": ["register", "abc", f"--name={MODEL_NAME}"],
    }
