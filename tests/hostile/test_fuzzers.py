"""Each fuzz target over what it starts from, and for a moment as it is run for hours."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile import fuzz_images, fuzz_requests

ROOT = Path(__file__).parents[2]
TARGETS = {"fuzz_images": fuzz_images, "fuzz_requests": fuzz_requests}


def test_the_image_reader_passes_over_its_seeds() -> None:
    for content in fuzz_images.seeds().values():
        fuzz_images.check(content)


@pytest.mark.filterwarnings("ignore")  # pandas' and MLflow's, of what requests hold
def test_the_request_parser_passes_over_its_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    seeds = fuzz_requests.seeds()
    assert {content[:1] for content in seeds.values()} == {b"J", b"C", b"F", b"I", b"P"}
    for content in seeds.values():
        fuzz_requests.check(content)


@pytest.mark.parametrize("line", ["", "two\nlines in one", "x" * 1000])
def test_the_checks_of_the_fuzzers_can_fail(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader whose refusals are no lines, in place of ours."""
    from captcha.reading import images

    def refuse(data: bytes) -> None:
        raise images.ImageError(line)

    monkeypatch.setattr(images, "decode_image", refuse)
    with pytest.raises(AssertionError):
        fuzz_images.check(b"")


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_the_fuzzer_runs(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.hostile.{name}", "-runs=2000", "-seed=1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^Done 2000 runs", done.stderr + done.stdout, re.MULTILINE)
