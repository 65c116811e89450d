"""Self-training; where the model's readings are scripted, the test says that it uses a stand-in."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from captcha import CaptchaError
from captcha.cli.terminal import adapt_summary
from captcha.data.folders import read_images, read_samples
from captcha.data.samples import DataError, Sample, Split, split, unit_hash
from captcha.data.seen import SeenError, SeenPixels, pixel_key
from captcha.data.sources import Sources, parse_folder
from captcha.jobs import adapt as job
from captcha.jobs import train as training
from captcha.jobs.adapt import AdaptationError, adapt, confident_readings
from captcha.jobs.train import log_training, parse_sources
from captcha.reading.constraints import Constraints
from captcha.reading.recognizer import Reading
from captcha.reading.vocabulary import Vocabulary
from captcha.settings import AdaptSettings, TrainSettings
from captcha.tracking.models import load_parent, load_seen, log_seen, log_weights
from captcha.tracking.runs import tracked_run
from captcha.tracking.unfinished import ResumeError, Unfinished
from captcha.training.batches import Batches
from captcha.training.checkpoint import Checkpoint
from captcha.training.model import Crnn
from captcha.training.recipe import Recipe

Listen = Callable[[], AbstractContextManager[list[str]]]
NoRun = Callable[[], AbstractContextManager[None]]

HEIGHT = 32


@pytest.fixture(scope="module", autouse=True)
def small(tracking: Path, one_thread: None) -> Iterator[None]:
    """Rounds of seconds, tracked into a folder of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
        yield


@pytest.fixture(scope="module")
def folder(tracking: Path, draw_digits: Callable[[Path, int], Path]) -> Path:
    """60 images of two digits, named by their label."""
    return draw_digits(tracking / "unlabelled", 60)


@pytest.fixture(scope="module")
def model(folder: Path) -> str:
    """URI of a run with the weights of a model that has learned nothing yet."""
    asked = TrainSettings(data=str(folder), backbone="compact", height=HEIGHT)
    parts = split(read_samples(folder, HEIGHT)[0], 0)
    digits = Vocabulary("0123456789")
    with tracked_run("the model to begin with") as run:
        log_training(asked.model_dump(), parse_sources(asked), parts, digits, "compact")
        log_weights(Checkpoint.of(Crnn("compact", digits, HEIGHT)).to_bytes())
    return f"runs:/{run.info.run_id}"


def reading(text: str, confidence: float) -> Reading:
    return Reading(text, confidence, [confidence] * len(text))


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[float]]]:
    """A function that makes a stand-in of what is read: each image's file name, with scripted confidences."""

    def script(*rounds: Sequence[float]) -> list[list[float]]:
        left = [list(confidences) for confidences in rounds]

        def read(checkpoint: Checkpoint, samples: Sequence[Sample], known: Constraints | None) -> list[Reading]:
            assert {sample.text for sample in samples} == {""}  # it is told no label
            return [reading(s.name[:2], c) for s, c in zip(samples, left.pop(0), strict=True)]

        monkeypatch.setattr(job, "_read", read)
        return left

    return script


def asked(folder: Path, model: str, **settings: object) -> AdaptSettings:
    small = {"data": str(folder), "model": model, "epochs": 1, "batch_size": 16, "name": "adapted"}
    return AdaptSettings.model_validate(small | settings)


def nested(run_id: str) -> list[Run]:
    """Return the runs under a run, the first first."""
    tracked = mlflow.get_experiment_by_name("captcha")
    assert tracked
    found = f"tags.mlflow.parentRunId = '{run_id}'"
    return list(MlflowClient().search_runs([tracked.experiment_id], found, order_by=["start_time ASC"]))


def history(run_id: str, metric: str) -> list[float]:
    return [entry.value for entry in MlflowClient().get_metric_history(run_id, metric)]


# Which readings are learned from


def test_confident_readings_reach_the_threshold_and_say_something() -> None:
    read = [reading("aaa", 0.9), reading("aab", 0.8999), reading("", 1.0), reading("aac", 0.2), reading("ab", 0.95)]
    # The most confident tenth of a single reading is that reading: b's and a's are confident, c's is below the floor.
    assert confident_readings(read, 0.9, range(5)) == [0, 4]
    assert confident_readings(read, 0.9, [1, 2, 3]) == [1]


def test_of_a_character_that_is_never_read_confidently_the_most_confident_tenth_is_learned_from() -> None:
    rare = [reading("az", 0.6 + number / 100) for number in range(20)]
    common = [reading("a", 0.99) for _ in range(80)]
    selected = confident_readings(rare + common, 0.9, range(100))
    assert selected == [18, 19, *range(20, 100)]
    unsure = [reading("az", 0.3 + number / 200) for number in range(20)]
    assert confident_readings(unsure + common, 0.9, range(100)) == list(range(20, 100))


# The rounds


def test_it_ends_with_the_first_round_that_gains_no_more_images_and_keeps_the_one_before(
    folder: Path,
    model: str,
    readings: Callable[..., list[list[float]]],
    quick: Recipe,
    listen: Listen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, more = [0.95] * 30 + [0.1] * 30, [0.95] * 50 + [0.1] * 10
    left = readings(few, more, more, [0.95] * 60)
    learned: list[Split] = []
    fit = training.fit

    def note(start: Crnn, batches: Batches, parts: Split, *rest: Any, **options: Any) -> object:
        learned.append(parts)
        return fit(start, batches, parts, *rest, **options)

    monkeypatch.setattr(training, "fit", note)
    with listen() as lines:
        outcome = adapt(asked(folder, model), quick)

    assert len(left) == 1  # it did not come to the fourth
    assert (outcome.rounds, outcome.confident_before, outcome.confident, outcome.images) == (1, 30, 50, 60)
    assert outcome.metrics == {}
    rounds = nested(outcome.run_id)
    assert [(run.info.run_name, run.info.status) for run in rounds] == [
        ("round 1", "FINISHED"),
        ("round 2", "FINISHED"),
    ]
    assert {run.data.params["recipe.epoch_images"] for run in rounds} == {"1"}
    assert [run.data.params["seed"] for run in rounds] == ["1", "2"]  # other changes of the images each round
    assert history(outcome.run_id, "adapt/confident") == [30, 50, 50]
    assert history(outcome.run_id, "adapt/changed") == [0, 0]
    assert history(outcome.run_id, "adapt/mean_confidence")[0] == pytest.approx((30 * 0.95 + 30 * 0.1) / 60)
    assert "adapt/exact_match" not in mlflow.get_run(outcome.run_id).data.metrics
    # The first round's weights are the ones kept.
    assert load_parent(f"runs:/{outcome.run_id}").weights == load_parent(f"runs:/{rounds[0].info.run_id}").weights
    assert load_parent(f"runs:/{outcome.run_id}").weights != load_parent(f"runs:/{rounds[1].info.run_id}").weights

    held_out = {s.digest for s in learned[0].validation}
    assert 0 < len(held_out) < 20
    # Nobody has labels: what the model began with read of the images that no round learns from takes their place.
    assert (
        mlflow.get_run(outcome.run_id)
        .data.tags["calibration"]
        .startswith(
            f"held out, right where read as {model} reads it without augmentation, augmented: 8 x {len(held_out)} "
        )
    )
    samples, _, _ = read_samples(folder, HEIGHT)
    confident = [{s.digest for s in samples[:30]}, {s.digest for s in samples[:50]}]
    assert [{s.digest for s in parts.train} for parts in learned] == [part - held_out for part in confident]
    assert all({s.digest for s in parts.validation} == held_out for parts in learned)
    # The images held out chose nothing; what round 2 learned from is not part of the model that was kept.
    seen = load_seen(mlflow.get_run(outcome.run_id), "it")
    assert set(seen.keys.tolist()) == {pixel_key(digest) for digest in confident[0] - held_out}
    assert seen.unknown == model  # its run is like one of an earlier version
    second = load_seen(mlflow.get_run(rounds[1].info.run_id), "it")
    assert set(second.keys.tolist()) == {pixel_key(digest) for digest in confident[1] - held_out}
    assert all(s.text == s.name[:2] for parts in learned for s in parts.train)

    version = MlflowClient().get_model_version("adapted", str(outcome.model_version))
    assert "exact_match" not in version.tags
    assert str(version.description).startswith(
        f"Not tested, there were no labels: compact started from {model}, trained on `{folder.name}`, seed 0.\n"
    )
    assert adapt_summary(outcome).splitlines()[:3] == [
        "",
        "the model of round 1 is confident of 50 of 60 images, the model it began with was confident of 30",
        "adapted version 1 registered, the first champion",
    ]
    example = Path(outcome.example)
    assert adapt_summary(outcome).endswith(
        f"captcha predict {example.relative_to(Path.cwd())} --model models:/adapted@champion"
    )
    assert example.is_file()
    assert [line.split()[0:2] for line in lines if line.startswith("round")] == [
        ["round", f"{number}/8"] for number in range(3)
    ]


def test_labels_are_reported_by_and_never_learned_from(
    folder: Path, model: str, readings: Callable[..., list[list[float]]], quick: Recipe
) -> None:
    swapped = folder.with_name("swapped")
    swapped.mkdir()
    rows = ["file,label"]
    for number in range(60):  # what is read, the file's name, is wrong for the first twelve
        shutil.copy(folder / f"{number:02}.png", swapped)
        rows.append(f"{number:02}.png,{'x' if number < 12 else ''}{number:02}")
    (swapped / "labels.csv").write_text("\n".join(rows))
    confidences = [0.95] * 60
    readings([0.95] * 59 + [0.1], confidences, confidences)
    outcome = adapt(asked(swapped, model, labelled=True, name="reported"), quick)
    assert history(outcome.run_id, "adapt/exact_match") == [48 / 60, 48 / 60, 48 / 60]
    (_, only) = nested(outcome.run_id)
    path = mlflow.artifacts.download_artifacts(run_id=only.info.run_id, artifact_path="characters.json")
    table = json.loads(Path(path).read_text())
    assert table["columns"] == ["character", "read", "learned_from"]
    assert {row[0] for row in table["data"]} == set("0123456789")
    assert sum(row[1] for row in table["data"]) == 120
    # The test part are the images held out, with their labels; an untrained model reads none of them.
    held_out = sum(unit_hash(0, s.digest) < job.HELD_OUT for s in read_samples(swapped, HEIGHT)[0])
    assert outcome.metrics["n"] == held_out
    assert outcome.metrics["exact_match"] == 0
    assert sum(row[2] for row in table["data"]) == 2 * (60 - held_out)


def test_where_no_round_gains_an_image_nothing_is_registered(
    folder: Path, model: str, readings: Callable[..., list[list[float]]], quick: Recipe
) -> None:
    readings([0.95] * 60, [0.95] * 60)
    outcome = adapt(asked(folder, model, name="unchanged"), quick)
    assert (outcome.rounds, outcome.model_version, outcome.metrics) == (0, None, {})
    assert outcome.message == f"no round made {model} confident of more images: nothing is registered"
    assert MlflowClient().search_registered_models("name = 'unchanged'") == []
    run = mlflow.get_run(outcome.run_id)
    assert run.data.tags["mlflow.note.content"].startswith("No round made ")
    assert outcome.message in adapt_summary(outcome).splitlines()
    assert "models serve" not in adapt_summary(outcome)


def test_labelled_images_held_out_that_the_model_was_trained_on_are_refused_or_left_out(
    folder: Path, model: str, readings: Callable[..., list[list[float]]], quick: Recipe, listen: Listen
) -> None:
    samples, _, _ = read_samples(folder, HEIGHT)
    held_out = [sample for sample in samples if unit_hash(0, sample.digest) < job.HELD_OUT]
    known = [held_out[0], *(sample for sample in samples if sample not in held_out)][:20]
    before = load_parent(model)
    with tracked_run("the model to begin with") as run:
        log_training(
            TrainSettings(data=str(folder), backbone="compact", height=HEIGHT).model_dump(),
            Sources(parse_folder(str(folder))),
            Split(known, [], []),
            Vocabulary("0123456789"),
            "compact",
        )
        log_weights(before.weights)
        log_seen(SeenPixels.of([], known))
    uri = f"runs:/{run.info.run_id}"
    line = f"^the training of {uri} saw 1 of the {len(held_out)} test images, so a test on them would say too much: "
    with pytest.raises(SeenError, match=line + "take another --seed, [^\n]* with --allow-overlap$"):
        adapt(asked(folder, uri, labelled=True))
    readings([0.95] * 59 + [0.1], [0.95] * 60, [0.95] * 60)
    with listen() as lines:
        outcome = adapt(asked(folder, uri, labelled=True, allow_overlap=True, name="overlap"), quick)
    assert f"{uri} was trained on 20 of these images already" in lines
    assert outcome.metrics["n"] == len(held_out) - 1
    assert outcome.metrics_of_all["n"] == len(held_out)
    assert mlflow.get_run(outcome.run_id).data.tags["overlap"] == "1"
    line = f"exact match on these and those left out, 1 that training saw: 0.00% of {len(held_out)} images"
    assert line in adapt_summary(outcome)


def test_a_model_that_is_never_confident_is_told_apart_from_one_that_learns_nothing(folder: Path, model: str) -> None:
    with pytest.raises(AdaptationError, match="reads none of these images with a probability of"):
        adapt(asked(folder, model))  # the untrained model itself reads


def test_too_few_images_to_hold_one_out_are_refused(folder: Path, model: str, tmp_path: Path) -> None:
    samples, _, _ = read_samples(folder, HEIGHT)
    kept = next(s for s in samples if unit_hash(0, s.digest) >= job.HELD_OUT)
    shutil.copy(folder / kept.name, tmp_path)
    with pytest.raises(AdaptationError, match="1 images are too few, none of them is held out; add some"):
        adapt(asked(tmp_path, model))


def test_an_unreadable_image_is_named_before_anything_is_learned(
    folder: Path, model: str, tmp_path: Path, listen: Listen
) -> None:
    shutil.copy(folder / "11.png", tmp_path)
    (tmp_path / "torn.png").write_bytes(b"torn")
    with listen() as lines, pytest.raises(DataError, match="1 problem in the data"):
        adapt(asked(tmp_path, model))
    assert "torn.png" in lines[0]


def test_an_unreadable_image_can_be_left_out(
    folder: Path, model: str, readings: Callable[..., list[list[float]]], quick: Recipe, tmp_path: Path
) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(folder, spoilt)
    (spoilt / "torn.png").write_bytes(b"torn")
    readings([0.95] * 60, [0.95] * 60)
    outcome = adapt(asked(spoilt, model, problems="leave-out", name="left"), quick)
    run = MlflowClient().get_run(outcome.run_id)
    assert (outcome.images, run.data.tags["left_out"]) == (60, "1")
    assert run.data.params["problems"] == "leave-out"
    table = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/problems.csv").splitlines()
    assert table[0] == "file,kind,message"
    assert [line.split(",")[:2] for line in table[1:]] == [[f"{spoilt}/torn.png", "unreadable image"]]
    assert {each.data.tags.get("left_out") for each in nested(outcome.run_id)} == {None}


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"data": "empty"}, "empty: no images in this folder"),
        ({"data": "absent"}, "no such folder: .*absent"),
        ({"data": "few"}, "1 images are too few, none of them is held out"),
        ({"drawn": "absent"}, "no drawing style 'absent': did you mean"),
        ({"drawn": "kaptcha"}, "the style kaptcha draws 'abcdefgmnpwxy', which is outside"),
        ({"model": "nope"}, "'nope' names no model: "),
        ({"length": "many"}, "the length must be a number of characters such as 5"),
        ({"texts": "absent.txt"}, "absent.txt cannot be read: No such file"),
        ({"characters": "xyz"}, "no text of the 10 characters that the model reads keeps to what is given"),
    ],
    ids=str,
)
def test_a_mistake_that_needs_no_run_starts_none(
    wrong: dict[str, str],
    line: str,
    folder: Path,
    model: str,
    no_run: NoRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "few").mkdir()
    samples, _, _ = read_samples(folder, HEIGHT)
    shutil.copy(folder / next(s for s in samples if unit_hash(0, s.digest) >= job.HELD_OUT).name, tmp_path / "few")
    settings = {"data": str(folder), "model": model} | wrong
    with no_run(), pytest.raises(CaptchaError, match=f"^[^\n]*{line}[^\n]*$"):
        adapt(AdaptSettings.model_validate(settings))


def test_every_round_reads_what_is_known_of_the_texts(
    folder: Path, model: str, readings: Callable[..., list[list[float]]], quick: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[Constraints | None] = []
    readings([0.95] * 30 + [0.1] * 30, [0.95] * 30 + [0.1] * 30)
    read = job._read

    def note(checkpoint: Checkpoint, samples: Sequence[Sample], constraints: Constraints | None) -> list[Reading]:
        known.append(constraints)
        return read(checkpoint, samples, constraints)

    monkeypatch.setattr(job, "_read", note)
    outcome = adapt(asked(folder, model, length="2", characters="0123456789"), quick)

    assert known == [Constraints(length="2", characters="0123456789")] * 2  # before the first round, and after it
    run = mlflow.get_run(outcome.run_id)
    assert {"length": "2", "texts": "none"}.items() <= run.data.params.items()
    assert "length 2" in run.info.run_name


def test_other_texts_in_the_same_file_are_a_change_that_a_resumed_job_refuses(
    folder: Path, model: str, tmp_path: Path, no_run: NoRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def note(found_then: Unfinished | None, facts: Mapping[str, str]) -> None:
        found.append(facts)
        raise ResumeError("that was all")

    monkeypatch.setattr(job, "refuse_changes", note)
    texts = tmp_path / "texts.txt"
    for content in ("01\n02", "01\n03", "03\n01"):
        texts.write_text(content)
        with no_run(), pytest.raises(ResumeError, match="that was all"):
            adapt(asked(folder, model, texts=str(texts)))
    assert found[0] != found[1] == found[2]


def test_a_model_that_has_learned_nothing_reads_texts_of_the_length_that_is_known(folder: Path) -> None:
    samples = read_samples(folder, HEIGHT)[0][:5]
    untrained = Checkpoint.of(Crnn("compact", Vocabulary("0123456789"), HEIGHT))
    assert {len(each.text) for each in job._read(untrained, samples, Constraints(length="3"))} == {3}


def test_images_are_read_without_their_names_being_labels(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        shutil.copy(folder / f"{'11' if name == 'b' else '12'}.png", tmp_path / f"{name}.png")
    (tmp_path / "labels.csv").write_text("file,label\na.png,12\n")
    samples, problems = read_images(tmp_path, HEIGHT)
    assert [(s.name, s.text) for s in samples] == [("a.png", ""), ("b.png", "")]
    assert [str(problem) for problem in problems] == ["c.png: the same picture as a.png, left out"]
