"""What a person reads on a terminal: the next commands, and that something happens at once."""

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from captcha.cli import terminal
from captcha.tracking import registry, runs

Print = Callable[..., dict[str, str]]
OnTerminal = Callable[..., tuple[str, list[str]]]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Print:
    """A function that gives the next commands by their label, as printed in a situation.

    A person stands in tmp_path/here, the project is tmp_path/project, and its programs lie in tmp_path/a venv/bin.
    """
    folders = {name: tmp_path / name for name in ("here", "project", "a venv/bin")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for program in ("python", "mlflow", "captcha"):
        file = folders["a venv/bin"] / program
        file.touch()
        file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folders["a venv/bin"] / "python"))
    monkeypatch.setattr(terminal, "project_root", lambda: folders["project"])
    monkeypatch.setattr(registry, "is_champion", lambda name, version: version == 1)

    def commands(
        uri: str,
        under_mlflow_run: bool = False,
        on_path: bool = True,
        where: str = "here",
        model: tuple[str, int] = ("m", 1),
    ) -> dict[str, str]:
        monkeypatch.setattr(runs, "tracking_uri", lambda: uri)
        monkeypatch.setattr(terminal, "UNDER_MLFLOW_RUN", under_mlflow_run)
        monkeypatch.setenv("PATH", str(folders["a venv/bin"]) if on_path else "/nowhere")
        monkeypatch.chdir(tmp_path / where)
        lines = terminal.next_commands(*model, str(tmp_path / "here" / "an image.png"), VIEW).splitlines()
        printed = {line[:22].strip(): line[22:] for line in lines}
        assert printed.pop("then open", VIEW) == VIEW
        return printed

    return commands


VIEW = "http://127.0.0.1:5000/#/a-view"
SERVE = "models serve -m models:/m@champion --env-manager local -p 5001"


def test_in_the_project_with_its_own_database_the_commands_are_short(printed: Print, tmp_path: Path) -> None:
    commands = printed(f"sqlite:///{tmp_path}/project/mlflow.db", where="project")
    assert commands == {
        "compare the runs": "mlflow ui",
        "serve the model": f"mlflow {SERVE}",
        "read one image": f"captcha predict '{tmp_path}/here/an image.png' --model models:/m@champion",
    }


def test_elsewhere_mlflow_is_told_the_projects_database_and_captcha_finds_it(printed: Print, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/project/mlflow.db"
    assert printed(uri) == {
        "compare the runs": f"mlflow ui --backend-store-uri {uri}",
        "serve the model": f"MLFLOW_TRACKING_URI={uri} mlflow {SERVE}",
        "read one image": "captcha predict 'an image.png' --model models:/m@champion",
    }


def test_the_working_folders_database_is_mlflows_default_but_not_captchas(printed: Print, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/here/mlflow.db"
    commands = printed(uri)
    assert commands["compare the runs"] == "mlflow ui"
    assert commands["read one image"].startswith(f"MLFLOW_TRACKING_URI={uri} captcha predict")


def test_a_server_shows_its_runs_itself(printed: Print) -> None:
    uri = "http://127.0.0.1:5100"
    commands = printed(uri)
    assert list(commands) == ["compare the runs", "serve the model", "read one image"]
    assert commands["compare the runs"] == VIEW  # its link, which `view_link` makes
    assert commands["serve the model"] == f"MLFLOW_TRACKING_URI={uri} mlflow {SERVE}"


def test_the_saved_view_is_named_below_the_command_that_opens_it() -> None:
    assert terminal.compare_runs(VIEW).splitlines()[1:] == [f"then open             {VIEW}"]


def test_programs_that_are_not_on_path_are_called_by_their_place(printed: Print, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    commands = printed(uri, on_path=False, where=".")
    assert commands == {
        "compare the runs": "'a venv/bin/mlflow' ui",
        # MLflow starts uvicorn, which it looks for on PATH.
        "serve the model": f"PATH='{tmp_path}/a venv/bin':$PATH mlflow {SERVE}",
        "read one image": (
            f"MLFLOW_TRACKING_URI={uri} 'a venv/bin/captcha' predict 'here/an image.png' --model models:/m@champion"
        ),
    }


def test_under_mlflow_run_no_command_depends_on_folder_or_path(printed: Print, tmp_path: Path) -> None:
    """The process then stands in the project, and its PATH may be that of `make train`."""
    uri, programs = f"sqlite:///{tmp_path}/project/mlflow.db", f"{tmp_path}/a venv/bin"
    assert printed(uri, under_mlflow_run=True, where="project") == {
        "compare the runs": f"'{programs}/mlflow' ui --backend-store-uri {uri}",
        "serve the model": f"MLFLOW_TRACKING_URI={uri} PATH='{programs}':$PATH mlflow {SERVE}",
        "read one image": (
            f"MLFLOW_TRACKING_URI={uri} '{programs}/captcha' predict '{tmp_path}/here/an image.png' "
            "--model models:/m@champion"
        ),
    }


def test_an_environment_of_mlflow_run_has_no_program_named_captcha(printed: Print, tmp_path: Path) -> None:
    (tmp_path / "a venv/bin/captcha").unlink()
    command = printed("http://server", under_mlflow_run=True)["read one image"]
    assert shlex.split(command)[1:5] == [
        *(f"PYTHONPATH={tmp_path}/project", f"{tmp_path}/a venv/bin/python", "-m", "captcha")
    ]


def test_names_with_spaces_are_one_word_for_the_shell(printed: Print) -> None:
    commands = printed("sqlite:////an other/mlflow.db", model=("my model", 2))
    assert shlex.split(commands["compare the runs"])[-1] == "sqlite:////an other/mlflow.db"
    assert "models:/my model/2" in shlex.split(commands["serve the model"])
    assert shlex.split(commands["read one image"])[-1] == "models:/my model/2"


def test_a_message_stands_whole_above_the_bar_and_the_bar_goes_on(on_terminal: OnTerminal) -> None:
    program = """
import logging
from tqdm import tqdm
from captcha.cli.terminal import show_messages

show_messages()
with tqdm(total=2, disable=None, leave=False, bar_format="{n}/{total}") as bar:
    bar.update()
    logging.getLogger("captcha.jobs").info("a message")
    bar.update()
    bar.refresh()
"""
    written, shown = on_terminal(sys.executable, "-c", program)
    assert shown == ["a message", ""]
    assert written.index("a message") < written.index("2/2")


# Ends where the first of the heavy libraries would be imported.
IMPORTS_NOTHING_HEAVY = """
import sys

class Ends:
    def find_spec(self, name, *_):
        if name in ("torch", "mlflow"):
            print("imports", file=sys.stderr)
            raise SystemExit

sys.meta_path.insert(0, Ends())
from captcha.cli.app import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("command", "line"), [("train", "loading PyTorch and MLflow …"), ("evaluate .", "loading MLflow …")]
)
def test_on_a_terminal_a_command_says_something_before_it_imports_what_takes_seconds(
    command: str, line: str, on_terminal: OnTerminal
) -> None:
    _, shown = on_terminal(sys.executable, "-c", IMPORTS_NOTHING_HEAVY, *command.split())
    assert shown == [line, "imports", ""]


def test_what_is_no_terminal_gets_results_and_messages_alone() -> None:
    command = (sys.executable, "-c", IMPORTS_NOTHING_HEAVY, "train")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("", "imports\n")
