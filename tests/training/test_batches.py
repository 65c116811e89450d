import os
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from captcha.data.folders import read_samples
from captcha.data.packed import read_shards
from captcha.data.samples import DataError, ImageMemory, Sample
from captcha.data.seen import pixel_key
from captcha.data.sources import DrawnSamples
from captcha.drawing.fonts import default_fonts
from captcha.drawing.styles import Style, StyleError, load_style
from captcha.jobs.pack import pack
from captcha.training.batches import Batches, shuffled

OUTLINED = load_style("outlined")
FEW = Style(texts=("one", "two", "six", "ten"))
FONTS = default_fonts()


def samples(style: Style = OUTLINED, height: int = 32, seed: int = 0, without: tuple[str, ...] = ()) -> DrawnSamples:
    return DrawnSamples(style, FONTS, height, seed, frozenset(without))


def identities(batch: list[Sample]) -> list[tuple[str, str, str]]:
    return [(sample.name, sample.text, sample.digest) for sample in batch]


def drawn_alone(style: Style = OUTLINED, size: int = 4, first: int = 0) -> Batches:
    return Batches([], samples(style), size, seed=0, first_drawn=first)


def test_drawn_batches_go_on_from_their_start_and_repeat_nothing() -> None:
    batches = list(islice(drawn_alone(first=10).from_step(0, workers=0), 25))
    assert [sample.name for batch in batches for sample in batch] == [f"{i:06}.png" for i in range(10, 110)]
    assert len({sample.digest for batch in batches for sample in batch}) == 100


@pytest.fixture
def folder(tmp_path: Path, draw_digits: Callable[[Path, int], Path]) -> Path:
    """13 images of two digits, named by their label."""
    return draw_digits(tmp_path / "digits", 13)


@pytest.mark.parametrize("drawn", [None, samples()], ids=["folder", "half"])
@pytest.mark.parametrize("kept", [0, 0.03, 1], ids=["read anew", "some kept", "all kept"])
def test_the_batch_of_a_step_is_the_same_whichever_step_was_the_first(
    folder: Path, drawn: DrawnSamples | None, kept: float
) -> None:
    known, _, _ = read_samples(folder, 32, memory=ImageMemory(kept))
    assert len({sample.kept for sample in known}) == (2 if kept == 0.03 else 1)
    row = Batches(known, drawn, 4, seed=3)
    from_0 = [identities(batch) for batch in islice(row.from_step(0, workers=0), 12)]
    for start in (1, 7):
        assert [identities(batch) for batch in islice(row.from_step(start, workers=0), 12 - start)] == from_0[start:]
    other = Batches(known, drawn, 4, seed=4)
    assert [identities(batch) for batch in islice(other.from_step(0, workers=0), 12)] != from_0


def test_workers_make_what_one_process_makes(folder: Path) -> None:
    """Two real processes, which draw, and read what is not kept."""
    known, _, _ = read_samples(folder, 32, memory=ImageMemory(0.03))
    row = Batches(known, samples(), 6, seed=0)
    alone, together = (list(islice(row.from_step(0, workers), 5)) for workers in (0, 2))
    assert list(map(identities, alone)) == list(map(identities, together))
    pixels = [[sample.image.tobytes() for batch in some for sample in batch] for some in (alone, together)]
    assert pixels[0] == pixels[1]


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_no_batch_changes(caplog: pytest.LogCaptureFixture) -> None:
    alone = [identities(batch) for batch in islice(drawn_alone().from_step(0, workers=0), 30)]
    batches, found = drawn_alone().from_step(0, workers=2), []
    for batch in islice(batches, 30):
        found.append(identities(batch))
        if len(found) == 3:
            alive = [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]
            next(each for each in alive if "spawn_main" in " ".join(each.cmdline())).kill()
    batches.close()
    assert found == alone
    assert caplog.messages == ["a process that prepares images was killed; others take its place"]


PARENT = """
import os, signal, sys
from itertools import islice
from tests.training.test_batches import drawn_alone
if __name__ == "__main__":
    batches = drawn_alone().from_step(0, workers=2)
    next(batches)
    print("ready", flush=True)
    signal.pause()
"""


@pytest.mark.slow
def test_workers_leave_soon_after_their_parent_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    command, variables = [sys.executable, str(script)], os.environ | {"PYTHONPATH": paths}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=variables, start_new_session=True) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"ready\n"
        workers = psutil.Process(parent.pid).children(recursive=True)
        assert len(workers) >= 2
        parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


def test_every_sample_comes_once_before_any_comes_again() -> None:
    for count, seed in ((1, 0), (7, 0), (7, 5)):
        row = [shuffled(count, seed, place) for place in range(3 * count)]
        turns = [row[start : start + count] for start in range(0, 3 * count, count)]
        assert [sorted(turn) for turn in turns] == [list(range(count))] * 3
        assert count == 1 or turns[0] != turns[1]


def test_a_file_that_has_changed_since_it_was_checked_is_said_in_one_line(folder: Path) -> None:
    known, _, _ = read_samples(folder, 32, memory=ImageMemory(0))
    (folder / "03.png").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"^[^\n]*03\.png: [^\n]*$"):
        list(islice(Batches(known, None, 4, seed=0).from_step(0, workers=0), 4))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_text_that_does_not_fit_is_said_in_one_line(workers: int, tmp_path: Path) -> None:
    batches = drawn_alone(Style(texts=("w" * 40,)), 2).from_step(0, workers)
    with pytest.raises(StyleError, match=r"^the text 'w+' does not fit: [^\n]*$"):
        next(batches)


def test_the_pixels_of_each_sample_that_was_yielded_are_noted_and_no_others() -> None:
    known = [Sample(f"{n}.png", "a", np.full((4, 6, 3), n, np.uint8)) for n in range(5)]
    batches = Batches(known, samples(), 4, seed=0)
    yielded = [sample for batch in islice(batches.from_step(0, workers=0), 2) for sample in batch]
    assert list(batches.learned_from) == [pixel_key(sample.digest) for sample in yielded]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("drawn", [None, samples()], ids=["shards", "half"])
def test_shards_give_the_batches_of_their_folder(
    folder: Path, drawn: DrawnSamples | None, workers: int, tmp_path: Path
) -> None:
    pack(str(folder), tmp_path / "packed")
    both = (
        Batches(read_samples(folder, 32)[0], drawn, 4, 3),
        Batches(read_shards(tmp_path / "packed", 32)[0], drawn, 4, 3),
    )
    of_folder, of_shards = (list(islice(each.from_step(0, workers), 8)) for each in both)
    for one, other in zip(of_folder, of_shards, strict=True):
        assert [(sample.text, sample.digest) for sample in one] == [(sample.text, sample.digest) for sample in other]
        assert all(np.array_equal(a.image, b.image) for a, b in zip(one, other, strict=True))
    assert both[0].learned_from == both[1].learned_from


@pytest.mark.parametrize("drawn", [None, samples()], ids=["folder", "half"])
def test_an_image_of_a_folder_is_noted_once_however_often_it_comes(drawn: DrawnSamples | None) -> None:
    known = [Sample(f"{n}.png", "a", np.full((4, 6, 3), n, np.uint8)) for n in range(5)]
    batches = Batches(known, drawn, 4, seed=0)
    yielded = [sample.digest for batch in islice(batches.from_step(0, workers=0), 9) for sample in batch]
    assert sorted(batches.learned_from) == sorted(map(pixel_key, set(yielded)))
    ranks = [Batches(known, drawn, 4, seed=0, rank=rank, ranks=2) for rank in (0, 1)]
    shared = [sample.digest for each in ranks for batch in islice(each.from_step(0, workers=0), 9) for sample in batch]
    assert sorted(shared) == sorted(yielded)
    assert sorted([*ranks[0].learned_from, *ranks[1].learned_from]) == sorted(batches.learned_from)
