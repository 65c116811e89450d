import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from captcha.data.samples import DataError
from captcha.data.seen import SeenPixels, pixel_key
from captcha.tracking import promotion
from captcha.tracking.champion import history
from captcha.tracking.promotion import COUNTS_TAG, DECISION_TAG, Counts, Rule, promote
from captcha.tracking.registry import REGISTRATION_TAG, register
from captcha.tracking.runs import RegistryError
from captcha.tracking.trial import Tried
from tests.team_server import team_server
from tests.tracking.standin import IMAGES, try_stand_in

Trained = Callable[..., str]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name for a registered model."""
    return re.sub(r"\W", "-", request.node.name)


def champion(name: str) -> int:
    return int(MlflowClient().get_model_version_by_alias(name, "champion").version)


def tags(name: str, number: int) -> dict[str, str]:
    return dict(MlflowClient().get_model_version(name, str(number)).tags)


# What decides


def counts(both: int, only_challenger: int, only_champion: int, neither: int, p: float) -> Counts:
    return Counts(both, only_challenger, only_champion, neither, p, 0, "d1", 1)


@pytest.mark.parametrize(
    ("counted", "rule", "size", "seconds", "promoted", "why"),
    [
        # p is 2 * (1 / 2) ** 6 where six images are read by one of the two alone.
        (counts(70, 6, 0, 5, 2 / 64), Rule(), 1, 1, True, r"alone 6 to 0, exact McNemar p = 0.031 < 0.05$"),
        (counts(70, 6, 0, 5, 2 / 64), Rule(level=0.01), 1, 1, False, r"p = 0.031, and it takes .* p < 0.01$"),
        (counts(70, 0, 6, 5, 2 / 64), Rule(), 1, 1, False, r"alone 0 to 6, exact McNemar p = 0.031, and it takes more"),
        # No loss in 100 images: the bound is 1 - 0.025 ** (1 / 100).
        (
            counts(100, 0, 0, 0, 1),
            Rule(margin=0.04),
            0.5,
            1.5,
            True,
            r"loses 3.6 % at most; 0.50 of its bytes, 1.50 of",
        ),
        (
            counts(100, 0, 0, 0, 1),
            Rule(margin=0.04),
            1.5,
            0.5,
            True,
            r"loses 3.6 % at most; 1.50 of its bytes, 0.50 of",
        ),
        (
            counts(100, 0, 0, 0, 1),
            Rule(margin=0.04),
            0.95,
            0.95,
            False,
            r"is neither smaller nor faster: 0.95 of its by",
        ),
        (
            counts(100, 0, 0, 0, 1),
            Rule(margin=0.03),
            0.5,
            0.5,
            False,
            r"loses 3.6 % at most, not 3.0 % .* 95 % confiden",
        ),
        (counts(80, 0, 20, 0, 0), Rule(margin=0.2), 0.1, 0.1, False, r"loses 29.2 % at most, not 20.0 % or less"),
    ],
)
def test_a_challenger_wins_by_the_test_or_within_the_margin_if_it_is_smaller_or_faster(
    counted: Counts, rule: Rule, size: float, seconds: float, promoted: bool, why: str
) -> None:
    decided, told = promotion._verdict(counted, rule, Tried([], seconds, round(1000 * size)), Tried([], 1, 1000))
    assert decided == promoted
    assert re.search(why, told)


def test_the_first_version_becomes_champion_once_it_runs(name: str, trained_run: Trained) -> None:
    register(trained_run(0.9), name)
    assert tags(name, 1)[DECISION_TAG] == "the first champion"
    assert tags(name, 1)[COUNTS_TAG] == "none"


def test_a_first_version_that_does_not_run_stays_challenger(
    name: str, trained_run: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(uri: str, images: Sequence[bytes]) -> Tried:
        raise RegistryError(f"{uri} does not run: exit code -9")

    monkeypatch.setattr(promotion, "try_version", fails)
    _, _, told = register(trained_run(0.9), name)
    assert told.endswith(f" exact match; no champion, not judged: models:/{name}/1 does not run: exit code -9")
    assert MlflowClient().get_registered_model(name).aliases == {"challenger": 1}
    with pytest.raises(RegistryError, match=rf"^models:/{name}/1 does not run: exit code -9$"):
        promote(f"{name}/1", without_evidence="it must be all right")
    assert history(MlflowClient(), name) == []


def test_the_decision_stands_in_tags_in_metrics_and_in_the_history(name: str, trained_run: Trained) -> None:
    register(trained_run(0.9), name)
    run_id = trained_run(0.95)
    register(run_id, name)
    line = "950 of 1000 read, by version 1 900; alone 50 to 0, exact McNemar p = 1.8e-15 < 0.05"
    found = tags(name, 2)
    assert found[DECISION_TAG] == line
    counted = json.loads(found[COUNTS_TAG])
    digest = counted.pop("digest")
    assert counted == {
        "both": 900,
        "only_challenger": 50,
        "only_champion": 0,
        "neither": 50,
        "p": 2 / 2**50,
        "left_out": 0,
        "champion": 1,
    }
    assert history(MlflowClient(), name)[0].reason == line
    metrics = MlflowClient().get_run(run_id).data.metrics
    assert {key: value for key, value in metrics.items() if key.startswith("promotion/")} == {
        "promotion/exact_match": 0.95,
        "promotion/champion_exact_match": 0.9,
        "promotion/only_challenger": 50,
        "promotion/only_champion": 0,
        "promotion/p": 2 / 2**50,
    }
    logged = MlflowClient().get_logged_model(found["model_id"])
    shown = {metric.key: (metric.value, metric.dataset_name, metric.dataset_digest) for metric in logged.metrics or []}
    assert shown["promotion/exact_match"] == (0.95, "stand-in", digest)


def test_a_refused_version_may_be_promoted_without_evidence_for_a_reason(name: str, trained_run: Trained) -> None:
    for match in (0.9, 0.8):
        register(trained_run(match), name)
    decision = promote(f"{name}@challenger")
    assert not decision.promoted
    assert decision.counts
    assert decision.counts.only_champion == 100
    assert champion(name) == 1
    promote(f"{name}/2", without_evidence="the champion\n misreads m")
    assert champion(name) == 2
    assert history(MlflowClient(), name)[0].reason == "without evidence: the champion misreads m"
    assert (tags(name, 2)[DECISION_TAG], tags(name, 2)[COUNTS_TAG]) == (
        "without evidence: the champion misreads m",
        "none",
    )


# Images that one of the two has learned from


def saw(monkeypatch: pytest.MonkeyPatch, seen: dict[str, range], unknown: str | None = None) -> None:
    """Let the training of each model, by its URI, have seen these of the stand-in's images."""

    def load(run: Run, model: str) -> SeenPixels:
        found = SeenPixels.of([pixel_key(f"{i:016x}") for i in seen.get(model, ())])
        return SeenPixels(found.keys, unknown)

    monkeypatch.setattr(promotion, "load_seen", load)


def test_an_image_that_either_has_learned_from_counts_for_neither(
    name: str, trained_run: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    for match in (0.9, 0.8):
        register(trained_run(match), name)
    saw(monkeypatch, {f"models:/{name}/1": range(100), f"models:/{name}/2": range(50, 250)}, "models:/old/1")
    decision = promote(f"{name}/2")
    assert decision.counts
    assert (decision.counts.left_out, decision.counts.images) == (250, IMAGES - 250)
    assert decision.counts.both == 800 - 250
    assert decision.note == (
        "250 images that one of the two has learned from are left out; which images models:/old/1 was trained on is "
        "not known"
    )


def test_where_trainings_have_seen_all_test_images_nothing_moves_and_one_line_says_so(
    name: str, trained_run: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(trained_run(0.8), name)
    saw(monkeypatch, {f"models:/{name}/1": range(500), f"models:/{name}/2": range(500, IMAGES)})
    _, _, told = register(trained_run(0.9), name)
    line = f"the training of models:/{name}/2 or of version 1 saw all 1000 images to test on"
    assert told == f"{name} version 2 registered with 0.9000 exact match; version 1 stays champion, not judged: {line}"
    assert tags(name, 2)[DECISION_TAG] == f"not judged: {line}"
    with pytest.raises(RegistryError, match=f"^{line}$"):
        promote(f"{name}/2")
    assert champion(name) == 1


# What cannot be decided


def test_a_version_that_cannot_be_promoted_is_one_line_and_moves_nothing(name: str, trained_run: Trained) -> None:
    for match in (0.9, 0.8):
        register(trained_run(match), name)
    run_id = trained_run(0.9)
    there_are = rf"did you mean models:/{name}@champion\? Versions: 1, 2; aliases: challenger, champion"
    for named, line in {
        f"{name}/7": f"'{name}/7' names no version: {there_are}",
        f"{name}@best": f"'{name}@best' names no version: {there_are}",
        f"models:/{name}/1": f"{name} version 1 is champion already",
        run_id: f"{run_id} is a run, and a version is promoted: captcha register {run_id} makes it one",
    }.items():
        with pytest.raises(RegistryError, match=f"^{line}$"):
            promote(named)
        with pytest.raises(RegistryError, match=f"^{line}$"):
            promote(named, without_evidence="smaller")
    with pytest.raises(DataError, match=r"^no such folder: [^\n]*nowhere$"):
        promote(f"{name}/2", "nowhere")
    with pytest.raises(RegistryError, match=r"^a reason has 180 characters at most, and this one has 218$"):
        promote(f"{name}/2", without_evidence="x" * 200)
    assert len(history(MlflowClient(), name)) == 1


def test_a_version_without_labelled_test_images_is_not_promoted(name: str, trained_run: Trained) -> None:
    register(trained_run(0.9), name)
    register(trained_run(None), name)
    with pytest.raises(RegistryError, match=r"^no labels to test on$"):
        promote(f"{name}/2")
    assert champion(name) == 1


def test_a_champion_that_cannot_be_read_is_named_and_stays(
    name: str, trained_run: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(trained_run(0.8), name)

    def damaged(uri: str, images: Sequence[bytes]) -> Tried:
        if uri == f"models:/{name}/1":
            raise RegistryError(f"{uri}: 'artifacts/recognizer/model.onnx' is missing; put back the model's files")
        return try_stand_in(uri, images)

    monkeypatch.setattr(promotion, "try_version", damaged)
    _, _, told = register(trained_run(0.9), name)
    assert told.endswith(
        f"; version 1 stays champion, not judged: models:/{name}/1: 'artifacts/recognizer/model.onnx' is missing; put "
        "back the model's files"
    )
    assert champion(name) == 1


def test_a_registry_that_is_away_while_a_version_is_judged_leaves_it_unfinished_and_the_next_time_completes_it(
    name: str, trained_run: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(trained_run(0.8), name)
    away = MlflowException("API request failed with error code 503 != 200")

    def unreachable(uri: str, images: Sequence[bytes]) -> Tried:
        raise away

    monkeypatch.setattr(promotion, "try_version", unreachable)
    run_id = trained_run(0.9)
    with pytest.raises(MlflowException, match="503"):
        register(run_id, name)
    assert tags(name, 2)[REGISTRATION_TAG].startswith("unfinished")
    assert champion(name) == 1
    monkeypatch.setattr(promotion, "try_version", try_stand_in)
    register(run_id, name)
    assert champion(name) == 2


# Two processes at once


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with team_server(tmp_path_factory.mktemp("team")) as address:
        yield address


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def _either_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database of this module, or a team's server."""
    if request.param == "postgresql":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("team"))


def race(tracking: Path, *calls: list[dict[str, Any]]) -> list[list[list[Any]]]:
    """Let as many processes promote at the same time; return what the calls of each came to."""
    start = tracking / "start"
    start.unlink(missing_ok=True)
    program = Path(__file__).with_name("racer.py")
    racers = [
        subprocess.Popen(
            [sys.executable, str(program), str(start), json.dumps(each)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        for each in calls
    ]
    for racer in racers:
        assert racer.stdout
        assert racer.stdout.readline() == "ready\n"
    start.touch()
    return [[json.loads(line) for line in racer.communicate(timeout=300)[0].splitlines()] for racer in racers]


def check_history(name: str) -> None:
    moves = history(MlflowClient(), name)
    assert all(later.before == earlier.after for later, earlier in pairwise(moves))
    assert moves[-1].before is None
    model = MlflowClient().get_registered_model(name)
    assert moves[0].after == int(model.aliases["champion"])
    assert not [key for key in model.tags if key.startswith("moving")]


@pytest.mark.usefixtures("_either_store")
def test_of_two_promotions_at_once_the_second_is_judged_beside_the_first(
    name: str, trained_run: Trained, tracking: Path
) -> None:
    for match in (0.97, 0.9, 0.95):
        register(trained_run(match), name)
    promote(f"{name}/2", without_evidence="so that both others beat it")
    told = race(tracking, [{"named": f"{name}/1"}], [{"named": f"{name}/3"}])
    assert told[0] == [[f"{name}/1", True]]
    assert champion(name) == 1  # it beats version 3, too
    moves = [(move.before, move.after) for move in reversed(history(MlflowClient(), name)[:-2])]
    assert moves == ([(2, 3), (3, 1)] if told[1][0][1] else [(2, 1)])
    check_history(name)


@pytest.mark.usefixtures("_either_store")
def test_two_processes_that_move_the_champion_at_once_leave_one_champion_and_a_true_history(
    name: str, trained_run: Trained, tracking: Path
) -> None:
    for match in (0.9, 0.8, 0.8):
        register(trained_run(match), name)

    def by_turns(first: int, second: int) -> list[dict[str, Any]]:
        return [{"named": f"{name}/{each}", "without_evidence": "by hand"} for each in [first, second] * 3]

    told = race(tracking, by_turns(2, 3), by_turns(1, 2))
    done = [came_to is True for racer in told for _, came_to in racer]
    assert sum(done) == len(history(MlflowClient(), name)) - 1
    assert sum(done) >= 3
    lines = [came_to for racer in told for _, came_to in racer if came_to is not True]
    assert all("is champion already" in line or "has just become version" in line for line in lines)
    check_history(name)
