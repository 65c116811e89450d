"""Settings → options of a command, and what several commands share."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel


def _existing_folder(value: str) -> str:
    """Return the folder's name, or say which absolute path was looked at."""
    folder = Path(value)
    if value and (folder.is_dir() or value == "none" or value.startswith("draw:")):
        return value
    if not value:
        raise typer.BadParameter("it is empty, name a folder")
    message = f"{'not a folder' if folder.exists() else 'no such folder'}: {folder.absolute()}"
    if "MLFLOW_RUN_ID" in os.environ and not folder.is_absolute():  # `mlflow run` does not tell where it was called
        message += " (under mlflow run a relative path starts at the project; give an absolute one)"
    raise typer.BadParameter(message)


Folder = Annotated[
    str,
    typer.Argument(
        metavar="DIR",
        callback=_existing_folder,
        help="folder of images named by their label (2b827.png), or with a labels.csv (file,label)",
    ),
]
Model = Annotated[
    str, typer.Option(help="model to read with: models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON alone; all else goes to standard error")]


def with_settings(config: type[BaseModel]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of a configuration, its default and help included, as **settings.

    What has no default is an argument, a folder.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is p.KEYWORD_ONLY]
        options = []
        for name, field in config.model_fields.items():
            is_folder = name.endswith("data")
            if field.is_required():
                option = typer.Argument(metavar="DIR", help=field.description, callback=_existing_folder)
            else:
                option = typer.Option(
                    "none" if field.default is None else field.default,
                    help=field.description,
                    callback=_existing_folder if is_folder else None,
                    # MLproject passes a value, not a flag; only for it, so help does not show the variable.
                    envvar=f"CAPTCHA_{name.upper()}" if field.annotation is bool else None,
                    show_envvar=False,
                )
            annotation = str if is_folder else field.annotation
            options.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)
            )
        command.__signature__ = inspect.Signature([*options, *own])  # type: ignore[attr-defined]
        return command

    return decorate
