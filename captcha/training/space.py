"""The space that a tuning searches: ranges of settings and of the recipe's numbers, read from TOML."""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError

from captcha import CaptchaError
from captcha.training.recipe import Augmentation, Recipe

BUILT_IN = Path(__file__).with_name("space.toml")
"""What is searched where no file is named."""

SETTINGS, RECIPE, AUGMENTATION = "settings", "recipe", "recipe.augmentation"
"""The tables of a file."""


class SpaceError(CaptchaError):
    """A file that describes no space; one line that names the file and the key."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `log`: each tenfold as likely as another."""

    low: float
    high: float
    log: bool
    whole: bool
    """Only whole numbers."""


Choices = tuple[Any, ...]


@dataclass(frozen=True)
class Space:
    """What is searched, by the names under which a run has it: learning_rate, recipe.weight_decay, …"""

    dimensions: Mapping[str, Range | Choices]

    @property
    def digest(self) -> str:
        """By which the same space is known, however its file is written."""
        known = {name: vars(each) if isinstance(each, Range) else each for name, each in self.dimensions.items()}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def settings_in(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a point of a space that are settings."""
    return {name: value for name, value in values.items() if "." not in name}


def recipe_in(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe at a point of a space; numbers that are not searched stay at their default."""
    augmentation = Augmentation(**_below(AUGMENTATION, values))
    return Recipe(**_below(RECIPE, values), augmentation=augmentation)


def _below(table: str, values: Mapping[str, Any]) -> dict[str, Any]:
    found = {name.rpartition(".")[2]: value for name, value in values.items() if name.rpartition(".")[0] == table}
    return found


def load_space(file: str | Path, settings: BaseModel, tunable: Collection[str]) -> Space:
    """Return the space that a TOML file describes.

    Args:
        file: has tables `settings`, `recipe` and `recipe.augmentation`. A key is a field's name, its value a list of
            choices, or a table with `low`, `high` and perhaps `log`.
        settings: those that are not searched; each value searched has to be valid beside them.
        tunable: the names of the settings that may be searched.

    Raises:
        SpaceError: the file cannot be read, or describes no space.
    """
    try:
        content = tomllib.loads(Path(file).read_text("utf-8"))
    except OSError as error:
        raise SpaceError(f"{file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpaceError(f"{file} is not a TOML file: {error}") from None
    numbers = sorted(set(Recipe.model_fields) - {"augmentation"})
    known: dict[str, tuple[BaseModel, Collection[str]]] = {
        SETTINGS: (settings, tunable),
        RECIPE: (Recipe(), numbers),
        AUGMENTATION: (Augmentation(), sorted(Augmentation.model_fields)),
    }
    dimensions = {}
    for table, name, value in _entries(file, content):
        model, names = known[table]
        key = f"{table}.{name}"
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            _refuse(
                file, key, f"no such name to search, did you mean {nearest!r}? There are {', '.join(sorted(names))}"
            )
        dimensions[name if table == SETTINGS else key] = _dimension(file, key, model, name, value)
    if not dimensions:
        raise SpaceError(f"{file} names nothing to search: see {BUILT_IN.name} of the package for its form")
    return Space(dict(sorted(dimensions.items())))


def _entries(file: str | Path, content: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Give table, key and value of each entry of a file."""
    for name, table in content.items():
        if name not in (SETTINGS, RECIPE) or not isinstance(table, dict):
            _refuse(file, name, f"no such table: there are [{SETTINGS}], [{RECIPE}] and [{AUGMENTATION}]")
        for key, value in table.items():
            if (name, key) != (RECIPE, "augmentation"):
                yield name, key, value
            elif isinstance(value, dict):
                yield from ((AUGMENTATION, inner, each) for inner, each in value.items())
            else:
                _refuse(file, AUGMENTATION, f"is a table, not {value!r}")


def _dimension(file: str | Path, key: str, model: BaseModel, name: str, value: Any) -> Range | Choices:
    if isinstance(value, list):
        if not value:
            _refuse(file, key, "has no choices")
        for i, each in enumerate(value):
            _check(file, key, model, name, each)
            if each in value[:i]:
                _refuse(file, key, f"has the choice {each!r} twice")
        return tuple(value)
    if not isinstance(value, dict) or not {"low", "high"} <= set(value) <= {"low", "high", "log"}:
        _refuse(file, key, "is a list of choices, or a table with low, high and, if wanted, log = true")
    whole = type(model).model_fields[name].annotation is int
    low, high, log = value["low"], value["high"], value.get("log", False)
    for number in (low, high):
        if type(number) not in (int, float):
            _refuse(file, key, f"low and high are numbers, not {number!r}")
        _check(file, key, model, name, number)
    if type(log) is not bool:
        _refuse(file, key, f"log is true or false, not {log!r}")
    if low >= high:
        _refuse(file, key, f"is empty: low, {low}, is not below high, {high}")
    if log and low <= 0:
        _refuse(file, key, f"with log = true low is above 0, not {low}")
    return Range(low, high, log, whole) if whole else Range(float(low), float(high), log, whole)


def _check(file: str | Path, key: str, model: BaseModel, name: str, value: Any) -> None:
    """Refuse a value that the model cannot have there."""
    try:
        type(model).model_validate({**model.model_dump(), name: value}, strict=True)
    except ValidationError as error:
        message = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        _refuse(file, key, f"{message[:1].lower()}{message[1:]}, not {value!r}")


def _refuse(file: str | Path, key: str, why: str) -> NoReturn:
    raise SpaceError(f"{file}: {key}: {why}")
