"""The outbox; the server is a list here, that answers or does not, as the test says. Real ones: test_reliability.py."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.exceptions import MlflowException

from captcha import CaptchaError
from captcha.tracking import outbox as module
from captcha.tracking.outbox import Outbox, OutboxError, is_outage
from captcha.tracking.store import StoreError


class Server:
    """A stand-in for a tracking server: notes what it is sent, unless it is away."""

    def __init__(self) -> None:
        self.away = False
        self.lost: set[int] = set()
        """Entries that it takes while its answer is lost, once each."""
        self.taken: list[Any] = []
        self.fault: Exception | None = None

    def __call__(self, call: str, run: str, files: Path | None, arguments: Mapping[str, Any]) -> None:
        if self.away:
            raise requests.ConnectionError("nobody there")
        if self.fault:
            fault, self.fault = self.fault, None
            raise fault
        content = sorted(file.read_text() for file in files.iterdir()) if files else []
        self.taken.append([arguments["n"], *content])
        if arguments["n"] in self.lost:
            self.lost.remove(arguments["n"])
            raise requests.ReadTimeout("no answer")


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def open_outbox(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Outbox]]:
    """A function that opens the outbox of one run, as each process does that is in it."""
    monkeypatch.setattr(module, "PAUSES", (0.01,))
    opened: list[Outbox] = []

    def open_one() -> Outbox:
        opened.append(Outbox(tmp_path / "run" / "outbox", "0123", server))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def put(outbox: Outbox, *numbers: int, numbered: bool = True) -> None:
    for n in numbers:
        outbox.put("metrics", {"n": n}, numbered=numbered)


def test_what_is_put_is_sent_at_once_while_the_server_answers(
    server: Server, open_outbox: Callable[[], Outbox]
) -> None:
    outbox = open_outbox()
    put(outbox, 0, 1)
    assert server.taken == [[0], [1]]
    assert not outbox.waiting()


def test_what_is_put_during_an_outage_waits_and_arrives_in_order_once_the_server_is_back(
    server: Server, open_outbox: Callable[[], Outbox]
) -> None:
    outbox = open_outbox()
    put(outbox, 0)
    server.away = True
    put(outbox, 1, 2, 3)  # does not wait
    assert server.taken == [[0]]
    assert not outbox.flush(0.1)
    server.away = False
    assert outbox.flush(30)
    assert server.taken == [[0], [1], [2], [3]]


def test_an_entry_whose_answer_was_lost_is_sent_again_before_those_behind_it(
    server: Server, open_outbox: Callable[[], Outbox]
) -> None:
    outbox = open_outbox()
    server.lost = {1}
    put(outbox, 0, 1, 2)
    assert outbox.flush(30)
    assert server.taken == [[0], [1], [1], [2]]


def test_what_waits_outlives_the_process(server: Server, open_outbox: Callable[[], Outbox]) -> None:
    server.away = True
    first = open_outbox()
    put(first, 0, 1)
    first.close()
    server.away = False
    second = open_outbox()
    second.start_from(2)
    put(second, 2)
    assert second.flush(30)
    assert server.taken == [[0], [1], [2]]


@pytest.mark.parametrize("checkpoint", [0, 1, 3])
@pytest.mark.parametrize("away", [False, True])
def test_what_a_resumed_job_says_again_since_its_checkpoint_is_not_doubled(
    checkpoint: int, away: bool, server: Server, open_outbox: Callable[[], Outbox]
) -> None:
    first = open_outbox()
    put(first, 0, 1)
    server.away = away
    put(first, 2)
    put(first, 99, numbered=False)  # as the load of the machine, which no other process says again
    first.close()
    server.away = False
    second = open_outbox()
    second.start_from(checkpoint)
    put(second, *range(checkpoint, 5))
    assert second.flush(30)
    assert [each for each in server.taken if each != [99]] == [[0], [1], [2], [3], [4]]


def test_files_wait_with_their_entry_and_go_with_it(
    server: Server, open_outbox: Callable[[], Outbox], tmp_path: Path
) -> None:
    server.away = True
    outbox = open_outbox()
    for n in range(2):
        (tmp_path / "files").mkdir()
        (tmp_path / "files" / "a").write_text(f"content {n}")
        outbox.put("files", {"n": n}, tmp_path / "files")
    server.away = False
    assert outbox.flush(30)
    assert server.taken == [[0, "content 0"], [1, "content 1"]]
    assert [file.name for file in outbox.folder.iterdir()] == ["sent.json"]


def test_what_the_server_refuses_is_raised_and_not_sent_again(
    server: Server, open_outbox: Callable[[], Outbox]
) -> None:
    outbox = open_outbox()
    server.fault = MlflowException("no such run", error_code=3)
    with pytest.raises(MlflowException, match="no such run"):
        put(outbox, 0)
    put(outbox, 1)
    assert server.taken == [[1]]


def test_what_the_server_refuses_after_an_outage_is_raised_where_something_is_logged_next(
    server: Server, open_outbox: Callable[[], Outbox]
) -> None:
    outbox = open_outbox()
    server.away = True
    put(outbox, 0)
    server.fault, server.away = MlflowException("no such run", error_code=3), False
    with pytest.raises(MlflowException, match="no such run"):
        outbox.flush(30)


def test_a_full_outbox_leaves_out_pictures_and_ends_the_job_for_anything_else(
    server: Server,
    open_outbox: Callable[[], Outbox],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CAPTCHA_OUTBOX_MB", "1")
    server.away = True
    outbox = open_outbox()

    def put_file(n: int, picture: bool) -> None:
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / "a").write_bytes(b"x" * 600_000)
        outbox.put("files", {"n": n}, tmp_path / "files", picture)

    put_file(0, False)
    put_file(1, True)
    put_file(2, True)
    assert sum("pictures are left out" in message for message in caplog.messages) == 1
    with pytest.raises(OutboxError, match=r"holds 1 MB .* captcha sync"):
        put_file(3, False)
    put(outbox, 4)  # a metric is small
    held = sum(file.stat().st_size for file in outbox.folder.rglob("*") if file.is_file())
    assert held < 1_000_000


def test_an_outbox_is_full_once_what_waits_has_reached_the_bound(
    server: Server, open_outbox: Callable[[], Outbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTCHA_OUTBOX_MB", "1")
    server.away = True
    outbox = open_outbox()
    put(outbox, 0)
    assert not outbox.is_full()
    outbox.put("metrics", {"n": 1, "values": "x" * 1_000_000})
    assert outbox.is_full()
    server.away = False
    assert outbox.flush(30)
    assert not outbox.is_full()


def test_an_outage_is_told_once_and_so_is_its_end(
    server: Server,
    open_outbox: Callable[[], Outbox],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "captcha")
    monkeypatch.setattr(module, "SAID_AFTER", 0)
    told = threading.Event()
    warn = module.logger.warning

    def warn_and_tell(*arguments: Any) -> None:
        warn(*arguments)
        told.set()

    monkeypatch.setattr(module.logger, "warning", warn_and_tell)
    server.away = True
    outbox = open_outbox()
    put(outbox, 0, 1)
    assert told.wait(30)
    server.away = False
    assert outbox.flush(30)
    away, back = caplog.messages
    assert "has not answered for 0 s (nobody there)" in away
    assert str(outbox.folder) in away
    assert back == "the tracking server is back: 2 waiting entries are sent"


def test_short_outages_are_not_told(
    server: Server, open_outbox: Callable[[], Outbox], caplog: pytest.LogCaptureFixture
) -> None:
    server.away = True
    outbox = open_outbox()
    put(outbox, 0)
    server.away = False
    assert outbox.flush(30)
    assert not caplog.messages


KILLED = """
import os, signal, sys
from pathlib import Path
from captcha.tracking.outbox import Outbox

def job(folder, taken, line):
    def send(call, run, files, arguments):
        with taken.open("a") as file:
            file.write(f"{arguments['n']}\\n")
    outbox, left = Outbox(folder, "0123", send), [line]
    def trace(frame, event, argument):
        if frame.f_code.co_filename.endswith(("outbox.py", "files.py")):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace
    sys.settrace(trace)
    for n in range(3):
        outbox.put("metrics", {"n": n})
    outbox.flush(5)

def ended(*arguments):
    child = os.fork()
    if child == 0:
        job(*arguments)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

place, line = Path(sys.argv[1]), 1
while True:
    files = place / str(line), place / f"{line}.txt"
    first = ended(*files, line)
    print(line, first, ended(*files, 0))
    if first == 0:
        break
    line += 5
"""


def test_a_kill_at_any_line_loses_nothing(tmp_path: Path) -> None:
    """Real processes, each of which kills itself at one of the lines that the outbox runs; another goes on."""
    script = tmp_path / "job.py"
    script.write_text(KILLED)
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert not done.stderr
    rows = [list(map(int, row.split())) for row in done.stdout.splitlines()]
    assert [first for _, first, _ in rows] == [-9] * (len(rows) - 1) + [0]
    assert len(rows) > 20
    for line, _, second in rows:
        numbers = [int(each) for each in (tmp_path / f"{line}.txt").read_text().split()]
        # The entry being sent as the kill came may be sent twice: the calls can be repeated.
        assert (second, list(dict.fromkeys(numbers))) == (0, [0, 1, 2]), line
        assert len(numbers) <= 4
        assert json.loads((tmp_path / str(line) / "sent.json").read_text())["said"] == 3


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (requests.ConnectionError("refused"), True),
        (requests.ReadTimeout("silent"), True),
        (OSError(28, "No space left on device"), True),
        (MlflowException("API request to http://x failed with exception HTTPConnectionPool(…)"), True),
        (MlflowException("API request to endpoint /x failed with error code 503 != 200."), True),
        (MlflowException("(sqlite3.OperationalError) database is locked"), True),
        (MlflowException("Run with id=0 not found", error_code=3), False),
        (MlflowException("connection is no key", error_code=3), False),
        (TypeError("a fault of ours"), False),
        (StoreError("the server is away"), True),
        (CaptchaError("no such model"), False),
    ],
)
def test_an_outage_is_told_from_a_refusal(error: Exception, outage: bool) -> None:
    assert is_outage(error) is outage


@pytest.mark.parametrize(("cause", "outage"), [(requests.ConnectionError("refused"), True), (ValueError("x"), False)])
def test_an_error_of_ours_is_an_outage_where_it_came_of_one(cause: Exception, outage: bool) -> None:
    def explain() -> None:
        try:
            raise cause
        except Exception:
            raise CaptchaError("the run cannot be found") from None

    with pytest.raises(CaptchaError) as explained:
        explain()
    assert is_outage(explained.value) is outage
