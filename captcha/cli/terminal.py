"""What commands print beside their results: complaints, and JSON."""

import json

import typer


def complain(message: str) -> None:
    """Print an error as one line."""
    line = " ".join(message.replace("Value error, ", "").split())  # pydantic's prefix tells a person nothing
    typer.echo(f"captcha: {line}", err=True)


def print_json(content: object) -> None:
    """Print JSON for scripts."""
    typer.echo(json.dumps(content, ensure_ascii=False, indent=2))
