"""Processes that log at once, each as a training does: in a run of its own, through its outbox.

    python -m tests.team_loggers PROCESSES STEPS

Prints a line of JSON for each: its run, and the seconds that each of its entries of metrics took.
"""

import gc
import json
import os
import sys
import time


def main(processes: int, steps: int) -> None:
    """Fork the processes once everything is imported; each begins its run, and when all have, they log at once."""
    from captcha.tracking import entries, runs  # noqa: F401

    gc.freeze()
    waiting, all_there = os.pipe()
    children = []
    for number in range(processes):
        begun, tell = os.pipe()
        if (child := os.fork()) == 0:
            os.close(all_there)
            _log(number, steps, tell, waiting)
            os._exit(0)
        os.close(tell)
        os.read(begun, 1)  # which gives nothing where the process has failed
        os.close(begun)
        children.append(child)
    os.close(all_there)
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit("a process has failed")


def _log(number: int, steps: int, tell: int, waiting: int) -> None:
    from captcha.tracking.entries import log_metrics
    from captcha.tracking.runs import tracked_run

    seconds = []
    with tracked_run(f"logger {number}") as run:
        os.write(tell, b".")
        os.read(waiting, 1)  # until the parent closes its end
        for step in range(steps):
            begun = time.perf_counter()
            log_metrics({"train/loss": value(number, step), "val/exact_match": step / steps}, step)
            seconds.append(time.perf_counter() - begun)
    os.write(1, (json.dumps({"run": run.info.run_id, "number": number, "seconds": seconds}) + "\n").encode())


def value(number: int, step: int) -> float:
    """Return what a process logs in a step: another number for each."""
    return number + step / 1024


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
