import json
from collections.abc import Callable

import mlflow
import pytest
from mlflow import MlflowClient

from captcha.tracking.registry import is_champion, register
from captcha.tracking.runs import RegistryError, tracked_run

Trained = Callable[..., str]


def champion(name: str) -> int:
    return int(MlflowClient().get_model_version_by_alias(name, "champion").version)


def test_the_first_version_is_champion_and_says_what_it_is(trained_run: Trained) -> None:
    assert register(trained_run(0.925), "first") == ("first", 1, "first version 1 registered, the first champion")
    assert champion("first") == 1
    version = MlflowClient().get_model_version("first", "1")
    assert {
        "backbone": "compact",
        "data": "folder",
        "vocabulary": "abc",
        "exact_match": "0.9250",
        "cer": "0.1000",
        "test_images": "40",
        "test_digest": "d1",
        "weights_sha256": "0123",
    }.items() <= version.tags.items()
    assert version.description == (
        "**90.0 %** of 40 test images read exactly (95 % interval 50.0 % to 99.0 %), character error rate 10.0 %: "
        "compact, trained on `folder`, seed 0."
    )
    assert "Reads text CAPTCHAs" in str(MlflowClient().get_registered_model("first").description)


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        ({}, "compact, trained on `folder`, seed 0."),  # a run of an earlier version, which did not look
        (
            {"training_pixels": 900, "overlap": 0},
            "None of the test images is among the 900 images that training saw.",
        ),
        (
            {"training_pixels": 900, "overlap": 3, "overlap_right": 2},
            "None of the test images is among the 900 images that training saw (3 that training saw are left "
            "out; 2 of those are right).",
        ),
        (
            {"training_pixels": 900, "overlap": 0, "training_pixels_unknown": "models:/old/1"},
            "None of the test images is among the 900 images that training saw; which images models:/old/1 "
            "was trained on is not known.",
        ),
    ],
    ids=["not looked", "no overlap", "overlap left out", "parent not known"],
)
def test_a_version_claims_of_its_test_images_what_was_checked(
    tags: dict[str, object], told: str, trained_run: Trained, request: pytest.FixtureRequest
) -> None:
    run_id, name = trained_run(0.9), request.node.callspec.id
    for tag, value in tags.items():
        MlflowClient().set_tag(run_id, tag, value)
    register(run_id, name)
    assert str(MlflowClient().get_model_version(name, "1").description).endswith(told)


def test_the_same_model_registered_twice_is_one_version(trained_run: Trained) -> None:
    run_id = trained_run(0.9)
    register(run_id, "twice")
    assert register(run_id, "twice") == ("twice", 1, "twice version 1 is this model already")
    assert len(MlflowClient().search_model_versions("name = 'twice'")) == 1
    assert register(run_id, "under another name")[1] == 1


@pytest.mark.parametrize(
    ("match", "test_digest", "now", "reason"),
    [
        (0.95, "d1", 2, "0.9500 exact match; the new champion: 0.9500 in place of 0.9000 on the same test"),
        (0.90, "d1", 1, "0.9000 exact match; version 1 stays champion: 0.9000 on the same test"),
        (0.80, "d1", 1, "0.8000 exact match; version 1 stays champion: 0.9000 on the same test"),
        (0.95, "d2", 1, "0.9500 exact match; version 1 stays champion: the two were tested on different images"),
    ],
    ids=["better", "as good", "worse", "other test"],
)
def test_a_champion_is_beaten_on_its_own_test_images_alone(
    match: float, test_digest: str, now: int, reason: str, request: pytest.FixtureRequest, trained_run: Trained
) -> None:
    name = request.node.callspec.id
    register(trained_run(0.9), name)
    assert register(trained_run(match, test_digest), name) == (name, 2, f"{name} version 2 registered with {reason}")
    assert champion(name) == now
    assert is_champion(name, now)
    assert not is_champion(name, 3 - now)


def test_a_version_that_was_not_tested_does_not_take_the_champions_place(trained_run: Trained) -> None:
    register(trained_run(0.9), "untested")
    told = "untested version 2 registered; version 1 stays champion: no labels to test on"
    assert register(trained_run(None), "untested") == ("untested", 2, told)
    assert champion("untested") == 1
    version = MlflowClient().get_model_version("untested", "2")
    assert not {"exact_match", "cer", "test_images", "test_digest"} & version.tags.keys()
    assert version.description == "Not tested, there were no labels: compact, trained on `folder`, seed 0."


@pytest.mark.parametrize("match", [0.0, 0.09])
def test_a_version_that_reads_next_to_nothing_does_not_become_champion(
    match: float, request: pytest.FixtureRequest, trained_run: Trained
) -> None:
    name = f"reads {request.node.callspec.id}"
    _, _, told = register(trained_run(match), name)
    assert told == (
        f"{name} version 1 registered, but not as champion: it reads {100 * match:.1f} % of the test images, and a "
        "champion reads 10.0 % or more"
    )
    assert MlflowClient().get_registered_model(name).aliases == {}
    register(trained_run(0.1), name)
    assert champion(name) == 2


def test_the_models_own_page_names_every_version_of_it(trained_run: Trained) -> None:
    run_id = trained_run(0.9)
    for name in ("named first", "named second"):
        register(run_id, name)
        register(run_id, name)
    outputs = mlflow.get_run(run_id).outputs
    assert outputs
    [output] = outputs.model_outputs
    tags = MlflowClient().get_logged_model(output.model_id).tags
    assert json.loads(tags["mlflow.modelVersions"]) == [
        {"name": "named first", "version": 1},
        {"name": "named second", "version": 1},
    ]


def test_no_version_of_an_unknown_model_is_champion() -> None:
    assert not is_champion("nobody has registered this", 1)


def test_an_unknown_run_is_one_line() -> None:
    with pytest.raises(RegistryError, match=r"^run 0123456789abcdef: [^\n]*not found; give a run's id alone, [^\n]*$"):
        register("0123456789abcdef", "unknown")


def test_a_run_without_a_model_is_one_line_and_leaves_nothing_registered() -> None:
    with tracked_run("an evaluation") as run:
        pass
    with pytest.raises(RegistryError, match=rf"^run {run.info.run_id} holds no model: [^\n]*$"):
        register(run.info.run_id, "empty")
    assert MlflowClient().search_registered_models("name = 'empty'") == []
