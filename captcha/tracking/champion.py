"""The champion of a registered model: the alias `champion`, how it moves, the history of its moves, and `previous`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from captcha.settings import CHALLENGER, CHAMPION, PREVIOUS
from captcha.tracking.card import write_card
from captcha.tracking.models import find
from captcha.tracking.naming import not_registered
from captcha.tracking.runs import RegistryError, connect
from captcha.tracking.turns import turn, waiting

HISTORY_TAG = "champion_history"
"""The registered model's tag that holds the moves, a line each, the latest first."""

MOVES_KEPT, REASON_LENGTH = 20, 180
"""Bounds of the history: a tag of the registry holds 5,000 characters."""

_PROMOTED, _ROLLED_BACK = "promoted", "rolled back"
_BEGUN = "begun: "
"""Stands before the latest move as long as the alias is on its way."""

_LINE = re.compile(rf"(\S+ \S+ UTC) ({_PROMOTED}|{_ROLLED_BACK}) (none|\d+) → (\d+)(?:: (.*))?")


@dataclass(frozen=True)
class Move:
    """One move of the alias, from a version (None: there was no champion) to another."""

    time: str
    """As in 2026-01-31 23:59:59 UTC."""
    before: int | None
    after: int
    reason: str
    rollback: bool = False

    @property
    def line(self) -> str:
        """The move as the history keeps it and a person reads it."""
        done = _ROLLED_BACK if self.rollback else _PROMOTED
        return f"{self.time} {done} {self.before or 'none'} → {self.after}" + (
            f": {self.reason}" if self.reason else ""
        )

    @classmethod
    def parse(cls, line: str) -> Self | None:
        """Return the move that a line of the history tells, None if it tells none."""
        if not (match := _LINE.fullmatch(line)):
            return None
        time, done, before, after, reason = match.groups()
        return cls(time, None if before == "none" else int(before), int(after), reason or "", done == _ROLLED_BACK)


class Overtaken(RegistryError):  # noqa: N818  what has happened, not a fault
    """The champion is no longer the version that it was; one line."""


def rollback(name: str, reason: str = "") -> tuple[str, Move]:
    """Make the version champion that was it before the present one; return the registered model's name and the move.

    Raises:
        RegistryError: the history knows of no champion before the present one, that version is no longer there, or
            the reason is too long.
    """
    connect(writing=True)
    client = MlflowClient()
    try:
        settle(client, name)
        moves, present = history(client, name), present_champion(client, name)
    except MlflowException:
        raise RegistryError(not_registered(name)) from None
    former = before(moves, present)
    if former is None:
        now = f"version {present} is {CHAMPION}" if present else f"there is no {CHAMPION}"
        raise RegistryError(f"{name}: {now}, and its history knows none before: captcha promote VERSION moves it")
    find(client, f"{name}/{former}")
    return name, move(client, name, former, reason, present, rollback=True)


def move(
    client: MlflowClient, name: str, version: int, reason: str, former: int | None, rollback: bool = False
) -> Move:
    """Give the alias to a version in place of the former champion (None: of none); return the move.

    The move is written into the history and the card is written anew; `previous` is then what a rollback leads to, and
    a challenger that is champion is none any more. The history says first what is about to be done, so that a kill at
    any moment leaves a move that was made, with its line, or none: `history` tells by the alias which, and `settle`
    does the rest. Of two processes one waits for the other.

    Raises:
        Overtaken: another version is champion by now than the former one.
        RegistryError: the version is champion already, or the reason is too long.
    """
    reason = one_line(reason)
    with turn(client, name):
        _settle(client, name)
        refuse_champion(client, name, version)
        if (present := present_champion(client, name)) != former:
            raise Overtaken(f"{name}: {CHAMPION} has just become version {present}: look at that one, and try again")
        made = Move(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC", former, version, reason, rollback)
        lines = _lines([made, *history(client, name)])
        client.set_registered_model_tag(name, HISTORY_TAG, _BEGUN + lines)
        client.set_registered_model_alias(name, CHAMPION, str(version))
        _settle(client, name)
    return made


def one_line(reason: str) -> str:
    """Return a reason as the history holds it. Raises RegistryError where it is too long."""
    reason = " ".join(reason.split())
    if len(reason) > REASON_LENGTH:
        raise RegistryError(f"a reason has {REASON_LENGTH} characters at most, and this one has {len(reason)}")
    return reason


def refuse_champion(client: MlflowClient, name: str, version: int) -> None:
    """Raise RegistryError where the version is champion already."""
    if present_champion(client, name) == version:
        raise RegistryError(f"{name} version {version} is {CHAMPION} already")


def _lines(moves: Sequence[Move]) -> str:
    return "\n".join(each.line for each in moves[:MOVES_KEPT])


def settle(client: MlflowClient, name: str) -> None:
    """Write what a move of the alias brings with it, and what became of it into the history, where a kill cut it off.

    Of a move that another process is at, wait for the end.
    """
    tags = client.get_registered_model(name).tags
    if tags.get(HISTORY_TAG, "").startswith(_BEGUN) or waiting(tags):
        with turn(client, name):
            _settle(client, name)


def _settle(client: MlflowClient, name: str) -> None:
    model = client.get_registered_model(name)
    if not model.tags.get(HISTORY_TAG, "").startswith(_BEGUN):
        return
    moves, present = history(client, name), _champion(model)
    former = before(moves, present)
    there = {int(version.version) for version in client.search_model_versions(f"name = '{name}'")}
    if former in there:
        client.set_registered_model_alias(name, PREVIOUS, str(former))
    elif PREVIOUS in model.aliases:
        client.delete_registered_model_alias(name, PREVIOUS)
    if present is not None and model.aliases.get(CHALLENGER) == model.aliases[CHAMPION]:
        client.delete_registered_model_alias(name, CHALLENGER)
    write_card(name)
    client.set_registered_model_tag(name, HISTORY_TAG, _lines(moves))


def history(client: MlflowClient, name: str) -> list[Move]:
    """Return the moves that are kept, the latest first; one that was begun counts if the alias has got there."""
    model = client.get_registered_model(name)
    lines = model.tags.get(HISTORY_TAG, "").splitlines()
    if lines and lines[0].startswith(_BEGUN):
        begun = Move.parse(lines[0].removeprefix(_BEGUN))
        lines[0] = begun.line if begun and begun.after == _champion(model) else ""
    return [found for line in lines if (found := Move.parse(line))]


def before(moves: Sequence[Move], present: int | None) -> int | None:
    """Return which version was champion before the present one, by the moves from the latest on; None if none was.

    A rollback undoes the move before it, so a second one goes back further. Where the alias has been moved by other
    means, as in MLflow's pages, that move counts too.
    """
    former: list[int | None] = []
    champion: int | None = None
    for each in reversed(moves):
        if champion not in (None, each.before):
            former.append(champion)
        if not each.rollback:
            former.append(each.before)
        elif former:
            former.pop()
        champion = each.after
    if champion not in (None, present):
        former.append(champion)
    return former[-1] if former else None


def present_champion(client: MlflowClient, name: str) -> int | None:
    """Return the version that is champion, None if none is."""
    return _champion(client.get_registered_model(name))


def _champion(model: RegisteredModel) -> int | None:
    number = model.aliases.get(CHAMPION)
    return None if number is None else int(number)
