import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from captcha.cli.terminal import crossval_summary
from captcha.data.folders import read_samples
from captcha.data.samples import DataError, Split, digest
from captcha.data.seen import SeenError, SeenPixels
from captcha.drawing.styles import StyleError
from captcha.evaluation.metrics import character_error_rate, exact_match, wilson_interval
from captcha.evaluation.out_of_fold import OutOfFold, calibrated
from captcha.evaluation.results import Evaluation
from captcha.jobs import train as training
from captcha.jobs.crossval import CrossvalOutcome, crossval
from captcha.jobs.train import Learned, train
from captcha.reading.constraints import CONSTRAINTS, ConstraintError, Constraints
from captcha.reading.recognizer import Reading, Recognizer
from captcha.reading.vocabulary import Vocabulary
from captcha.settings import CrossvalSettings, TrainSettings
from captcha.tracking.records import find_crossval, load_out_of_fold
from captcha.tracking.runs import RegistryError, tracked_run
from captcha.tracking.unfinished import Process
from captcha.training.loop import TrainingError
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


def asked(folder: Path, **settings: object) -> CrossvalSettings:
    return CrossvalSettings.model_validate({"data": str(folder), "backbone": "compact", "folds": 3} | settings)


class StandIn:
    """In the place of trainings: reads the labels, but those with a 7 as `wrong`; keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[TrainSettings, Split]] = []
        self.told: list[Constraints | None] = []

    def __call__(
        self, settings: TrainSettings, _: Any, split: Split, *others: Any, constraints: Constraints | None
    ) -> Any:
        self.asked.append((settings, split))
        self.told.append(constraints)
        texts = ["wrong" if "7" in sample.text else sample.text for sample in split.test]
        readings = [Reading(text, 0.25, []) for text in texts]
        labels = [-math.inf if sample.text == "00" else -2.5 for sample in split.test]
        return SimpleNamespace(evaluation=Evaluation(split.test, readings, 0.0, label_log_probabilities=labels))


@pytest.fixture(scope="module")
def done(folder: Path) -> tuple[CrossvalOutcome, StandIn]:
    """What `crossval` returns for two seeds, and its stand-in for trainings."""
    stand_in = StandIn()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "learn", stand_in)
        return crossval(asked(folder, seeds=2, epochs=7)), stand_in


def test_every_image_is_read_once_for_each_seed_by_a_model_that_has_not_seen_its_label(
    done: tuple[CrossvalOutcome, StandIn], folder: Path
) -> None:
    outcome, stand_in = done
    names = sorted(path.name for path in folder.iterdir())
    for seed in (0, 1):
        assert sorted(each.file for each in outcome.readings if each.seed == seed) == names
    learned_from = {}
    for place, (settings, split) in enumerate(stand_in.asked):
        assert (settings.seed, settings.backbone, settings.epochs) == (place // 3, "compact", 7)
        learned_from[place // 3, place % 3] = {sample.text for sample in [*split.train, *split.validation]}
    assert len(learned_from) == 6
    assert all(each.label not in learned_from[each.seed, each.fold] for each in outcome.readings)


def test_the_pooled_figures_are_those_of_the_whole_table(done: tuple[CrossvalOutcome, StandIn]) -> None:
    outcome, _ = done
    assert [each.seed for each in outcome.figures] == [0, 1, None]
    for row in outcome.figures:
        table = [each for each in outcome.readings if row.seed in (None, each.seed)]
        texts, labels = [each.text for each in table], [each.label for each in table]
        assert (row.exact_match, row.cer) == (exact_match(texts, labels), character_error_rate(texts, labels))
        # 07, 17, … 57 are read `wrong`: five edits each, of two characters each of 60 labels.
        assert (row.right, row.n, row.edits, row.characters) == (54, 60, 6 * 5, 120)
        assert (row.exact_match_low, row.exact_match_high) == wilson_interval(54, 60)  # not of 120 images
        assert (row.cer_low, row.cer_high) == wilson_interval(30, 120)
    lines = crossval_summary(outcome).splitlines()
    assert lines[2].split()[:9] == ["0", "54", "of", "60", "90.00%", "79.85%", "to", "95.34%", "30"]
    assert lines[4].startswith("mean  54 of 60")


def test_the_run_has_the_figures_the_table_and_the_mistakes(
    done: tuple[CrossvalOutcome, StandIn], folder: Path
) -> None:
    outcome, _ = done
    client = MlflowClient()
    run = client.get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "crossval · few labels · folds 3 · seeds 2 · epochs 7"
    tags = run.data.tags
    assert (tags["job"], tags["images"], tags["data_digest"]) == ("crossval", "60", outcome.data_digest)
    assert outcome.data_digest == digest(read_samples(folder, 64)[0])
    assert "the mean of 2 seeds, the interval of one seed's images" in tags["mlflow.note.content"]
    assert run.data.metrics["crossval/exact_match"] == 0.9
    assert run.data.metrics["crossval/cer"] == 0.25
    logged = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/crossval.json"))
    assert logged["figures"] == [vars(each) for each in outcome.figures]
    assert logged["confidence"] == outcome.confidence.as_dict()
    # The stand-in is as sure of what is wrong, a tenth, as of what is right.
    assert outcome.confidence.ece_raw == pytest.approx(0.65)
    assert run.data.metrics["calibration/ece"] == outcome.confidence.ece < 0.1
    assert (outcome.confidence.wrong, outcome.confidence.readings, outcome.confidence.error_bound) == (12, 120, None)
    assert mlflow.artifacts.load_image(f"{run.info.artifact_uri}/crossval_confidence.png").size[0] > 200
    assert mlflow.artifacts.load_image(f"{run.info.artifact_uri}/crossval_mistakes.png").size[0] > 200
    table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/out_of_fold.json")
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["file"], row["right"]) for row in rows] == [(each.file, each.right) for each in outcome.readings]
    loaded, data_digest = load_out_of_fold(outcome.run_id)  # 00 among them, with -inf; of the confidences 10 digits
    assert (calibrated(loaded, 0.999), data_digest) == (outcome.readings, outcome.data_digest)
    assert [each.confidence for each in loaded] == pytest.approx([each.confidence for each in outcome.readings])
    below = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{outcome.run_id}'")
    names = sorted(each.info.run_name for each in below)
    assert names == [f"fold {fold} of 3, seed {seed}" for fold in (1, 2, 3) for seed in (0, 1)]
    assert client.search_registered_models() == []


def test_a_training_on_the_same_images_is_calibrated_by_what_was_read_of_all_but_its_test_part(
    folder: Path, done: tuple[CrossvalOutcome, StandIn], draw_digits: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    def of_training(data: Path = folder, **settings: object) -> tuple[training.HeldOutReadings | None, Split]:
        """Return what a training that ends before its first step is given, and its split."""
        given: list[tuple[training.HeldOutReadings | None, Split]] = []

        def learn(_: Any, __: Any, split: Split, *others: Any, held_out: training.HeldOutReadings | None) -> Any:
            given.append((held_out, split))
            raise TrainingError("that was all")

        asked = TrainSettings.model_validate({"data": str(data), "backbone": "compact"} | settings)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "learn", learn)
            with pytest.raises(TrainingError, match="that was all"):
                train(asked)
        return given[0]

    outcome, _ = done
    held_out, split = of_training(seed=3, precision=0.9)
    assert held_out
    tested = {sample.name for sample in split.test}
    known = [each for each in outcome.readings if each.file not in tested]
    assert 0 < len(known) == 2 * (60 - len(tested)) < 120
    assert held_out.said == f"cross-validation {outcome.run_id}, without the test part: {len(known)} readings"
    assert held_out.precision == 0.9
    probabilities, right = held_out.outcomes(Recognizer(lambda _: np.zeros((1, 1, 1), np.float32), Vocabulary("0"), 64))
    assert (probabilities.tolist(), right.tolist()) == ([0.25] * len(known), ["7" not in each.label for each in known])
    for other in ({"backbone": "resnet18"}, {"height": 32}, {"drawn": "kaptcha"}, {"data": tmp_path / "other"}):
        if "data" in other:
            draw_digits(tmp_path / "other", 61)
        assert of_training(**other)[0] is None


def test_what_is_known_of_all_texts_is_kept_to_and_calibrates_no_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_run: NoRun
) -> None:
    monkeypatch.setattr(training, "learn", stand_in := StandIn())
    run_id = crossval(asked(folder, length="2", characters="0123456789")).run_id
    assert stand_in.told == [Constraints("2", "0123456789")] * 3
    run = MlflowClient().get_run(run_id)
    assert (run.data.params["length"], run.data.params["characters"], run.data.params["texts"]) == (
        "2",
        "0123456789",
        "none",
    )
    assert ", told length 2, characters 0123456789." in run.data.tags["mlflow.note.content"]
    below = MlflowClient().search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{run_id}'")
    assert [each.data.tags["constraints"] for each in below] == ["length 2, characters 0123456789"] * 3
    free = {name: None for name in CONSTRAINTS}
    digest = run.data.tags["data_digest"]
    assert find_crossval(run.info.experiment_id, digest, free) != run_id
    assert find_crossval(run.info.experiment_id, digest, free | {"length": "2", "characters": "0123456789"}) == run_id
    with no_run():
        with pytest.raises(ConstraintError, match="no text"):
            crossval(asked(folder, length="2", pattern="[0-9]{3}"))
        with pytest.raises(ConstraintError, match=r"absent\.txt cannot be read"):
            crossval(asked(folder, texts=str(tmp_path / "absent.txt")))


def test_what_is_cut_off_goes_on_with_the_folds_that_are_done(
    folder: Path, done: tuple[CrossvalOutcome, StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in, folds = StandIn(), 0

    def stopped(*arguments: Any, **more: Any) -> Any:
        nonlocal folds
        folds += 1
        if folds == 5:
            raise KeyboardInterrupt
        return stand_in(*arguments, **more)

    monkeypatch.setattr(training, "learn", stopped)
    settings = asked(folder, seeds=2, epochs=7)
    with pytest.raises(KeyboardInterrupt):
        crossval(settings)
    assert len(stand_in.asked) == 4
    monkeypatch.setattr(training, "learn", stand_in)
    monkeypatch.setattr(Process, "gone", True)  # as if this one were another
    (cut,) = mlflow.search_runs(
        search_all_experiments=True,
        filter_string="tags.job = 'crossval' and attributes.status = 'KILLED'",
        output_format="list",
    )
    again = crossval(settings.model_copy(update={"resume": cut.info.run_id}))
    assert len(stand_in.asked) == 6
    assert again.run_id == cut.info.run_id
    assert (again.readings, again.figures) == (done[0].readings, done[0].figures)


def test_a_fold_that_fails_fails_the_whole_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Learned:
        raise TrainingError("the loss is nan; nothing is registered")

    monkeypatch.setattr(training, "learn", fails)
    with pytest.raises(TrainingError, match=r"^fold 1 of 4, seed 0: the loss is nan; nothing is registered$"):
        crossval(asked(folder, folds=4))
    above = mlflow.search_runs(search_all_experiments=True, filter_string="params.folds = '4'", output_format="list")
    assert [run.info.status for run in above] == ["FAILED"]
    assert above[0].data.tags["mlflow.note.content"].startswith("Failed: fold 1 of 4, seed 0: the loss is nan")


def test_what_cannot_be_made_folds_of_is_refused_before_any_run(
    folder: Path, no_run: NoRun, draw_digits: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    few = draw_digits(tmp_path / "few", 4)
    with no_run():
        with pytest.raises(DataError, match=r"^too few to make 61 folds of: 60 images with 60 different labels; take "):
            crossval(asked(folder, folds=61))
        with pytest.raises(DataError, match=r"none of 4 different labels fell to the \w+ part of fold \d; add images"):
            crossval(asked(few, folds=2))
        with pytest.raises(StyleError, match=r"^draw:kaptcha is a style, and a folder is needed: captcha draw DIR "):
            crossval(asked(Path("draw:kaptcha")))
        with pytest.raises(RegistryError, match="models:/absent@champion"):
            crossval(asked(folder, init="models:/absent@champion"))


def test_a_model_to_start_from_that_has_seen_an_image_is_refused(
    folder: Path, no_run: NoRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, _, _ = read_samples(folder, 64)
    seen = SeenPixels.of([], samples[:1])
    parent = SimpleNamespace(uri="models:/m/1", seen=seen), SimpleNamespace(backbone="compact", height=64)
    monkeypatch.setattr(training, "read_parent", lambda uri: parent)  # a stand-in
    with no_run(), pytest.raises(SeenError, match=r"models:/m/1 saw 1 of the 60 test images.*of other images$"):
        crossval(asked(folder, init="models:/m/1"))


def test_every_fold_starts_from_the_model_named_with_its_backbone_and_height(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = (
        SimpleNamespace(uri="models:/m/1", seen=SeenPixels.of([], [])),
        SimpleNamespace(backbone="student", height=32),
    )
    stand_in = StandIn()
    monkeypatch.setattr(training, "read_parent", lambda uri: parent)  # a stand-in
    monkeypatch.setattr(training, "learn", stand_in)
    outcome = crossval(asked(folder, init="models:/m@champion", drawn="kaptcha", folds=2))
    assert len(outcome.readings) == 60
    for settings, split in stand_in.asked:
        assert (settings.init, settings.backbone, settings.height) == ("models:/m/1", "student", 32)
        assert settings.drawn == "kaptcha"
        assert {sample.image.shape[0] for sample in split.test} == {32}
    run = MlflowClient().get_run(outcome.run_id)
    assert run.info.run_name == "crossval · few labels · folds 2 · with drawn kaptcha · from m v1"


def test_only_a_cross_validation_that_has_ended_has_readings() -> None:
    with tracked_run("another job") as run:
        pass
    with pytest.raises(RegistryError, match=f"^run {run.info.run_id} is no cross-validation: name the run of a "):
        load_out_of_fold(run.info.run_id)
    with pytest.raises(RegistryError):
        load_out_of_fold("0" * 32)
    MlflowClient().set_tag(run.info.run_id, "job", "crossval")
    with pytest.raises(RegistryError, match=r"has no out_of_fold\.json .*: let it end, with captcha crossval --resume"):
        load_out_of_fold(run.info.run_id)


@pytest.mark.slow
def test_real_trainings_read_what_they_have_not_learned_from(folder: Path, quick: Recipe) -> None:
    outcome = crossval(asked(folder, folds=2, epochs=3), quick)
    runs = [
        MlflowClient().get_run(run.info.run_id)
        for run in mlflow.search_runs(
            search_all_experiments=True,
            filter_string=f"tags.mlflow.parentRunId = '{outcome.run_id}'",
            output_format="list",
        )
    ]
    assert sum(int(run.data.tags["test_images"]) for run in runs) == len(outcome.readings) == 60
    assert sum(int(run.data.tags["test_right"]) for run in runs) == outcome.figures[0].right
    for each in outcome.readings:
        assert isinstance(each, OutOfFold)
        if each.right:
            assert math.exp(each.label_log_probability) == pytest.approx(each.confidence, rel=1e-5)


@pytest.mark.slow
def test_real_trainings_read_only_texts_that_keep_to_what_is_known(folder: Path, quick: Recipe) -> None:
    free = crossval(asked(folder, folds=2, epochs=1), quick)
    assert {len(each.text) for each in free.readings} != {2}
    told = crossval(asked(folder, folds=2, epochs=1, length="2"), quick)
    assert {len(each.text) for each in told.readings} == {2}
