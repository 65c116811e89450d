import base64
import json
import zlib
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from captcha.settings import TrainSettings
from captcha.tracking.runs import NOTE as NOTE_TAG
from captcha.tracking.runs import tracked_run
from captcha.tracking.view import TESTED_MLFLOW, VIEW_TAG, view_link, write_view


@pytest.fixture
def experiment_id(request: pytest.FixtureRequest) -> str:
    return str(mlflow.create_experiment(request.node.name))


def tags_of(experiment_id: str) -> dict[str, str]:
    return dict(MlflowClient().get_experiment(experiment_id).tags)


def opened(tag: str) -> dict[str, Any]:
    """What MLflow's page makes of the tag."""
    kind, packed = json.loads(tag)["state"].split(";")
    assert kind == "deflate"
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return state


def test_the_tested_mlflow_is_the_installed_one() -> None:
    """Where this fails, run the tests in the browser, mend the view, and name the new version."""
    assert mlflow.__version__ == TESTED_MLFLOW


def test_the_view_has_its_sections_and_the_best_run_first(experiment_id: str) -> None:
    write_view(experiment_id)
    state = opened(tags_of(experiment_id)[VIEW_TAG])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`test/exact_match`", False)
    names = [section["name"] for section in state["compareRunSections"]]
    assert (names[:3], names[-1]) == (["Accuracy", "Settings", "Readings"], "System metrics")
    assert [section["name"] for section in state["compareRunSections"] if section["display"]] == names[:3]
    charts = [(chart["metricSectionId"], chart["type"], chart.get("metricKey")) for chart in state["compareRunCharts"]]
    assert charts == [
        ("Accuracy", "BAR", "test/exact_match"),
        ("Accuracy", "LINE", "val/exact_match"),
        ("Accuracy", "LINE", "val/loss"),
        ("Accuracy", "LINE", "train/loss"),
        ("Settings", "PARALLEL", None),
        ("Readings", "IMAGE", None),
    ]
    pictures = state["compareRunCharts"][-1]
    assert (pictures["imageKeys"], pictures["showRunParams"]) == (["val/predictions"], False)


def test_each_chart_has_a_section_and_a_name_of_its_own(experiment_id: str) -> None:
    write_view(experiment_id)
    state = opened(tags_of(experiment_id)[VIEW_TAG])
    for kind in ("compareRunSections", "compareRunCharts"):
        names = [each["uuid"] for each in state[kind]]
        assert len(set(names)) == len(names)
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} <= sections


def test_the_params_of_the_view_are_settings_of_a_training(experiment_id: str) -> None:
    write_view(experiment_id)
    state = opened(tags_of(experiment_id)[VIEW_TAG])
    columns = [name.split("`")[1] for name in state["selectedColumns"] if name.startswith("params.")]
    [parallel] = [chart for chart in state["compareRunCharts"] if chart["type"] == "PARALLEL"]
    assert {*columns, *parallel["selectedParams"]} <= TrainSettings.model_fields.keys()


def test_a_run_gives_its_experiment_view_and_note() -> None:
    with tracked_run("a run") as run:
        assert {VIEW_TAG, NOTE_TAG} <= tags_of(run.info.experiment_id).keys()


def test_the_run_that_mlflow_run_has_made_does_too(experiment_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = MlflowClient().create_run(experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with tracked_run("a run") as run:
        assert run.info.run_id == run_id
    assert {VIEW_TAG, NOTE_TAG} <= tags_of(experiment_id).keys()


def test_what_a_person_has_changed_stays(experiment_id: str) -> None:
    client = MlflowClient()
    client.set_experiment_tag(experiment_id, NOTE_TAG, "a person's note")
    write_view(experiment_id)
    client.set_experiment_tag(experiment_id, VIEW_TAG, "a person's view")
    write_view(experiment_id)
    tags = tags_of(experiment_id)
    assert (tags[NOTE_TAG], tags[VIEW_TAG]) == ("a person's note", "a person's view")


def test_another_mlflow_gets_the_note_but_no_view(experiment_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow, "__version__", "3.17.3")
    write_view(experiment_id)
    tags = tags_of(experiment_id)
    assert VIEW_TAG not in tags
    assert "viewStateShareKey" not in tags[NOTE_TAG] + view_link("sqlite:///mlflow.db", experiment_id)


def test_the_note_links_to_the_view_on_whatever_server_shows_it(experiment_id: str) -> None:
    write_view(experiment_id)
    link = view_link("http://server", experiment_id)
    assert f"({link.removeprefix('http://server/')})" in tags_of(experiment_id)[NOTE_TAG]


@pytest.mark.parametrize(
    ("tracking_uri", "address"),
    [
        ("sqlite:////somewhere/mlflow.db", "http://127.0.0.1:5000/"),
        ("http://127.0.0.1:5050", "http://127.0.0.1:5050/"),
        ("https://somebody:secret@example.org/mlflow/", "https://example.org/mlflow/"),
    ],
)
def test_the_link_leads_to_the_server_that_shows_the_runs(tracking_uri: str, address: str) -> None:
    page = "#/experiments/7/runs?compareRunsMode=CHART&workflowType=machine_learning&viewStateShareKey=captcha"
    assert view_link(tracking_uri, "7") == address + page
