"""Send a case through a socket, and say what is wrong with what came back."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from tests.hostile.corpus_requests import VALID, Case

PATIENCE = 90
"""Seconds within which a connection must be answered or closed; MLflow's own deadline for an answer is 60."""

LONGEST_REFUSAL = 1000
"""Bytes."""

TRACES = (b"Traceback", b'File \\"', b'File "', b"site-packages", b"/python3")


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Exchange:
    """What came back on a connection."""

    case: Case
    received: bytes = b""
    ended: bool = False
    """Whether the server has closed the connection."""
    seconds: float = 0.0
    answers: list[Answer] = field(default_factory=list)


def exchange(address: tuple[str, int], case: Case, pieces: Iterable[bytes] | None = None) -> Exchange:
    """Return what a server says to a case, until it closes the connection; `pieces` are sent in place of the case."""
    begun = time.monotonic()
    result = Exchange(case)
    try:
        with socket.create_connection(address, timeout=PATIENCE) as connection:
            sender = threading.Thread(target=_send, args=(connection, case, pieces), daemon=True)
            sender.start()
            result.received, result.ended = _receive(connection, begun + PATIENCE)
        sender.join()
    except ConnectionError:
        result.ended = True
    result.seconds = time.monotonic() - begun
    result.answers = parsed(result.received, head=b"HEAD " in case.wire[:5])
    return result


def _send(connection: socket.socket, case: Case, pieces: Iterable[bytes] | None) -> None:
    with suppress(OSError):  # the server has had enough
        for piece in pieces or (case.wire,):
            connection.sendall(piece)
        if not case.complete:
            time.sleep(0.2)  # an answer may be under way, and some servers take this for the end of everything
            connection.shutdown(socket.SHUT_WR)


def _receive(connection: socket.socket, deadline: float) -> tuple[bytes, bool]:
    parts: list[bytes] = []
    while (left := deadline - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            part = connection.recv(1 << 20)
        except TimeoutError:
            break
        except ConnectionError:  # closed while the server had not read everything
            return b"".join(parts), True
        if not part:
            return b"".join(parts), True
        parts.append(part)
    return b"".join(parts), False


def parsed(received: bytes, head: bool = False) -> list[Answer]:
    """Return the answers in what came back; `head` where they are to HEAD and have no body."""
    answers = []
    while match := re.match(rb"HTTP/1\.[01] (\d{3})[^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n", received):
        lines = match[2].decode("latin-1").splitlines()
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        rest = received[match.end() :]
        if head or int(match[1]) in (100, 101, 204, 304):
            body, rest = b"", rest
        elif headers.get("transfer-encoding") == "chunked":
            body, rest = _unchunked(rest)
        else:
            length = int(headers.get("content-length", len(rest)))
            body, rest = rest[:length], rest[length:]
        if int(match[1]) != 100:
            answers.append(Answer(int(match[1]), headers, body))
        received = rest
    if received:
        answers.append(Answer(0, {}, received))  # no HTTP
    return answers


def _unchunked(rest: bytes) -> tuple[bytes, bytes]:
    parts = []
    while match := re.match(rb"([0-9a-fA-F]+)[^\r\n]*\r\n", rest):
        size = int(match[1], 16)
        parts.append(rest[match.end() : match.end() + size])
        rest = rest[match.end() + size + 2 :]
        if size == 0:
            break
    return b"".join(parts), rest


def faults(result: Exchange) -> list[str]:
    """Return what is wrong with what came back, in words that do not change from run to run."""
    found = set()
    if not result.ended:
        found.add("hang")
    for answer in result.answers:
        if answer.status >= 500 and answer.status not in result.case.provokes:
            found.add(str(answer.status))
        if answer.status == 0:
            found.add("no HTTP")
        if any(trace in answer.body for trace in TRACES):
            found.add("trace")
        if answer.status >= 400 and len(answer.body) > LONGEST_REFUSAL:
            found.add("long")
        if answer.status == 200 and result.case.rows is not None:
            found |= _prediction_faults(answer.body, result.case.rows)
    if any(text.encode() in result.received for text in result.case.planted):
        found.add("echo")
    return sorted(found)


def _prediction_faults(body: bytes, rows: int) -> set[str]:
    try:
        predictions = json.loads(body, parse_constant=_refuse)["predictions"]
        read = [(row["text"], row["confidence"], row["character_confidences"]) for row in predictions]
    except (ValueError, KeyError, TypeError):
        return {"no predictions"}
    wrong = any(set(text) - set("abc") or not 0 <= confidence <= 1 for text, confidence, _ in read)
    return {*(("rows",) if len(read) != rows else ()), *(("wrong",) if wrong else ())}


def _refuse(name: str) -> None:
    raise ValueError(name)


@dataclass
class Report:
    """What a corpus has done to a server."""

    faults: dict[str, list[str]]
    """What is wrong, by the name of the case; cases without a fault are not there."""
    statuses: dict[int, int]
    """How many answers had each status; 0 counts connections that were closed without one."""
    valid: set[bytes]
    """The bodies of the answers to the valid request that was sent after each case."""
    slowest: tuple[float, str]


def assail(address: tuple[str, int], cases: Iterable[Case], at_once: int = 4) -> Report:
    """Send cases to a server, a few at once, and after each the valid request."""
    report = Report({}, {}, set(), (0.0, ""))
    lock = threading.Lock()

    def one(case: Case) -> None:
        result = exchange(address, case)
        beside = exchange(address, VALID)
        with lock:
            if found := faults(result):
                report.faults[case.name] = found
            for status in [answer.status for answer in result.answers] or [0]:
                report.statuses[status] = report.statuses.get(status, 0) + 1
            [answer] = beside.answers or [Answer(0, {}, b"no answer")]
            report.valid.add(b"%d " % answer.status + answer.body)
            report.slowest = max(report.slowest, (result.seconds, case.name))

    with ThreadPoolExecutor(at_once) as pool:
        for done in [pool.submit(one, case) for case in cases]:
            done.result()
    return report


def slowly(case: Case, at: int, pause: float, going_on: Callable[[], bool]) -> Iterable[bytes]:
    """Yield a case's first bytes at once, and the others one by one with a pause in seconds between them."""
    yield case.wire[:at]
    for byte in case.wire[at:]:
        if not going_on():
            break
        time.sleep(pause)
        yield bytes([byte])
