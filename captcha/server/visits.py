"""One request on its way through the server, and how it is refused."""

import json
import threading
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.responses import Response

CODES = {
    400: "INVALID_PARAMETER_VALUE",
    401: "UNAUTHENTICATED",
    404: "ENDPOINT_NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    408: "REQUEST_TIMEOUT",
    413: "REQUEST_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


@dataclass
class Visit:
    """What is known of one request; the thread that reads its images adds to it."""

    request_id: str
    key: str | None = None
    """The name of the API key."""
    model: str | None = None
    """The version that read the images, as the answer's X-Model-Version."""
    images: int = 0
    texts: int = 0
    """How many of the images had a text."""
    refusal: tuple[int, str] | None = None
    """The status and the line that the model refused the request with: our own words, none of the request's."""
    gone: threading.Event = field(default_factory=threading.Event)
    """Set once nobody waits for the answer."""


current: ContextVar[Visit | None] = ContextVar("current", default=None)


class RefusalError(Exception):
    """An answer that is no reading: a status, one line in our own words, and headers."""

    def __init__(self, status: int, line: str, **headers: str) -> None:
        super().__init__(line)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def response(self) -> Response:
        """Return the answer, JSON of less than 1 kB."""
        body = {"error_code": CODES[self.status], "message": str(self)[:700]}
        return Response(json.dumps(body, ensure_ascii=False), self.status, self.headers, "application/json")
