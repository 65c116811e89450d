"""What installs and describes the project agrees with itself."""

import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

import captcha

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA: dict[str, Any] = yaml.safe_load((ROOT / "conda.yaml").read_text())
EXTRA = PROJECT["optional-dependencies"]["dev"]


def tracked_files() -> list[Path]:
    """The files that git tracks or would add; all those of a folder without git, caches apart."""
    if (ROOT / ".git").exists():
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        return [path for name in names if name and (path := ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]


def test_conda_installs_what_pip_installs() -> None:
    assert CONDA["name"] == PROJECT["name"]
    python, pip, pins = CONDA["dependencies"]
    assert python == "python=3.11"
    assert pip == "pip"
    assert pins["pip"] == PROJECT["dependencies"]


@pytest.mark.parametrize("requirement", [*PROJECT["dependencies"], *EXTRA])
def test_every_dependency_is_pinned_to_what_is_installed(requirement: str) -> None:
    name, pin = requirement.split("==")
    assert version(name) == pin


def test_the_package_has_one_version() -> None:
    assert captcha.__version__ == PROJECT["version"]


def test_no_file_names_a_package_index() -> None:
    index = re.compile(
        r"index[-_]url|trusted[-_]host|find[-_]links|py" r"pi\.org|python" r"hosted|download\.py" r"torch"
    )
    named = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if path != Path(__file__) and index.search(path.read_text(errors="replace"))
    ]
    assert named == []
