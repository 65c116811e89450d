"""Settings → options of a command; the options that several commands share."""

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from captcha import CaptchaError
from captcha.settings import (
    CHAMPION,
    MODEL_NAME,
    NONE,
    AdaptSettings,
    NamesImages,
    OnProblems,
    Settings,
    TrainSettings,
    written,
)

if TYPE_CHECKING:
    from captcha.reading.constraints import Constraints


def existing_source(value: str) -> str:
    """Return a written source of images, a folder or draw:STYLE; raise typer.BadParameter where there is none."""
    from captcha.data.sources import parse_source

    return value if value == NONE else _parsed(value, parse_source)


def existing_folder(value: str) -> str:
    """Return a written folder; raise typer.BadParameter, with the absolute path, where there is none."""
    from captcha.data.sources import parse_folder

    return _parsed(value, parse_folder)


def bounded_beam_width(value: int) -> int:
    """Return a beam width; raise typer.BadParameter where a request to a model's server could not ask for it either."""
    from captcha.reading.limits import MAX_BEAM_WIDTH

    if value > MAX_BEAM_WIDTH:
        raise typer.BadParameter(f"{value} is more than {MAX_BEAM_WIDTH} (CAPTCHA_MAX_BEAM_WIDTH)")
    return value


def known_of_texts(length: str, characters: str, texts: str, pattern: str) -> "Constraints | None":
    """Return what is known of every text, each the word none where it is not; None where nothing is.

    Raises:
        ConstraintError: a length that is none, or a file of texts that cannot be read or is empty.
    """
    from captcha.reading.constraints import constraints_named

    return constraints_named(*(None if value == NONE else value for value in (length, characters, texts, pattern)))


def existing_images(value: str) -> str:
    """Return written images, a folder or Parquet; raise typer.BadParameter, with the absolute path, for none."""
    from captcha.data.sources import parse_images

    return _parsed(value, parse_images)


def path_or_none(value: str) -> Path | None:
    """Return a written path, None for the word none."""
    return None if value == NONE else Path(value)


def folder_or_none(value: str) -> Path | None:
    """Return a written folder, None for the word none; raise typer.BadParameter where there is no such folder."""
    return None if value == NONE else Path(existing_folder(value))


def _parsed(value: str, parse: Callable[[str], object]) -> str:
    from captcha.data.samples import DataError

    if not value:
        raise typer.BadParameter("it is empty, name a folder")
    try:
        parse(value)
    except CaptchaError as error:
        message = str(error)
        relative = isinstance(error, DataError) and not Path(value).is_absolute()
        if relative and "MLFLOW_RUN_ID" in os.environ:  # `mlflow run` hides where it was called
            message += " (under mlflow run a relative path starts at the project; give an absolute one)"
        raise typer.BadParameter(message) from None
    return value


DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DIR",
        callback=existing_images,
        help="folder of images named by their label (2b827.png), or with a labels.csv (file,label); or Parquet shards",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        help="model to read with: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, or a recogniser's folder"
    ),
]
EngineOption = Annotated[
    Literal["auto", "fp32", "int8"],
    typer.Option(
        "--engine",
        envvar="CAPTCHA_ENGINE",
        show_envvar=False,
        help="fp32, int8, or auto: int8 where it reads the same and the CPU is known to be faster with it",
    ),
]
Length = Annotated[str, typer.Option(help=AdaptSettings.model_fields["length"].description)]
Characters = Annotated[str, typer.Option(help=AdaptSettings.model_fields["characters"].description)]
Texts = Annotated[str, typer.Option(metavar="FILE", help=AdaptSettings.model_fields["texts"].description)]
Pattern = Annotated[str, typer.Option(help=AdaptSettings.model_fields["pattern"].description)]
VERSIONS = f"a version: its number or {CHAMPION}, both of {MODEL_NAME}; NAME/VERSION or NAME@ALIAS"
NAMING = f"{VERSIONS}; or the id of a run"
VersionOrRun = Annotated[str, typer.Argument(metavar="VERSION|RUN", help=NAMING)]
Name = Annotated[str, typer.Option(help=TrainSettings.model_fields["name"].description)]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="why, for the history; one line")]
Problems = Annotated[OnProblems, typer.Option(help=TrainSettings.model_fields["problems"].description)]
Json = Annotated[bool, typer.Option("--json", help="print JSON alone; all else goes to standard error")]


def with_settings(settings: type[Settings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each setting, with its default and help; as **settings it gets those given.

    A setting without a default becomes an argument, a folder; so does one that is marked as an argument.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is p.KEYWORD_ONLY]
        options = []
        for name, field in settings.model_fields.items():
            marks = [mark for mark in field.metadata if isinstance(mark, NamesImages)]
            names_images = bool(marks)
            if field.is_required():
                option = typer.Argument(metavar="DIR", help=field.description, callback=existing_folder)
            elif names_images and marks[0].argument:
                option = typer.Argument(
                    written(field.default), metavar="DIR|draw:STYLE", help=field.description, callback=existing_source
                )
            else:
                option = typer.Option(
                    written(field.default),
                    help=field.description,
                    callback=existing_source if names_images else None,
                    # MLproject passes a value, not a flag; only for it, so help does not show the variable.
                    envvar=f"CAPTCHA_{name.upper()}" if field.annotation is bool else None,
                    show_envvar=False,
                )
            annotation = str if names_images else field.annotation
            options.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)
            )

        @functools.wraps(command)
        def with_those_given(context: typer.Context, **values: Any) -> None:
            sources = {name: context.get_parameter_source(name) for name in settings.model_fields}
            at_default = {name for name, source in sources.items() if source and source.name == "DEFAULT"}
            command(**{name: value for name, value in values.items() if name not in at_default})

        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        with_those_given.__signature__ = inspect.Signature([context, *options, *own])  # type: ignore[attr-defined]
        return with_those_given

    return decorate
