import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import captcha
from captcha.reading import limits


def imported(**variables: str) -> "subprocess.CompletedProcess[str]":
    """What a process prints that reads the limits with these environment variables."""
    environment = {**os.environ, "PYTHONPATH": str(Path(captcha.__file__).parents[1]), **variables}
    script = """
import sys
from captcha import CaptchaError
try:
    from captcha.reading import images, limits
except CaptchaError as error:
    sys.exit(str(error))
print(limits.MAX_ROWS, images.MAX_PIXELS)
"""
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)


def test_a_limit_is_its_environment_variable_or_its_default() -> None:
    assert imported().stdout.split() == ["1024", "10000000"]
    assert imported(CAPTCHA_MAX_ROWS="7", CAPTCHA_MAX_PIXELS="500000").stdout.split() == ["7", "500000"]
    assert imported(CAPTCHA_MAX_ROWS="").stdout.split() == ["1024", "10000000"]


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "1e6", "9" * 5000, "٣"])
def test_a_limit_that_is_no_number_is_refused_in_one_line(value: str) -> None:
    done = imported(CAPTCHA_MAX_ROWS=value)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("CAPTCHA_MAX_ROWS must be a whole number from 1 on, such as 1024, not ")
    assert len(line) < 150


def test_every_limit_stands_in_the_table_of_defaults() -> None:
    names = {f"CAPTCHA_{name}" for name in vars(limits) if name.isupper() and name != "DEFAULTS"}
    assert set(limits.DEFAULTS) == names


def test_the_limits_need_the_standard_library_alone() -> None:
    script = "import sys, captcha.reading.limits; print(sorted({'numpy', 'cv2', 'PIL'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(Path(captcha.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_documentation_has_every_limit_with_its_default() -> None:
    table = (Path(captcha.__file__).parents[1] / "docs" / "serving.md").read_text()
    written = re.findall(r"^\| `(CAPTCHA_\w+)` \| (\d+) \| \S.* \|$", table, re.MULTILINE)
    assert [(name, int(default)) for name, default in written] == list(limits.DEFAULTS.items())
