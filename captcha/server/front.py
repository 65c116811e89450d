"""The front: what a request must pass before MLflow's scoring application sees it, and what its answer becomes."""

import asyncio
import re
import time
import traceback
import uuid
from collections.abc import Collection, MutableMapping
from typing import Any
from urllib.parse import quote, urlsplit

from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.pyfunc import scoring_server
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from captcha.reading.limits import BODY_SECONDS, DEADLINE, MAX_BODIES, MAX_BODY, MAX_REQUESTS
from captcha.server.forms import read_form
from captcha.server.keys import Keys
from captcha.server.monitoring import METRICS_KIND, Monitor, write_line
from captcha.server.served import Served
from captcha.server.visits import RefusalError, Visit, current

METHODS = {"/ping": "GET", "/health": "GET", "/version": "GET", "/metrics": "GET", "/invocations": "POST"}
OPEN = ("/ping", "/health")
"""Paths that need no key."""


class _GoneError(Exception):
    """The caller has gone before it was answered."""


class Front:
    """An ASGI application around MLflow's.

    Args:
        served: the model.
        hosts: names that a Host header may have, without a port, in small letters.
        keys: who may ask; None: anybody.
        monitor: where requests are counted.
    """

    def __init__(self, served: Served, hosts: Collection[str], keys: Keys | None, monitor: Monitor) -> None:
        # MLflow would answer first, and let the work go on.
        MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.set(DEADLINE + 30)
        self.scoring: ASGIApp = scoring_server.init(served)  # type: ignore[arg-type]  # what it asks of a PyFuncModel
        self.served, self.hosts, self.keys, self.monitor = served, frozenset(hosts), keys, monitor
        self.running, self.held = 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        begun = time.perf_counter()
        headers = Headers(scope=scope)
        visit = Visit(_request_id(headers))
        current.set(visit)
        status = 499
        try:
            with self.monitor.running.track_inprogress():
                response = await self._answer(scope, headers, receive, visit)
            response.headers["X-Request-ID"] = visit.request_id
            if visit.model:
                response.headers["X-Model-Version"] = quote(visit.model, safe="/: ")  # a name may have any letters
            status = response.status_code
            await response(scope, receive, send)
        except _GoneError:
            pass
        finally:
            visit.gone.set()
            self.monitor.note(visit, scope["method"], scope["path"], status, time.perf_counter() - begun)

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, visit: Visit) -> Response:
        try:
            self._admit(scope["method"], scope["path"], headers, visit)
            if scope["path"] == "/metrics":
                return Response(self.monitor.figures(self.served.name), media_type=METRICS_KIND)
            if scope["path"] == "/invocations":
                return await self._read(scope, headers, receive, visit)
            return await self._scored(scope, b"")
        except RefusalError as refusal:
            return refusal.response()
        except _GoneError:
            raise
        except Exception:
            write_line(message="a fault of the server", request_id=visit.request_id, trace=traceback.format_exc())
            return RefusalError(500, "the server is at fault; its log has more").response()

    def _admit(self, method: str, path: str, headers: Headers, visit: Visit) -> None:
        """Raise RefusalError where a request's headers tell that it is not answered."""
        if _host(headers) not in self.hosts:
            raise RefusalError(400, "the Host header names another server; `captcha serve --allowed-hosts` adds names")
        if path not in METHODS:
            raise RefusalError(404, f"there is no such path; there are {', '.join(METHODS)}")
        if path not in OPEN and self.keys:
            visit.key = self.keys.name_of(headers)
            if visit.key is None:
                line = "give a key as Authorization: Bearer KEY, or as X-API-Key: KEY"
                raise RefusalError(401, line, WWW_Authenticate="Bearer")
        if method != METHODS[path]:
            raise RefusalError(405, f"the method must be {METHODS[path]}", Allow=METHODS[path])

    async def _read(self, scope: Scope, headers: Headers, receive: Receive, visit: Visit) -> Response:
        """Answer with the readings of a request's images."""
        if headers.get("content-encoding", "identity") != "identity":
            raise RefusalError(415, "the body must not be compressed")
        body = bytearray()
        try:
            await self._receive(headers, receive, body)
            if self.running >= MAX_REQUESTS:
                raise RefusalError(503, f"{MAX_REQUESTS} requests are being answered: ask again", Retry_After="1")
            self.running += 1
            try:
                return await self._before_deadline(scope, headers.get("content-type", ""), bytes(body), receive, visit)
            finally:
                self.running -= 1
        finally:
            self.held -= len(body)

    async def _receive(self, headers: Headers, receive: Receive, body: bytearray) -> None:
        """Fill the body, which counts for `held` as long as it is there."""
        too_large = RefusalError(413, f"the body has more than the {MAX_BODY} bytes allowed")
        length = headers.get("content-length", "0")
        if len(length) > 15 or int(length) > MAX_BODY:
            raise too_large
        try:
            async with asyncio.timeout(BODY_SECONDS):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    part = message.get("body", b"")
                    if len(body) + len(part) > MAX_BODY:
                        raise too_large
                    if self.held + len(part) > MAX_BODIES:
                        raise RefusalError(503, "too many bytes of requests are waiting: ask again", Retry_After="1")
                    body += part
                    self.held += len(part)
                    more = message.get("more_body", False)
        except TimeoutError:
            line = f"the body has not arrived within {BODY_SECONDS} seconds"
            raise RefusalError(408, line, Connection="close") from None

    async def _before_deadline(
        self, scope: Scope, content_type: str, body: bytes, receive: Receive, visit: Visit
    ) -> Response:
        """Answer within DEADLINE, or not at all once the caller has gone; either way the work stops soon after."""
        work = asyncio.create_task(self._readings(scope, content_type, body, visit))
        leaving = asyncio.create_task(_leave(receive))
        try:
            done, _ = await asyncio.wait({work, leaving}, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
            if work in done:
                return work.result()
            if leaving in done:
                raise _GoneError
            raise RefusalError(504, f"not read within {DEADLINE} seconds: send fewer or smaller images at once")
        finally:
            visit.gone.set()
            work.cancel()
            leaving.cancel()

    async def _readings(self, scope: Scope, content_type: str, body: bytes, visit: Visit) -> Response:
        form = await asyncio.to_thread(read_form, content_type, body)
        asked = form.as_json()
        answer = await self._scored(scope, asked)
        if answer.status_code != 200:  # MLflow's words may hold the request's
            raise RefusalError(*(visit.refusal or (500, "the server is at fault; its log has more")))
        return answer

    async def _scored(self, scope: Scope, body: bytes) -> Response:
        """Return what MLflow's application answers to a body of JSON."""
        asked = {**scope, "headers": [(b"content-type", b"application/json")], "query_string": b""}
        answer: MutableMapping[str, Any] = {"body": b""}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            answer.update(message, body=answer["body"] + message.get("body", b""))

        await self.scoring(asked, receive, send)
        kind = Headers(raw=answer["headers"]).get("content-type")
        return Response(answer["body"], answer["status"], media_type=kind)


async def _leave(receive: Receive) -> None:
    """Return once the caller has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _host(headers: Headers) -> str | None:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname
    except ValueError:
        return None


def _request_id(headers: Headers) -> str:
    """Return the id that the caller has given, where it is short and plain, or a new one."""
    given = headers.get("x-request-id", "")
    return given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else uuid.uuid4().hex
