"""The use cases, each tracked as one MLflow run: train, evaluate; and predict, which leaves none."""

import hashlib
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import mlflow
import pandas as pd
import torch
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from tqdm import tqdm

from captcha import data, evaluation, registry, serving, synthesis
from captcha.config import CHAMPION, FRAME_STRIDE, TrainConfig, project_root
from captcha.data import DataError, Sample, Split
from captcha.endless import DrawnSamples, endless_batches
from captcha.evaluation import Evaluation, disagreement
from captcha.images import ImageError, decode_image
from captcha.metrics import character_confusion
from captcha.model import Crnn, Start, to_onnx
from captcha.pictures import confusion_figure, learning_curves, prediction_grid
from captcha.recognizer import Decoder, Reading, Recognizer, save_recognizer
from captcha.registry import LOGGED_MODEL, WEIGHTS_FILE, WEIGHTS_FOLDER, TrainedModel, tracked_run
from captcha.styles import load_style
from captcha.training import EpochResult, TrainingError, choose_device, diagnosis, torch_recognizer, train_epochs
from captcha.vocabulary import Vocabulary

DRAWN_IMAGES = 2500
"""How many images `draw:STYLE` draws and splits: validation, test, and an epoch's worth, which training goes beyond."""

EPOCHS_PER_PICTURE = 5

Echo = Callable[[str], None]


@dataclass(frozen=True)
class TrainOutcome:
    """What a training left behind."""

    run_id: str
    figures: dict[str, float]
    model_name: str
    model_version: int
    message: str
    example: str
    """Path of an image to try the model on."""

    def summary(self) -> str:
        """Return the closing lines for a person: the figure, the model, the next commands."""
        figures = self.figures
        champion = registry.is_champion(self.model_name, self.model_version)
        uri = f"models:/{self.model_name}" + (f"@{CHAMPION}" if champion else f"/{self.model_version}")
        return f"""
exact match on the test split: {figures["exact_match"]:.2%} of {figures["n"]:.0f} images \
(95 % interval {figures["exact_match_low"]:.2%} to {figures["exact_match_high"]:.2%})
{self.message}

compare the runs      {_command("mlflow")} ui
serve the model       {_command("mlflow")} models serve -m {uri} --env-manager local -p 5001
read one image        {_command("captcha")} predict {self.example} --model {uri}"""


def train(config: TrainConfig, echo: Echo) -> TrainOutcome:
    """Train as configured in one tracked run, register the model, and return what came of it.

    Raises:
        DataError: the data has problems; all of them are echoed first.
        RegistryError: there is no such model to go on from.
        TrainingError: the model to go on from is of another kind, the training cannot go on, or the exported model
            does not agree with the trained one.
    """
    with tracked_run(f"{config.backbone} on {_short_name(config.data)}, seed {config.seed}") as run:
        trained_before = _trained_before(config)
        split = load_split(config, echo)
        vocabulary = _vocabulary(config, split, echo)
        _log_inputs(config, split, vocabulary)
        device = choose_device()
        echo(
            f"training {config.backbone} on {device}: {len(split.train)} images, {len(split.validation)} for "
            f"validation, {len(split.test)} for the test, {len(vocabulary.characters)} characters"
        )
        start = _start(config, trained_before, vocabulary, echo) if trained_before else None
        model, results = _fit(config, split, vocabulary, echo, start)
        with tempfile.TemporaryDirectory() as temporary:
            weights_file = Path(temporary) / WEIGHTS_FILE  # first: what was trained is not lost, whatever comes
            save_file(dict(model.state_dict()), weights_file)
            mlflow.log_artifact(str(weights_file), WEIGHTS_FOLDER)
            folder = Path(temporary) / serving.ARTIFACT
            digests = save_recognizer(folder, to_onnx(model, config.height), vocabulary, config.height)
            recognizer = Recognizer.load(folder)
            trained = torch_recognizer(model, vocabulary, config.height)
            if difference := disagreement(trained, recognizer, split.validation):
                raise TrainingError(f"the exported model is not the trained one: {difference}; nothing is registered")
            digests[WEIGHTS_FILE] = hashlib.sha256(weights_file.read_bytes()).hexdigest()
            mlflow.set_tags({f"sha256.{name}": digest for name, digest in digests.items()})
            tested = evaluation.evaluate(recognizer, split.test)
            _log_test(tested, results)
            example, content = _example(config, split.test[0])
            serving.log_model(LOGGED_MODEL, folder, content)
        name, version, message = registry.register(run.info.run_id, config.name)
    return TrainOutcome(run.info.run_id, tested.figures(), name, version, message, example)


def _trained_before(config: TrainConfig) -> TrainedModel | None:
    """Return the model that the training goes on from, None where it starts from scratch.

    Raises:
        RegistryError: there is no such model.
        TrainingError: its backbone or height is another.
    """
    if config.init is None:
        return None
    found = registry.load_trained(config.init)
    if (found.backbone, found.height) != (config.backbone, config.height):
        raise TrainingError(
            f"{found.uri} is {found.backbone} for height {found.height}, not {config.backbone} for {config.height}: "
            f"pass --backbone {found.backbone} --height {found.height} to go on from it"
        )
    return found


def _start(config: TrainConfig, found: TrainedModel, vocabulary: Vocabulary, echo: Echo) -> Start:
    """Return the weights to go on from; log where they come from and say what is new to them."""
    try:
        start = Start(load(found.weights), found.vocabulary)
    except SafetensorError as error:
        raise TrainingError(f"{found.uri}: the weights of run {found.run_id} are damaged: {error}") from None
    mlflow.log_params({"init_used": found.uri, "init_run": found.run_id})
    new = found.vocabulary.missing(vocabulary.characters)
    echo(f"going on from {found.uri}{f', new characters: {new}' if new else ''}")
    if new == vocabulary.characters:
        echo(f"warning: no character of {new} is known to {found.uri}: only what it sees in images is gone on from")
    if _may_have_learned_the_test(config, found):
        echo(
            f"warning: {found.uri} has learned from {found.data}, split in another way: the figures flatter where it "
            "knows images that are held back now; test on others with --test-data"
        )
    return start


def _may_have_learned_the_test(config: TrainConfig, found: TrainedModel) -> bool:
    """Tell whether the test's folder is the one that the model was trained on, split in another way."""
    folder = config.test_data or config.data
    same_folder = not folder.startswith("draw:") and Path(folder).resolve() == Path(found.data).resolve()
    return same_folder and not (config.test_data is None and found.test_data == "none" and found.seed == config.seed)


def _fit(
    config: TrainConfig, split: Split, vocabulary: Vocabulary, echo: Echo, start: Start | None = None
) -> tuple[Crnn, list[EpochResult]]:
    """Return the model of the best epoch, on the CPU, and the results of all epochs, each logged as it came."""
    results: list[EpochResult] = []
    weights: dict[str, torch.Tensor] = {}
    batches = None
    if config.drawn_style:
        held_back = {sample.text for sample in [*split.validation, *split.test]}
        batches = endless_batches(drawn_samples(config, held_back), config.batch_size, start=DRAWN_IMAGES)
    for result in train_epochs(config, split, vocabulary, _progress, batches, start):
        results.append(result)
        if start and result.epoch == 0:
            echo(f"before training it reads {result.validation.exact_match:.2%} of the validation images")
        if result.epoch == 0:
            mlflow.log_params({"model_parameters": sum(p.numel() for p in result.model.parameters())})
        _log_epoch(config, result, echo)
        if result.chosen:
            weights = {key: value.detach().cpu().clone() for key, value in result.model.state_dict().items()}
            best_epoch = result.epoch
        if result.epoch == config.epochs // 3:
            _warn(diagnosis(result), echo)
    _warn(diagnosis(results[-1]), echo)
    mlflow.log_metrics({"best_epoch": best_epoch})
    model = results[-1].model.cpu().to(memory_format=torch.contiguous_format)
    model.load_state_dict(weights)
    return model, results


def _warn(warning: str | None, echo: Echo) -> None:
    if warning:
        echo(f"warning: {warning}")


def evaluate(folder: str, model: str, echo: Echo) -> dict[str, float]:
    """Measure a registered or logged model on a folder of labelled images, in a tracked run of its own.

    Raises:
        DataError: the folder has problems; all of them are echoed first.
    """
    recognizer = registry.load_recognizer(model)
    samples = _read_folder(folder, recognizer.height, None, echo)
    with tracked_run(f"evaluate {_short_name(folder)}"):
        _log_missing_params({"data": folder, "model": model, "test_digest": data.digest(samples)})
        tested = evaluation.evaluate(recognizer, samples)
        _log_test(tested, [])
    return tested.figures()


def predict(files: Sequence[Path], model: str, decoder: Decoder, beam_width: int) -> list[Reading | ImageError]:
    """Return what each file says, or why it cannot be read, in their order."""
    recognizer = registry.load_recognizer(model)
    outcomes: list[Reading | ImageError] = []
    for file in files:
        try:
            outcomes.append(recognizer.read([decode_image(file.read_bytes())], decoder, beam_width)[0])
        except ImageError as error:
            outcomes.append(error)
        except OSError as error:
            outcomes.append(ImageError(f"cannot be read: {error.strerror}"))
    return outcomes


def load_split(config: TrainConfig, echo: Echo) -> Split:
    """Return the samples that a configuration names, in their three parts.

    A fixed validation or test set takes the place of the part that would have been split off, which is trained on.

    Raises:
        DataError: the data has problems; all of them are echoed first.
    """
    vocabulary = Vocabulary(config.vocabulary) if config.vocabulary else None
    if config.drawn_style:
        endless = drawn_samples(config)
        samples = [endless[i] for i in range(DRAWN_IMAGES)]
    else:
        samples = _read_folder(config.data, config.height, vocabulary, echo)
    fixed = [
        _read_folder(folder, config.height, vocabulary, echo) if folder else None
        for folder in (config.val_data, config.test_data)
    ]
    if fixed == [None, None]:
        return data.split(samples, config.seed)
    validation, test = fixed
    parts = data.split(samples, config.seed) if validation is None or test is None else Split(samples, [], [])
    split = Split(
        parts.train + (parts.validation if validation else []) + (parts.test if test else []),
        validation or parts.validation,
        test or parts.test,
    )
    _refuse(data.leaks(split.train, [*split.validation, *split.test]), echo)
    return split


def drawn_samples(config: TrainConfig, without: Collection[str] = frozenset()) -> DrawnSamples:
    """Return the samples of the configured style, without end.

    Raises:
        StyleError: there is no such style.
        ValueError: no font can draw it.
    """
    style = load_style(config.drawn_style or "")
    fonts, _ = synthesis.fonts_for(style, synthesis.default_fonts())
    return DrawnSamples(style, fonts, config.height, config.seed, without)


def _read_folder(folder: str, height: int, vocabulary: Vocabulary | None, echo: Echo) -> list[Sample]:
    with tqdm(desc=f"reading {folder}", unit="image", disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        samples, problems, _ = data.read_samples(Path(folder), height, vocabulary, FRAME_STRIDE, progress)
    _refuse(problems, echo)
    return samples


def _refuse(problems: Sequence[data.Problem], echo: Echo) -> None:
    """Echo all problems; raise where one is fatal."""
    if problems:
        echo(data.format_problems(problems))
    fatal = sum(problem.fatal for problem in problems)
    if fatal:
        raise DataError(f"{fatal} {'problem' if fatal == 1 else 'problems'} in the data, see above")


def _vocabulary(config: TrainConfig, split: Split, echo: Echo) -> Vocabulary:
    """Return the configured vocabulary, or that of the training labels."""
    if config.vocabulary:
        return Vocabulary(config.vocabulary)
    vocabulary = Vocabulary.from_texts(sample.text for sample in split.train)
    unseen = Counter(c for s in [*split.validation, *split.test] for c in vocabulary.missing(s.text))
    if unseen:
        listed = " ".join(sorted(unseen))
        echo(f"warning: no training label holds {listed}: the labels with them, held back, cannot be read right")
    return vocabulary


def _progress(steps: "range") -> "tqdm[int]":
    return tqdm(steps, unit="step", disable=None, leave=False)


def _log_inputs(config: TrainConfig, split: Split, vocabulary: Vocabulary) -> None:
    sides = {"train": split.train, "validation": split.validation, "test": split.test}
    digests = {side: data.digest(samples) for side, samples in sides.items()}
    settings = {key: "none" if value is None else value for key, value in config.model_dump().items()}
    _log_missing_params(
        {
            **settings,
            **{f"{side}_images": len(samples) for side, samples in sides.items()},
            **{f"{side}_digest": digest for side, digest in digests.items()},
            "split_digest": split.digest,
            "vocabulary_used": vocabulary.characters,
            "device": str(choose_device()),
        }
    )
    mlflow.set_tags({"backbone": config.backbone, "data": config.data})
    folders = {"train": None, "validation": config.val_data, "test": config.test_data}
    for side, fixed in folders.items():
        folder = fixed or config.data
        dataset = MetaDataset(_source(folder), name=f"{_short_name(folder)}-{side}", digest=digests[side])  # type: ignore[abstract]
        mlflow.log_input(dataset, context=side)


def _source(folder: str) -> DatasetSource:
    if folder.startswith("draw:"):
        return CodeDatasetSource({"drawn": folder})
    source: DatasetSource = LocalArtifactDatasetSource(Path(folder).resolve().as_uri())
    return source


def _log_missing_params(params: dict[str, object]) -> None:
    """Log what the run does not have yet: `mlflow run` has logged some, and refuses a change in their spelling."""
    run = mlflow.active_run()
    known = mlflow.get_run(run.info.run_id).data.params if run else {}
    mlflow.log_params({key: value for key, value in params.items() if key not in known})


def _log_epoch(config: TrainConfig, result: EpochResult, echo: Echo) -> None:
    validation = result.validation
    metrics = {"val/loss": validation.loss, "val/exact_match": validation.exact_match, "val/cer": validation.cer}
    if result.train_loss is not None:
        metrics |= {
            "train/loss": result.train_loss,
            "train/lr": result.learning_rate,
            "train/images_per_second": result.images_per_second,
            "train/epoch_seconds": result.epoch_seconds,
        }
        echo(
            f"epoch {result.epoch:3}/{config.epochs}  loss {result.train_loss:7.3f}  val loss {validation.loss:7.3f}  "
            f"exact match {validation.exact_match:7.2%}  {result.images_per_second:5.0f} images/s"
            f"{'  *' if result.chosen else ''}"
        )
    mlflow.log_metrics(metrics, step=result.epoch)
    if result.epoch % EPOCHS_PER_PICTURE == 0 or result.epoch == config.epochs:
        mlflow.log_image(prediction_grid(validation), key="val/predictions", step=result.epoch)


def _log_test(tested: Evaluation, results: Sequence[EpochResult]) -> None:
    metrics = {f"test/{key}": value for key, value in tested.figures().items()}
    repeats = tested.with_repeats()
    if repeats.samples:
        metrics["test/exact_match_repeats"] = repeats.exact_match
        metrics["test/n_repeats"] = len(repeats.samples)
    mlflow.log_metrics(metrics)
    mlflow.log_table(
        pd.DataFrame(
            {
                "file": [sample.name for sample in tested.samples],
                "label": tested.references,
                "prediction": tested.predictions,
                "right": [p == r for p, r in zip(tested.predictions, tested.references, strict=True)],
                "confidence": [reading.confidence for reading in tested.readings],
            }
        ),
        "test_predictions.json",
    )
    confusion = character_confusion(tested.predictions, tested.references)
    rows = [(label, read, count) for (label, read), count in confusion.most_common()]
    mlflow.log_table(pd.DataFrame(rows, columns=["label", "prediction", "count"]), "test_confusion.json")
    mlflow.log_figure(confusion_figure(tested), "test_confusion.png")
    mlflow.log_image(prediction_grid(tested), artifact_file="test_predictions.png")
    if results:
        mlflow.log_figure(learning_curves(results), "learning_curves.png")


def _example(config: TrainConfig, sample: Sample) -> tuple[str, bytes]:
    """Return the path of an image to try the model on, and its content; a drawn one is written beside the runs."""
    folder = config.test_data or config.data
    if config.drawn_style is None or config.test_data:
        path = Path(folder) / sample.name
    else:
        path = project_root() / "mlruns" / f"example-{sample.text.replace('/', '_')}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(cv2.imencode(".png", sample.image[:, :, ::-1])[1].tobytes())
    return os.path.relpath(path), path.read_bytes()


def _short_name(folder: str) -> str:
    return folder if folder.startswith("draw:") else Path(folder).resolve().name


def _command(tool: str) -> str:
    """Return how a person's shell, in the folder this runs in, calls a tool of this environment on these runs."""
    folder = Path(sys.executable).parent
    # A .venv inside the project is on PATH while make runs, not in the shell that make was called from.
    if str(folder) not in os.environ.get("PATH", "").split(os.pathsep) or project_root() in folder.parents:
        tool = os.path.relpath(folder / tool)
    # Without a word, MLflow takes the mlflow.db of the folder it is called in.
    uri = mlflow.get_tracking_uri()
    return tool if uri == f"sqlite:///{Path.cwd() / 'mlflow.db'}" else f"MLFLOW_TRACKING_URI={uri} {tool}"
