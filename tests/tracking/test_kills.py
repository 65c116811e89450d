"""Real kills at every write of a registration, a promotion and a rollback, on SQLite and on PostgreSQL."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from captcha.tracking.champion import HISTORY_TAG, Move
from captcha.tracking.registry import REGISTRATION_TAG
from tests.postgresql import new_postgresql
from tests.tracking.kill import Done, Killer

Trained = Callable[..., str]
Call = tuple[str, ...]


class Store(Protocol):
    """A database of MLflow, and copies of it under names; "runs" holds runs that can be registered."""

    uri: str

    def save(self, name: str) -> None: ...
    def restore(self, name: str) -> None: ...


class SQLite:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "mlflow.db"
        self.uri = f"sqlite:///{self.file}"

    def save(self, name: str) -> None:
        shutil.copy(self.file, self.file.with_name(name))

    def restore(self, name: str) -> None:
        for beside in self.file.parent.glob(f"{self.file.name}-*"):  # what a process that was killed has left
            beside.unlink()
        shutil.copy(self.file.with_name(name), self.file)


MATCHES = ("0.9", "0.95", "0.8", "0.05")


@dataclass(frozen=True)
class Place:
    """A store, a program that calls the registry in it, and the runs, by what they read of the same test."""

    store: Store
    killer: Killer
    runs: dict[str, str]

    def registering(self, match: str) -> Call:
        return ("register", self.runs[match], "m")

    def prepare(self, *registered: str) -> str:
        """Return the name of a copy of the database in which these runs were registered."""
        done = self.call("runs", *map(self.registering, registered))
        assert len(done.told) == len(registered)
        self.store.save("prepared")
        return "prepared"

    def call(self, before: str, *calls: Call) -> Done:
        """Return what calls do from this state on."""
        self.store.restore(before)
        return self.killer.run(*calls)

    def kills(self, before: str, call: Call, after_writes: bool = False) -> Iterator[int]:
        """Kill a call at each moment from the same state on; give the moments, the store being as the kill left it.

        Between a write and the next nothing changes, so what happens after each write is nearly all, in half the time.
        """
        writes = self.call(before, call).writes
        assert writes
        for moment in range(1, 2 * writes, 2) if after_writes else range(2 * writes):
            self.store.restore(before)
            assert self.killer.run(call, kill_at=moment).killed
            yield moment


@contextmanager
def place_in(store: Store, trained_run: Trained) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store.uri)
        patch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")  # a connection would stand in a copy's way
        runs = {match: trained_run(float(match)) for match in MATCHES}
    store.save("runs")
    with Killer(store.uri, ("register", runs["0.9"], "m"), ("register", runs["0.95"], "m")) as killer:
        yield Place(store, killer, runs)


@pytest.fixture(scope="module")
def sqlite(tracking: Path, trained_run: Trained) -> Iterator[Place]:
    with place_in(SQLite(tracking), trained_run) as place:
        yield place


@pytest.fixture(scope="module")
def postgresql(tracking: Path, trained_run: Trained) -> Iterator[Place]:
    with new_postgresql() as store, place_in(store, trained_run) as place:
        yield place


@pytest.fixture(params=["sqlite", "postgresql"])
def somewhere(request: pytest.FixtureRequest) -> Place:
    """A place in each kind of store."""
    found: Place = request.getfixturevalue(request.param)
    return found


def check_every_kill(place: Place, before: str, call: Call, after_writes: bool = False) -> Done:
    """Kill a call at each moment, call it again, and compare everything with a call that nothing killed."""
    undisturbed = place.call(before, call)
    assert undisturbed.error is None
    for moment in place.kills(before, call, after_writes):
        assert place.killer.run(call).state == undisturbed.state, f"killed at moment {moment}"
    return undisturbed


def test_a_second_register_completes_what_a_kill_cut_off(sqlite: Place) -> None:
    done = check_every_kill(sqlite, "runs", sqlite.registering("0.9"), after_writes=True)
    assert done.told == ["m version 1 registered, the first champion"]
    assert done.state
    aliases, tags, card = done.state["models"]["m"]
    assert (aliases, tags[HISTORY_TAG]) == ({"champion": 1}, "TIME promoted none → 1: the first champion")
    assert "The champion is version 1" in card
    assert done.state["versions"]["m/1"][0][REGISTRATION_TAG] == "registered, the first champion"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("registered", "call", "told"),
    [
        ([], ("register", "0.9", "m"), "m version 1 registered, the first champion"),
        ([], ("register", "0.05", "m"), "m version 1 registered, but not as champion: it reads 5.0 % "),
        (["0.9"], ("register", "0.95", "m"), "m version 2 registered with 0.9500 exact match; the new champion: "),
        (["0.9"], ("register", "0.8", "m"), "m version 2 registered with 0.8000 exact match; version 1 stays champion"),
        (["0.9", "0.8"], ("promote", "m/2", "smaller"), "Move("),
        (["0.9", "0.95"], ("rollback", "m", "it misreads m"), "Move("),
    ],
    ids=["first", "reads nothing", "better", "worse", "promote", "rollback"],
)
def test_whatever_a_kill_cuts_off_the_same_command_completes(
    registered: list[str], call: Call, told: str, somewhere: Place
) -> None:
    command, named, *others = call
    done = check_every_kill(
        somewhere, somewhere.prepare(*registered), (command, somewhere.runs.get(named, named), *others)
    )
    assert done.told[0].startswith(told)


@pytest.mark.slow
def test_a_registration_that_was_cut_off_does_not_confuse_that_of_another_run(somewhere: Place) -> None:
    worse, better = map(somewhere.registering, ("0.9", "0.95"))
    for _ in somewhere.kills("runs", worse):
        done = somewhere.killer.run(better, worse, better, worse)
        assert done.state
        numbers = {version[-1]: int(name.removeprefix("m/")) for name, version in done.state["versions"].items()}
        champion = numbers[better[1]]
        assert sorted(numbers.values()) == [1, 2]
        assert done.told[2:] == [f"m version {numbers[run]} is this model already" for _, run, _ in (better, worse)]
        aliases, tags, card = done.state["models"]["m"]
        assert aliases == {"champion": champion}
        assert f"The champion is version {champion}" in card
        lines = tags[HISTORY_TAG].replace("TIME", "2026-01-31 23:59:59 UTC").splitlines()
        moves = [move for line in reversed(lines) if (move := Move.parse(line))]
        assert len(moves) == len(lines)
        assert [move.before for move in moves] == [None, *(move.after for move in moves[:-1])]
        assert moves[-1].after == champion
        assert all(told.startswith("registered") for told in registrations(done))


@pytest.mark.slow
def test_what_a_person_has_rolled_back_stays_so_when_the_run_is_registered_to_its_end(somewhere: Place) -> None:
    call, rolled_back = somewhere.registering("0.95"), 0
    for _ in somewhere.kills(somewhere.prepare("0.9"), call):
        became_champion = somewhere.killer.run(("rollback", "m")).error is None
        done = somewhere.killer.run(call, call)
        assert done.state
        aliases, tags, _ = done.state["models"]["m"]
        kinds = [line.split()[1] for line in tags[HISTORY_TAG].splitlines()]
        if became_champion:
            assert (aliases, kinds) == ({"champion": 1}, ["rolled", "promoted", "promoted"])
        else:
            assert (aliases, kinds) == ({"champion": 2}, ["promoted", "promoted"])
        assert all(told.startswith("registered") for told in registrations(done))
        rolled_back += became_champion
    assert rolled_back > 1


def registrations(done: Done) -> list[str]:
    assert done.state
    return [version[0][REGISTRATION_TAG] for version in done.state["versions"].values()]
