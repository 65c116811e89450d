import json
import os
import re
import socket
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from mlflow import MlflowClient

from captcha.tracking import turns
from captcha.tracking.champion import (
    HISTORY_TAG,
    MOVES_KEPT,
    REASON_LENGTH,
    Move,
    Overtaken,
    before,
    history,
    move,
    present_champion,
    rollback,
)
from captcha.tracking.registry import register
from captcha.tracking.runs import RegistryError
from captcha.tracking.turns import FORGOTTEN_AFTER, TURN

Trained = Callable[..., str]


def champion(name: str) -> int:
    return int(MlflowClient().get_model_version_by_alias(name, "champion").version)


def promote(named: str, reason: str = "") -> Move:
    """Move the alias as `captcha promote` does once it has decided."""
    name, number = re.split("[/@]", named.removeprefix("models:/"))
    return move(MlflowClient(), name, int(number), reason, present_champion(MlflowClient(), name))


def tag(name: str) -> str:
    return str(MlflowClient().get_registered_model(name).tags[HISTORY_TAG])


@pytest.fixture
def name(request: pytest.FixtureRequest, trained_run: Trained) -> str:
    """A registered model with three versions, of which the first is champion."""
    name = re.sub(r"\W", "-", request.node.name)
    for match in (0.9, 0.8, 0.7):
        register(trained_run(match), name)
    return name


def test_a_version_is_promoted_with_a_reason_that_the_history_keeps(name: str) -> None:
    made = promote(f"{name}/3", "  smaller,\n and as good ")
    assert (made.before, made.after, made.reason) == (1, 3, "smaller, and as good")
    assert champion(name) == 3
    latest, first = tag(name).splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC promoted 1 → 3: smaller, and as good", latest)
    assert re.fullmatch(r"[-\d]+ [:\d]+ UTC promoted none → 1: the first champion", first)
    assert history(MlflowClient(), name)[0] == made


def test_a_champion_that_is_beaten_after_a_training_stands_in_the_same_history(name: str, trained_run: Trained) -> None:
    register(trained_run(0.95), name)
    line = " promoted 1 → 4: 950 of 1000 read, by version 1 900; alone 50 to 0, exact McNemar p = 1.8e-15 < 0.05"
    assert tag(name).splitlines()[0].endswith(line)


def test_each_rollback_goes_one_champion_further_back_until_there_is_none(name: str) -> None:
    for number in (2, 3, 1):
        promote(f"{name}/{number}")
    moves = [rollback(name, "it misreads m")[1] for _ in range(3)]
    assert [(move.before, move.after) for move in moves] == [(1, 3), (3, 2), (2, 1)]
    assert champion(name) == 1
    assert tag(name).splitlines()[0].endswith(" rolled back 2 → 1: it misreads m")
    told = rf"^{name}: version 1 is champion, and its history knows none before: captcha promote VERSION moves it$"
    with pytest.raises(RegistryError, match=told):
        rollback(name)


def test_after_a_rollback_another_version_can_be_promoted_and_rolled_back(name: str) -> None:
    promote(f"{name}/2")
    rollback(name)
    promote(f"{name}/3")
    assert rollback(name)[1].after == 1


def test_previous_is_the_version_that_a_rollback_leads_to(name: str) -> None:
    former = []
    for step in (*"23", rollback, rollback):
        promote(f"{name}/{step}") if isinstance(step, str) else step(name)
        former.append(MlflowClient().get_registered_model(name).aliases.get("previous"))
    assert former == [1, 2, 1, None]


def test_a_move_from_a_champion_that_is_no_longer_it_is_refused(name: str) -> None:
    promote(f"{name}/2")
    with pytest.raises(Overtaken, match=rf"^{name}: champion has just become version 2: look at that one, [^\n]*$"):
        move(MlflowClient(), name, 3, "better", 1)
    assert champion(name) == 2
    assert len(history(MlflowClient(), name)) == 2


def test_a_process_that_was_killed_while_it_moved_aliases_holds_nobody_up(name: str) -> None:
    gone = {"host": socket.gethostname(), "pid": os.getpid(), "started": 1.0, "time": time.time()}
    elsewhere = {"host": "elsewhere", "pid": 1, "started": 1.0, "time": time.time() - FORGOTTEN_AFTER - 1}
    for number, left in enumerate((gone, elsewhere)):
        MlflowClient().set_registered_model_tag(name, f"{TURN}{number}", json.dumps(left))
    promote(f"{name}/2")
    assert list(MlflowClient().get_registered_model(name).tags) == [HISTORY_TAG]


def test_who_finds_another_at_it_gives_up_after_a_while(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 0)
    there = {"host": "elsewhere", "pid": 1, "started": 1.0, "time": time.time()}
    MlflowClient().set_registered_model_tag(name, f"{TURN}0", json.dumps(there))
    with pytest.raises(RegistryError, match=r"another process has been moving its aliases [^\n]*; try again$"):
        promote(f"{name}/2")
    assert champion(name) == 1


def test_a_move_by_other_means_counts_too(name: str) -> None:
    MlflowClient().set_registered_model_alias(name, "champion", "3")  # as MLflow's pages do
    assert rollback(name)[1].after == 1
    MlflowClient().set_registered_model_alias(name, "champion", "2")
    promote(f"{name}/3")
    assert [rollback(name)[1].after for _ in range(2)] == [2, 1]
    MlflowClient().delete_registered_model_alias(name, "champion")
    made = rollback(name)[1]
    assert (made.before, made.after) == (None, 1)


def test_the_history_is_bounded_and_still_leads_back(name: str) -> None:
    long = "x" * REASON_LENGTH
    for step in range(MOVES_KEPT + 5):
        promote(f"{name}/{2 + step % 2}", long)
    moves = history(MlflowClient(), name)
    assert len(moves) == MOVES_KEPT
    assert all(later.before == earlier.after for later, earlier in pairwise(moves))
    assert len(tag(name)) < 5000  # what MLflow's tables hold
    with pytest.raises(RegistryError, match=rf"^a reason has {REASON_LENGTH} characters at most, and this one has "):
        promote(f"{name}/1", long + "x")
    with pytest.raises(RegistryError, match="a reason has"):
        rollback(name, long + "x")
    assert history(MlflowClient(), name) == moves
    assert champion(name) == moves[0].after


def test_what_else_stands_in_the_tag_is_left_out(name: str) -> None:
    MlflowClient().set_registered_model_tag(name, HISTORY_TAG, f"a note\n{tag(name)}\n")
    assert [move.after for move in history(MlflowClient(), name)] == [1]


def test_a_move_that_was_begun_counts_if_the_alias_has_got_there(name: str) -> None:
    client, before = MlflowClient(), tag(name)
    begun = "begun: 2026-01-31 23:59:59 UTC promoted 1 → 3: smaller"
    client.set_registered_model_tag(name, HISTORY_TAG, f"{begun}\n{before}")
    assert [move.after for move in history(client, name)] == [1]
    client.set_registered_model_alias(name, "champion", "3")
    assert [move.after for move in history(client, name)] == [3, 1]
    promote(f"{name}/2")
    assert [(move.before, move.after) for move in history(client, name)] == [(3, 2), (1, 3), (None, 1)]
    assert tag(name).endswith(f"{begun.removeprefix('begun: ')}\n{before}")


def test_a_move_that_was_begun_and_not_made_is_forgotten_with_the_next_one(name: str) -> None:
    before = tag(name)
    MlflowClient().set_registered_model_tag(
        name, HISTORY_TAG, f"begun: 2026-01-31 23:59:59 UTC promoted 1 → 3\n{before}"
    )
    with pytest.raises(RegistryError, match="its history knows none before"):
        rollback(name)
    assert tag(name) == before


@pytest.mark.parametrize("reason", ["", "rolled back by hand 3 → 2: x", "1 → 2"])
@pytest.mark.parametrize("rollback", [False, True])
def test_a_line_tells_its_move(reason: str, rollback: bool) -> None:
    for former in (None, 12):
        made = Move("2026-01-31 23:59:59 UTC", former, 3, reason, rollback)
        assert Move.parse(made.line) == made


def test_without_moves_none_was_champion_before() -> None:
    assert before([], None) is None
    assert before([], 3) is None


def test_a_rollback_to_a_version_that_was_deleted_names_those_that_there_are(name: str) -> None:
    promote(f"{name}/2")
    MlflowClient().delete_model_version(name, "1")
    with pytest.raises(
        RegistryError, match=rf"^'{name}/1' names no version: did you .* Versions: 2, 3; aliases: challenger, champion$"
    ):
        rollback(name)
    assert champion(name) == 2


def test_no_model_of_that_name_is_one_line(name: str) -> None:
    with pytest.raises(RegistryError, match=rf"^'nobody' names no model: the registered models are [^\n]*{name}"):
        rollback("nobody")
