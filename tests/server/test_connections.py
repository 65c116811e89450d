"""Real connections to a server in a thread of this process."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from captcha.server import connections
from captcha.server import front as front_module
from captcha.server.connections import Server, listen
from tests.server.conftest import MakeClient
from tests.server.stripes import encoded, png

BODY = json.dumps({"inputs": [encoded("abc")]}).encode()


def head(length: int = len(BODY), *more: str) -> bytes:
    lines = ["POST /invocations HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


@pytest.fixture
def port(make_client: MakeClient) -> Iterator[int]:
    """The port of a server."""
    ready = threading.Event()
    server = Server(make_client().front, ready.set)
    with listen("127.0.0.1", 0) as listening:
        number: int = listening.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        assert ready.wait(30)
        yield number
        server.handle_exit(signal.SIGTERM, None)
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def connect(port: int) -> Iterator[Callable[[], socket.socket]]:
    opened: list[socket.socket] = []

    def connect_one() -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", port), timeout=30))
        return opened[-1]

    yield connect_one
    for each in opened:
        each.close()


Connect = Callable[[], socket.socket]


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            content += part
    return content


def one_answer(connection: socket.socket) -> bytes:
    """One answer with its body, on a connection that stays."""
    content = b""
    while True:
        content += connection.recv(65536)
        top, _, body = content.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", top)
        if length and len(body) >= int(length[1]):
            return content


def check_answers(connect: Connect) -> None:
    connection = connect()
    connection.sendall(head(len(BODY), "Connection: close") + BODY)
    answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"text": "abc"' in answer


def test_a_request_is_answered_and_the_connection_taken_again(connect: Connect) -> None:
    connection = connect()
    for _ in range(2):
        connection.sendall(head() + BODY)
        assert one_answer(connection).startswith(b"HTTP/1.1 200 ")


def test_no_part_of_an_answer_waits_for_the_client_to_acknowledge_the_one_before(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    connection_made = connections.Connection.connection_made

    def look(self: connections.Connection, transport: asyncio.Transport) -> None:
        accepted: socket.socket = transport.get_extra_info("socket")
        taken.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        connection_made(self, transport)

    monkeypatch.setattr(connections.Connection, "connection_made", look)
    check_answers(connect)
    assert taken
    assert all(taken)


@pytest.mark.parametrize("start", [b"", b"POST /invocations HTTP/1.1\r\nHost: local", b"POST"])
def test_a_client_that_sends_no_whole_head_is_cut_off(
    connect: Connect, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 1)
    begun = time.monotonic()
    connection = connect()
    connection.sendall(start)
    assert rest(connection) == b""
    assert 0.5 < time.monotonic() - begun < 20
    check_answers(connect)


def test_a_client_that_drips_its_head_is_cut_off_after_an_answer_too(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 1)
    connection = connect()
    connection.sendall(head() + BODY)
    assert one_answer(connection).startswith(b"HTTP/1.1 200 ")
    begun = time.monotonic()
    with pytest.raises(OSError, match=r"(reset|Broken pipe)"):
        drip(connection)
    assert time.monotonic() - begun < 20


def drip(connection: socket.socket) -> None:
    for letter in b"POST /invocations" * 20:
        connection.sendall(bytes([letter]))
        time.sleep(0.1)


def test_a_client_that_drips_its_body_is_told_and_cut_off(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_module, "BODY_SECONDS", 1)
    connection = connect()
    connection.sendall(head(1000) + b'{"inputs"')
    answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body has not arrived within 1 seconds" in answer
    check_answers(connect)


def test_a_hundred_slow_clients_keep_nobody_from_an_answer(connect: Connect) -> None:
    for place in range(100):
        connect().sendall(head(1000)[: 40 if place % 2 else None])
    check_answers(connect)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nXYZ\r\n",
    ],
)
def test_what_is_no_http_is_refused_as_everything_else(connect: Connect, garbage: bytes) -> None:
    connection = connect()
    with contextlib.suppress(OSError):
        connection.sendall(garbage + b"\r\n\r\n")
    answer = rest(connection)
    if answer:  # a client that still sends may lose the answer to the reset that it causes
        assert len(answer) < 1000
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error_code", "message"}
    check_answers(connect)


def test_more_connections_than_allowed_are_closed(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)
    kept = [connect() for _ in range(3)]
    for connection in kept:  # so that the server has seen them
        connection.sendall(head() + BODY)
        assert one_answer(connection).startswith(b"HTTP/1.1 200 ")
    assert rest(connect()) == b""
    kept[0].close()
    time.sleep(0.5)
    check_answers(connect)


def test_fifty_megabytes_of_spaces_bring_a_short_answer(connect: Connect) -> None:
    connection = connect()
    connection.sendall(head(50 * 2**20))
    part = b" " * 2**20

    def send() -> None:
        with contextlib.suppress(OSError):
            for _ in range(50):
                connection.sendall(part)

    sending = threading.Thread(target=send)
    sending.start()
    answer = one_answer(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert len(answer) < 1000
    sending.join()
    check_answers(connect)


def test_an_image_file_and_an_expected_go_ahead_are_taken(connect: Connect) -> None:
    connection = connect()
    connection.sendall(
        b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nExpect: 100-continue\r\n"
        + f"Content-Length: {len(png('cab'))}\r\n\r\n".encode()
    )
    assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
    connection.sendall(png("cab"))
    assert b'"text": "cab"' in one_answer(connection)
