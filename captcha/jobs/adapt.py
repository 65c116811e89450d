"""Self-training: a trained model goes on learning from what it reads surely of images without labels.

Pseudo-labels (Lee, 2013) in rounds: read all, learn from the sure readings, read again.
"""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import pandas as pd

from captcha import CaptchaError
from captcha.data import samples as data
from captcha.data.samples import Sample, Split
from captcha.data.sources import Echo, drawn_samples, read_folder, short_name
from captcha.evaluation.metrics import exact_match
from captcha.evaluation.plots import prediction_grid
from captcha.evaluation.results import Evaluation
from captcha.jobs import train as experiment
from captcha.reading.recognizer import Reading
from captcha.reading.vocabulary import Vocabulary
from captcha.settings import AdaptConfig, TrainConfig
from captcha.tracking import registry
from captcha.tracking.models import TrainedModel, load_trained
from captcha.tracking.runs import tracked_run
from captcha.training.checkpoint import Start, go_on_from
from captcha.training.export import torch_recognizer
from captcha.training.model import Crnn

HELD_OUT = 0.1
"""Share of the images that no round learns from."""

SUREST_SHARE, FLOOR = 0.1, 0.5
"""Of the images in which a character is read, so many are learned from even below the threshold, but not the floor."""


class AdaptationError(CaptchaError):
    """A self-training that cannot begin; one line that says why and what to do."""


@dataclass(frozen=True)
class AdaptOutcome:
    """What a self-training left behind. `figures` are of the images held out, empty where there are no labels."""

    run_id: str
    rounds: int
    sure_before: int
    sure: int
    images: int
    figures: dict[str, float]
    model_name: str
    model_version: int
    message: str
    example: str
    """Path of an image to try the model on."""

    def summary(self) -> str:
        """Return the closing lines for a person."""
        measured = "\n" + experiment.exact_match_line("the images held out", self.figures) if self.figures else ""
        return (
            f"\nsure of {self.sure} of {self.images} images, before {self.sure_before}; the model of round "
            f"{self.rounds}{measured}\n{self.message}\n\n"
            f"{experiment.next_commands(self.model_name, self.model_version, self.example)}"
        )


def adapt(config: AdaptConfig, echo: Echo) -> AdaptOutcome:
    """Adapt a trained model to a folder of images, each round a nested run, and register what came of it.

    A round learns from the readings that are sure: their exact CTC probability reaches the threshold, or is among the
    highest of those with one of their characters. It counts where more images are sure after it; the first that
    brings no more is the last, and the one before it is kept. A tenth of the images is never learned from.

    Raises:
        DataError: the folder has problems; all of them are echoed first.
        StyleError: there is no such style, or it draws what the model cannot read.
        RegistryError: there is no such model to begin with.
        AdaptationError: no image is read surely.
        TrainingError: the training cannot go on, or the exported model does not agree with the trained one.
    """
    with tracked_run(f"adapt to {short_name(config.data)}, seed {config.seed}") as run:
        before = load_trained(config.model)
        asked = _as_training(config, before)
        if config.drawn:
            drawn_samples(asked)  # what is wrong with the style is said before anything is read
        labelled = read_folder(config.data, before.height, None, echo, config.labelled)
        samples = [replace(sample, text="") for sample in labelled]  # from here on nobody knows
        held_out = [i for i, s in enumerate(samples) if data.share(config.seed, s.digest) < HELD_OUT]
        if not held_out:
            raise AdaptationError(
                f"{config.data}: {len(samples)} images are too few, none of them is held out; add some"
            )
        learned_from = sorted(set(range(len(samples))) - set(held_out))
        start = experiment.start_from(asked, before, before.vocabulary, echo)
        split = Split(
            [samples[i] for i in learned_from],
            [samples[i] for i in held_out],
            [labelled[i] for i in held_out] if config.labelled else [],
        )
        experiment.log_inputs(asked, split, before.vocabulary)
        mlflow.log_params({"threshold": config.threshold, "rounds": config.rounds, "labelled": config.labelled})
        echo(f"adapting {before.uri} to {len(samples)} images, {len(held_out)} of them held out")

        model = _model(asked, start)
        kept = state = _State(0, _read(model, asked, samples), 0)
        sure_before = kept.sure(config.threshold)
        _log_state(config, state, None, labelled, held_out, echo)
        for number in range(1, config.rounds + 1):
            taken = sure_readings(state.readings, config.threshold, learned_from)
            if not taken:
                raise AdaptationError(
                    f"{before.uri} reads none of these images with a probability of {FLOOR} or more: it needs images "
                    "nearer to them first, drawn in their style or labelled by hand"
                )
            with tracked_run(f"round {number}", nested=True):
                model = _round(asked, start, samples, state.readings, taken, held_out, number)
            previous, state = state, _State(number, _read(model, asked, samples), len(taken))
            _log_state(config, state, previous, labelled, held_out, echo)
            if state.sure(config.threshold) <= kept.sure(config.threshold):
                break
            kept, start = state, Start(dict(model.state_dict()), before.vocabulary)
        mlflow.log_metrics({"best_round": kept.number})
        model = _model(asked, start)
        experiment.log_weights(model)
        example = Path(config.data) / samples[held_out[0]].name
        tested = experiment.log_recognizer(model, before.vocabulary, before.height, split, example)
        name, version, message = registry.register(run.info.run_id, config.name)
    return AdaptOutcome(
        run_id=run.info.run_id,
        rounds=kept.number,
        sure_before=sure_before,
        sure=kept.sure(config.threshold),
        images=len(samples),
        figures=tested.figures() if tested else {},
        model_name=name,
        model_version=version,
        message=message,
        example=os.path.relpath(example),
    )


def sure_readings(readings: Sequence[Reading], threshold: float, among: Sequence[int]) -> list[int]:
    """Return which of the readings to learn from, of those `among` which to choose.

    The sure ones, and of each character the surest share of its readings (so of hard characters too, as of hard
    classes in Zou et al., 2018, arXiv:1810.07911), where they reach the floor.
    """
    taken = {i for i in among if readings[i].text and readings[i].confidence >= threshold}
    with_character: dict[str, list[int]] = {}
    for i in among:
        for character in set(readings[i].text):
            with_character.setdefault(character, []).append(i)
    for members in with_character.values():
        members.sort(key=lambda i: -readings[i].confidence)
        surest = members[: math.ceil(SUREST_SHARE * len(members))]
        taken |= {i for i in surest if readings[i].confidence >= FLOOR}
    return sorted(taken)


@dataclass(frozen=True)
class _State:
    """What is read of all images after a round; round 0 is the model to begin with."""

    number: int
    readings: list[Reading]
    taken: int

    def sure(self, threshold: float) -> int:
        return sum(bool(reading.text) and reading.confidence >= threshold for reading in self.readings)


def _as_training(config: AdaptConfig, before: TrainedModel) -> TrainConfig:
    """Return the settings of a round's training, which are also what another training finds in the run."""
    return TrainConfig(
        data=config.data,
        name=config.name,
        backbone=before.backbone,
        init=config.model,
        drawn=config.drawn,
        vocabulary=before.vocabulary.characters,
        height=before.height,
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        patience=config.epochs,
        seed=config.seed,
    )


def _model(asked: TrainConfig, start: Start) -> Crnn:
    model = Crnn(asked.backbone, start.vocabulary.classes, asked.height, asked.dropout)
    go_on_from(start, model, start.vocabulary)
    return model


def _read(model: Crnn, asked: TrainConfig, samples: Sequence[Sample]) -> list[Reading]:
    recognizer = torch_recognizer(model, Vocabulary(asked.vocabulary or ""), asked.height)
    return recognizer.read([sample.image for sample in samples])


def _round(
    asked: TrainConfig,
    start: Start,
    samples: Sequence[Sample],
    readings: Sequence[Reading],
    taken: Sequence[int],
    held_out: Sequence[int],
    number: int,
) -> Crnn:
    """Train on the readings taken; what was read of the images held out is what validation compares with."""
    asked = asked.model_copy(update={"seed": asked.seed + number})
    learned, compared = ([replace(samples[i], text=readings[i].text) for i in part] for part in (taken, held_out))
    split = Split(learned, compared, [])
    experiment.log_inputs(asked, split, start.vocabulary)
    model, _ = experiment.fit(asked, split, start.vocabulary, lambda line: None, start, keep_last=True)
    experiment.log_weights(model)
    read = Counter("".join(reading.text for reading in readings))
    learned_from = Counter("".join(sample.text for sample in learned))
    rows = [(character, count, learned_from[character]) for character, count in read.most_common()]
    mlflow.log_table(pd.DataFrame(rows, columns=["character", "read", "learned_from"]), "characters.json")
    return model


def _log_state(
    config: AdaptConfig,
    state: _State,
    previous: _State | None,
    labelled: Sequence[Sample],
    held_out: Sequence[int],
    echo: Echo,
) -> None:
    """Log and print what is read after a round; by the labels too, where the images are labelled."""
    texts = [reading.text for reading in state.readings]
    sure = state.sure(config.threshold)
    metrics = {
        "adapt/sure": sure,
        "adapt/mean_confidence": sum(reading.confidence for reading in state.readings) / len(texts),
    }
    line = f"round {state.number}/{config.rounds}  sure of {sure} of {len(texts)}"
    if previous:
        changed = sum(a != b.text for a, b in zip(texts, previous.readings, strict=True))
        metrics |= {"adapt/learned_from": state.taken, "adapt/changed": changed}
        line += f"  learned from {state.taken}  changed {changed}"
    if config.labelled:
        match = exact_match(texts, [sample.text for sample in labelled])
        metrics["adapt/exact_match"] = match
        line += f"  exact match {match:.2%}"
    mlflow.log_metrics(metrics, step=state.number)
    shown = Evaluation([labelled[i] for i in held_out], [state.readings[i] for i in held_out], math.nan)
    mlflow.log_image(prediction_grid(shown), key="adapt/predictions", step=state.number)
    echo(line)
