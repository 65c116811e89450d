import pickle
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captcha.data.folders import encode_png, read_samples
from captcha.data.packed import MAX_GROUP_BYTES, image_file, read_shards
from captcha.data.parquet import write_shards
from captcha.data.problems import Problem
from captcha.data.samples import DataError, ImageMemory, Sample, Table, digest, split
from captcha.data.seen import SeenPixels, pixel_key, without_seen
from captcha.data.sources import Parquet, Sources, parse_images
from captcha.jobs.pack import pack
from captcha.reading.vocabulary import Vocabulary

Spoil = Callable[[Path, Path], Path]


def same(samples: Sequence[Sample]) -> list[tuple[str, str]]:
    return [(sample.text, sample.digest) for sample in samples]


@pytest.fixture
def packed(captcha_folder: Path, tmp_path: Path) -> Path:
    """The shards of `captcha_folder`."""
    pack(str(captcha_folder), tmp_path / "packed")
    return tmp_path / "packed"


def test_shards_give_the_samples_of_their_folder_to_the_bit(captcha_folder: Path, packed: Path) -> None:
    samples, problems, facts = read_samples(captcha_folder, 48)
    table, found, known = read_shards(packed, 48)
    assert (found, known) == (problems, facts)
    assert same(table) == same(samples)
    assert all(np.array_equal(one.image, other.image) for one, other in zip(samples, table, strict=True))
    assert [sample.name for sample in table][:2] == ["shard-00000.parquet:000000", "shard-00000.parquet:000001"]
    assert all(image_file(sample.folder / sample.name) for sample in table if sample.folder)


@pytest.mark.parametrize("leave_out", [False, True])
def test_shards_have_the_problems_and_the_facts_of_their_folder(
    captcha_folder: Path, spoil: Spoil, tmp_path: Path, leave_out: bool
) -> None:
    spoilt = spoil(captcha_folder, tmp_path / "spoilt")
    (spoilt / "000.png").write_bytes((spoilt / "007.png").read_bytes())
    (spoilt / "zero.csv").write_text("not read")
    (spoilt / "021.png").write_bytes((captcha_folder / "014.png").read_bytes())
    pack(str(spoilt), tmp_path / "packed")
    vocabulary = Vocabulary("0123456789eon")  # not the w of "two"
    samples, problems, facts = read_samples(spoilt, 32, vocabulary, leave_out=leave_out)
    table, found, known = read_shards(tmp_path / "packed", 32, vocabulary, leave_out=leave_out)
    names = sorted(path.name for path in spoilt.glob("*.png"))
    rows = {f"shard-00000.parquet:{i:06}": name for i, name in enumerate(names)}

    def by_file(problem: Problem) -> Problem:
        message = problem.message
        for row, name in rows.items():
            message = message.replace(row, name)
        return Problem(rows[problem.file], problem.kind, message, problem.fatal)

    assert {problem.kind for problem in problems} == {
        "contradicting labels",
        "empty label",
        "outside the vocabulary",
        "unreadable image",
    }
    assert list(map(by_file, found)) == problems
    assert known == facts
    assert same(table) == same(samples)


def test_a_copy_is_left_out_and_stops_nothing(tmp_path: Path) -> None:
    rows = [("a", encode_png(np.full((32, 96, 3), value, np.uint8)), "1") for value in (1, 2, 1)]
    write_shards(tmp_path / "twice", rows)
    table, problems, _ = read_shards(tmp_path / "twice", 32)
    assert [(problem.file[-6:], problem.kind, problem.fatal) for problem in problems] == [("000002", "copy", False)]
    assert len(table) == 2


def test_the_split_and_its_digests_follow_from_the_labels(captcha_folder: Path, packed: Path) -> None:
    parts = Sources.parse(str(captcha_folder), None, None, None).split(32, None, 3, ImageMemory(9))
    tables = Sources.parse(str(packed), None, None, None).split(32, None, 3, ImageMemory(9))
    of_tables = (tables.train, tables.validation, tables.test)
    for part, table in zip((parts.train, parts.validation, parts.test), of_tables, strict=True):
        assert same(table) == same(part)
        assert isinstance(table, Table)
        assert digest(table) == digest(list(reversed(table)))  # in order and sorted
    assert tables.digest == split(list(read_shards(packed, 32)[0]), 3).digest


def test_a_source_of_its_own_takes_the_place_of_a_part(captcha_folder: Path, packed: Path, tmp_path: Path) -> None:
    rows = [(path.name, path.read_bytes(), path.stem) for path in sorted(captcha_folder.iterdir())[:3]]
    write_shards(tmp_path / "held back", rows)
    left: tuple[list[Problem], list[Problem]] = ([], [])
    written = str(tmp_path / "held back")
    of_folder = Sources.parse(str(captcha_folder), None, written, None).split(32, None, 0, ImageMemory(9), left[0])
    of_shards = Sources.parse(str(packed), None, written, None).split(32, None, 0, ImageMemory(9), left[1])
    assert same(of_shards.train) == same(of_folder.train)
    assert isinstance(of_shards.train, Table)
    assert [problem.kind for problem in left[1]] == [problem.kind for problem in left[0]]
    assert "leak" in {problem.kind for problem in left[1]}
    assert not {sample.digest for sample in of_shards.train} & {sample.digest for sample in of_shards.test}


def test_test_images_that_a_training_saw_are_known_by_their_pixels(captcha_folder: Path, packed: Path) -> None:
    parts = split(read_samples(captcha_folder, 32)[0], 0)
    tables = split(read_shards(packed, 32)[0], 0)
    seen = SeenPixels.of([pixel_key(parts.test[0].digest)], parts.train)
    assert seen.among(tables.train) == [True] * len(tables.train)
    assert same(without_seen(tables, seen, "m", True, "").test) == same(parts.test[1:])


def test_shards_that_cannot_be_read_are_problems_by_their_name_and_the_others_are_read(
    packed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (packed / "a.parquet").touch()
    pq.write_table(pa.table({"image": [b"1"], "text": ["1"]}), packed / "b.parquet")
    pq.write_table(
        pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.string())}), packed / "c.parquet"
    )
    content = bytearray((packed / "shard-00000.parquet").read_bytes())
    content[len(content) // 3] ^= 1
    (packed / "z.parquet").write_bytes(content)
    table, problems, facts = read_shards(packed, 32)
    assert {problem.file: problem.message for problem in problems[:2]} == {
        "a.parquet": "no Parquet file: it is empty",
        "b.parquet": "no column label; columns image and label are needed, and it has image, text",
    }
    assert [problem.file for problem in problems[2:]] == [f"z.parquet:{i:06}" for i in range(60)]
    assert {problem.kind for problem in problems} == {"unreadable row"}
    assert len(table) == facts.images == 60
    with pytest.raises(DataError, match="62 problems in the data"):
        Parquet(str(packed)).samples(32)
    left_out: list[Problem] = []
    assert len(Parquet(str(packed)).samples(32, left_out=left_out)) == 60
    assert len(left_out) == 62


def test_a_missing_label_is_an_empty_one(tmp_path: Path, packed: Path) -> None:
    image = image_file(packed / "shard-00000.parquet:000000")
    write_shards(tmp_path / "one", [("a", image, None)])
    table, problems, _ = read_shards(tmp_path / "one", 32)
    assert [problem.kind for problem in problems] == ["empty label"]
    assert len(table) == 0


def test_a_row_that_has_changed_or_is_gone_is_one_line(packed: Path) -> None:
    sample = read_shards(packed, 32)[0][5]
    other = packed.with_name("other")
    packed.rename(other)
    with pytest.raises(DataError, match=r"^[^\n]*shard-00000\.parquet:000005: [^\n]*$"):
        image_file(packed / sample.name)
    rows = [("a", image_file(other / f"shard-00000.parquet:{i:06}"), "1") for i in reversed(range(60))]
    write_shards(packed, rows)
    with pytest.raises(DataError, match="the image has changed since it was checked"):
        assert sample.image is None
    with pytest.raises(DataError, match="no such image"):
        image_file(packed / "shard-00000.parquet:000060")


def test_large_row_groups_are_refused_with_the_cure(tmp_path: Path) -> None:
    row = b"".join(np.random.default_rng(0).bytes(2**20) for _ in range(MAX_GROUP_BYTES // 2**23 + 1))
    file = tmp_path / "a.parquet"
    table = pa.table({"image": [row] * 8, "label": ["1"] * 8})
    pq.write_table(table, file, use_dictionary=False, compression="none")
    with pytest.raises(DataError, match=r"a\.parquet: a row group of 72 MB [^\n]* captcha pack [^\n]*a\.parquet OUT$"):
        Parquet(str(file)).samples(32)


def test_a_folder_with_images_is_no_folder_of_shards(captcha_folder: Path, packed: Path) -> None:
    (captcha_folder / "a.parquet").touch()
    assert not isinstance(parse_images(str(captcha_folder)), Parquet)
    assert isinstance(parse_images(str(packed)), Parquet)
    assert isinstance(parse_images(str(packed / "shard-00000.parquet")), Parquet)


def test_a_table_goes_to_another_process_and_its_parts_share_its_columns(packed: Path) -> None:
    table = read_shards(packed, 32)[0]
    part = table[3:9]
    assert same(part) == same([table[i] for i in range(3, 9)])
    assert same([table[-1]]) == same([table[59]])
    assert part.digests is table.digests
    assert part.texts is table.texts
    assert same(pickle.loads(pickle.dumps(part))) == same(part)  # as workers get it


def test_of_an_image_some_bytes_are_kept(tmp_path: Path) -> None:
    """1,000 images: the pixels of one take 9,216 bytes at this height, its sample hundreds, and here all take 200."""
    image = np.zeros((8, 24, 3), np.uint8)

    def rows() -> "Sequence[tuple[str, bytes, str]]":
        found = []
        for number in range(1000):
            image[0, :2] = np.frombuffer(number.to_bytes(6, "big"), np.uint8).reshape(2, 3)
            found.append((f"{number}.png", encode_png(image), f"{number:04}"))
        return found

    write_shards(tmp_path / "many", rows())
    write_shards(tmp_path / "few", rows()[:1])
    read_shards(tmp_path / "few", 32)  # what is imported and cached is not counted
    tracemalloc.start()
    kept = read_shards(tmp_path / "many", 32)[0]
    now, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept) == 1000
    assert now < 200e3
