"""Pictures of predictions, mistakes, where two models differ, learning curves, confusions and the label budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from captcha.evaluation.calibration import BINS, expected_calibration_error, outcomes, reliability, risk_coverage
from captcha.evaluation.metrics import character_confusion
from captcha.evaluation.results import Comparison, Evaluation
from captcha.reading.images import Image
from captcha.reading.recognizer import Reading

RIGHT, WRONG, UNKNOWN = "#1a7f37", "#cf222e", "#57606a"
COLUMNS = 4
GRID_WIDTH = 10.4  # inches
TILE = 3.2, 3.5  # inches
DPI = 80
TITLE_SIZE = 10.0  # points
SMALLEST_TITLE = 0.75  # of that size; fewer images stand side by side rather than under smaller titles


def prediction_grid(
    evaluation: Evaluation, shown: int = 32, width: float = GRID_WIDTH, height: float = math.inf
) -> Image:
    """Return one picture (H, W, 3) of the first samples, each under what was read and with which confidence.

    A wrong reading is red, after a cross, and its label follows. A sample without a label has its reading alone.
    Up to four stand side by side, as many as fit into the width, a long title in smaller letters; there are as many
    rows as fit into the height. Both are in inches.
    """
    pairs = list(zip(evaluation.samples, evaluation.readings, strict=True))[:shown]
    titles = [_title(sample.text, reading) for sample, reading in pairs]
    widths = [_width(title) for title in titles]
    columns = min(COLUMNS, max(1, int(width / (SMALLEST_TITLE * max(widths)))))
    room = width / columns
    row_height = min(1.15, 0.3 + 0.34 * room)
    rows = min(-(-len(pairs) // columns), max(1, int(min(height / row_height, len(pairs)))))
    figure = Figure(figsize=(width, row_height * rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (sample, reading), title, needed in zip(grid, pairs, titles, widths, strict=False):
        colour = UNKNOWN if not sample.text else RIGHT if sample.text == reading.text else WRONG
        axes.imshow(sample.image)
        # Smaller letters are not quite as much narrower: they begin and end on whole pixels.
        size = 1.0 if needed <= room else 0.9 * room / needed
        axes.set_title(title, color=colour, fontsize=size * TITLE_SIZE)
    for axes in figure.axes:
        axes.axis("off")
    return _rendered(figure)


def small_grid(evaluation: Evaluation) -> Image:
    """Return a picture of the first samples, eight at most, that is legible in 256 pixels: MLflow shows no more."""
    return prediction_grid(evaluation, 8, *TILE)


def comparison_grid(comparison: Comparison, first: str, second: str, shown: int = 32) -> Image:
    """Return one picture (H, W, 3) of the images that one model alone reads right.

    The first model's reading stands above each image and the second's below it. Half of the images shown are those
    that the first reads, half those that the second reads, where there are so many of both.
    """
    ours, theirs = comparison.only_first, comparison.only_second
    few = max(shown - len(theirs), shown // 2)
    places = ours[:few] + theirs[: shown - len(ours[:few])]
    rows = max(1, -(-len(places) // COLUMNS))
    figure = Figure(figsize=(2.6 * COLUMNS, 1.7 * rows), dpi=80, layout=ConstrainedLayoutEngine(h_pad=0.12))
    grid = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for axes, place in zip(grid, places, strict=False):
        sample = comparison.first.samples[place]
        axes.imshow(sample.image)
        for name, evaluation, write in (
            (first, comparison.first, axes.set_title),
            (second, comparison.second, axes.set_xlabel),
        ):
            read = evaluation.predictions[place]
            mark, colour = ("✓", RIGHT) if read == sample.text else ("✗", WRONG)
            write(_plain(f"{mark} {name}: {read or '(nothing)'}"), color=colour, fontsize=10)
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    if not places:
        figure.text(0.5, 0.5, "no image is read right by one of the two alone", ha="center", va="center", color=RIGHT)
    return _rendered(figure)


def mistake_grid(evaluation: Evaluation, shown: int = 32) -> Image:
    """Return one picture (H, W, 3) of the wrong readings, the most confident first; without any it says so."""
    if evaluation.wrong:
        return prediction_grid(evaluation.mistakes_first(), min(evaluation.wrong, shown))
    figure = Figure(figsize=(GRID_WIDTH, 1.15), dpi=DPI)
    count = len(evaluation.samples)
    figure.text(0.5, 0.5, f"no image of {count} was read wrongly", ha="center", va="center", color=RIGHT)
    return _rendered(figure)


def _title(label: str, reading: Reading) -> str:
    read = reading.text or "(nothing)"
    if label:
        read = f"✓ {read}" if reading.text == label else f"✗ {read} ≠ {label}"
    return _plain(f"{read}  {reading.confidence:.0%}")


def _width(title: str) -> float:
    """Return how many inches wide a title of TITLE_SIZE is, with a gap to the next."""
    font = get_font(findfont(FontProperties()))
    font.set_size(TITLE_SIZE, DPI)
    font.set_text(title)
    width, _ = font.get_width_height()  # in 64ths of a pixel
    return float(width) / 64 / DPI + 0.2


def learning_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Return a figure of losses and validation results over the epochs; `history` has the metrics of each, from 0."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axes, match_axes = figure.subplots(1, 2)
    epochs = range(len(history))
    trained = [epoch for epoch in epochs if "train/loss" in history[epoch]]  # epoch 0 has no training loss
    loss_axes.plot(trained, [history[epoch]["train/loss"] for epoch in trained], label="train, augmented")
    loss_axes.plot(epochs, [metrics["val/loss"] for metrics in history], label="validation")
    loss_axes.set(xlabel="epoch", ylabel="CTC loss per image", yscale="log")
    match_axes.plot(epochs, [metrics["val/exact_match"] for metrics in history], label="exact match")
    match_axes.plot(epochs, [metrics["val/cer"] for metrics in history], label="character error rate")
    match_axes.set(xlabel="epoch", ylim=(-0.02, 1.02))
    for axes in (loss_axes, match_axes):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def confusion_figure(evaluation: Evaluation, shown: int = 20) -> Figure:
    """Return a bar chart of the most frequent confusions of characters: label → what was read in its place."""
    counts = character_confusion(evaluation.predictions, evaluation.references)
    mistakes = [(pair, count) for pair, count in counts.most_common() if pair[0] != pair[1]][:shown]
    figure = Figure(figsize=(6, 0.6 + 0.3 * max(1, len(mistakes))), layout="constrained")
    axes = figure.subplots()
    if mistakes:
        names = [_plain(f"{label or 'nothing'} → {read or 'nothing'}") for (label, read), _ in mistakes]
        axes.barh(range(len(names)), [count for _, count in mistakes], color=WRONG, tick_label=names)
        axes.invert_yaxis()
        axes.set_xlabel(f"characters read wrongly, of {sum(map(len, evaluation.references))}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.text(0.5, 0.5, "no character was read wrongly", ha="center", va="center", color=RIGHT)
        axes.axis("off")
    return figure


def confidence_figure(evaluation: Evaluation) -> Figure:
    """Return a figure of how often a text is right against its confidence, and of errors against what is accepted.

    Beside the confidences stand the raw probabilities, where a calibration has changed them; a cross marks what the
    model's threshold accepts.
    """
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    diagram, curve = figure.subplots(1, 2)
    probabilities, right = outcomes(evaluation)
    confidences = np.array([reading.confidence for reading in evaluation.readings])
    shown = {"confidence": confidences}
    if (confidences != probabilities).any():
        shown["raw probability"] = probabilities
    diagram.plot((0, 1), (0, 1), color=UNKNOWN, linewidth=1, linestyle="dotted")
    for name, values in shown.items():
        bins = reliability(values, right)
        error = expected_calibration_error(values, right)
        label = f"{name}, ECE {error:.2%}"
        diagram.plot([each.confidence for each in bins], [each.right for each in bins], marker="o", label=label)
    diagram.set(xlabel="confidence", ylabel=f"share right, {BINS} bins of as many readings")
    points = risk_coverage(confidences, right)
    curve.plot(points.accepted / len(right), points.wrong / points.accepted, drawstyle="steps-post")
    flags = np.array([bool(reading.accepted) for reading in evaluation.readings])
    if flags.any():
        curve.plot(flags.mean(), (flags & ~right).sum() / flags.sum(), "x", color=WRONG, label="accepted by threshold")
        curve.legend()
    curve.set(xlabel="share of texts accepted, the surest first", ylabel="share of errors among them")
    diagram.legend()
    for axes in (diagram, curve):
        axes.grid(alpha=0.3)
    return figure


@dataclass(frozen=True)
class BudgetPoint:
    """Exact match after one arm's trainings with `labels` labels: `right` of `n` images, with its interval."""

    arm: str
    labels: int
    right: int
    n: int
    low: float
    high: float
    seconds: float
    """Mean duration of a training."""


def budget_figure(points: Sequence[BudgetPoint]) -> Figure:
    """Return a figure of exact match against the number of labels, a curve with intervals for each arm."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for arm in dict.fromkeys(point.arm for point in points):
        curve = sorted((point for point in points if point.arm == arm), key=lambda point: point.labels)
        measured = [point.right / point.n for point in curve]
        below = [share - point.low for share, point in zip(measured, curve, strict=True)]
        above = [point.high - share for share, point in zip(measured, curve, strict=True)]
        axes.errorbar(
            [point.labels for point in curve],
            measured,
            (below, above),
            marker="o",
            capsize=3,
            label=arm.replace("_", " "),
        )
    counts = sorted({point.labels for point in points})
    axes.set_xscale("symlog", linthresh=10)  # 0 labels stand on it too
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set(xlabel="labels", ylabel="exact match, 95 % interval", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


@dataclass(frozen=True)
class TrialPoint:
    """A trial of a tuning: its number, its loss on the validation images and complete, or how it ended."""

    number: int
    loss: float
    state: str


def tuning_figure(points: Sequence[TrialPoint]) -> Figure:
    """Return a figure of the loss of each trial, and of the lowest so far of those that came to their end."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for state, colour, mark in (("complete", RIGHT, "o"), ("pruned", UNKNOWN, "x")):
        shown = [point for point in points if point.state == state and math.isfinite(point.loss)]
        if shown:
            losses = [point.loss for point in shown]
            axes.plot([point.number for point in shown], losses, mark, color=colour, label=f"{state}: {len(shown)}")
    ended = sorted((p for p in points if p.state == "complete" and math.isfinite(p.loss)), key=lambda p: p.number)
    lowest = [min(point.loss for point in ended[: i + 1]) for i in range(len(ended))]
    axes.plot([point.number for point in ended], lowest, drawstyle="steps-post", color=RIGHT, label="lowest so far")
    low, high = axes.dataLim.intervaly
    scale = "log" if high > 10 * low > 0 else "linear"  # the ticks of a short logarithmic axis are illegible
    axes.set(xlabel="trial", ylabel="CTC loss per validation image", yscale=scale)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def importances_figure(importances: Mapping[str, float], trials: int) -> Figure:
    """Return a bar chart of how important each dimension of a tuning is, by trials that came to their end."""
    figure = Figure(figsize=(7, 1.2 + 0.35 * len(importances)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(importances)), list(importances.values()), color=UNKNOWN, tick_label=list(importances))
    axes.invert_yaxis()
    axes.set(xlabel=f"importance by PED-ANOVA, of {trials} complete trials", xlim=(0, 1))
    axes.grid(alpha=0.3, axis="x")
    return figure


def _plain(text: str) -> str:
    r"""Return the text with dollar signs escaped (no formulas) and what the font lacks spelled out (中 as \u4e2d)."""
    font = get_font(findfont(FontProperties()))
    shown = (c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown).replace("$", r"\$")


def _rendered(figure: Figure) -> Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
