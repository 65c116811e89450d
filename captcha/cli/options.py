"""Settings → options of a command; the options that several commands share."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from captcha import CaptchaError
from captcha.settings import NONE, NamesImages, OnProblems, Settings, TrainSettings, written


def existing_source(value: str) -> str:
    """Return a written source of images, a folder or draw:STYLE; raise typer.BadParameter where there is none."""
    from captcha.data.sources import parse_source

    return value if value == NONE else _parsed(value, parse_source)


def existing_folder(value: str) -> str:
    """Return a written folder; raise typer.BadParameter, with the absolute path, where there is none."""
    from captcha.data.sources import parse_folder

    return _parsed(value, parse_folder)


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
        callback=existing_folder,
        help="folder of images named by their label (2b827.png), or with a labels.csv (file,label)",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        help="model to read with: models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, or a recogniser's folder"
    ),
]
Problems = Annotated[OnProblems, typer.Option(help=TrainSettings.model_fields["problems"].description)]
Json = Annotated[bool, typer.Option("--json", help="print JSON alone; all else goes to standard error")]


def with_settings(settings: type[Settings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, as **settings, an option for each setting, with its default and help.

    A setting without a default becomes an argument, a folder.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is p.KEYWORD_ONLY]
        options = []
        for name, field in settings.model_fields.items():
            names_images = any(isinstance(mark, NamesImages) for mark in field.metadata)
            if field.is_required():
                option = typer.Argument(metavar="DIR", help=field.description, callback=existing_folder)
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
        command.__signature__ = inspect.Signature([*options, *own])  # type: ignore[attr-defined]
        return command

    return decorate
