"""The corpus of hostile requests, slow clients and much load, against MLflow's scoring server and `captcha serve`."""

import http.client
import json
import random
import threading
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from captcha.reading.recognizer import Recognizer
from tests.hostile.client import Exchange, assail, exchange, faults, parsed, slowly
from tests.hostile.conftest import Server
from tests.hostile.corpus_requests import GOOD, TEXT, VALID, Case, encoded, image_requests, picture, post, requests

KNOWN = Path(__file__).parent / "known_of_mlflow.toml"


@pytest.fixture(scope="module", params=["mlflow", "captcha"])
def server(request: pytest.FixtureRequest, serve: Callable[[str], AbstractContextManager[Server]]) -> Iterator[Server]:
    """Both servers, one after the other, for all tests of this module."""
    with serve(request.param) as running:
        yield running


def known_faults(server: Server) -> dict[str, list[str]]:
    """Return the faults that are MLflow's own, by case; behind `captcha serve` none may be left."""
    if server.kind == "captcha":
        return {}
    groups = tomllib.loads(KNOWN.read_text())["known"]
    return {case: sorted(group["faults"]) for group in groups for case in group["cases"]}


def check_valid(answers: set[bytes]) -> None:
    """Check that the valid request has always got the same answer, and which."""
    [answer] = answers
    status, _, body = answer.partition(b" ")
    assert (int(status), [row["text"] for row in json.loads(body)["predictions"]]) == (200, [TEXT])


@pytest.mark.slow
def test_no_request_breaks_the_server_and_none_is_repeated(server: Server) -> None:
    report = assail(server.address, requests().values())
    print(f"{server.kind}: {len(requests())} requests, statuses {sorted(report.statuses.items())}, {report.slowest}")
    check_valid(report.valid)
    known = known_faults(server)
    new = {name: found for name, found in report.faults.items() if known.get(name) != found}
    gone = {name: found for name, found in known.items() if name not in report.faults}
    assert (new, gone) == ({}, {})


@pytest.mark.slow
def test_no_image_breaks_the_server(server: Server) -> None:
    report = assail(server.address, image_requests().values())
    print(
        f"{server.kind}: {len(image_requests())} images, statuses {sorted(report.statuses.items())}, {report.slowest}"
    )
    check_valid(report.valid)
    assert report.faults == {}
    assert report.statuses.keys() == {200, 400}


@pytest.mark.slow
def test_a_hundred_slow_clients_keep_nobody_waiting(server: Server) -> None:
    """Fifty send their head byte by byte, fifty their body; none gets further before the others are served."""
    over = threading.Event()
    case = post("slow", json.dumps({"inputs": [GOOD], "note": "MARK"}), rows=1)
    begin = {"head": 0, "body": case.wire.index(b"\r\n\r\n") + 4}

    def drip(part: str) -> Exchange:
        pieces = slowly(case, begin[part], 0.5, lambda: not over.is_set())
        return exchange(server.address, Case(case.name, case.wire, case.planted, complete=False), pieces)

    with ThreadPoolExecutor(100) as pool:
        slow = [pool.submit(drip, part) for part in ("head", "body") * 50]
        try:
            beside = [exchange(server.address, VALID) for _ in range(20)]
        finally:
            over.set()
        dripped = [each.result() for each in slow]
    check_valid({b"%d " % answer.status + answer.body for each in beside for answer in each.answers})
    assert max(each.seconds for each in beside) < 30
    assert [found for each in dripped if (found := faults(each))] == []
    check_valid({b"%d " % answer.status + answer.body for answer in exchange(server.address, VALID).answers})


@pytest.mark.slow
def test_ten_thousand_requests_are_read_right_and_leave_no_memory(server: Server, recognizer_folder: Path) -> None:
    recognizer = Recognizer.load(recognizer_folder)
    rng = random.Random(1)
    texts = ["".join(rng.choices("abc", k=rng.randint(1, 5))) for _ in range(200)]
    wanted = {text: recognizer.read(picture(text)).text for text in texts}
    assert wanted == {text: text for text in texts}
    bad = [picture("abc")[:-20], b"no image", b"", picture("abc").replace(b"IDAT", b"IDAX")]
    work = [(number, number % 10 == 9) for number in range(10_000)]
    wrong: Counter[str] = Counter()
    local = threading.local()
    opened: list[http.client.HTTPConnection] = []

    def ask(number: int, is_bad: bool) -> None:
        text = texts[number % len(texts)]
        image = bad[number // 10 % len(bad)] if is_bad else picture(text)
        body = json.dumps({"inputs": [encoded(image)]})
        for attempt in range(2):  # a server may close a connection that it has kept long enough
            if not hasattr(local, "connection"):
                local.connection = http.client.HTTPConnection(*server.address, timeout=120)
                opened.append(local.connection)
            try:
                local.connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
                answer = local.connection.getresponse()
                content = answer.read()
                break
            except (ConnectionError, http.client.BadStatusLine):
                local.connection.close()
                del local.connection
                if attempt:
                    raise
        if is_bad:
            wrong["bad ones read"] += answer.status != 400
            wrong["long refusals"] += len(content) > 1000
        elif answer.status != 200:
            wrong[f"answers of {answer.status}"] += 1
        else:
            wrong["texts"] += [row["text"] for row in json.loads(content)["predictions"]] != [wanted[text]]

    memory = []
    with ThreadPoolExecutor(32) as pool:
        for half in (work[:5000], work[5000:]):
            for done in [pool.submit(ask, *each) for each in half]:
                done.result()
            memory.append(server.memory())
    for connection in opened:
        connection.close()
    print(f"{server.kind}: 10000 requests, bytes after each half {memory}, {memory[1] / memory[0] - 1:+.2%}")
    assert +wrong == Counter()
    assert memory[1] < 1.05 * memory[0]


def test_the_client_sees_what_is_wrong() -> None:
    """What the other tests rely on, shown with answers written here."""
    case = Case("a", b"POST", ("MARK",), rows=2)

    def of(received: bytes, ended: bool = True) -> list[str]:
        return faults(Exchange(case, received, ended, answers=parsed(received)))

    def answer(status: int, body: bytes) -> bytes:
        return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body

    row = {"text": "ab", "confidence": 0.5, "character_confidences": [0.5, 0.5]}
    assert of(answer(400, b"no")) == of(b"") == []
    assert of(b"", ended=False) == ["hang"]
    assert of(answer(500, b"no")) == ["500"]
    assert of(answer(400, b"x" * 1001)) == ["long"]
    assert of(answer(400, b"the MARK")) == ["echo"]
    assert of(answer(400, b'File "/usr/lib/python3.11/x.py"')) == ["trace"]
    assert of(answer(200, json.dumps({"predictions": [row, row]}).encode())) == []
    assert of(answer(200, json.dumps({"predictions": [row]}).encode())) == ["rows"]
    assert of(answer(200, json.dumps({"predictions": [row, row | {"text": "z"}]}).encode())) == ["wrong"]
    assert of(answer(200, b'{"predictions": NaN}')) == ["no predictions"]
    assert of(answer(400, b"no") + b"HTTP/1.1 100 Continue\r\n\r\n" + answer(503, b"no")) == ["503"]
    chunked = b"HTTP/1.1 400 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nMAR\r\n1\r\nK\r\n0\r\n\r\n"
    assert parsed(chunked)[0].body == b"MARK"
    assert of(b"garbage") == ["no HTTP"]
