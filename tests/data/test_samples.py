import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from captcha.data.folders import read_samples
from captcha.data.samples import DataError, ImageFolder, ImageMemory, Sample, digest, folds, split


def _sample(name: str, text: str, shade: int = 0) -> Sample:
    return Sample(name, text, np.full((2, 3, 3), shade, np.uint8))


def _many(count: int) -> list[Sample]:
    return [_sample(f"{number}.png", f"{number % (count * 3 // 4)}", number % 256) for number in range(count)]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shuffle=st.randoms(use_true_random=False))
def test_a_split_is_disjoint_in_texts_and_stays_when_files_come(seed: int, shuffle: random.Random) -> None:
    samples = _many(400)
    before = split(samples[:300], seed)
    shuffle.shuffle(samples)
    after = split(samples, seed)
    for side in ("train", "validation", "test"):
        assert {s.name for s in getattr(before, side)} <= {s.name for s in getattr(after, side)}
    sides = [{sample.text for sample in side} for side in (after.train, after.validation, after.test)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 300
    assert len(after.train) + len(after.validation) + len(after.test) == 400


@settings(max_examples=50)
@given(
    texts=st.lists(st.text(max_size=6), min_size=100, max_size=200, unique=True),
    seed=st.integers(0, 2**32 - 1),
    shuffle=st.randoms(use_true_random=False),
)
def test_every_sample_stands_in_the_one_part_that_its_label_s_hash_says(
    texts: list[str], seed: int, shuffle: random.Random
) -> None:
    samples = [_sample(f"{number}.png", text) for number, text in enumerate([*texts, *texts[:30]])]
    sides: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    for sample in samples:
        digest = hashlib.sha256(f"{seed}:{sample.text}".encode()).digest()
        tenth = int.from_bytes(digest[:8]) * 10 >> 64
        sides["train" if tenth < 8 else "validation" if tenth == 8 else "test"].add(sample.name)
    assume(all(sides.values()))

    shuffle.shuffle(samples)
    parts = split(samples, seed)

    for side, names in sides.items():
        assert sorted(sample.name for sample in getattr(parts, side)) == sorted(names)


def test_a_split_has_the_shares_it_promises() -> None:
    samples = [_sample(f"{number}.png", str(number)) for number in range(5_000)]
    parts = split(samples, seed=3)
    assert [len(part) / 5_000 for part in (parts.train, parts.validation, parts.test)] == pytest.approx(
        [0.8, 0.1, 0.1], abs=0.02
    )


def test_a_split_is_fixed_for_good() -> None:
    parts = split([_sample(f"{number}.png", str(number)) for number in range(30)], seed=0)
    assert sorted(sample.text for sample in parts.validation) == ["11", "13"]
    assert sorted(sample.text for sample in parts.test) == ["1"]


def test_another_seed_gives_another_split() -> None:
    assert split(_many(400), seed=0).digest != split(_many(400), seed=1).digest


def test_too_few_labels_to_split_are_counted() -> None:
    samples = [_sample(f"{number}.png", str(number % 7)) for number in range(100)]
    with pytest.raises(DataError, match=r"100 images with 7 different labels, at least 20 different labels are needed"):
        split(samples, seed=0)


def test_a_side_that_stays_empty_is_named() -> None:
    seed = next(seed for seed in range(1000) if _side_is_empty(seed))
    with pytest.raises(DataError, match=r"none of 20 different labels fell to the (validation|test) part"):
        split([_sample(f"{number}.png", str(number)) for number in range(20)], seed)


def _side_is_empty(seed: int) -> bool:
    try:
        split([_sample(f"{number}.png", str(number)) for number in range(20)], seed)
    except DataError:
        return True
    return False


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(2, 9), shuffle=st.randoms(use_true_random=False))
def test_folds_test_every_sample_once_and_no_text_in_two_of_their_parts(
    seed: int, count: int, shuffle: random.Random
) -> None:
    samples = _many(400)
    made = folds(samples, seed, count)
    assert sorted(sample.name for fold in made for sample in fold.test) == sorted(sample.name for sample in samples)
    tested = [{sample.text for sample in fold.test} for fold in made]
    assert sum(map(len, tested)) == len(set.union(*tested)) == 300
    for number, fold in enumerate(made):
        parts = [{sample.text for sample in part} for part in (fold.train, fold.validation, fold.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 300
        assert len(fold.train) + len(fold.validation) + len(fold.test) == 400
        for text in parts[2]:  # the k-th of `count` ranges of the hash
            digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
            assert int.from_bytes(digest[:8]) * count >> 64 == number
    shuffle.shuffle(samples)
    assert [fold.digest for fold in folds(samples, seed, count)] == [fold.digest for fold in made]


def test_the_last_of_ten_folds_is_the_split_of_a_training() -> None:
    samples = _many(400)
    assert folds(samples, 5, 10)[-1] == split(samples, 5)


def test_a_tenth_of_the_labels_chooses_the_epoch_in_every_fold() -> None:
    samples = [_sample(f"{number}.png", str(number)) for number in range(5_000)]
    for fold in folds(samples, 3, 4):
        shares = [len(part) / 5_000 for part in (fold.train, fold.validation, fold.test)]
        assert shares == pytest.approx([0.65, 0.1, 0.25], abs=0.02)


def test_folds_that_cannot_be_made_are_refused() -> None:
    few = [_sample(f"{number}.png", str(number % 4)) for number in range(40)]
    with pytest.raises(DataError, match=r"^too few to make 5 folds of: 40 images with 4 different labels; take fewer"):
        folds(few, 0, 5)
    with pytest.raises(DataError, match=r"with seed 0, none of 4 different labels fell to the \w+ part of fold 1; add"):
        folds(few, 0, 4)


def test_digests_know_no_order_but_every_change(captcha_folder: Path) -> None:
    samples, _, _ = read_samples(captcha_folder, 32)
    assert digest(samples) == digest(samples[::-1])
    assert split(samples, 0).digest == split(samples[::-1], 0).digest
    assert len(digest(samples)) == len(split(samples, 0).digest) == 16
    changed = [
        samples[1:],
        [_sample("other.png", samples[0].text), *samples[1:]],
        [Sample("000.png", "other", samples[0].image, samples[0].digest), *samples[1:]],
        [Sample("000.png", "000", 255 - samples[0].image), *samples[1:]],
    ]
    assert len({digest(samples), *map(digest, changed)}) == 5


def test_the_digest_does_not_depend_on_the_height(captcha_folder: Path) -> None:
    assert digest(read_samples(captcha_folder, 32)[0]) == digest(read_samples(captcha_folder, 64)[0])


def test_a_split_digest_tells_the_sides_apart() -> None:
    parts = split(_many(400), 0)
    swapped = type(parts)(parts.train, parts.test, parts.validation)
    assert parts.digest != swapped.digest


def test_an_image_that_has_gone_since_it_was_checked_is_one_line(tmp_path: Path) -> None:
    sample = Sample("a.png", "a", ImageFolder(tmp_path, 32), "known")
    with pytest.raises(DataError, match=r"a\.png: cannot be read: No such file or directory$"):
        sample.image  # noqa: B018 - it is read here


def test_an_image_that_has_changed_since_it_was_checked_is_one_line(captcha_folder: Path) -> None:
    samples, _, _ = read_samples(captcha_folder, 32, memory=ImageMemory(0))
    (captcha_folder / "000.png").write_bytes((captcha_folder / "007.png").read_bytes())
    with pytest.raises(DataError, match=r"000\.png: the image has changed since it was checked; start again$"):
        samples[0].image  # noqa: B018 - it is read here
    assert samples[1].image.shape == (32, 96, 3)
