"""What runs and versions say of themselves: names that tell them apart, colours, descriptions."""

import re
from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Run

from captcha.data.sources import short_data
from captcha.settings import MODEL_NAME, Settings
from captcha.tracking.models import SEEN_TAG, UNKNOWN_TAG, fact

COLOUR = "mlflow.runColor"
"""The tag by which MLflow colours a run in its charts."""

_SHADES = {
    "resnet18": ("#08519c", "#2171b5", "#4292c6", "#6baed6"),
    "compact": ("#a63603", "#d94801", "#f16913", "#fd8d3c"),
    "student": ("#006d2c", "#238b45", "#41ab5d", "#74c476"),
}


_WORDS = {
    "val_data": "validated on {}",
    "test_data": "tested on {}",
    "pretrained": "pretrained",
    "drawn": "with drawn {}",
    "vocabulary": "vocabulary {}",
    "length": "length {}",
    "characters": "characters {}",
    "texts": "texts {}",
    "pattern": "pattern {}",
    "threshold": "threshold {}",
    "rounds": "rounds {}",
    "epochs": "epochs {}",
    "drawn_epochs": "drawn epochs {}",
    "labels": "labels {}",
    "folds": "folds {}",
    "seeds": "seeds {}",
    "batch_size": "batch {}",
    "learning_rate": "lr {}",
    "dropout": "dropout {}",
    "patience": "patience {}",
    "seed": "seed {}",
}


def run_name(settings: Settings, *first: str, parent: str | None = None) -> str:
    """Return a name like `compact · folder · 64 px · lr 0.002 · from v1`.

    What comes first is followed by each setting that differs from its default and by the model that the run starts
    from.
    """
    defaults = type(settings).model_fields
    differing = [
        _WORDS[name].format(str(value).rsplit("/", 1)[-1])
        for name, value in settings
        if name in _WORDS and value != defaults[name].default
    ]
    return " · ".join([*first, *differing, *([f"from {short_uri(parent)}"] if parent else [])])


def colour(backbone: str, run_id: str) -> str:
    """Return the colour of a run: its backbone's, in a shade of its own as far as there are some."""
    shades = _SHADES[backbone]
    return shades[int(run_id[:8], 16) % len(shades)]


def short_uri(uri: str) -> str:
    """Return a model's URI as names have it: v3, NAME v3, run 0123abcd, folder NAME."""
    if match := re.fullmatch(r"models:/([^/@]+)/(\d+)", uri):
        name, number = match.groups()
        return f"v{number}" if name == MODEL_NAME else f"{name} v{number}"
    if match := re.fullmatch(r"runs:/(\w{8})\w*", uri):
        return f"run {match[1]}"
    return uri.removeprefix("models:/") if uri.startswith("models:/") else f"folder {Path(uri).resolve().name}"


def without_folders(text: str) -> str:
    """Return a text in which of each absolute path only the last part is left: what a version says is for anybody."""
    return re.sub(r"(?<![\w.:/-])/(?=[^\s/])(?:[^/\n'\",:;]*/)+", "", text)


def percent(share: float | str) -> str:
    """Return a share, 0 to 1, as in 98.4 %."""
    return f"{100 * float(share):.1f} %"


def exact_match_sentence(right: float, n: int, low: float, high: float, images: str) -> str:
    """Return, for a description to begin with, how many of these images were read exactly, with the interval."""
    return f"**{percent(right / n)}** of {n} {images} read exactly (95 % interval {percent(low)} to {percent(high)})"


def describe_training(run: Run) -> str:
    """Return what a training and the version that it made say of themselves; the figure of the test comes first."""
    start = _start(run.data.tags, run.data.params)
    trained = (
        f"{fact(run, 'backbone')}{start}, trained on `{short_data(fact(run, 'data'))}`, seed {run.data.params['seed']}"
    )
    figures = measured(run, "test")
    if figures is None:
        return f"Not tested, there were no labels: {trained}."
    match = exact_match_sentence(*figures, "test images")
    rate = percent(run.data.metrics["test/cer"])
    return f"{match}, character error rate {rate}: {trained}.{_kept_apart(run.data.tags)}"


def _kept_apart(tags: Mapping[str, str]) -> str:
    """Return what was checked of a test's images: whether their pixels are among those that training saw."""
    if "overlap" not in tags:  # a run of an earlier version, which did not look
        return ""
    told = f" None of the test images is among the {tags[SEEN_TAG]} images that training saw"
    if tags["overlap"] != "0":
        told += f" ({tags['overlap']} that training saw are left out; {tags['overlap_right']} of those are right)"
    if UNKNOWN_TAG in tags:
        told += f"; which images {tags[UNKNOWN_TAG]} was trained on is not known"
    return f"{told}."


def measured(run: Run, prefix: str) -> tuple[int, int, float, float] | None:
    """Return the images that a test or evaluation read exactly, all of them, and the interval; None where it has none.

    `prefix` is test or eval, as in the names of what it has logged.
    """
    tags, metrics = run.data.tags, run.data.metrics
    if f"{prefix}/exact_match" not in metrics:
        return None
    if f"{prefix}_right" in tags:
        right, images = int(tags[f"{prefix}_right"]), int(tags[f"{prefix}_images"])
        return right, images, float(tags[f"{prefix}_low"]), float(tags[f"{prefix}_high"])
    if prefix != "test":
        return None
    count = round(metrics["test/n"])  # runs of the first versions
    low, high = metrics["test/exact_match_low"], metrics["test/exact_match_high"]
    return round(metrics["test/exact_match"] * count), count, low, high


def _start(tags: Mapping[str, str], params: Mapping[str, str]) -> str:
    uri = tags.get("init_used") or params.get("init_used")
    return f" started from {uri}" if uri else ""
