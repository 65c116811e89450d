"""Time to an exact match on validation images: `compact` against the net and recipe of Keras's `captcha_ocr`.

    make bench-training CAPTCHA_DATA=../captcha-v2

For each seed both learn from the same images and are measured on the same others, this project's split of the folder,
in turn, on one thread each. Writes training.md and training.png and logs an MLflow run in captcha-benchmarks.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
from matplotlib.figure import Figure

import captcha
from benchmarks import report
from benchmarks.bench import EXPERIMENT, ROOT, BenchError, add_places
from captcha.jobs.train import parse_sources, split_of
from captcha.settings import TrainSettings
from captcha.tracking.runs import connect

OURS, KERAS = "compact", "Keras captcha_ocr"
KERAS_EPOCHS = 100
"""As many as the example trains at most."""


@dataclass(frozen=True)
class Training:
    """How a training went, until it reached the target or was ended."""

    seconds: list[float]
    """Since the first step, after each epoch and its validation."""
    exact_match: list[float]
    """On the validation images, after each epoch."""
    target: float
    parameters: int
    processor_seconds: float
    """What it has had of a processor in all: wall time without what other processes took."""

    @property
    def reached(self) -> bool:
        """Whether it reached the target."""
        return self.exact_match[-1] >= self.target

    def __str__(self) -> str:
        took = f"{self.seconds[-1]:.0f} s ({self.processor_seconds:.0f} s), {len(self.seconds)} epochs"
        return took if self.reached else f"> {took}; at best {max(self.exact_match):.1%}"


def trained(command: Sequence[str], target: float, minutes: float) -> Training:
    """Run a training until its exact match is at the target, the time is over, or it ends by itself.

    Raises:
        BenchError: it ended before its first epoch.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=_one_thread())
    over = threading.Timer(60 * minutes, process.kill)
    over.start()
    seconds, matches, parameters, processor_seconds = [], [], 0, 0.0
    try:
        assert process.stdout
        for line in process.stdout:
            said = json.loads(line)
            parameters = said.get("parameters", parameters)
            if "epoch" in said:
                seconds.append(said["seconds"])
                matches.append(said["exact_match"])
                processor_seconds = said["processor_seconds"]
                print(
                    f"  epoch {said['epoch']:3}  {said['seconds']:6.0f} s  {said['exact_match']:.1%}", file=sys.stderr
                )
                if said["exact_match"] >= target:
                    break
    finally:
        over.cancel()
        process.kill()
        process.communicate()
    if not seconds:
        raise BenchError(f"no epoch of {' '.join(command)} ended, see above")
    return Training(seconds, matches, target, parameters, processor_seconds)


def _one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def write_split(settings: TrainSettings, file: Path) -> tuple[int, int]:
    """Write the split of a folder for the net of Keras; return how many images it has to train on and to validate."""
    split = split_of(settings, parse_sources(settings))
    parts = {"train": split.train, "validation": split.validation}
    listed = {
        side: [(str((each.folder / each.name).resolve()), each.text) for each in samples if each.folder]
        for side, samples in parts.items()
    }
    file.write_text(json.dumps(listed))
    return len(listed["train"]), len(listed["validation"])


def ratio(ours: Training, keras: Training) -> str:
    """Return ours as a share of Keras's time and, in brackets, of its time on the processor.

    It is at most that where Keras's did not reach the target.
    """
    if not ours.reached:
        return "not known"
    shares = ours.seconds[-1] / keras.seconds[-1], ours.processor_seconds / keras.processor_seconds
    return "{}{:.3f} ({:.3f})".format("" if keras.reached else "< ", *shares)


def table(found: Mapping[int, tuple[Training, Training]]) -> str:
    """Return the trainings of each seed, ours and that of Keras, as a Markdown table."""
    rows = [[str(seed), str(ours), str(keras), ratio(ours, keras)] for seed, (ours, keras) in found.items()]
    return report.table(["seed", OURS, KERAS, "ours / Keras (target ≤ 0.25)"], rows)


def figure(found: Mapping[int, tuple[Training, Training]], target: float, title: str) -> Figure:
    """Return a figure of exact match over the time of training, a line for each seed."""
    drawn = Figure(figsize=(9, 4.2), dpi=110, layout="constrained")
    axes = drawn.subplots()
    first = next(iter(found))
    for seed, pair in found.items():
        for name, training, colour in zip((OURS, KERAS), pair, (report.OURS, report.THEIRS), strict=True):
            label = name if seed == first else None
            axes.plot([0, *training.seconds], [0, *training.exact_match], color=colour, label=label, linewidth=1.6)
            if training.reached:
                axes.plot(training.seconds[-1], training.exact_match[-1], "o", color=colour, markersize=6)
    axes.axhline(target, color=report.FAINT, linestyle=":", linewidth=1, label=f"{target:.0%}, where each ends")
    axes.set(xlabel="seconds since the first step, one thread", ylabel="exact match, validation", ylim=(-0.02, 1.03))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    axes.set_title(title, loc="left", fontsize=10, color=report.INK)
    return drawn


def arguments() -> argparse.Namespace:
    """Return what the person has asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of labelled images of about 200 x 50 pixels, such as captcha-v2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--target", type=float, default=0.99, help="exact match at which a training is ended")
    parser.add_argument("--minutes", type=float, default=30, help="after which a training is ended, each by itself")
    add_places(parser)
    return parser.parse_args()


def main() -> None:
    """Train in turn, write, log, print."""
    asked = arguments()
    if not asked.data:
        raise BenchError("name the folder of labelled images: make bench-training CAPTCHA_DATA=DIR")
    if not asked.peers.exists():
        raise BenchError(f"there is no {asked.peers}: make build/bench/.installed")
    data = Path(asked.data).resolve()
    if hasattr(os, "sched_setaffinity"):  # both trainings inherit it: one core, whatever threads they have beside
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found: dict[int, tuple[Training, Training]] = {}
    sizes = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in asked.seeds:
            split = Path(temporary) / f"{seed}.json"
            settings = TrainSettings(data=str(data), backbone="compact", seed=seed)
            sizes.append("{} and {}".format(*write_split(settings, split)))
            ours = [sys.executable, "-m", "benchmarks.train_compact", str(data), str(seed)]
            script = str(ROOT / "benchmarks" / "train_keras.py")
            theirs = [str(asked.peers), script, str(split), str(seed), str(KERAS_EPOCHS)]
            print(f"seed {seed}: {OURS}", file=sys.stderr)
            first = trained(ours, asked.target, asked.minutes)
            print(f"seed {seed}: {KERAS}", file=sys.stderr)
            found[seed] = (first, trained(theirs, asked.target, asked.minutes))

    facts = report.machine()
    parameters = [training.parameters for training in found[asked.seeds[0]]]
    text = "\n\n".join(
        [
            f"# Time to {asked.target:.0%} exact match",
            f"Written by `make bench-training`. {OURS} ({parameters[0]:,} parameters) as `captcha train --backbone "
            f"compact` trains it, without MLflow's logging, and the net and recipe of Keras's example captcha_ocr "
            f"({parameters[1]:,} parameters), on {data.name}: {'; '.join(sizes)} images to train on and to validate "
            f"with, the same for both. One thread each, in turn. The time is that from the first step to the first "
            f"epoch whose validation shows {asked.target:.0%}, validation included, and in brackets the time on the "
            f"processor, which other processes on the machine do not lengthen; a training that has not reached "
            f"it after {asked.minutes:g} minutes or {KERAS_EPOCHS} epochs of Keras's is shown with >.",
            "![Exact match over the time of training](training.png)",
            table(found),
            "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        ]
    )
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "training.md").write_text(text + "\n")
    title = f"{data.name}, seeds {', '.join(map(str, asked.seeds))}; {facts['processor']}, {facts['instructions']}"
    figure(found, asked.target, title).savefig(asked.out / "training.png")
    log(asked.out, found, {"data": data.name, "target": asked.target, "minutes": asked.minutes} | facts)
    print(text)


def log(out: Path, found: Mapping[int, tuple[Training, Training]], params: Mapping[str, object]) -> None:
    """Log the table, the picture and the curves as an MLflow run, epochs as steps."""
    connect(writing=True)
    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run(run_name="training"):
        mlflow.log_params(dict(params))
        for seed, pair in found.items():
            for name, training in zip(("compact", "keras"), pair, strict=True):
                for epoch, (seconds, match) in enumerate(zip(training.seconds, training.exact_match, strict=True), 1):
                    values = {f"seconds/{name}_seed_{seed}": seconds, f"exact_match/{name}_seed_{seed}": match}
                    mlflow.log_metrics(values, step=epoch)
        mlflow.log_artifact(str(out / "training.md"))
        mlflow.log_artifact(str(out / "training.png"))


if __name__ == "__main__":
    try:
        main()
    except captcha.CaptchaError as error:
        sys.exit(f"bench-training: {error}")
