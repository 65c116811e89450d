from collections.abc import Callable, Sequence
from math import nan
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pytest
from mlflow.entities import Run

from captcha.data.samples import ImageMemory, Sample, Split
from captcha.data.sources import Source, parse_folder, parse_style
from captcha.evaluation.results import Evaluation
from captcha.reading.images import decode_image, resize_to_height
from captcha.reading.recognizer import Reading
from captcha.tracking.held_out import HeldOut, of_folder, of_run
from captcha.tracking.records import log_inputs, log_test
from captcha.tracking.runs import RegistryError, tracked_run

HEIGHT, SEED = 32, 7


def run_that_tested(source: Source, test: Sequence[Sample], seed: int = SEED, **tags: object) -> Run:
    """A run as a training leaves it that has tested its model on these images, and read half of them."""
    split = Split(list(test[:1]), list(test[1:2]), list(test))
    readings = [Reading(sample.text if i % 2 else "", 0.5, []) for i, sample in enumerate(test)]
    with tracked_run("a training") as run:
        mlflow.log_param("seed", seed)
        mlflow.set_tags(tags)
        sets = log_inputs(split, dict.fromkeys(("train", "validation", "test"), source))
        log_test(Evaluation(test, readings, nan), images=sets["test"])
    return mlflow.get_run(run.info.run_id)


def check_same(found: HeldOut, test: Sequence[Sample]) -> None:
    by_name = {sample.name: sample for sample in test}
    assert sorted(by_name) == sorted(sample.name for sample in found.samples)
    for sample, content in zip(found.samples, found.contents, strict=True):
        assert (sample.text, sample.digest) == (by_name[sample.name].text, by_name[sample.name].digest)
        assert (resize_to_height(decode_image(content), HEIGHT) == by_name[sample.name].image).all()


@pytest.fixture
def folder(tmp_path: Path, write_image: Callable[..., Path]) -> Path:
    """A folder of six images, some of them in folders of their own, with their labels in a table."""
    lines = ["file,label"]
    for number in range(6):
        name = f"{'below/' * (number % 2)}{number}.png"
        write_image(tmp_path / "some images" / name, f"0{number}")
        lines.append(f"{name},0{number}")
    (tmp_path / "some images" / "labels.csv").write_text("\n".join(lines))
    return tmp_path / "some images"


def test_the_images_of_a_folder_that_a_run_was_tested_on_are_read_again(folder: Path) -> None:
    source = parse_folder(str(folder))
    test = source.samples(HEIGHT, memory=ImageMemory(0))[2:]
    found = of_run(run_that_tested(source, test))
    check_same(found, test)
    assert found.name == "some images-test"
    assert found.contents == [(folder / sample.name).read_bytes() for sample in found.samples]


def test_drawn_images_are_drawn_again_as_large_as_they_were() -> None:
    source = parse_style("kaptcha")
    drawn = source.samples(HEIGHT, SEED)
    test = [drawn[number] for number in (3, 2000, 2 << 38)]
    found = of_run(run_that_tested(source, test))
    check_same(found, test)
    assert {decode_image(content).shape[0] for content in found.contents} == {source.style.height} != {HEIGHT}


def test_drawn_images_are_drawn_with_the_seed_of_the_split_where_the_training_had_another() -> None:
    source = parse_style("kaptcha")
    drawn = source.samples(HEIGHT, SEED)
    test = [drawn[number] for number in (3, 2000)]
    check_same(of_run(run_that_tested(source, test, seed=SEED + 1, split_seed=SEED)), test)


def test_images_that_are_no_longer_those_of_the_test_are_not_taken_for_them(folder: Path) -> None:
    source = parse_folder(str(folder))
    run = run_that_tested(source, source.samples(HEIGHT, memory=ImageMemory(0)))
    cannot = "^the images that it was tested on cannot be had any more: "
    cv2.imwrite(str(folder / "2.png"), np.zeros((20, 40, 3), np.uint8))
    with pytest.raises(
        RegistryError,
        match=f"{cannot}they or their labels have changed; captcha promote VERSION --test DIR takes others$",
    ):
        of_run(run)
    (folder / "2.png").unlink()
    with pytest.raises(RegistryError, match=rf"{cannot}[^\n]*2.png[^\n]*$"):
        of_run(run)


def test_a_run_of_an_earlier_captcha_that_does_not_say_which_images_it_drew_is_one_line() -> None:
    with tracked_run("a training") as run:
        mlflow.log_metric("test/exact_match", 0.5)
    with pytest.raises(
        RegistryError, match=r"cannot be had any more: its run does not say which; captcha promote VERSION --test"
    ):
        of_run(mlflow.get_run(run.info.run_id))


def test_a_run_without_a_test_is_one_line() -> None:
    with tracked_run("an adaptation") as run:
        pass
    with pytest.raises(RegistryError, match=r"^no labels to test on$"):
        of_run(mlflow.get_run(run.info.run_id))


def test_a_folder_is_read_whole(folder: Path) -> None:
    found = of_folder(parse_folder(str(folder)), HEIGHT)
    assert {sample.text for sample in found.samples} == {f"0{i}" for i in range(6)}
    assert found.without([True] * 5 + [False]).contents == found.contents[5:]
