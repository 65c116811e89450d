"""This project's recognisers against what others use: speed in turn on one machine, exact match on the same images.

    make bench
    make bench BENCH_DATA=../images MODELS="compact=models:/captcha-crnn@champion student=models:/captcha-student/1"

Each contestant is a process of its own (contestant.py). All are asked in turn, in many short rounds, so that whatever
else the machine does hits all alike; ratios are taken round by round. Writes speed.md and speed.png and logs an MLflow
run in the experiment captcha-benchmarks.
"""

import argparse
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import mlflow
import psutil  # type: ignore[import-untyped]

import captcha
from benchmarks import report
from benchmarks.report import MEASURES, Contestant
from captcha.data.samples import ImageMemory, Sample
from captcha.data.seen import SeenPixels
from captcha.data.sources import parse_folder
from captcha.jobs.draw import draw
from captcha.reading.engine import MODEL_FILES, Precision
from captcha.reading.images import load_image
from captcha.reading.recognizer import ARTIFACT, Recognizer, save_recognizer
from captcha.tracking.models import WEIGHTS_FILE, WEIGHTS_FOLDER, download, load_parent
from captcha.tracking.runs import connect
from captcha.training.checkpoint import Checkpoint
from captcha.training.export import to_int8, to_onnx
from captcha.training.model import Crnn

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
EXPERIMENT = "captcha-benchmarks"

DRAWN_STYLE, DRAWN_IMAGES, DRAWN_SEED = "kaptcha", 500, 0
TRAINED = ["--backbone", "compact", "--epochs", "6"]
"""Options of the training where no model is named: those of `make train`."""

UNTRAINED, CALIBRATION_IMAGES = ("student", "resnet18"), 16
"""What is measured untrained, for its speed alone, where no such model is named."""

THREADS = (1, 2)
ASKED = {
    report.MODEL_ONE: ("model", 1, 16),
    report.MODEL_BATCH: ("model", 16, 16),
    report.TEXT_ONE: ("text", 1, 16),
    report.TEXT_MANY: ("text", 64, 64),
}
"""Of each measure: its part, how many images are given together, and how many in a round."""


class BenchError(captcha.CaptchaError):
    """A benchmark that cannot be made; one line that says why and what to do."""


@dataclass(frozen=True)
class Entry:
    """A contestant as it is started; see contestant.py for `kind` and `argument`."""

    contestant: Contestant
    python: Path
    kind: str
    argument: str
    trained: bool = True
    """Whether what it reads means anything."""


class Worker:
    """A contestant's process."""

    def __init__(self, entry: Entry, threads: int) -> None:
        self.name = entry.contestant.name
        command = [str(entry.python), str(ROOT / "benchmarks" / "contestant.py"), entry.kind, entry.argument]
        self._process = subprocess.Popen(
            [*command, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )

    def ask(self, measure: str, files: Sequence[Path], together: int = 1) -> Any:
        """Return what `contestant.answer` returns."""
        assert self._process.stdin
        request = {"measure": measure, "files": [str(each) for each in files], "together": together}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self.heard()

    def heard(self) -> Any:
        """Return the next answer.

        Raises:
            BenchError: the process has ended.
        """
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(
                f"{self.name} ended with exit code {self._process.wait()}: run its line by hand to see why"
            )
        return json.loads(line)

    def processor_seconds(self) -> float:
        """Return the time on a processor that the process has had so far."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def workers(entries: Sequence[Entry], threads: int) -> Iterator[tuple[dict[str, Worker], dict[str, str]]]:
    """Start all contestants; yield those that have loaded, by their names, and the versions of their packages.

    Those that have not are named on stderr and left out.
    """
    with ExitStack() as stack:
        started: dict[str, Worker] = {}
        versions: dict[str, str] = {}
        for entry in entries:  # one after another, so that each loads alone
            worker = Worker(entry, threads)
            stack.callback(worker.close)
            said = worker.heard()
            if "error" in said:
                print(f"left out: {worker.name}: {said['error']}", file=sys.stderr)
            else:
                started[worker.name] = worker
                versions |= said["versions"]
        yield started, versions


def peers(python: Path) -> list[Entry]:
    """Return the contestants of others, run in their own environment."""
    named = (
        ("ddddocr", "default", "ddddocr", "common_old.onnx"),
        ("ddddocr beta", "beta", "ddddocr", "common.onnx"),
        ("captcha-whisperer", "default", "captcha_whisperer", "models/captcha_crnn.onnx"),
    )
    packages = next(iter(python.parent.parent.glob("lib/python*/site-packages")), None)
    if packages is None or not all((packages / package / file).exists() for _, _, package, file in named):
        raise BenchError(f"{python} has not the packages of benchmarks/peers.txt: make build/bench/.installed")
    return [
        Entry(
            Contestant(name, package, False, (packages / package / file).stat().st_size / 1e6),
            python,
            "ddddocr" if package == "ddddocr" else "whisperer",
            which,
        )
        for name, which, package, file in named
    ]


@dataclass(frozen=True)
class Model:
    """A model of this project, its files on this machine."""

    name: str
    recognizer: Path
    weights: bytes | None = None
    """A safetensors file's content, where it is known."""
    seen: SeenPixels | None = None
    """What its training saw, where that is known."""


def model_named(name: str, named: str, folder: Path) -> Model:
    """Return the model that is a recogniser's folder, or that MLflow has under this name; it is copied to the folder.

    Raises:
        RegistryError, CheckpointError: there is no such model, or it is damaged.
    """
    if captcha.is_folder(named):
        return Model(name, Path(named))
    folder.mkdir()
    parent = load_parent(named)
    weights = Checkpoint.from_bytes(parent.weights, parent.meaning).to_bytes()
    return Model(name, download(named, folder) / "artifacts" / ARTIFACT, weights, parent.seen)


def model_trained_here() -> Model:
    """Return a compact model trained on drawn images, as `make train` does; it is kept for the next time.

    Its runs stand in a store of its own, so that the registry stays as it is.
    """
    store = BUILD / "trained"
    if not (store / "done").exists():
        print("no model was named: compact is trained on drawn images first", file=sys.stderr)
        shutil.rmtree(store, ignore_errors=True)
        store.mkdir(parents=True)
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{store / 'mlflow.db'}"}
        subprocess.run([sys.executable, "-m", "captcha", "train", *TRAINED], cwd=store, env=environment, check=True)
        (store / "done").touch()
    (recognizer,) = store.glob(f"mlruns/*/models/*/artifacts/artifacts/{ARTIFACT}")
    (weights,) = store.glob(f"mlruns/*/*/artifacts/{WEIGHTS_FOLDER}/{WEIGHTS_FILE}")
    return Model("compact", recognizer, weights.read_bytes())


def own(model: Model, folder: Path) -> list[Entry]:
    """Return the contestants that a model of this project is; its weights are written to the folder."""
    python = Path(sys.executable)
    entries = [
        Entry(
            Contestant(f"{model.name} {engine}", model.name, True, _megabytes(model.recognizer, engine)),
            python,
            engine,
            str(model.recognizer),
        )
        for engine in MODEL_FILES
    ]
    if model.weights:
        weights = folder / f"{model.name}.safetensors"
        weights.write_bytes(model.weights)
        contestant = Contestant(f"{model.name} {report.PYTORCH}", model.name, True, len(model.weights) / 1e6)
        entries.append(Entry(contestant, python, "torch", str(weights)))
    return entries


def _megabytes(recognizer: Path, engine: Precision) -> float:
    file = recognizer / MODEL_FILES[engine]
    return file.stat().st_size / 1e6 if file.exists() else 0.0


def untrained(backbone: str, like: Path, images: Sequence[Path], folder: Path) -> list[Entry]:
    """Return an untrained model of this backbone, for its speed alone.

    Args:
        backbone: its name.
        like: a recogniser that has the vocabulary and the height.
        images: files to calibrate int8 with.
        folder: new.
    """
    recognizer = Recognizer.load(like)
    onnx = to_onnx(Crnn(backbone, recognizer.vocabulary, recognizer.height))
    int8 = to_int8(onnx, recognizer.height, [load_image(image) for image in images])
    save_recognizer(folder, onnx, recognizer.vocabulary, recognizer.height, int8)
    return [replace(entry, trained=False) for entry in own(Model(backbone, folder), folder)]


def images_of(data: Path, models: Sequence[Model], most: int) -> tuple[list[Sample], int]:
    """Return the labelled images of a folder, `most` at most, and how many a model's training saw: they are left out.

    Raises:
        DataError: there are no such images.
        BenchError: none is left.
    """
    samples = parse_folder(str(data)).samples(64, memory=ImageMemory(0), left_out=[])
    flags = [model.seen.among(samples) for model in models if model.seen]
    unseen = [sample for place, sample in enumerate(samples) if not any(each[place] for each in flags)]
    if not unseen:
        raise BenchError(f"{data} has no image that the models have not been trained on: name another folder")
    step = -(-len(unseen) // most)
    return unseen[::step], len(samples) - len(unseen)


def right_of(texts: Sequence[str | None], samples: Sequence[Sample]) -> int:
    """Return how many texts are the labels, upper and lower case alike; None, a refused image, is wrong."""
    pairs = zip(texts, samples, strict=True)
    return sum(text is not None and text.casefold() == sample.text.casefold() for text, sample in pairs)


def measure(
    running: Mapping[str, Worker], files: Sequence[Path], rounds: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Return the seconds an image of each measure, contestant and round, after a round that is not counted.

    Ends before `rounds` if `seconds` have gone by.
    """
    measured: dict[str, dict[str, list[float]]] = {each: {name: [] for name in running} for each in MEASURES}
    names = list(running)
    began = time.monotonic()
    for number in range(-1, rounds):
        if number > 0 and time.monotonic() - began > seconds:
            break
        for each in MEASURES:
            part, together, count = ASKED[each]
            first = max(number, 0) * count if part == "text" else 0  # the model alone: always the same images
            chosen = [files[place % len(files)] for place in range(first, first + count)]
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                taken = running[name].ask(part, chosen, together)
                if number >= 0:
                    measured[each][name].append(taken)
        if sys.stderr.isatty():
            print(f"\rround {number + 1} of {rounds} ", end="", file=sys.stderr)
    return measured


@contextmanager
def load_of_others(running: Mapping[str, Worker]) -> Iterator[list[float]]:
    """Yield a list that in the end holds the share of the processors that other processes took meanwhile."""

    def now() -> tuple[float, float]:
        times = psutil.cpu_times()._asdict()
        idle = times["idle"] + times.get("iowait", 0.0)
        guest = times.get("guest", 0.0) + times.get("guest_nice", 0.0)  # counted in user and nice, too
        mine = psutil.Process().cpu_times()
        ours = mine.user + mine.system + sum(worker.processor_seconds() for worker in running.values())
        return sum(times.values()) - guest - idle - ours, sum(times.values()) - guest

    share: list[float] = []
    others, whole = now()
    yield share
    others_then, whole_then = now()
    share.append(max(0.0, others_then - others) / max(whole_then - whole, 1e-9))


@dataclass
class Results:
    """What was measured."""

    contestants: list[Contestant]
    rounds: dict[int, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    """Seconds an image, by the number of threads, the measure and the contestant."""
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """Sentences on how it went."""


def compare(entries: Sequence[Entry], samples: Sequence[Sample], rounds: int, seconds: float) -> Results:
    """Let all contestants read all samples, and time them with each number of threads that the machine has."""
    files = [sample.folder / sample.name for sample in samples if sample.folder]
    results = Results([])
    for threads in THREADS:
        if threads > (os.cpu_count() or 1):
            continue
        with workers(entries, threads) as (running, versions):
            results.versions |= versions
            if not results.contestants:
                entries = [entry for entry in entries if entry.contestant.name in running]
                files = _read(running, entries, files, samples, results)
            with load_of_others(running) as share:
                results.rounds[threads] = measure(running, files, rounds, seconds)
        done = len(next(iter(results.rounds[threads][MEASURES[0]].values())))
        results.notes.append(
            f"Rounds with {threads} {'thread' if threads == 1 else 'threads'}: {done}; meanwhile other processes took "
            f"{share[0]:.0%} of the processors."
        )
    return results


def _read(
    running: Mapping[str, Worker],
    entries: Sequence[Entry],
    files: Sequence[Path],
    samples: Sequence[Sample],
    results: Results,
) -> list[Path]:
    """Note of each contestant how much it reads; return the files that none refuses, to be timed on."""
    refused: set[int] = set()
    for entry in entries:
        name = entry.contestant.name
        texts = running[name].ask("read", files)
        refuses = {place for place, text in enumerate(texts) if text is None}
        if refuses:
            results.notes.append(f"{name} refuses {len(refuses)} of the images, which count as wrong.")
        refused |= refuses
        right = right_of(texts, samples) if entry.trained else None
        results.contestants.append(replace(entry.contestant, right=right))
    if len(refused) == len(files):
        raise BenchError("every image is refused by some contestant: name other images")
    return [file for place, file in enumerate(files) if place not in refused]


def written(results: Results, baseline: str, facts: Mapping[str, str], images: int, data: str) -> str:
    """Return the report in Markdown; `baseline` is the contestant that the others are compared with."""
    parts = [
        "# Speed",
        f"Written by `make bench`. Images: {data}. " + " ".join(results.notes),
        "Images a second are the median of the rounds, with the least and the greatest; times is how many times "
        f"{baseline} that is, taken round by round. Model alone: prepared images through the model, no decoding; "
        "ddddocr's models take one image at a time, so their batches are single images. File to text: the bytes of "
        "an image file to its text, by what each package offers its users; this project's also gives the exact "
        "probability of the text and of each character. Exact match takes upper and lower case as the same for all, "
        "because captcha-whisperer knows upper case only.",
        "![Images a second of each contestant](speed.png)",
        report.contestant_table(results.contestants, images),
        "## Targets",
        f"How many times as fast as {baseline}, the faster of ddddocr's models; each at a higher exact match:",
        report.target_table(report.verdicts(results.contestants, results.rounds[1], baseline), images),
    ]
    for threads, rounds in results.rounds.items():
        parts.append(f"## {'One thread' if threads == 1 else f'{threads} threads'}")
        parts.append(report.speed_table(rounds, (report.MODEL_ONE, report.MODEL_BATCH), baseline))
        parts.append(report.speed_table(rounds, (report.TEXT_ONE, report.TEXT_MANY), baseline))
    parts += ["## Machine", "\n".join(f"- {name}: {value}" for name, value in facts.items())]
    return "\n\n".join(parts) + "\n"


def log(out: Path, results: Results, params: Mapping[str, str], images: int) -> None:
    """Log the report, the picture, all rounds and the medians as an MLflow run."""
    connect(writing=True)
    mlflow.set_experiment(EXPERIMENT)
    metrics = {
        f"{_key(each)}/{_key(name)}/{threads}_threads": 1 / median(seconds)
        for threads, measures in results.rounds.items()
        for each, rounds in measures.items()
        for name, seconds in rounds.items()
    }
    for each in results.contestants:
        if each.right is not None:
            metrics[f"exact_match/{_key(each.name)}"] = each.right / images
    with mlflow.start_run(run_name="speed"):
        mlflow.log_params(dict(params))
        mlflow.log_metrics(metrics)
        mlflow.log_dict({str(threads): rounds for threads, rounds in results.rounds.items()}, "seconds.json")
        mlflow.log_artifact(str(out / "speed.md"))
        mlflow.log_artifact(str(out / "speed.png"))


def _key(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def named_model(argument: str) -> tuple[str, str]:
    """Return name and model of NAME=MODEL."""
    name, _, model = argument.partition("=")
    if not name or not model:
        raise argparse.ArgumentTypeError(
            f"{argument!r}: write NAME=MODEL, such as compact=models:/captcha-crnn@champion"
        )
    return name, model


def arguments() -> argparse.Namespace:
    """Return what the person has asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=named_model, metavar="NAME=MODEL", help="compact, student, resnet18")
    parser.add_argument("--data", type=Path, help="folder of labelled images; none: drawn ones")
    parser.add_argument("--images", type=int, default=1000, help="at most so many of it, evenly chosen")
    parser.add_argument("--rounds", type=int, default=20, help="for each number of threads")
    parser.add_argument("--seconds", type=float, default=240, help="after which no round begins, for each of them")
    add_places(parser)
    return parser.parse_args()


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the peers are, and where to write."""
    parser.add_argument("--peers", type=Path, default=BUILD / "venv/bin/python", help="the peers' Python")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks", help="folder for the table and picture")


def main() -> None:
    """Measure, write, log, print."""
    asked = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        entries = peers(asked.peers)
        models = [model_named(name, named, folder / name) for name, named in asked.models] or [model_trained_here()]
        for model in models:
            entries += own(model, folder)
        data = asked.data
        if data is None:
            data = folder / "drawn"
            draw(data, DRAWN_STYLE, DRAWN_IMAGES, DRAWN_SEED)
        samples, left_out = images_of(data, models, asked.images)
        calibration = [sample.folder / sample.name for sample in samples[:CALIBRATION_IMAGES] if sample.folder]
        for backbone in UNTRAINED:
            if backbone not in [model.name for model in models]:
                entries += untrained(backbone, models[0].recognizer, calibration, folder / f"untrained-{backbone}")
        results = compare(entries, samples, asked.rounds, asked.seconds)

    described = f"{len(samples)} of {data.resolve().name}"
    if asked.data is None:
        described = f"{len(samples)} drawn in the style {DRAWN_STYLE}"
        if not asked.models:
            described += ", in which this project's model was trained, and no other"
    if left_out:
        described += f"; {left_out} that a model's training saw are left out"
    versions = results.versions | {"captcha": version("captcha-crnn")}
    facts = report.machine() | {"versions": ", ".join(f"{name} {versions[name]}" for name in sorted(versions))}
    of_ddddocr = [each.name for each in results.contestants if each.model == "ddddocr"]
    baseline = report.fastest(of_ddddocr, results.rounds[1][report.MODEL_BATCH])
    text = written(results, baseline, facts, len(samples), described)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "speed.md").write_text(text)
    title = f"{facts['processor']}, {facts['cores']} cores, {facts['instructions']}\nimages: {described}"
    figure = report.speed_figure(results.contestants, results.rounds, baseline, len(samples), title)
    figure.savefig(asked.out / "speed.png")
    params = {"data": described, "baseline": baseline, **{f"model.{name}": named for name, named in asked.models}}
    log(asked.out, results, params | facts, len(samples))
    print(text)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    try:
        main()
    except captcha.CaptchaError as error:
        sys.exit(f"bench: {error}")
