"""What a person may have meant by the name of a model that is not there."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping

import mlflow
from mlflow.exceptions import MlflowException

from captcha.settings import CHAMPION

FORMS = "use models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID"


def meant(written: str) -> str:
    """Return what may have been meant, and the registered models or versions that there are; FORMS at the least."""
    if re.fullmatch(r"[0-9a-f]{32}", written):
        return f"did you mean runs:/{written}?"
    match = re.fullmatch(r"(?:models:/*)?([^/@]+)(?:[/@](.*))?", written)
    if not match:
        return FORMS
    name, which = match.groups()
    try:
        with _asking_once():
            models = {model.name: model.aliases for model in mlflow.search_registered_models()}
            if name not in models:  # an alias alone?
                name, which = next(((other, name) for other in models if name in models[other]), (name, which))
            if name in models:
                found = mlflow.search_model_versions(filter_string=f"name = '{name}'")
                return _instead(name, which, sorted(int(version.version) for version in found), models[name])
    except MlflowException:  # this is only help for another error
        return FORMS
    if not models:
        return "no model is registered, train one first"
    return f"the registered models are {', '.join(sorted(models))}; {FORMS}"


def not_registered(name: str) -> str:
    """Return the line for a registered model's name that there is not, with those that there are."""
    names = ", ".join(sorted(model.name for model in mlflow.search_registered_models()))
    known = f"the registered models are {names}" if names else "no model is registered, train one first"
    return f"{name!r} names no model: {known}"


def _instead(name: str, which: str | None, versions: list[int], aliases: Mapping[str, str]) -> str:
    """Return the URI that is closest to what was written, and the versions and aliases of this model."""
    if not versions:
        return f"{name} has no version, train one first"
    if which and which.isdigit() and int(which) in versions:
        uri = f"models:/{name}/{which}"
    elif which in aliases or CHAMPION in aliases:
        uri = f"models:/{name}@{which if which in aliases else CHAMPION}"
    else:
        uri = f"models:/{name}/{versions[-1]}"
    shown = "…, " * (len(versions) > 10) + ", ".join(map(str, versions[-10:]))
    named = f"; aliases: {', '.join(sorted(aliases))}" if aliases else ""
    return f"did you mean {uri}? Versions: {shown}{named}"


@contextlib.contextmanager
def _asking_once() -> Iterator[None]:
    """Have MLflow ask a server that does not answer once: it would try for minutes."""
    setting = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ.get(setting)
    os.environ[setting] = "0"
    try:
        yield
    finally:
        del os.environ[setting]
        if before is not None:
            os.environ[setting] = before
