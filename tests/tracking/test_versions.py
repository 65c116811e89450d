import re
from collections.abc import Callable

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from captcha.tracking.models import find, logged_model
from captcha.tracking.promotion import promote
from captcha.tracking.registry import register
from captcha.tracking.runs import RegistryError, tracked_run
from captcha.tracking.versions import differences, show, versions

Trained = Callable[..., str]
TEST = {"exact_match": "0.5000", "cer": "0.1000", "test_images": "4"}


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name for a registered model."""
    return re.sub(r"\W", "-", request.node.name)


def made_version(name: str, tags: dict[str, str]) -> None:
    """Register a version that no run is known of."""
    client = MlflowClient()
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    client.create_model_version(name, "/nowhere", tags=tags)


def a_run(params: dict[str, object], tags: dict[str, str], metrics: dict[str, float]) -> str:
    with tracked_run("a run") as run:
        mlflow.log_params(params)
        mlflow.set_tags(tags)
        mlflow.log_metrics(metrics)
    return str(run.info.run_id)


# What names a version or a run


def test_a_version_is_found_by_whatever_names_it(trained_run: Trained) -> None:
    run_id = trained_run(0.9)
    register(run_id, "captcha-crnn")  # the default name
    register(run_id, "another one")
    client = MlflowClient()
    for named, wanted in {
        "1": "captcha-crnn",
        "champion": "captcha-crnn",
        "captcha-crnn/1": "captcha-crnn",
        "another one/1": "another one",
        "another one@champion": "another one",
        "models:/another one/1": "another one",
        "models:/another one@champion": "another one",
    }.items():
        found = find(client, named)
        assert isinstance(found, ModelVersion)
        assert (found.name, int(found.version)) == (wanted, 1)
    for named in (run_id, f"runs:/{run_id}"):
        found = find(client, named)
        assert isinstance(found, mlflow.entities.Run)
        assert found.info.run_id == run_id


@pytest.mark.parametrize("named", ["", "newest", "captcha-crnn", "models:/captcha-crnn", "runs:/", "a/b", "../x"])
def test_what_names_nothing_is_told_what_would(named: str) -> None:
    line = rf"^{named!r} names no version and no run: use a version's number, champion, NAME@ALIAS, NAME/VERSION or "
    with pytest.raises(RegistryError, match=line):
        show(named)


@pytest.mark.parametrize("named", ["0123456789abcdef0123456789abcdef", "runs:/0123456789abcdef"])
def test_a_run_that_there_is_not_is_one_line(named: str) -> None:
    with pytest.raises(RegistryError, match=rf"^{named}: [^\n]*not found[^\n]*$"):
        show(named)


def test_a_version_that_there_is_not_names_those_that_there_are(name: str) -> None:
    for _ in range(11):
        made_version(name, {})
    MlflowClient().set_registered_model_alias(name, "best", "10")
    numbers = "…, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"
    for named in (f"{name}/12", f"{name}@champion"):
        with pytest.raises(
            RegistryError, match=rf"^'{named}' names no version: [^\n]* Versions: {numbers}; aliases: best$"
        ):
            show(named)


# All versions


def test_versions_are_listed_from_the_latest_on_with_what_was_measured(name: str, trained_run: Trained) -> None:
    register(trained_run(0.9), name)
    register(trained_run(None), name)
    promote(f"{name}/2", without_evidence="better by eye")
    second, first = versions(name)
    assert (second.version, second.aliases, second.test) == (2, ["champion"], None)
    assert (first.version, first.aliases) == (1, ["previous"])
    assert (second.decision, first.decision) == ("without evidence: better by eye", "the first champion")
    assert first.test is not None
    assert (first.test.data, first.test.exact_match, first.test.cer, first.test.images) == ("folder", 0.9, 0.1, 40)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", first.date)
    assert {each.name for each in versions()} >= {name}
    assert first.bytes is None  # the stand-in has no files


def test_the_interval_of_a_version_is_the_one_it_has_or_that_of_its_count(name: str) -> None:
    made_version(name, TEST)
    made_version(name, TEST | {"test_low": "0.2", "test_high": "0.7"})
    made_version(name, {"exact_match": "0.5", "data": "there"})
    bare, told, counted = (each.test for each in versions(name))
    assert bare is not None
    assert (bare.low, bare.high, bare.images, bare.data) == (None, None, None, "there")
    assert told is not None
    assert (told.low, told.high) == (0.2, 0.7)
    assert counted is not None
    assert [counted.low, counted.high] == pytest.approx([0.15004, 0.84996], abs=1e-4)  # Wilson's, by hand


def test_a_test_set_of_its_own_is_what_a_version_was_tested_on(name: str) -> None:
    run_id = a_run({"data": "'quoted for the shell'", "test_data": "elsewhere"}, {"data": "here"}, {})
    client = MlflowClient()
    client.create_registered_model(name)
    client.create_model_version(name, "/nowhere", run_id=run_id, tags=TEST)
    [version] = versions(name)
    assert version.test is not None
    assert version.test.data == "elsewhere"
    assert show(f"{name}/1").data == "here"


def test_no_model_of_that_name_is_one_line(name: str) -> None:
    made_version(name, {})
    with pytest.raises(RegistryError, match=rf"^'nobody' names no model: the registered models are [^\n]*{name}"):
        versions("nobody")


# One version or run


def test_a_version_shows_what_differs_from_the_defaults_however_it_was_written(name: str) -> None:
    params = {"backbone": "compact", "data": "x", "epochs": "50", "learning_rate": "1e-3", "dropout": "2e-1"}
    params |= {"pretrained": "false", "vocabulary": "none", "recipe.average_decay": "0.5", "vocabulary_used": "abc"}
    run_id = a_run(dict(params), {"job": "train", "data": "a folder", "init_used": "models:/x/1"}, {})
    client = MlflowClient()
    client.create_registered_model(name)
    client.create_model_version(name, "/nowhere", run_id=run_id)
    known = show(f"{name}/1")
    assert known.settings == {
        "backbone": "compact",
        "data": "a folder",
        "dropout": "0.2",
        "recipe.average_decay": "0.5",
    }
    assert (known.run_id, known.job, known.status) == (run_id, "train", "FINISHED")
    assert (known.backbone, known.vocabulary, known.parent) == ("compact", "abc", "models:/x/1")
    assert known.test is None


def test_runs_of_the_first_versions_say_their_job_by_their_settings() -> None:
    adapted = show(a_run({"data": "x", "threshold": "0.9", "rounds": "2", "backbone": "compact"}, {}, {}))
    assert (adapted.job, adapted.settings) == ("adapt", {"data": "x", "rounds": "2"})
    evaluated = show(a_run({"data": "x", "model": "models:/m/1"}, {}, {"test/exact_match": 0.5}))
    assert (evaluated.job, evaluated.settings) == ("evaluate", {"data": "x", "model": "models:/m/1"})
    assert evaluated.metrics == {"test/exact_match": 0.5}


def test_a_version_whose_run_is_gone_shows_its_tags(name: str) -> None:
    made_version(name, TEST | {"data": "x", "backbone": "compact", "vocabulary": "ab", "init": "models:/y/2"})
    known = show(f"{name}/1")
    assert (known.run_id, known.data, known.backbone, known.vocabulary) == (None, "x", "compact", "ab")
    assert (known.parent, known.settings) == ("models:/y/2", {})
    assert known.test is not None
    assert known.test.exact_match == 0.5


EVALUATED = {"eval_right": "48", "eval_images": "60", "eval_low": "0.7", "eval_high": "0.9"}


def test_every_evaluation_of_a_version_is_shown_from_the_latest_on(name: str, trained_run: Trained) -> None:
    run_id = trained_run(0.9)
    register(run_id, name)
    register(trained_run(0.9), name)
    model_id = logged_model(MlflowClient(), MlflowClient().get_run(run_id)).model_id
    evaluated = []
    for data, version in (("first", 1), ("other version", 2), ("second", 1)):
        with tracked_run("an evaluation") as run:
            tags = {"model": f"models:/{name}/{version}", "data": data, "model_id": model_id if version == 1 else "m-"}
            mlflow.set_tags(tags | EVALUATED)
            mlflow.log_metrics({"eval/exact_match": 0.8, "eval/cer": 0.05})
        evaluated.append(run.info.run_id)
    a_run({}, {"model": f"models:/{name}/1", "data": "failed"}, {})
    for named in (f"{name}/1", run_id):
        second, first = show(named).evaluations
        assert (second.data, second.run_id, first.data, first.run_id) == ("second", evaluated[2], "first", evaluated[0])
        assert (first.exact_match, first.low, first.high, first.cer, first.images) == (0.8, 0.7, 0.9, 0.05, 60)


def test_a_run_that_is_not_registered_has_its_evaluations_by_its_model(trained_run: Trained) -> None:
    run_id = trained_run(0.75)
    model_id = logged_model(MlflowClient(), MlflowClient().get_run(run_id)).model_id
    tags = {"model": f"runs:/{run_id}", "model_id": model_id, "data": "x"} | EVALUATED
    a_run({}, tags, {"eval/exact_match": 0.8, "eval/cer": 0.1})
    known = show(run_id)
    assert known.versions == []
    assert known.test is not None
    assert known.test.exact_match == 0.75
    [evaluation] = known.evaluations
    assert (evaluation.data, evaluation.exact_match, evaluation.low, evaluation.images) == ("x", 0.8, 0.7, 60)


def test_a_version_and_the_run_behind_it_know_of_each_other_and_of_the_champions_moves(
    name: str, trained_run: Trained
) -> None:
    run_id = trained_run(0.9)
    register(run_id, name)
    register(trained_run(0.8), name)
    promote(f"{name}/2", without_evidence="smaller")
    promoted, first = show(run_id).moves
    assert promoted.endswith(" promoted 1 → 2: without evidence: smaller")
    assert first.endswith(" promoted none → 1: the first champion")
    assert len(show(f"{name}/2").moves) == 1
    known = show(f"{name}/1")
    assert known.run_id == run_id
    assert [version.version for version in show(run_id).versions] == [1]
    assert known.links[0].endswith(f"/#/models/{name}/versions/1")
    assert known.links[1].endswith(f"/runs/{run_id}")


# Two of them


def test_two_runs_differ_in_settings_and_metrics_and_say_whether_their_test_was_the_same() -> None:
    one = a_run(
        {"backbone": "compact", "learning_rate": "0.002", "seed": "0"},
        {"job": "train", "data": "x", "test_digest": "d1"},
        {"test/exact_match": 0.9, "val/loss": 0.0, "system/cpu": 1.0},
    )
    other = a_run(
        {"backbone": "compact", "recipe.average_decay": "0.5", "seed": "1"},
        {"job": "train", "data": "x", "test_digest": "d1"},
        {"test/exact_match": 0.8},
    )
    found = differences(one, f"runs:/{other}")
    assert found.settings == {
        "learning_rate": ("0.002", "0.001"),  # the default
        "seed": ("0", "1"),
        "recipe.average_decay": (None, "0.5"),
    }
    assert found.metrics == {"test/exact_match": (0.9, 0.8), "val/loss": (0.0, None)}
    assert found.same_test
    assert differences(one, a_run({"backbone": "compact"}, {"test_digest": "d2"}, {})).same_test is False
    for first, second in ((one, a_run({}, {}, {})), (a_run({}, {}, {}), a_run({}, {}, {}))):
        assert differences(first, second).same_test is None


def test_a_version_is_compared_by_the_run_that_trained_it(name: str, trained_run: Trained) -> None:
    register(trained_run(0.9), name)
    register(trained_run(0.8), name)
    assert differences(f"{name}@champion", f"{name}/2").metrics["test/exact_match"] == (0.9, 0.8)
    made_version(name, TEST)
    with pytest.raises(RegistryError, match=rf"^{name}/3: the run that trained it is gone; with a folder, [^\n]*$"):
        differences(f"{name}/1", f"{name}/3")
