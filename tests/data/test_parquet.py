import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captcha.data.parquet import GROUPS_IN_SHARD, ROWS_IN_GROUP, Row, Shard, ShardError, read_rows, write_shards

IMAGES = [b"one", b"two", b"three"]
LABELS = ["1", "2", "3"]


def write(file: Path, **columns: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
    return file


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write(tmp_path / "a.parquet", image=IMAGES, label=LABELS)


ROWS = [
    Row("a.parquet:000000", b"one", "1"),
    Row("a.parquet:000001", b"two", "2"),
    Row("a.parquet:000002", b"three", "3"),
]


def test_a_shard_gives_its_rows_as_they_lie_there(shard: Path) -> None:
    assert list(read_rows(shard)) == ROWS
    assert list(read_rows(shard.parent)) == ROWS


@pytest.mark.parametrize(
    ("image", "label"),
    [
        (pa.array([{"bytes": each, "path": "x.png"} for each in IMAGES]), pa.array(LABELS)),
        (pa.array([{"path": None, "bytes": each} for each in IMAGES]), pa.array(LABELS).dictionary_encode()),
        (pa.array(IMAGES, pa.large_binary()), pa.array(LABELS, pa.large_string())),
    ],
    ids=["Hugging Face", "dictionary", "large"],
)
def test_an_image_may_be_bytes_or_a_struct_that_holds_them(tmp_path: Path, image: Any, label: Any) -> None:
    assert list(read_rows(write(tmp_path / "a.parquet", image=image, label=label, width=[1, 2, 3]))) == ROWS


def test_a_missing_label_is_none_and_a_missing_image_an_error(tmp_path: Path) -> None:
    no_bytes = pa.array([{"bytes": b"one", "path": "x"}, {"bytes": None, "path": "x"}, None])
    write(tmp_path / "a.parquet", image=no_bytes, label=[None, "2", "3"])
    first, *others = read_rows(tmp_path)
    assert first == Row("a.parquet:000000", b"one", None)
    assert others == [Row(f"a.parquet:00000{i}", error="the row holds no bytes of an image") for i in (1, 2)]


def test_without_labels_no_column_of_them_is_needed(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", image=IMAGES)
    assert [row.image for row in read_rows(tmp_path, labelled=False)] == IMAGES
    assert [row.label for row in read_rows(tmp_path, labelled=False)] == [None] * 3
    assert next(read_rows(tmp_path)).error == "no column label; columns image and label are needed, and it has image"


def test_each_shard_that_is_none_is_one_row_with_an_error_and_the_others_are_read(shard: Path) -> None:
    folder = shard.parent
    (folder / "b.parquet").touch()
    (folder / "c.parquet").write_bytes(b"PAR1 no more")
    write(folder / "d.parquet", picture=IMAGES, label=LABELS)
    write(folder / "e.parquet", image=["one", "two", "three"], label=LABELS)
    write(folder / "f.parquet", image=IMAGES, label=[1, 2, 3])
    write(folder / "g.parquet", image=pa.array([], pa.binary()), label=pa.array([], pa.string()))  # empty: no row
    write(folder / "h.parquet", image=[b"last"], label=["4"])
    write(folder / ".hidden.parquet", image=IMAGES, label=LABELS)
    (folder / "_SUCCESS").touch()
    *rows, b, c, d, e, f, h = read_rows(folder)
    assert rows == ROWS
    assert h == Row("h.parquet:000000", b"last", "4")
    assert b == Row("b.parquet", error="no Parquet file: it is empty")
    assert c.name == "c.parquet"
    assert c.error.startswith("no Parquet file that can be read: ")
    said = {each.name: each.error for each in (d, e, f)}
    assert said == {
        "d.parquet": "no column image; columns image and label are needed, and it has picture, label",
        "e.parquet": "the column image holds string, not the bytes of image files, nor a struct with `bytes`",
        "f.parquet": "the column label holds int64, not texts",
    }
    assert all(len(each.error.splitlines()) == 1 for each in (b, c, d, e, f))


def many(count: int, size: int = 10) -> list[tuple[str, bytes, str]]:
    return [(f"{i}.png", f"image {i:07}".encode() * (size // 10), str(i)) for i in range(count)]


def test_what_is_written_is_read_again_in_its_order(tmp_path: Path) -> None:
    rows = many(ROWS_IN_GROUP * GROUPS_IN_SHARD + ROWS_IN_GROUP + 1)
    assert write_shards(tmp_path / "out", iter(rows)) == len(rows)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["out", "shard-00000.parquet", "shard-00001.parquet"]
    assert [(row.image, row.label) for row in read_rows(tmp_path / "out")] == [
        (image, label) for _, image, label in rows
    ]
    table = pq.read_table(tmp_path / "out")
    assert table.column("image")[5].as_py() == {"bytes": b"image 0000005", "path": "5.png"}
    assert Shard(tmp_path / "out" / "shard-00001.parquet").groups == [ROWS_IN_GROUP, 1]


def test_names_of_rows_are_in_the_order_of_the_rows(tmp_path: Path) -> None:
    for name in ("b.parquet", "a-b.parquet", "a.parquet"):
        write(tmp_path / name, image=[b""] * 12, label=[""] * 12)
    names = [row.name for row in read_rows(tmp_path)]
    assert names == sorted(names)
    assert len(set(names)) == 36


def test_of_a_damaged_shard_the_rows_that_cannot_be_read_are_errors_and_the_others_are_read(tmp_path: Path) -> None:
    rows = many(3 * ROWS_IN_GROUP)
    write_shards(tmp_path / "out", rows)
    file = tmp_path / "out" / "shard-00000.parquet"
    content = bytearray(file.read_bytes())
    content[content.index(b"image 0000200") + 3] ^= 1  # one bit of an image in the second group
    file.write_bytes(content)
    found = list(read_rows(tmp_path / "out"))
    assert [row.name for row in found] == [f"shard-00000.parquet:{i:06}" for i in range(len(rows))]
    damaged = range(ROWS_IN_GROUP, 2 * ROWS_IN_GROUP)
    assert [i for i, row in enumerate(found) if row.error] == list(damaged)
    assert {row.error.split(":")[0] for row in found if row.error} == {"the shard is damaged"}
    assert all(
        found[i].image == rows[i][1] and found[i].label == rows[i][2] for i in range(len(rows)) if i not in damaged
    )
    shard = Shard(file)
    assert shard.images_of(0) == [image for _, image, _ in rows[:ROWS_IN_GROUP]]
    with pytest.raises(ShardError, match="the shard is damaged: "):
        shard.images_of(1)


def test_a_label_that_is_no_text_is_an_error_of_its_row(tmp_path: Path) -> None:
    labels = pa.StringArray.from_buffers(2, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"1\xff"))
    first, second = read_rows(write(tmp_path / "a.parquet", image=[b"one", b"two"], label=labels))
    assert first.label == "1"
    assert second == Row("a.parquet:000001", error="the label is no text in UTF-8")


def test_a_folder_with_something_in_it_is_not_written_to_and_an_error_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(FileExistsError, match="is not an empty folder: name a new one"):
        write_shards(tmp_path / "out", many(3))

    def broken() -> Any:
        yield from many(ROWS_IN_GROUP + 1)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_shards(tmp_path / "new", broken())
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_memory_does_not_grow_with_the_rows_of_a_group(tmp_path: Path) -> None:
    """A shard of one group with 40 MB of images: of them less than a quarter is in memory at any time."""
    file = tmp_path / "a.parquet"
    images = [i.to_bytes(4, "big") * 5_000 for i in range(2_000)]
    table = pa.table({"image": images, "label": ["x"] * 2_000})
    pq.write_table(table, file, use_dictionary=False, compression="none", write_batch_size=16)  # pages of 1 MB
    del images, table
    before, most = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    for _ in read_rows(file):
        most = max(most, pa.total_allocated_bytes() - before)
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 10e6
    assert python < 10e6
