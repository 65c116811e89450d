"""Serve a model over HTTP, behind a front that may face strangers."""

import functools
import ipaddress
from collections.abc import Callable, Sequence
from pathlib import Path

from mlflow.models import Model

import captcha
from captcha import CaptchaError
from captcha.reading.engine import Engine
from captcha.reading.limits import WATCH_SECONDS
from captcha.server.connections import listen, run
from captcha.server.front import Front
from captcha.server.keys import Keys
from captcha.server.monitoring import Monitor, write_line
from captcha.server.served import Served, Version, Watch
from captcha.tracking.models import SIGNATURE, resolve

LOCAL = ("localhost", "127.0.0.1", "::1")


class ServeError(CaptchaError):
    """An address that cannot be served at; one line."""


def serve(
    model: str,
    host: str,
    port: int,
    keys: Path | None,
    allowed_hosts: Sequence[str],
    ready: Callable[[str], object],
    engine: Engine = "auto",
) -> None:
    """Serve a model until SIGTERM or Ctrl-C; `ready` is called with one line once it is served.

    What an alias names, as models:/NAME@champion, is looked up again every few seconds.

    Raises:
        RegistryError: there is no such model.
        RecognizerError: the model's files are damaged, or it has no such engine.
        KeysError: the file of keys cannot be used.
        ServeError: the address cannot be served at.
    """
    known = Keys(keys) if keys else None
    try:
        listening = listen(host, port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServeError(f"{host}, port {port}: {reason}; choose others with --host and --port") from None
    with listening:
        load = functools.partial(_load, engine=engine)
        served = Served(load(model), Model(signature=SIGNATURE))
        front = Front(served, {*LOCAL, *_names(host), *map(str.lower, allowed_hosts)}, known, Monitor())
        if not known and not _is_loopback(host):
            write_line(message=f"anybody who reaches {host} may ask: --keys FILE asks for a key")
        address = f"[{host}]" if ":" in host else host
        line = f"captcha: {served.name} is served at http://{address}:{listening.getsockname()[1]}"
        if "@" in model:
            newest = lambda: _name(resolve(model).uri)  # noqa: E731
            Watch(served, newest, lambda name: load(f"models:/{name}"), WATCH_SECONDS).start()
        run(front, listening, lambda: ready(line))


def _load(model: str, engine: Engine) -> Version:
    uri = resolve(model).uri
    return Version(_name(uri), captcha.load(uri, engine))


def _name(uri: str) -> str:
    """Return what X-Model-Version calls a model: NAME/VERSION, runs:/RUN_ID, or a folder's name, but not its path."""
    return uri.removeprefix("models:/") if uri.startswith(("models:/", "runs:/")) else Path(uri).resolve().name


def _names(host: str) -> set[str]:
    """Return the bind address as a name that a Host header may have; none where it stands for every address."""
    address = _address(host)
    return set() if address and address.is_unspecified else {host.lower()}


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return address.is_loopback if address else host == "localhost"


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return a host as an address, None where it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
