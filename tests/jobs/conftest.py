"""What the tests of the jobs share: trainings of seconds, and an ear for what the package logs."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import mlflow
import pytest

from captcha.training.recipe import Augmentation, Recipe

Listen = Callable[[], AbstractContextManager[list[str]]]


@pytest.fixture(scope="session")
def quick() -> Recipe:
    """What a training of seconds takes: an epoch of the images there are, unchanged, and a fast moving average."""
    nothing = Augmentation.model_validate(dict.fromkeys(Augmentation.model_fields, 0))
    return Recipe(epoch_images=1, average_decay=0.5, augmentation=nothing)


@pytest.fixture(scope="session")
def no_run() -> Callable[[], AbstractContextManager[None]]:
    """A function that gives a context after which there are no more runs than before it, in any experiment."""

    def count() -> int:
        return len(mlflow.search_runs(search_all_experiments=True, output_format="list"))

    @contextmanager
    def same_count() -> Iterator[None]:
        before = count()
        yield
        assert count() == before

    return same_count


@pytest.fixture(scope="session")
def listen() -> Listen:
    """A function that gives a context, and in it the list of what the package logs, as the terminal shows it."""

    @contextmanager
    def heard() -> Iterator[list[str]]:
        lines: list[str] = []
        handler = logging.Handler()

        def note(record: logging.LogRecord) -> None:
            lines.append(("warning: " if record.levelno >= logging.WARNING else "") + record.getMessage())

        handler.emit = note  # type: ignore[method-assign]
        package = logging.getLogger("captcha")
        package.addHandler(handler)
        level = package.level
        package.setLevel(logging.INFO)
        try:
            yield lines
        finally:
            package.setLevel(level)
            package.removeHandler(handler)

    return heard
