"""A tiny recogniser that reads stripes, and requests to a front in this process."""

import asyncio
import base64
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx.parser
from numpy.typing import NDArray

from captcha.reading.recognizer import save_recognizer
from captcha.reading.vocabulary import Vocabulary
from captcha.server.front import Front

HEIGHT = 16
STRIPES = (Path(__file__).parents[1] / "reading" / "stripes.onnxtxt").read_text()
"""Each column of pixels is a frame, its brightness the class: white is the blank, black "a", then "b" and "c"."""


def picture(text: str) -> NDArray[np.uint8]:
    """An image that STRIPES reads as the text."""
    shades = {"a": 0, "b": 85, "c": 170}
    row = [shade for character in text for shade in (255, 255, shades[character], shades[character])]
    return np.tile(np.array([*row, 255], np.uint8), (HEIGHT, 1))


def png(text: str) -> bytes:
    return cv2.imencode(".png", picture(text))[1].tobytes()


def encoded(text: str) -> str:
    return base64.b64encode(png(text)).decode()


def save_stripes(folder: Path) -> Path:
    """Write the recogniser to a folder."""
    save_recognizer(folder, onnx.parser.parse_model(STRIPES).SerializeToString(), Vocabulary("abc"), HEIGHT)
    return folder


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def texts(self) -> list[str]:
        return [row["text"] for row in self.json["predictions"]]


@dataclass
class Client:
    """Asks a front in this process, without the HTTP around it."""

    front: Front

    async def send(
        self,
        body: bytes | Iterable[bytes] = b"",
        kind: str | None = "application/json",
        method: str = "POST",
        path: str = "/invocations",
        leave: threading.Event | None = None,
        **headers: str,
    ) -> Answer:
        """Ask, the body in one part or several; the caller goes once `leave` is set."""
        parts = [body] if isinstance(body, bytes) else list(body)
        given = {"host": "127.0.0.1:5001", **{name.replace("_", "-"): value for name, value in headers.items()}}
        if kind is not None:
            given["content-type"] = kind
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "http_version": "1.1",
            "scheme": "http",
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
        }
        answer = Answer(0, {}, b"")
        answered = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if parts:
                return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
            while not answered.is_set() and not (leave and leave.is_set()):
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            answer.body += message.get("body", b"")

        await self.front(scope, receive, send)
        answered.set()
        return answer

    def ask(self, body: bytes | Iterable[bytes] = b"", kind: str | None = "application/json", **rest: Any) -> Answer:
        return asyncio.run(self.send(body, kind, **rest))

    def ask_json(self, content: object, **rest: Any) -> Answer:
        return self.ask(json.dumps(content).encode(), **rest)
