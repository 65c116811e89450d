import asyncio
import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from captcha.reading.recognizer import Recognizer
from captcha.server import front as front_module
from captcha.server.keys import Keys
from captcha.server.served import Version
from tests.server.conftest import MakeClient
from tests.server.stripes import Answer, Client, encoded, png

KEY = "a-key-of-sixteen-or-more"
ABC = json.dumps({"inputs": [encoded("abc")]}).encode()


def check_refusal(answer: Answer, status: int, code: str) -> str:
    """The line of an answer that is short JSON of a code and a message, and nothing else."""
    assert answer.status == status, answer
    assert len(answer.body) < 1000
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json) == {"error_code", "message"}
    assert answer.json["error_code"] == code
    line: str = answer.json["message"]
    assert "\n" not in line
    return line


def test_json_csv_a_file_and_an_upload_are_read_alike(client: Client) -> None:
    upload = b'--X\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n' + png("abc") + b"\r\n--X--\r\n"
    for body, kind in (
        (ABC, "application/json"),
        (f"image\n{encoded('abc')}\n".encode(), "text/csv"),
        (png("abc"), "image/png"),
        (upload, "multipart/form-data; boundary=X"),
    ):
        answer = client.ask(body, kind)
        assert (answer.status, answer.texts) == (200, ["abc"]), kind
        assert answer.headers["x-model-version"] == "stripes/1"
        (row,) = answer.json["predictions"]
        assert set(row) == {"text", "confidence", "probability", "accepted", "character_confidences"}


def test_a_version_of_any_name_stands_in_the_header(client: Client, stripes: Recognizer) -> None:
    client.front.served.take_up(Version("Zähler 5/2", stripes))
    answer = client.ask(ABC)
    assert (answer.status, answer.headers["x-model-version"]) == (200, "Z%C3%A4hler 5/2")


def test_several_images_are_answered_in_their_order(client: Client) -> None:
    texts = ["abc", "", "c", "bb"]
    for form in ("inputs", "instances"):
        assert client.ask_json({form: [encoded(text) for text in texts]}).texts == texts
    assert client.ask_json({"inputs": [], "params": {"decoder": "beam"}}).texts == []


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 10_000 + b"]" * 10_000,
        b'{"inputs": [' + b"9" * 4300 + b"]}",
        b'{"instances": [{"image": "QUJD"}, {"picture": "QUJD"}]}',
        b'{"inputs": ["QUJD"]}',
        b'{"inputs": ["SECRET*"]}',
        b'{"dataframe_split": {"columns": ["SECRET"], "data": [["SECRET"]]}}',
        b'{"inputs": ["SECRET"], "params": {"decoder": "SECRET"}}',
        b"SECRET",
        b"",
        b"\xff\xfe",
    ],
)
def test_hostile_json_is_refused_without_a_word_of_it(client: Client, body: bytes) -> None:
    assert "SECRET" not in check_refusal(client.ask(body), 400, "INVALID_PARAMETER_VALUE")
    assert client.ask(ABC).texts == ["abc"]


def test_a_bad_image_is_named_by_its_row(client: Client) -> None:
    line = check_refusal(client.ask_json({"inputs": [encoded("a"), "*"]}), 400, "INVALID_PARAMETER_VALUE")
    assert line == "row 1: the image is not base64, and no path is opened (the first row is row 0)"


def test_no_content_type_and_a_compressed_body_are_refused(client: Client) -> None:
    check_refusal(client.ask(ABC, None), 415, "UNSUPPORTED_MEDIA_TYPE")
    check_refusal(client.ask(ABC, content_encoding="gzip"), 415, "UNSUPPORTED_MEDIA_TYPE")


def test_bad_csv_is_answered_without_a_trace(client: Client) -> None:
    line = check_refusal(client.ask(b'image\n"SECRET', "text/csv"), 400, "INVALID_PARAMETER_VALUE")
    assert "SECRET" not in line


def test_a_body_over_the_limit_is_refused_whether_it_says_so_or_not(client: Client) -> None:
    taken = 0

    def spaces() -> Any:
        nonlocal taken
        for _ in range(50):
            taken += 1
            yield b" " * 2**20

    check_refusal(client.ask(ABC, content_length=str(10 * 2**20 + 1)), 413, "REQUEST_TOO_LARGE")
    check_refusal(client.ask(ABC, content_length="9" * 4300), 413, "REQUEST_TOO_LARGE")
    check_refusal(client.ask(list(spaces())), 413, "REQUEST_TOO_LARGE")
    check_refusal(client.ask(b" " * 10 * 2**20), 400, "INVALID_PARAMETER_VALUE")
    assert client.front.held == 0


def test_paths_and_methods_of_mlflow_alone_are_served(client: Client) -> None:
    for path in ("/", "/docs", "/openapi.json", "/invocations/", "/metrics/x", "/../etc/passwd"):
        check_refusal(client.ask(path=path, method="GET"), 404, "ENDPOINT_NOT_FOUND")
    answer = client.ask(path="/invocations", method="GET")
    check_refusal(answer, 405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "POST"
    check_refusal(client.ask(path="/ping", method="POST"), 405, "METHOD_NOT_ALLOWED")
    for path in ("/ping", "/health", "/version"):
        assert client.ask(path=path, method="GET").status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:80", "LOCALHOST:5001", "[::1]:5001", "ours.example"])
def test_a_host_of_ours_is_served(make_client: MakeClient, host: str) -> None:
    assert make_client(hosts=["ours.example"]).ask(path="/ping", method="GET", host=host).status == 200


@pytest.mark.parametrize("host", ["", "evil.example", "127.0.0.1.evil.example", "localhost.", "[", "[::2]:80", "a b"])
def test_another_host_is_refused(client: Client, host: str) -> None:
    check_refusal(client.ask(ABC, host=host), 400, "INVALID_PARAMETER_VALUE")


def test_who_has_no_key_is_refused_but_for_the_health_of_the_server(make_client: MakeClient, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"alice {KEY}\n")
    client = make_client(keys=Keys(tmp_path / "keys"))
    for path, method in (("/invocations", "POST"), ("/metrics", "GET"), ("/version", "GET")):
        for headers in ({}, {"authorization": f"Bearer {KEY}x"}, {"x_api_key": ""}):
            answer = client.ask(ABC, path=path, method=method, **headers)
            check_refusal(answer, 401, "UNAUTHENTICATED")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.ask(ABC, path=path, method=method, x_api_key=KEY).status == 200
    for path in ("/ping", "/health"):
        assert client.ask(path=path, method="GET").status == 200


def test_the_log_has_a_line_of_json_for_each_request_and_no_image(
    make_client: MakeClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").write_text(f"alice {KEY}\n")
    client = make_client(keys=Keys(tmp_path / "keys"))
    first = client.ask(ABC, x_api_key=KEY, x_request_id="mine-1")
    second = client.ask(b'{"inputs": ["SECRET"]}', x_request_id="SECRET\n" * 50, path="/inv\nocations")
    told = capsys.readouterr().err
    lines = [json.loads(line) for line in told.splitlines()]
    assert (first.headers["x-request-id"], lines[0]["request_id"]) == ("mine-1", "mine-1")
    assert re.fullmatch("[0-9a-f]{32}", second.headers["x-request-id"])
    assert [(line["method"], line["path"], line["status"], line["images"], line["key"]) for line in lines] == [
        ("POST", "/invocations", 200, 1, "alice"),
        ("POST", "/inv\nocations", 404, 0, None),
    ]
    assert lines[0]["model"] == "stripes/1"
    assert 0 <= lines[0]["seconds"] < 60
    assert not {"SECRET", encoded("abc")[:20], KEY} & {part for part in re.split(r"\W+", told)}
    assert KEY not in told
    assert encoded("abc") not in told


def test_prometheus_reads_what_was_asked_and_read(client: Client) -> None:
    client.ask_json({"inputs": [encoded("abc"), encoded("")]})
    client.ask(b"{")
    for number in range(3):
        client.ask(path=f"/{number}", method="GET")
    figures = client.ask(path="/metrics", method="GET").body.decode()
    for line in (
        'captcha_requests_total{path="/invocations",status="200"} 1.0',
        'captcha_requests_total{path="/invocations",status="400"} 1.0',
        'captcha_requests_total{path="other",status="404"} 3.0',
        'captcha_request_seconds_count{path="/invocations"} 2.0',
        "captcha_images_total 2.0",
        "captcha_texts_total 1.0",
        'captcha_model_info{name="stripes",version="1"} 1.0',
        "captcha_requests_running 1.0",
    ):
        assert line in figures.splitlines()


class Slow:
    """A stand-in for a model that takes its time: it reads a batch in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.batches = seconds, 0
        self.amid = threading.Event()
        """Set while it reads the second batch."""

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.batches += 1
        if self.batches == 2:
            self.amid.set()
        time.sleep(self.seconds)
        return np.full((images.shape[3], len(images), 4), np.log(0.25), np.float32)


MakeSlow = Callable[[float], tuple[Client, Slow]]


@pytest.fixture
def make_slow(make_client: MakeClient, stripes: Recognizer) -> MakeSlow:
    def make(seconds: float) -> tuple[Client, Slow]:
        slow = Slow(seconds)
        return make_client(Recognizer(slow, stripes.vocabulary, stripes.height)), slow

    return make


LONG = json.dumps({"inputs": [encoded("abc" * 40)] * 240}).encode()  # 481 columns: 16 in a batch


def test_past_the_deadline_the_caller_gets_504_and_the_work_stops(
    make_slow: MakeSlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "DEADLINE", 1)
    client, slow = make_slow(0.3)
    line = check_refusal(client.ask(LONG), 504, "DEADLINE_EXCEEDED")
    assert line.startswith("not read within 1 seconds")
    read = slow.batches
    time.sleep(1)
    assert slow.batches <= read + 1 < 10  # of 15


def test_when_the_caller_has_gone_the_work_stops_and_the_log_says_499(
    make_slow: MakeSlow, capsys: pytest.CaptureFixture[str]
) -> None:
    client, slow = make_slow(0.3)
    assert client.ask(LONG, leave=slow.amid).status == 0
    time.sleep(1)
    assert 2 <= slow.batches <= 4  # of 15
    assert json.loads(capsys.readouterr().err)["status"] == 499


def test_more_requests_than_allowed_at_once_are_told_to_come_again(
    make_slow: MakeSlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "MAX_REQUESTS", 2)
    client, _ = make_slow(1)

    async def at_once() -> list[Answer]:
        return list(await asyncio.gather(*(client.send(ABC) for _ in range(5))))

    answers = asyncio.run(at_once())
    assert sorted(answer.status for answer in answers) == [200, 200, 503, 503, 503]
    for answer in answers:
        if answer.status == 503:
            check_refusal(answer, 503, "TEMPORARILY_UNAVAILABLE")
            assert answer.headers["retry-after"] == "1"
    assert client.ask(ABC).status == 200


def test_bodies_that_wait_are_bounded_together(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_module, "MAX_BODIES", len(ABC))
    assert client.ask(ABC).status == 200
    check_refusal(client.ask(ABC + b" "), 503, "TEMPORARILY_UNAVAILABLE")
    assert client.front.held == 0


def test_a_body_that_does_not_arrive_is_waited_for_no_longer_than_allowed(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "BODY_SECONDS", 0.2)
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/invocations", "headers": [(b"host", b"localhost")]}
    asyncio.run(client.front(scope, receive, send))
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


def test_a_fault_of_the_model_is_told_as_ours_and_one_of_the_program_only_to_the_log(
    make_client: MakeClient, stripes: Recognizer, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Recognizer(lambda images: np.full((4, len(images), 4), np.nan, np.float32), stripes.vocabulary, 16)
    line = check_refusal(make_client(broken).ask(ABC), 500, "INTERNAL_ERROR")
    assert line == "the model gave NaN: its weights are broken"

    def fault(images: object) -> Any:
        raise KeyError("SECRET")

    line = check_refusal(make_client(Recognizer(fault, stripes.vocabulary, 16)).ask(ABC), 500, "INTERNAL_ERROR")
    assert line == "the server is at fault; its log has more"
    assert "KeyError: 'SECRET'" in json.loads(capsys.readouterr().err.splitlines()[-2])["trace"]


def test_threads_read_at_once(client: Client) -> None:
    texts = ["abc", "b", "cab", ""] * 5
    answers: dict[int, list[str]] = {}

    def ask(place: int) -> None:
        answers[place] = client.ask_json({"inputs": [encoded(texts[place])]}).texts

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[place] for place in range(len(texts))] == [[text] for text in texts]
