"""What `captcha score` takes here and on Spark: python benchmarks/scoring.py MODEL [COUNT…].

MODEL is models:/NAME@ALIAS or models:/NAME/VERSION; the counts of images are 1,000, 10,000 and 100,000 where none is
given. Each line is a command of its own on the same drawn images: 200 pictures under as many names as are needed. The
seconds are those that the command itself gives, from the first image to the last part; the milliseconds an image are
those beyond what it takes for one image, which stands first: Spark's start. A worker of Spark is two processes, one
that reads images and one that runs the model, beside Java: so one worker is kept to one core, and two to two. The
memory is the most that the command and all its processes had at once, shared pages counted by halves (PSS), looked at
every two seconds.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from captcha.data.folders import encode_png
from captcha.drawing.rendering import draw

ENGINES = {
    "local": (1, ["--engine=local"]),
    "Spark local[1]": (1, ["--engine=spark", "--master=local[1]"]),
    "Spark local[2]": (2, ["--engine=spark", "--master=local[2]"]),
}
"""Cores and options."""

PICTURES, SAMPLED_SECONDS = 200, 2.0
ALL_CORES = os.sched_getaffinity(0)


def folder_of(count: int, below: Path) -> Path:
    """Return a folder of so many images: hard links to PICTURES drawn ones."""
    drawn, folder = below / "drawn", below / str(count)
    if not drawn.exists():
        drawn.mkdir()
        for number, (_, image) in enumerate(draw("kaptcha", PICTURES, seed=1)):
            (drawn / f"{number}.png").write_bytes(encode_png(image))
    for number in range(count):
        link = folder / f"{number // 1000:03}" / f"{number:06}.png"
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(drawn / f"{number % PICTURES}.png", link)
    return folder


def run(source: Path, output: Path, model: str, cores: int, options: list[str]) -> tuple[float, float]:
    """Score a folder in a process of its own on so many cores; return its seconds, and the most memory in MB."""
    os.sched_setaffinity(0, sorted(ALL_CORES)[:cores])  # the process inherits it
    command = [sys.executable, "-m", "captcha", "score", str(source), str(output), "--model", model, "--json", *options]
    environment = {"CAPTCHA_THREADS": "1"} | dict(os.environ)
    most = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        while process.poll() is None:
            most = max(most, memory(psutil.Process(process.pid)))
            time.sleep(SAMPLED_SECONDS)
        assert process.stdout
        outcome = json.loads(process.stdout.read())
    assert (outcome["images"], outcome["errors"]) == (sum(1 for _ in source.rglob("*.png")), 0)
    return outcome["seconds"], most


def memory(process: psutil.Process) -> float:
    """Return the memory of a process and of those that it has started, in MB."""
    total = 0
    for each in [process, *children(process)]:
        try:
            total += each.memory_full_info().pss
        except psutil.Error:  # it has ended
            continue
    return total / 2**20


def children(process: psutil.Process) -> list[psutil.Process]:
    """Return the processes that a process has started, and that those have; none where it has ended."""
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def main(model: str, counts: list[int]) -> None:
    """Print the table."""
    print(f"{'images':>7}  {'engine':14}  {'seconds':>8}  {'ms an image':>11}  {'images a second':>15}  {'MB':>6}")
    with tempfile.TemporaryDirectory() as temporary:
        start: dict[str, float] = {}
        for count in [1, *counts]:
            source = folder_of(count, Path(temporary))
            for engine, (cores, options) in ENGINES.items():
                seconds, megabytes = run(source, Path(temporary, f"out {engine} {count}"), model, cores, options)
                each = (seconds - start.setdefault(engine, seconds)) / count
                figures = f"{each * 1e3:11.2f}  {1 / each:15.1f}" if each > 0 else f"{'':11}  {'':15}"
                print(f"{count:7}  {engine:14}  {seconds:8.1f}  {figures}  {megabytes:6.0f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], [int(each) for each in sys.argv[2:]] or [1_000, 10_000, 100_000])
