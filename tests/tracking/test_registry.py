import json
from collections.abc import Callable

import mlflow
import pytest
from mlflow import MlflowClient

from captcha.settings import MODEL_NAME_LENGTH
from captcha.tracking.champion import history, rollback
from captcha.tracking.models import logged_model
from captcha.tracking.promotion import promote
from captcha.tracking.registry import REGISTRATION_TAG, is_champion, register
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
    assert str(version.description).startswith(
        "**90.0 %** of 40 test images read exactly (95 % interval 50.0 % to 99.0 %), character error rate 10.0 %: "
        "compact, trained on `folder`, seed 0.\n\n### Reads\n"
    )
    assert "Reads text CAPTCHAs" in str(MlflowClient().get_registered_model("first").description)


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        (
            {},
            "character error rate 10.0 %: compact, trained on `folder`, seed 0.",
        ),  # a run of an earlier version, which did not look
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
    assert f" {told}\n\n###" in str(MlflowClient().get_model_version(name, "1").description)


def test_the_same_model_registered_twice_is_one_version(trained_run: Trained) -> None:
    run_id = trained_run(0.9)
    register(run_id, "twice")
    assert register(run_id, "twice") == ("twice", 1, "twice version 1 is this model already")
    assert len(MlflowClient().search_model_versions("name = 'twice'")) == 1
    assert register(run_id, "under another name")[1] == 1


BEATEN = "950 of 1000 read, by version 1 900; alone 50 to 0, exact McNemar p = 1.8e-15 < 0.05"
UNPROVEN = "exact McNemar p = {p}, and it takes more images read alone and p < 0.05"


@pytest.mark.parametrize(
    ("match", "now", "told"),
    [
        (0.95, 2, f"the new champion: {BEATEN}"),
        (0.905, 1, f"version 1 stays champion: 905 of 1000 read, by version 1 900; alone 5 to 0, {UNPROVEN}"),
        (0.80, 1, f"version 1 stays champion: 800 of 1000 read, by version 1 900; alone 0 to 100, {UNPROVEN}"),
    ],
    ids=["better", "perhaps better", "worse"],
)
def test_a_version_takes_the_champions_place_where_chance_does_not_explain_what_it_reads_more(
    match: float, now: int, told: str, request: pytest.FixtureRequest, trained_run: Trained
) -> None:
    name, p = request.node.callspec.id, {0.905: "0.062", 0.80: "1.6e-30"}.get(match, "")  # 2 / 2**5, 2 / 2**100
    register(trained_run(0.9), name)
    line = f"{name} version 2 registered with {match:.4f} exact match; {told.format(p=p)}"
    assert register(trained_run(match, "another test"), name) == (name, 2, line)
    assert champion(name) == now
    assert is_champion(name, now)
    assert not is_champion(name, 3 - now)


def test_a_version_challenges_until_another_comes_or_it_is_champion(trained_run: Trained) -> None:
    aliases = []
    for match in (0.9, 0.8, 0.85, 0.95):
        register(trained_run(match), "challenged")
        aliases.append(MlflowClient().get_registered_model("challenged").aliases)
    assert aliases == [
        {"champion": 1},
        {"champion": 1, "challenger": 2},
        {"champion": 1, "challenger": 3},
        {"champion": 4, "previous": 1},
    ]


def test_a_version_that_was_not_tested_does_not_take_the_champions_place(trained_run: Trained) -> None:
    register(trained_run(0.9), "untested")
    told = "untested version 2 registered; version 1 stays champion, not judged: no labels to test on"
    assert register(trained_run(None), "untested") == ("untested", 2, told)
    assert champion("untested") == 1
    version = MlflowClient().get_model_version("untested", "2")
    assert not {"exact_match", "cer", "test_images", "test_digest"} & version.tags.keys()
    assert str(version.description).startswith(
        "Not tested, there were no labels: compact, trained on `folder`, seed 0.\n"
    )


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
    assert MlflowClient().get_registered_model(name).aliases == {"challenger": 1}
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


# Registrations that came to no end, and those of which nobody noted whether they did


def cut_off(name: str, number: int) -> None:
    """Let a version be as a kill leaves it: a stand-in for the kills of test_kills.py."""
    client = MlflowClient()
    client.set_model_version_tag(name, str(number), REGISTRATION_TAG, "unfinished: captcha register RUN_ID …")


def registration(name: str, number: int) -> str:
    return str(MlflowClient().get_model_version(name, str(number)).tags[REGISTRATION_TAG])


def test_the_version_says_what_its_registration_has_led_to(trained_run: Trained) -> None:
    for match, told in {
        0.9: "registered, the first champion",
        0.95: f"registered with 0.9500 exact match; the new champion: {BEATEN}",
    }.items():
        _, number, line = register(trained_run(match), "says")
        assert (registration("says", number), line) == (told, f"says version {number} {told}")


def test_a_person_who_moves_the_alias_of_an_unfinished_version_is_obeyed(trained_run: Trained) -> None:
    register(trained_run(0.9), "obeyed")
    run_id = trained_run(0.95)
    register(run_id, "obeyed")
    rollback("obeyed", "it misreads m")
    cut_off("obeyed", 2)
    told = f"registered with 0.9500 exact match; the new champion: {BEATEN}"
    assert register(run_id, "obeyed") == ("obeyed", 2, f"obeyed version 2 {told}")
    assert champion("obeyed") == 1
    assert len(history(MlflowClient(), "obeyed")) == 3
    assert registration("obeyed", 2) == told


def test_an_unfinished_version_that_was_made_champion_by_hand_stays_it(trained_run: Trained) -> None:
    register(trained_run(0.9), "by hand")
    run_id = trained_run(0.8)
    register(run_id, "by hand")
    MlflowClient().set_registered_model_alias("by hand", "champion", "2")  # as MLflow's pages do
    cut_off("by hand", 2)
    assert register(run_id, "by hand")[2] == "by hand version 2 registered with 0.8000 exact match; the new champion"
    assert champion("by hand") == 2


def test_a_comparison_is_made_once(trained_run: Trained) -> None:
    register(trained_run(0.8), "once")
    better = trained_run(0.9)
    register(better, "once")
    promote("once/1", without_evidence="smaller")
    assert register(better, "once")[2] == "once version 2 is this model already"
    assert champion("once") == 1


def of_earlier_captcha(run_id: str, name: str) -> None:
    """A version as captcha made it before registrations said how they ended."""
    client = MlflowClient()
    client.create_registered_model(name)
    model_id = logged_model(client, client.get_run(run_id)).model_id
    tags = {"exact_match": "0.9000", "test_digest": "d1", "model_id": model_id}
    client.create_model_version(name, f"models:/{model_id}", run_id, tags=tags, model_id=model_id)


def test_a_version_of_an_earlier_captcha_is_this_model_already_and_stays_as_it_is(trained_run: Trained) -> None:
    run_id, client = trained_run(0.9), MlflowClient()
    of_earlier_captcha(run_id, "before")
    client.set_registered_model_alias("before", "champion", "1")
    tags = client.get_model_version("before", "1").tags
    assert register(run_id, "before") == ("before", 1, "before version 1 is this model already")
    assert client.get_model_version("before", "1").tags == tags
    assert client.get_registered_model("before").tags == {}


def test_a_version_of_an_earlier_captcha_whose_kill_left_no_champion_becomes_it(trained_run: Trained) -> None:
    run_id = trained_run(0.9)
    of_earlier_captcha(run_id, "left")
    assert register(run_id, "left") == ("left", 1, "left version 1 registered, the first champion")
    assert champion("left") == 1
    assert register(run_id, "left")[2] == "left version 1 is this model already"


@pytest.mark.parametrize("name", ["x" * 300, "x" * (MODEL_NAME_LENGTH + 1), "a/b", "", "no\nline"])
def test_a_name_that_mlflow_would_not_take_everywhere_is_one_short_line(name: str, trained_run: Trained) -> None:
    with pytest.raises(RegistryError, match=r"^'[^\n]{0,30}' is no name for a registered model: use letters, [^\n]*$"):
        register("0123456789abcdef", name)


def test_the_longest_name_is_registered_and_its_card_fits(trained_run: Trained) -> None:
    name = "x" * MODEL_NAME_LENGTH
    assert register(trained_run(0.9), name)[1] == 1
    assert len(str(MlflowClient().get_registered_model(name).description)) < 2500  # twelve more rows fit into 5,000


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
