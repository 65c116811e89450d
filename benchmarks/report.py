"""Rounds of seconds → ratios pair by pair, tables in Markdown, a picture; and what the machine is."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Self

from matplotlib.axes import Axes
from matplotlib.figure import Figure

MODEL_ONE, MODEL_BATCH = "model alone, one image", "model alone, batches of 16"
TEXT_ONE, TEXT_MANY = "file to text, one image", "file to text, 64 images"
MEASURES = (MODEL_ONE, MODEL_BATCH, TEXT_ONE, TEXT_MANY)

PYTORCH = "PyTorch"
"""How the name ends of a contestant that ONNX Runtime does not run."""

INSTRUCTIONS = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8")
"""Instructions that int8 models can gain by, as Linux names them."""

TARGETS = (
    ("compact", MODEL_BATCH, 8.0),
    ("student", MODEL_BATCH, 25.0),
    ("resnet18", MODEL_BATCH, 2.5),
    ("compact", TEXT_MANY, 6.0),
    ("student", TEXT_MANY, 15.0),
)
"""Model of this project, measure, and by how much it is to be faster on one thread than the faster model of ddddocr."""

OURS, THEIRS, INK, FAINT = "#1a7f37", "#8c959f", "#24292f", "#57606a"

Rounds = Mapping[str, Sequence[float]]
"""Seconds an image of each contestant, by its name, round by round: the same round stands at the same place."""


@dataclass(frozen=True)
class Contestant:
    """One that was measured."""

    name: str
    model: str
    """compact, student, resnet18 or what else the person has called it; of a peer, its package."""
    ours: bool
    megabytes: float
    right: int | None = None
    """Images read without a mistake; None for a model that was not trained."""


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, the least and the greatest of them."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the spread of at least one value."""
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{_figure(self.median)} ({_figure(self.least)} to {_figure(self.greatest)})"


def images_per_second(seconds: Sequence[float]) -> Spread:
    """Return the spread of images a second."""
    return Spread.of([1 / each for each in seconds])


def times_faster(seconds: Sequence[float], than: Sequence[float]) -> Spread:
    """Return the spread of how many times one is faster than another, each round by itself."""
    return Spread.of([theirs / own for own, theirs in zip(seconds, than, strict=True)])


def fastest(names: Sequence[str], rounds: Rounds) -> str:
    """Return which of the contestants takes the least time, by the median of the rounds."""
    return min(names, key=lambda name: median(rounds[name]))


@dataclass(frozen=True)
class Verdict:
    """A target beside what was measured."""

    contestant: Contestant
    measure: str
    target: float
    ratio: Spread
    baseline: Contestant

    @property
    def reached(self) -> bool:
        """Whether the median is at the target, and more is read than the baseline reads, where that is known."""
        own, theirs = self.contestant.right, self.baseline.right
        return self.ratio.median >= self.target and (own is None or theirs is None or own > theirs)


def verdicts(contestants: Sequence[Contestant], one_thread: Mapping[str, Rounds], baseline: str) -> list[Verdict]:
    """Return each target whose model was measured, beside the fastest of that model's engines in ONNX Runtime."""
    by_name = {each.name: each for each in contestants}
    found = []
    for model, measure, target in TARGETS:
        rounds = one_thread[measure]
        engines = [each.name for each in contestants if each.model == model and not each.name.endswith(PYTORCH)]
        if engines:
            name = fastest(engines, rounds)
            ratio = times_faster(rounds[name], rounds[baseline])
            found.append(Verdict(by_name[name], measure, target, ratio, by_name[baseline]))
    return found


def target_table(found: Sequence[Verdict], images: int) -> str:
    """Return the targets as a Markdown table."""
    rows = [
        [
            each.contestant.name,
            each.measure,
            f"≥ {each.target:g}",
            str(each.ratio),
            f"{_share(each.contestant.right, images)}; {each.baseline.name} {_share(each.baseline.right, images)}",
            ("yes" if each.reached else "no") + ("" if each.contestant.right is not None else ", by speed alone"),
        ]
        for each in found
    ]
    return table(["model", "measure, one thread", "target", "measured", "exact match", "reached"], rows)


def contestant_table(contestants: Sequence[Contestant], images: int) -> str:
    """Return who was measured, how large the models are and what they read, as a Markdown table."""
    rows = [[each.name, f"{each.megabytes:.1f}", _share(each.right, images)] for each in contestants]
    return table(["", "MB", "exact match"], rows)


def speed_table(rounds: Mapping[str, Rounds], measures: Sequence[str], baseline: str) -> str:
    """Return images a second of all contestants, and how many times the baseline each is, as a Markdown table."""
    rows = []
    for name in rounds[measures[0]]:
        row = [name]
        for measure in measures:
            seconds = rounds[measure]
            times = "1" if name == baseline else str(times_faster(seconds[name], seconds[baseline]))
            row += [str(images_per_second(seconds[name])), times]
        rows.append(row)
    return table(["images a second", *(each for measure in measures for each in (measure, "times"))], rows)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(right: int | None, images: int) -> str:
    return "not trained" if right is None else f"{right / images:.1%} ({right} of {images})"


def _figure(value: float) -> str:
    """Return a number with three digits that count, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def speed_figure(
    contestants: Sequence[Contestant],
    rounds: Mapping[int, Mapping[str, Rounds]],
    baseline: str,
    images: int,
    title: str,
) -> Figure:
    """Return a figure of images a second: bars for one thread with their spread, rings for more threads.

    Args:
        contestants: in the order of the rows.
        rounds: by the number of threads, and the measure.
        baseline: the contestant that the others are compared with.
        images: that each was to read.
        title: stands above.
    """
    figure = Figure(figsize=(11, 1.8 + 0.42 * len(contestants)), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, measure in zip(panels, (MODEL_BATCH, TEXT_MANY), strict=True):
        _speed_bars(axes, contestants, {threads: each[measure] for threads, each in rounds.items()}, baseline)
        axes.set_title(measure, fontsize=11, color=INK, loc="left")
    read = ["not trained" if each.right is None else f"reads {each.right / images:.1%}" for each in contestants]
    labels = [f"{each.name}\n{said}" for each, said in zip(contestants, read, strict=True)]
    panels[0].set_yticks(range(len(contestants)), labels, fontsize=9)
    panels[0].invert_yaxis()
    if len(rounds) > 1:
        panels[0].legend(loc="upper right", fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=10, color=INK, x=0.01, ha="left")
    return figure


def _speed_bars(axes: Axes, contestants: Sequence[Contestant], rounds: Mapping[int, Rounds], baseline: str) -> None:
    """Draw the bars of one measure; `rounds` by the number of threads."""
    places = range(len(contestants))
    speeds = [images_per_second(rounds[1][each.name]) for each in contestants]
    medians, reach = [speed.median for speed in speeds], [speed.greatest for speed in speeds]
    axes.barh(places, medians, color=[OURS if each.ours else THEIRS for each in contestants], height=0.62)
    spread = ([speed.median - speed.least for speed in speeds], [speed.greatest - speed.median for speed in speeds])
    axes.errorbar(medians, places, xerr=spread, fmt="none", ecolor=INK, elinewidth=1)
    for threads in sorted(set(rounds) - {1}):
        more = [images_per_second(rounds[threads][each.name]).median for each in contestants]
        axes.scatter(
            more, places, s=34, facecolors="white", edgecolors=INK, zorder=3, label=f"median, {threads} threads"
        )
        reach = [max(pair) for pair in zip(reach, more, strict=True)]
    for place, each in enumerate(contestants):
        ratio = times_faster(rounds[1][each.name], rounds[1][baseline]).median
        text = f"{medians[place]:.0f}/s" + ("" if each.name == baseline else f"  ×{_figure(ratio)}")
        axes.text(reach[place] + 0.02 * max(reach), place, text, va="center", fontsize=9, color=INK)
    axes.set_xlim(0, 1.28 * max(reach))  # room for the figures beside the longest bar
    axes.set_xlabel("images a second; bars: one thread, median, least and greatest", fontsize=9, color=FAINT)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Return what the machine is: processor, which of INSTRUCTIONS it has, cores, system."""
    fields: dict[str, str] = {}
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    has = [each for each in INSTRUCTIONS if each in flags]
    lacks = [each for each in INSTRUCTIONS if each not in flags]
    return {
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "instructions": f"{', '.join(has) or 'none'} (not {', '.join(lacks) or 'any'})" if flags else "not known",
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
