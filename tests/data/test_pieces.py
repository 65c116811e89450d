import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captcha.data.folders import encode_png
from captcha.data.pieces import Files, Found, Images, Piece, Shards, sized
from captcha.reading.images import ImageError


def write_shard(file: Path, images: list[bytes | None], rows: int) -> Path:
    """Write a shard with so many rows in a row group."""
    pq.write_table(pa.table({"image": pa.array(images, pa.binary())}), file, row_group_size=rows)
    return file


def names_of(images: Images, pieces: list[Piece]) -> list[list[str]]:
    """What the images of each piece are called, after JSON has carried it."""
    carried = [Piece(**json.loads(json.dumps(asdict(piece)))) for piece in pieces]
    return [[name for name, _ in images.found(piece)] for piece in carried]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name in ("b.png", "a.JPG", "deep/c.gif", "deep/er/d.webp", ".e.png", ".f/g.png", "h.txt", "i", "png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_pieces_hold_each_image_of_a_folder_and_below_once_and_no_other_file(folder: Path) -> None:
    files = Files(str(folder))
    names = ["a.JPG", "b.png", "deep/c.gif", "deep/er/d.webp"]
    for most, workers, sizes in ((9, 1, [4]), (3, 1, [3, 1]), (9, 2, [2, 2]), (9, 9, [1, 1, 1, 1]), (1, 1, [1] * 4)):
        pieces = files.left([], most, workers)
        assert [piece.images for piece in pieces] == sizes
        found = names_of(files, pieces)
        assert [len(each) for each in found] == sizes
        assert [name for each in found for name in each] == names
    assert [content for _, content in files.found(files.left([], 9)[0])] == [name.encode() for name in names]
    assert names_of(files, files.left(["b.png", "deep/c.gif", "gone.png"], 9)) == [["a.JPG", "deep/er/d.webp"]]
    assert files.left(names, 9) == []


def test_a_file_that_goes_or_cannot_be_opened_is_an_error(folder: Path) -> None:
    files = Files(str(folder))
    (piece,) = files.left([], 9)
    (folder / "b.png").unlink()
    (folder / "deep" / "c.gif").unlink()
    (folder / "deep" / "c.gif").mkdir()
    errors = {name: str(content) for name, content in files.found(piece) if isinstance(content, ImageError)}
    assert errors == {
        "b.png": "cannot be read: No such file or directory",
        "deep/c.gif": "cannot be read: Is a directory",
    }


def test_pieces_of_shards_are_whole_row_groups_and_one_is_done_if_its_first_row_is(tmp_path: Path) -> None:
    write_shard(tmp_path / "one.parquet", [b"1"] * 10, 4)  # groups of 4, 4 and 2
    write_shard(tmp_path / "two.parquet", [b"2"] * 3, 3)
    shards = Shards(str(tmp_path))

    def rows(shard: str, *numbers: int) -> list[str]:
        return [f"{shard}.parquet:{number:06}" for number in numbers]

    first, second = rows("one", *range(10)), rows("two", 0, 1, 2)
    assert names_of(shards, shards.left([], 100)) == [first, second]
    assert names_of(shards, shards.left([], 8)) == [first[:8], first[8:], second]
    assert names_of(shards, shards.left([], 1)) == [first[:4], first[4:8], first[8:], second]
    assert names_of(shards, shards.left(first[4:8], 100)) == [[*first[:4], *first[8:]], second]
    assert names_of(shards, shards.left([*first, *second], 100)) == []
    alone = Shards(str(tmp_path / "two.parquet"))
    assert names_of(alone, alone.left([], 100)) == [second]


def test_a_damaged_shard_is_an_error_of_its_own_and_the_others_are_read(tmp_path: Path) -> None:
    write_shard(tmp_path / "good.parquet", [b"good", None], 2)
    (tmp_path / "bad.parquet").write_bytes(b"no Parquet")
    pq.write_table(pa.table({"picture": [b"1"]}), tmp_path / "other.parquet")
    shards = Shards(str(tmp_path))
    pieces = shards.left([], 100)
    found = dict(row for piece in pieces for row in shards.found(piece))
    assert found.pop("good.parquet:000000") == b"good"
    errors = {name: str(content) for name, content in found.items() if isinstance(content, ImageError)}
    assert set(errors) == {"good.parquet:000001", "bad.parquet", "other.parquet"}
    assert "no bytes of an image" in errors["good.parquet:000001"]
    assert "no Parquet file" in errors["bad.parquet"]
    assert "no column image" in errors["other.parquet"]
    assert [piece.images for piece in shards.left(["bad.parquet", "other.parquet"], 100)] == [2]


def test_images_are_brought_to_the_models_height_and_bad_ones_say_why() -> None:
    tall = encode_png(np.full((40, 60, 3), 7, np.uint8))
    wide = encode_png(np.full((10, 900, 3), 7, np.uint8))  # 2,880 columns at a height of 32
    given: list[Found] = [("tall", tall), ("wide", wide), ("torn", tall[:50]), ("gone", ImageError("has gone"))]
    outcomes = dict(sized(given, 32))
    image = outcomes["tall"]
    assert not isinstance(image, ImageError)
    assert (image.shape, image.min(), image.max()) == ((32, 48, 3), 7, 7)
    assert str(outcomes["wide"]) == (
        "the image of 900 x 10 pixels has 2880 columns once resized to a height of 32, more than the 2048 allowed"
    )
    assert str(outcomes["torn"]) == "the image is truncated"
    assert str(outcomes["gone"]) == "has gone"
