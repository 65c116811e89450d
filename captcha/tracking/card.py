"""The cards on MLflow's pages, written from runs: of a registered model, and of each of its versions."""

import shlex
from collections.abc import Sequence
from importlib.metadata import version as version_of
from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

import captcha
from captcha.data.sources import short_data
from captcha.settings import CHAMPION, CONTROLS, SETTINGS_OF, NamesImages, written
from captcha.tracking.descriptions import describe_training, measured, percent
from captcha.tracking.models import NAMING_FILES, SERVED_PACKAGES, fact

ROWS, CHARACTERS, NAME = 12, 200, 60
"""Evaluations on a card, the latest; characters listed; and those of a folder's name: a description holds 5,000."""


class Row(NamedTuple):
    """A figure of one version: exact match on `data`, with its interval."""

    version: str
    data: str
    right: int
    images: int
    low: float
    high: float
    cer: float


NOT_FOR = "For research, accessibility and testing one's own CAPTCHAs; not for passing those of others."
CARD_FILE = "model_card.md"
"""The card of a version as a file of its run."""


def write_card(name: str) -> None:
    """Write the card of a registered model: of its champion, or of its latest version where there is none."""
    client = MlflowClient()
    try:
        version = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        found = client.search_model_versions(f"name = '{name}'", order_by=["version_number DESC"], max_results=1)
        version = found[0]
    run = client.get_run(str(version.run_id))
    client.update_registered_model(name, model_card(name, version, run, _rows(client, name, version, run)))


def _rows(client: MlflowClient, name: str, version: ModelVersion, run: Run) -> list[Row]:
    """Return the version's own test, then the evaluations of all versions, the latest first."""
    rows = []
    if own := measured(run, "test"):
        rows.append(
            Row(version.version, f"test part of {_short(fact(run, 'data'))}", *own, run.data.metrics["test/cer"])
        )
    experiments = [each.experiment_id for each in client.search_experiments()]
    condition = f"tags.job = 'evaluate' AND tags.model LIKE 'models:/{name}/%'"
    for each in client.search_runs(experiments, condition, max_results=ROWS, order_by=["start_time DESC"]):
        if found := measured(each, "eval"):
            tags = each.data.tags
            told = [tags[name] for name in ("engine", "constraints") if name in tags]
            data = ", ".join([_short(tags["data"]), *told])
            rows.append(Row(tags["model_version"], data, *found, each.data.metrics["eval/cer"]))
    return rows


def _short(data: str) -> str:
    return f"`{short_data(data)[:NAME]}`"


def _net(run: Run) -> str:
    if fact(run, "backbone") != "student":
        return "A CRNN (convolutions, two bidirectional GRU layers)"
    teacher = run.data.tags.get("teacher_used")
    return "A student (convolutions alone)" + (f", taught by {teacher}," if teacher else "")


def model_card(name: str, version: ModelVersion, run: Run, rows: Sequence[Row]) -> str:
    """Return the card as Markdown."""
    characters = fact(run, "vocabulary")
    listed = _listed(characters)
    champion = CHAMPION in version.aliases
    uri = f"models:/{name}@{CHAMPION}" if champion else f"models:/{name}/{version.version}"
    measured_rows = "\n".join(
        f"| {row.version} | {row.data} | **{percent(row.right / row.images)}** | {row.right} of {row.images} "
        f"| {percent(row.low)} to {percent(row.high)} | {percent(row.cer)} |"
        for row in rows
    )
    head = "| version | images | read exactly | right of | 95 % interval | character error rate |"
    table = f"{head}\n|---|---|---|---|---|---|\n{measured_rows}" if rows else "Nobody has measured it on labels yet."
    confusions = (
        f"![Which characters version {version.version} has confused on its test](get-artifact?path=test_confusion.png&"
        f"run_uuid={run.info.run_id})"
        if measured(run, "test")
        else ""
    )
    engines = (
        f"{run.data.tags['engine_reason'].capitalize()}; `auto` reads with {run.data.tags['engine']}"
        f"{' where the CPU is known to be faster with it' if run.data.tags['engine'] == 'int8' else ''}. "
        "`CAPTCHA_ENGINE=fp32`, or `int8`, lets a server read with that one."
        if "engine" in run.data.tags
        else "It has one engine, fp32."
    )
    confidence = (
        f"The confidence is calibrated on readings of {run.data.tags['calibration']}; a text is accepted from "
        f"{run.data.tags['threshold']} on."
        if "calibration" in run.data.tags
        else "The confidence is the model's own probability of the text, not a share of texts that are right."
    )
    return f"""Reads text CAPTCHAs: an image goes in, its text comes out, and how sure that is. {_net(run)} \
trained with CTC, run by ONNX Runtime.

**{f"The {CHAMPION} is version" if champion else f"No version is {CHAMPION}; this is of version"} {version.version}**, \
`{fact(run, "backbone")}`, trained on {_short(fact(run, "data"))}. It knows {len(characters)} characters: `{listed}`

### Figures

{table}

{confusions}

### Use

```python
import captcha
captcha.load("{uri}").read("image.png").text
```

```sh
mlflow models serve -m {uri} --env-manager local -p 5001
curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' \\
  -d '{{"dataframe_split": {{"columns": ["image"], "data": [["BASE64 OF THE FILE"]]}}}}'
```

Parameters of a request: `decoder` (greedy or beam), `beam_width`, `min_confidence`; and what is known of the texts: \
`length`, `characters`, `texts`, `pattern`. The answer has `text`, `confidence`, `probability`, `accepted` and \
`character_confidences`. {engines}

### Limits

It reads no other characters than these, and one line of text. Images unlike those above may be read worse, and \
surely: measure it on yours with `captcha evaluate DIR --model {uri}`. {confidence} {NOT_FOR}
"""


def version_card(run: Run) -> str:
    """Return the card of the version that a run has trained, as Markdown: what it is, from the run alone."""
    tags = run.data.tags
    characters = _listed(fact(run, "vocabulary"))
    sides = [
        f"| {side} | {tags[f'{side}_images']} | `{tags[f'{side}_digest']}` |"
        for side in ("train", "validation", "test")
        if f"{side}_digest" in tags
    ]
    data = "\n".join(["| part | images | digest |", "|---|---|---|", *sides]) if sides else ""
    measures = sorted(key for key in run.data.metrics if key.startswith("calibration/"))
    calibration = ", ".join(f"{key.partition('/')[2]} {run.data.metrics[key]:.4f}" for key in measures)
    confidence = (
        f"Calibrated on {tags['calibration']}{f' ({calibration})' if calibration else ''}."
        if "calibration" in tags
        else "Not calibrated: the confidence is the model's own probability of the text."
    )
    abstains = (
        f"It does not accept a text whose confidence is below {tags['threshold']}, nor one without characters."
        if "threshold" in tags and "calibration" in tags
        else "It has no threshold: it abstains from nothing."
    )
    mistakes = (
        f"![The test images that it misreads](get-artifact?path=test_mistakes.png&run_uuid={run.info.run_id})"
        if measured(run, "test")
        else "Nobody has measured it on labels."
    )
    commit = f", commit {tags['mlflow.source.git.commit'][:12]}" if "mlflow.source.git.commit" in tags else ""
    versions = ", ".join(f"{each} {version_of(each)}" for each in (*SERVED_PACKAGES, "torch"))
    return f"""{describe_training(run)}

### Reads

Text CAPTCHAs of one line in these {len(fact(run, "vocabulary"))} characters: `{characters}`

### Trained on

{_short(fact(run, "data"))}

{data}

### Confidence

{confidence} {abstains}

### Known mistakes

{mistakes}

### Limits

It reads no other characters, and one line of text. {NOT_FOR}

### Made by

```sh
{_command(run)}
```

captcha {captcha.__version__}{commit}; {versions}
"""


def _listed(characters: str) -> str:
    return characters if len(characters) <= CHARACTERS else f"{characters[:CHARACTERS]}…"


def _command(run: Run) -> str:
    """Return the command of a training, with the settings that differ from their defaults; of a folder, its name."""
    job = run.data.tags.get("job", "train")
    words = ["captcha", job]
    for name, field in SETTINGS_OF[job].model_fields.items() if job in SETTINGS_OF else ():
        value = run.data.params.get(name)
        if value is None or name in CONTROLS or value == str(written(field.default)):
            continue
        value = short_data(fact(run, name)) if name in NAMING_FILES else value
        if field.is_required() or any(isinstance(mark, NamesImages) and mark.argument for mark in field.metadata):
            words.append(value)
        else:
            option = f"--{name.replace('_', '-')}"
            words += [option] if field.annotation is bool else [option, value]
    return shlex.join(words)
