"""Look for wrong labels in a folder: what cross-validation reads otherwise, ranked, shown, and corrected if asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from captcha.data.folders import refuse_corrected, write_corrected
from captcha.data.problems import Problem, printable
from captcha.data.samples import DataError, ImageMemory, Sample, digest
from captcha.data.sources import parse_folder
from captcha.evaluation.out_of_fold import OutOfFold, Suspect, calibrated, pictured, suspects
from captcha.jobs.crossval import crossval
from captcha.settings import AuditSettings, CrossvalSettings, TrainSettings
from captcha.tracking.entries import log_picture, log_text
from captcha.tracking.records import load_out_of_fold, log_evaluated, log_facts, log_left_out, log_settings
from captcha.tracking.runs import NOTE, connect, tracked_run

DEFAULTS = TrainSettings()
SHOWN = 40
"""Images on the picture of the suspects."""


@dataclass(frozen=True)
class AuditOutcome:
    """The result of an audit."""

    run_id: str
    crossval: str
    """The run whose readings were looked into."""
    images: int
    suspects: list[Suspect]
    """The label that is most probably wrong comes first."""
    corrected: str | None
    """The file with the sure ones corrected, None where it was not asked for, or none is sure."""


def audit(settings: AuditSettings) -> AuditOutcome:
    """Rank the labels of a folder by how much more probable another text is, in a tracked run.

    The readings are those of a cross-validation, which this makes first, in a run of its own, unless one is named.
    With `apply`, the labels of the sure suspects are changed in a new file beside the images.

    Raises:
        DataError: the folder has problems, or the cross-validation is of other images or labels.
        RegistryError: there is no such run, or it is no cross-validation that has ended.
        FileExistsError: there are corrected labels already.
        And what `crossval` raises.
    """
    folder = parse_folder(settings.data)
    if settings.apply:
        refuse_corrected(folder.path)
    connect(writing=True)  # a store that does not answer is told before images are read
    run_id = settings.crossval or crossval(_as_crossval(settings)).run_id
    readings, data_digest = load_out_of_fold(run_id)
    readings = calibrated(readings, DEFAULTS.precision)  # those of earlier versions were not
    left_out: list[Problem] | None = [] if settings.problems == "leave-out" else None
    samples = folder.samples(DEFAULTS.height, memory=ImageMemory(DEFAULTS.image_memory), left_out=left_out)
    if digest(samples) != data_digest:
        raise DataError(
            f"{settings.data}: run {run_id} has read other images, or other labels; name the folder that it has read, "
            "or leave --crossval out"
        )
    with tracked_run(f"audit {folder.short_name}") as run:
        named = settings.model_dump(include={"data", "problems", "apply"})  # the cross-validation's own has the others
        log_settings({**named, "crossval": run_id})
        log_left_out(left_out or ())
        log_facts({"job": "audit", "data": folder.written, "data_digest": data_digest})
        log_evaluated(samples, folder, None)
        found = suspects(readings)
        _log(found, readings, {sample.name: sample for sample in samples})
        corrected = None
        if settings.apply and (sure := {each.file: each.proposed for each in found if each.sure}):
            corrected = str(write_corrected(folder.path, sure))
        log_facts({NOTE: _description(found, len(samples), folder.written, corrected)})
    return AuditOutcome(run.info.run_id, run_id, len(samples), found, corrected)


def _as_crossval(settings: AuditSettings) -> CrossvalSettings:
    """Return the settings of the cross-validation, those given as given: it may be one to go on with."""
    return CrossvalSettings(
        **settings.model_dump(include=set(CrossvalSettings.model_fields) & settings.model_fields_set)
    )


def _log(found: list[Suspect], readings: Sequence[OutOfFold], samples: Mapping[str, Sample]) -> None:
    """Log the table of the suspects, and a picture of the first of them under what is proposed for them."""
    rows = [(printable(each.file), each.label, each.proposed, round(each.score, 4), each.sure) for each in found]
    table = pd.DataFrame(rows, columns=["file", "label", "proposed", "score", "sure"])
    log_text(table.to_csv(index=False), "suspects.csv")
    log_facts({"suspects": len(found), "suspects_sure": sum(each.sure for each in found)})
    if found:
        from captcha.evaluation.plots import prediction_grid  # brings matplotlib: not before it is needed

        read = {(each.file, each.text): each for each in readings}
        shown = [read[each.file, each.proposed] for each in found[:SHOWN]]
        log_picture(prediction_grid(pictured(shown, samples), SHOWN), "suspects.png")


def _description(found: list[Suspect], images: int, data: str, corrected: str | None) -> str:
    sure = sum(each.sure for each in found)
    told = (
        f"Of {images} labels of `{data}`, {len(found)} are read otherwise by models that have not learned from them; "
        f"of {sure} of these the models are sure. `suspects.csv` has them, the most probably wrong first, and "
        "`suspects.png` shows them."
    )
    return told + (f" `{corrected}` has the {sure} corrected." if corrected else "")
