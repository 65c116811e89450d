"""The corpus of hostile image files, read as a command and a library read them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.corpus_images import images
from tests.hostile.fuzz_images import check

ROOT = Path(__file__).parents[2]
MEGABYTES = 400
"""What reading any file of the corpus may need, beyond the libraries; 10 megapixels of RGB are 30."""
SECONDS = 20
"""What any file may take, on a machine that does much else; the longest was one."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the corpus, each file named by its number."""
    path = tmp_path_factory.mktemp("hostile")
    for number, content in enumerate(images().values()):
        (path / f"{number:04}.png").write_bytes(content)
    return path


READ = """
import json, resource, sys, time
from pathlib import Path
from captcha.reading.images import ImageError, load_image

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
outcomes = []
for path in sorted(Path(sys.argv[1]).iterdir()):
    begun = time.process_time()
    try:
        outcome = list(load_image(path).shape)
    except ImageError as error:
        outcome = str(error).removeprefix(f"{path}: ")
    outcomes.append([outcome, time.process_time() - begun])
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"outcomes": outcomes, "grown": grown / 1024}))
"""


def test_every_file_is_read_or_refused_in_one_line_in_bounded_memory_and_time(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "always"}
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    outcomes = dict(zip(images(), report["outcomes"], strict=True))
    for name, (outcome, seconds) in outcomes.items():
        if isinstance(outcome, str):
            assert len(outcome) < 120, name
            assert outcome.isprintable(), name
        assert seconds < SECONDS, name
    assert report["grown"] < MEGABYTES
    refused = {name for name, (outcome, _) in outcomes.items() if isinstance(outcome, str)}
    assert not {name for name in refused if name.startswith("whole/")}
    assert len(refused) > 300


def test_every_file_read_twice_is_one_picture_within_the_limits() -> None:
    for name, content in images().items():
        if not name.startswith("bomb/"):  # seconds each; the test above reads them
            check(content)


@pytest.mark.slow
def test_predict_tells_of_every_file_in_one_line(folder: Path, recognizer_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "captcha", "predict", str(folder), "--model", str(recognizer_folder)],
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    told = {line.split("\t")[0]: line for line in done.stdout.splitlines()}
    refused = {line.split(": ")[1]: line for line in done.stderr.splitlines()}  # captcha: FILE: what is wrong
    assert done.returncode == 1  # some could not be read
    assert told.keys() | refused.keys() == {str(path) for path in folder.iterdir()}
    assert not told.keys() & refused.keys()
    assert len(done.stdout.splitlines()) == len(told)
    assert len(done.stderr.splitlines()) == len(refused)
    assert "Traceback" not in done.stderr
