"""What installs and describes the project agrees with itself."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from base64 import urlsafe_b64encode
from hashlib import sha256
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import captcha

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = PYPROJECT["project"]
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
    pinned = Requirement(requirement)
    if applies(pinned):
        assert str(pinned.specifier) == f"=={version(pinned.name)}"


def applies(requirement: Requirement, extras: frozenset[str] = frozenset()) -> bool:
    """Return whether a requirement is one on this machine, of a package that is asked for with these extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""})


def lock_lines() -> list[str]:
    """Return the lines of the lock without comments, each with the lines that continue it."""
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def locked() -> dict[str, str]:
    """Return the locked version of each package that is installed on this machine."""
    found = [Requirement(line.split(" --hash")[0]) for line in lock_lines()]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in found if applies(each)}


def test_every_line_of_the_lock_is_one_version_with_its_hashes() -> None:
    entry = re.compile(r"[a-z0-9.-]+==[\w.]+(?: ; [^#]+?)?(?:\s+--hash=sha256:[0-9a-f]{64})+\s*")
    assert len(lock_lines()) > 100
    assert [line for line in lock_lines() if not entry.fullmatch(line)] == []


def test_the_lock_has_every_pin_and_the_builds() -> None:
    pins = [Requirement(each) for each in [*PROJECT["dependencies"], *EXTRA, *PYPROJECT["build-system"]["requires"]]]
    chosen = {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in pins if applies(each)}
    assert chosen.items() <= locked().items()


def test_the_lock_has_all_that_the_pins_need_and_no_more_and_is_what_is_installed() -> None:
    """What is needed is read from the installed packages' own metadata, whatever made the lock."""
    pins = [Requirement(each) for each in [*PROJECT["dependencies"], *EXTRA]]
    waiting = [each for each in pins if applies(each)]
    seen, needed = set(), {}
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) not in seen:
            seen.add((name, extras))
            needed[name] = version(name)
            waiting += [each for each in map(Requirement, requires(name) or ()) if applies(each, extras)]
    assert needed == locked()


def test_every_locked_package_is_listed_with_its_licence() -> None:
    prose, *table = (ROOT / "docs" / "licences.md").read_text().split("\n| ")
    cells = [[cell.strip() for cell in row.splitlines()[0].split("|")] for row in table]
    assert {canonicalize_name(name): number for name, number, *_ in cells[1:]} == locked()
    unknown = [name for name, _, licence, *_ in cells if licence in ("", "UNKNOWN")]
    assert [name for name in unknown if name not in prose] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_test_that_the_documentation_names_is_there(page: Path) -> None:
    there = set(re.findall(r"def (test_\w+)", "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))))
    assert set(re.findall(r"`(test_\w+)`", page.read_text())) - there == set()


@pytest.mark.slow
def test_make_sbom_names_every_locked_package_with_its_version(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["make", "-o", ".venv/.installed", "sbom", f"BIN={BIN}"], cwd=tmp_path, check=True)
    written = json.loads((tmp_path / "build" / "sbom.json").read_text())
    assert (written["bomFormat"], written["metadata"]["component"]["name"]) == ("CycloneDX", PROJECT["name"])
    named = {canonicalize_name(each["name"]): each["version"] for each in written["components"]}
    assert locked().items() <= named.items()


def wheel(folder: Path, name: str, content: str) -> Path:
    """Return a new wheel of one module."""
    path, information = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": content,
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{file},sha256={urlsafe_b64encode(sha256(text.encode()).digest()).decode().rstrip('=')},{len(text)}\n"
        for file, text in files.items()
    )
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in (files | {f"{information}/RECORD": record}).items():
            archive.writestr(file, text)
    return path


@pytest.mark.slow
def test_make_install_refuses_a_package_that_is_not_the_locked_one(tmp_path: Path) -> None:
    """The Makefile as it is, on a lock of one package; the file that is found under its name is another."""
    locked_one, found = tmp_path / "locked", tmp_path / "found"
    for folder, content in ((locked_one, ""), (found, "print('hostile')")):
        folder.mkdir()
        wheel(folder, "needed", content)
    digest = sha256((locked_one / "needed-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "requirements.lock").write_text(f"needed==1.0 --hash=sha256:{digest}\n")
    command = ["make", "install", f"PYTHON={sys.executable}"]
    pip = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    for folder, refused in ((found, True), (locked_one, False)):
        variables = os.environ | pip | {"PIP_FIND_LINKS": str(folder)}
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert ("DO NOT MATCH THE HASHES" in done.stderr) == refused, done.stdout + done.stderr
        installed = list(tmp_path.glob(".venv/lib/*/site-packages/needed.py"))
        assert bool(installed) != refused
    assert not (tmp_path / ".venv" / ".installed").exists()  # the lock of one package lacks what the build needs


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
