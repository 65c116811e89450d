import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from captcha.cli.terminal import budget_table
from captcha.data import sources
from captcha.data.folders import read_samples
from captcha.data.samples import DataError, Sample, Split, split
from captcha.data.seen import SeenError, SeenPixels
from captcha.drawing.fonts import FontError
from captcha.evaluation.metrics import wilson_interval
from captcha.evaluation.results import Evaluation
from captcha.jobs import budget as job
from captcha.jobs import train as training
from captcha.jobs.budget import ALONE, WITH_DRAWN, BudgetRow, budget, points, with_labels
from captcha.jobs.evaluate import evaluate
from captcha.jobs.predict import predict
from captcha.reading.recognizer import Reading
from captcha.settings import BudgetSettings
from captcha.tracking.runs import RegistryError
from captcha.training.recipe import Recipe

NoRun = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module", autouse=True)
def small(tracking: Path, one_thread: None) -> Iterator[None]:
    """Runs that end at once, tracked into a folder of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
        yield


@pytest.fixture(scope="module")
def folder(tracking: Path, draw_digits: Callable[[Path, int], Path]) -> Path:
    """60 images of two digits, named by their label."""
    return draw_digits(tracking / "few labels", 60)


def asked(folder: Path, **settings: object) -> BudgetSettings:
    small = {"data": str(folder), "backbone": "compact", "epochs": 1, "drawn_epochs": 1, "seeds": 2}
    return BudgetSettings.model_validate(small | settings)


def made(texts: list[str]) -> list[Sample]:
    return [Sample(f"{i:03}.png", text, np.zeros((32, 48, 3), np.uint8)) for i, text in enumerate(texts)]


# Which labels are known


def test_fewer_labels_are_among_more_and_the_test_part_stays() -> None:
    whole = split(made([f"{number:03}" for number in range(300)]), 5)
    learned_from = {s.name for s in [*whole.train, *whole.validation]}
    smaller: set[str] = set()
    for count in (2, 10, 25, 100, 200):
        some = with_labels(whole, count, 5)
        known = {s.name for s in [*some.train, *some.validation]}
        assert len(some.train) + len(some.validation) == len(known) == count
        assert smaller < known <= learned_from
        assert len(some.validation) == -(-count // 10)
        assert some.test == whole.test
        smaller = known
    assert with_labels(whole, None, 5) == whole


def test_another_seed_knows_other_labels() -> None:
    whole = split(made([f"{number:03}" for number in range(300)]), 5)
    assert with_labels(whole, 20, 0) != with_labels(whole, 20, 1)


def test_a_text_with_several_images_stands_on_one_side() -> None:
    whole = split(made([f"{number % 60:02}" for number in range(300)]), 0)
    some = with_labels(whole, 103, 0)
    assert not {s.text for s in some.train} & {s.text for s in some.validation}
    assert len(some.train) + len(some.validation) == 103


# What is added up


def test_seeds_are_added_up_with_the_interval_of_their_sum() -> None:
    rows = [
        BudgetRow(WITH_DRAWN, 10, 0, 7, 10, 5.0, "a"),
        BudgetRow(WITH_DRAWN, 10, 1, 9, 12, 7.0, "b"),
        BudgetRow(ALONE, 10, 0, 0, 10, 1.0, "c"),
        BudgetRow(WITH_DRAWN, 0, 0, 5, 10, 1.0, "d"),
    ]
    alone, nothing, both = points(rows)
    assert (alone.arm, alone.labels, alone.right, alone.n) == (ALONE, 10, 0, 10)
    assert (nothing.labels, nothing.right) == (0, 5)
    assert (both.right, both.n, both.seconds) == (16, 22, 6.0)
    assert (both.low, both.high) == wilson_interval(16, 22)
    lines = budget_table(points(rows)).splitlines()
    assert len(lines) == 4
    assert lines[3].split() == ["10", "with", "drawn", "72.73%", "51.85%", "to", "86.85%", "16", "of", "22", "6"]


# The job, with a stand-in for its trainings


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[BudgetRow]:
    """What `budget` returns where trainings are stand-ins, which log their settings and read all but one image."""

    def measure(settings: BudgetSettings, seed: int, known: Split, parent: Any, with_drawn: bool, _: Any) -> Evaluation:
        asked = job._as_training(settings, seed, parent, with_drawn)
        mlflow.log_params({"seed": asked.seed, "drawn": asked.drawn, "init": asked.init, "height": asked.height})
        mlflow.log_params({"known": len(known.train) + len(known.validation)})
        texts = [sample.text for sample in known.test]
        return Evaluation(known.test, [Reading(text, 1.0, []) for text in ["wrong", *texts[1:]]], 0.0)

    drawn_first = SimpleNamespace(uri="runs:/drawn"), SimpleNamespace(backbone="compact", height=64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "_measure", measure)
        patch.setattr(job, "_trained_on_drawn", lambda *_: drawn_first)
        return budget(asked(folder, labels="0,all,10"))


def test_every_number_of_labels_is_measured_with_each_seed_with_drawn_images_and_without(
    rows: list[BudgetRow], folder: Path
) -> None:
    samples, _, _ = read_samples(folder, 64)
    splits = [split(samples, seed) for seed in (0, 1)]
    everything = min(len(each.train) + len(each.validation) for each in splits)
    wanted = [(0, WITH_DRAWN), *((n, arm) for n in (10, everything) for arm in (ALONE, WITH_DRAWN))]
    assert [(row.labels, row.arm, row.seed) for row in rows] == [(*each, seed) for each in wanted for seed in (0, 1)]
    assert [row.n for row in rows] == [len(splits[row.seed].test) for row in rows]


def test_each_training_is_a_run_under_one_that_has_the_curve(rows: list[BudgetRow]) -> None:
    client = MlflowClient()
    (parent,) = {client.get_run(row.run_id).data.tags["mlflow.parentRunId"] for row in rows}
    run = client.get_run(parent)
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("label budget · few labels · labels 0,all,10 · seeds 2")
    history = client.get_metric_history(parent, "budget/with_drawn")
    # Logged again after each training: the last value of each step counts.
    latest = {entry.step: entry.value for entry in history}
    assert latest == {p.labels: p.right / p.n for p in points(rows) if p.arm == WITH_DRAWN}
    assert {artifact.path for artifact in client.list_artifacts(parent)} == {"budget.json", "budget.png"}
    logged = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/budget.json"))
    assert logged == {"rows": [vars(row) for row in rows]}


def test_a_training_knows_its_labels_and_goes_on_from_the_model_of_drawn_images(rows: list[BudgetRow]) -> None:
    for row in rows:
        params = MlflowClient().get_run(row.run_id).data.params
        assert int(params["known"]) == row.labels if row.labels == 10 else int(params["known"]) >= row.labels
        with_drawn = ("kaptcha", "runs:/drawn")
        assert (params["drawn"], params["init"]) == (with_drawn if row.arm == WITH_DRAWN else ("None", "None"))
        assert (params["seed"], params["height"]) == (str(row.seed), "64")
        assert row.right == row.n - 1


def test_no_run_is_begun_with_fewer_labels_than_are_asked_for(folder: Path, no_run: NoRun) -> None:
    with (
        no_run(),
        pytest.raises(
            DataError, match=r"few labels: 100 labels are asked for, but beside the test part there are \d\d;"
        ),
    ):
        budget(asked(folder, labels="10,100"))


def test_labels_that_are_all_of_one_text_are_refused(tmp_path: Path, folder: Path, no_run: NoRun) -> None:
    rows = ["file,label"]
    for path in folder.iterdir():  # two images of each text
        image = cv2.imread(str(path))
        assert image is not None
        for name in (path.name, f"again {path.name}"):
            cv2.imwrite(str(tmp_path / name), image)
            rows.append(f"{name},{path.stem}")
            image[0] = 255 - image[0]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    with (
        no_run(),
        pytest.raises(DataError, match="2 labels of seed 0 are all of one text, so none is left to train on"),
    ):
        budget(asked(tmp_path, labels="2,10", drawn="none"))


def test_a_model_to_go_on_from_that_is_not_there_is_said_at_once(folder: Path, no_run: NoRun) -> None:
    with no_run(), pytest.raises(RegistryError, match="models:/absent@champion"):
        budget(asked(folder, init="models:/absent@champion"))


def test_a_model_to_start_from_that_was_trained_on_a_test_part_is_refused(
    folder: Path, no_run: NoRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, _, _ = read_samples(folder, 64)
    seen = SeenPixels.of([], samples[:40])
    parent = SimpleNamespace(uri="models:/m/1", seen=seen), SimpleNamespace(backbone="compact", height=64)
    monkeypatch.setattr(training, "read_parent", lambda uri: parent)  # a stand-in
    tests = [sample for seed in (0, 1) for sample in split(samples, seed).test]
    known = sum(seen.among(tests))
    line = f"^the training of models:/m/1 saw {known} of the {len(tests)} test images, so a test on them would say too "
    with no_run(), pytest.raises(SeenError, match=f"{line}much: start from a model of drawn images alone$"):
        budget(asked(folder, init="models:/m/1"))


def test_a_style_that_no_font_can_draw_is_said_before_any_run(folder: Path, no_run: NoRun, tmp_path: Path) -> None:
    (tmp_path / "kana.toml").write_text('characters = "かな"')
    with no_run(), pytest.raises(FontError, match=r"^no font to draw with: "):
        budget(asked(folder, drawn=str(tmp_path / "kana.toml")))


def test_without_a_style_labels_alone_are_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(settings: BudgetSettings, seed: int, known: Split, parent: Any, with_drawn: bool, _: Any) -> Evaluation:
        asked = job._as_training(settings, seed, parent, with_drawn)
        assert (parent, asked.init, asked.drawn) == (None, None, None)
        return Evaluation(known.test, [Reading("", 1.0, []) for _ in known.test], 0.0)

    monkeypatch.setattr(job, "_measure", measure)
    measured = budget(asked(folder, labels="0,10", drawn="none", seeds=1))
    assert [(row.arm, row.labels, row.right) for row in measured] == [(ALONE, 10, 0)]


def test_all_trainings_leave_out_the_same_and_the_run_above_them_has_the_list(
    folder: Path, spoil: Callable[[Path, Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = {sample.name for sample in read_samples(folder, 64)[0]}
    trained_on: list[set[str]] = []

    def measure(settings: BudgetSettings, seed: int, known: Split, parent: Any, with_drawn: bool, _: Any) -> Evaluation:
        assert job._as_training(settings, seed, parent, with_drawn).problems == "leave-out"
        trained_on.append({sample.name for sample in [*known.train, *known.validation, *known.test]})
        return Evaluation(known.test, [Reading("", 1.0, []) for _ in known.test], 0.0)

    monkeypatch.setattr(job, "_measure", measure)
    spoilt = spoil(folder, tmp_path / "spoilt")
    rows = budget(asked(spoilt, labels="all", drawn="none", problems="leave-out"))
    assert trained_on == [clean, clean]
    above = MlflowClient().get_run(MlflowClient().get_run(rows[0].run_id).data.tags["mlflow.parentRunId"])
    assert above.data.tags["left_out"] == "4"
    assert mlflow.artifacts.load_text(f"{above.info.artifact_uri}/problems.csv").count(str(spoilt)) == 4


# The job itself


@pytest.mark.slow
def test_real_trainings_give_a_curve(folder: Path, quick: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sources, training):
        monkeypatch.setattr(module, "DRAWN_IMAGES", 40)
    rows = budget(asked(folder, labels="0,10,all", seeds=1), quick)
    assert [(row.arm, row.labels > 10) for row in rows] == [
        (WITH_DRAWN, False),
        *((arm, more) for more in (False, True) for arm in (ALONE, WITH_DRAWN)),
    ]
    runs = [MlflowClient().get_run(row.run_id) for row in rows]
    assert [int(run.data.tags["test_images"]) for run in runs] == [row.n for row in rows]
    assert "train_images" not in runs[0].data.tags  # without labels, the model of drawn images reads
    (first,) = {run.data.tags["init_run"] for run in runs[2::2]}
    assert MlflowClient().get_run(first).data.params["data"] == "draw:kaptcha"
    assert set(runs[2].data.tags["vocabulary"]) >= set(runs[1].data.tags["vocabulary"]) | set("gfynmpwx")
    # A row's model can be read with and registered by its run.
    assert predict([folder / "11.png"], f"runs:/{rows[1].run_id}", "greedy", 10)
    tracked = evaluate(str(folder), f"runs:/{rows[-1].run_id}")
    assert (tracked.metrics["n"], tracked.metrics_of_all["n"]) == (rows[-1].n, 60)  # all others it was trained on
