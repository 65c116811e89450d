"""Pack a labelled folder into Parquet shards, or shards into others."""

from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from captcha.data.folders import read_labels
from captcha.data.parquet import read_rows, write_shards
from captcha.data.problems import Problem
from captcha.data.samples import DataError
from captcha.data.sources import Parquet, parse_images, refuse
from captcha.settings import OnProblems


def pack(data: str, out: Path, problems: OnProblems = "stop") -> str:
    """Write the image files and labels of a folder or of shards as shards into `out`, and say in a line what they hold.

    No image is decoded: `captcha check` finds the same problems in the shards as in the folder. What has no row there
    is refused or left out: files of labels.csv that are missing or have two labels, rows that cannot be read.

    Raises:
        DataError: the data has such problems, or a file cannot be read.
        FileExistsError: `out` is not empty.
    """
    source = parse_images(data)
    left_out: list[Problem] | None = [] if problems == "leave-out" else None
    rows = _of_shards(source, left_out) if isinstance(source, Parquet) else _of_folder(source.path, data, left_out)
    with tqdm(rows, unit="image", disable=None, leave=False) as bar:
        count = write_shards(out, bar)
    lost = len({problem.file for problem in left_out or ()})
    return f"{count} images in {out}" + (f", {lost} left out" if lost else "")


def _of_folder(folder: Path, written: str, left_out: list[Problem] | None) -> Iterator[tuple[str, bytes, str | None]]:
    problems: list[Problem] = []
    labels = read_labels(folder, problems)
    without = {problem.file for problem in problems if problem.fatal}
    refuse(problems, len(labels.keys() - without), written, left_out)
    for name, label in labels.items():
        if name not in without:
            try:
                yield name, (folder / name).read_bytes(), label
            except OSError as error:
                raise DataError(f"{folder / name} cannot be read: {error.strerror}") from None


def _of_shards(source: Parquet, left_out: list[Problem] | None) -> Iterator[tuple[str, bytes, str | None]]:
    for row in read_rows(source.path):
        if row.error:
            refuse([Problem(row.name, "unreadable row", row.error, fatal=True)], 0, source.written, left_out)
        else:
            yield row.name, row.image, row.label
