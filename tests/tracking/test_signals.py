"""Real signals to real processes, which import nothing heavy."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

START = "import signal, sys, time\nfrom captcha.tracking import signals\nsignals.listen()\n"
Ended = tuple[int, str]


@pytest.fixture
def ended_by() -> Callable[..., Ended]:
    """A function that runs a program until it says ready, sends it signals, and gives its exit code and output."""

    def run(program: str, *numbers: int, pause: float = 0.05) -> Ended:
        with subprocess.Popen(
            [sys.executable, "-uc", START + program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:  # fmt: skip
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            for number in numbers:
                process.send_signal(number)
                time.sleep(pause)
            said = process.communicate(timeout=60)[0]
        return process.returncode, said

    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_process_with_the_code_that_names_it(number: int, ended_by: Callable[..., Ended]) -> None:
    assert ended_by("print('ready'); time.sleep(60)", number) == (128 + number, "")


def test_a_signal_that_comes_in_a_destructor_is_raised_again(ended_by: Callable[..., Ended]) -> None:
    program = """
class Swallows:
    def __del__(self):
        print("ready")
        time.sleep(0.5)
Swallows()
time.sleep(60)
"""
    code, said = ended_by(program, signal.SIGTERM)
    assert code == 143
    assert "Exception ignored" in said  # Python dropped the first


def test_a_second_and_a_third_signal_do_not_disturb_the_end(ended_by: Callable[..., Ended]) -> None:
    program = """
try:
    print("ready")
    time.sleep(60)
except SystemExit:
    signals.heed()
    time.sleep(2.5)
    print("ended in order")
    raise
"""
    assert ended_by(program, *[signal.SIGTERM] * 3, pause=0.3) == (143, "ended in order\n")


def test_an_end_under_way_is_not_interrupted_even_before_anybody_heeds_the_signal(
    ended_by: Callable[..., Ended],
) -> None:
    program = """
try:
    print("ready")
    time.sleep(60)
finally:
    time.sleep(2.5)
    print("cleaned up")
"""
    assert ended_by(program, signal.SIGTERM) == (143, "cleaned up\n")


def test_a_step_is_not_broken_off_but_ended(ended_by: Callable[..., Ended]) -> None:
    program = """
for step in range(100):
    with signals.held():
        print("ready" if step == 0 else "began", flush=True)
        time.sleep(0.3)
        print("done")
"""
    code, said = ended_by(program, signal.SIGTERM)
    assert (code, said) == (143, "done\n")


def test_a_signal_waits_for_the_outermost_end_and_is_known_meanwhile(ended_by: Callable[..., Ended]) -> None:
    program = """
with signals.held():
    with signals.held():
        print("ready")
        time.sleep(0.3)
    print("within", signals.held_back())
print("never")
"""
    assert ended_by(program, signal.SIGTERM) == (143, "within 15\n")


def test_after_listening_anew_the_next_signal_ends_the_process(ended_by: Callable[..., Ended]) -> None:
    program = """
try:
    print("ready")
    time.sleep(60)
except SystemExit:
    signals.heed()
    signals.listen_anew()
    print("goes on")
time.sleep(60)
"""
    assert ended_by(program, signal.SIGINT, signal.SIGTERM, pause=0.5) == (143, "goes on\n")
