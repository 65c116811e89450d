"""Train a recogniser: settings → one tracked run → a registered model. Other jobs that train call its parts."""

import hashlib
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import mlflow
import torch
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from tqdm import tqdm

from captcha.data import samples as data
from captcha.data import sources
from captcha.data.samples import Sample, Split
from captcha.data.sources import Echo, drawn_samples, load_split, short_name
from captcha.drawing.styles import load_style
from captcha.evaluation import results as evaluation
from captcha.evaluation.plots import learning_curves, prediction_grid
from captcha.evaluation.results import Evaluation, disagreement
from captcha.reading.recognizer import ARTIFACT, Recognizer, save_recognizer
from captcha.reading.vocabulary import Vocabulary
from captcha.settings import CHAMPION, TrainConfig, project_root
from captcha.tracking import registry
from captcha.tracking.models import LOGGED_MODEL, WEIGHTS_FILE, WEIGHTS_FOLDER, TrainedModel, load_trained, log_model
from captcha.tracking.records import log_missing_params, log_test
from captcha.tracking.runs import tracked_run
from captcha.training.batches import endless_batches
from captcha.training.checkpoint import Start
from captcha.training.export import to_onnx, torch_recognizer
from captcha.training.loop import EpochResult, TrainingError, choose_device, diagnosis, shuffled_batches, train_epochs
from captcha.training.model import Crnn

EPOCHS_PER_PICTURE = 5


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
        return f"""
{exact_match_line("the test split", self.figures)}
{self.message}

{next_commands(self.model_name, self.model_version, self.example)}"""


def exact_match_line(images: str, figures: Mapping[str, float]) -> str:
    """Return for a person how many of these images were read exactly, with the interval."""
    return (
        f"exact match on {images}: {figures['exact_match']:.2%} of {figures['n']:.0f} images "
        f"(95 % interval {figures['exact_match_low']:.2%} to {figures['exact_match_high']:.2%})"
    )


def next_commands(name: str, version: int, example: str) -> str:
    """Return the lines that tell a person how to look at the runs, and how to use this version of the model."""
    uri = f"models:/{name}" + (f"@{CHAMPION}" if registry.is_champion(name, version) else f"/{version}")
    return f"""compare the runs      {_command("mlflow")} ui
serve the model       {_command("mlflow")} models serve -m {uri} --env-manager local -p 5001
read one image        {_command("captcha")} predict {example} --model {uri}"""


def train(config: TrainConfig, echo: Echo) -> TrainOutcome:
    """Train as configured in one tracked run, register the model, and return what came of it.

    Raises:
        DataError: the data has problems; all of them are echoed first.
        RegistryError: there is no such model to go on from.
        TrainingError: the model to go on from is of another kind, the training cannot go on, or the exported model
            does not agree with the trained one.
    """
    with tracked_run(f"{config.backbone} on {short_name(config.data)}, seed {config.seed}") as run:
        before = _trained_before(config)
        split = load_split(config, echo)
        example = example_of(config, split.test[0])
        tested = learn(config, split, before, example, echo)
        name, version, message = registry.register(run.info.run_id, config.name)
    return TrainOutcome(run.info.run_id, tested.figures(), name, version, message, os.path.relpath(example))


def learn(config: TrainConfig, split: Split, before: TrainedModel | None, example: Path, echo: Echo) -> Evaluation:
    """Train on a split in the active run, log all that comes of it, and return what the model reads of the test part.

    Raises:
        TrainingError: the training cannot go on, or the exported model does not agree with the trained one.
    """
    vocabulary = _vocabulary(config, split, echo)
    log_inputs(config, split, vocabulary)
    echo(
        f"training {config.backbone} on {choose_device()}: {len(split.train)} images, {len(split.validation)} for "
        f"validation, {len(split.test)} for the test, {len(vocabulary.characters)} characters"
    )
    start = start_from(config, before, vocabulary, echo) if before else None
    model, results = fit(config, split, vocabulary, echo, start)
    log_weights(model)
    tested = log_recognizer(model, vocabulary, config.height, split, example)
    assert tested  # a split has a test part
    mlflow.log_figure(learning_curves(results), "learning_curves.png")
    return tested


def log_weights(model: Crnn) -> None:
    """Log the weights that a training can go on from, and their sha256."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / WEIGHTS_FILE
        save_file(dict(model.state_dict()), file)
        mlflow.log_artifact(str(file), WEIGHTS_FOLDER)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    mlflow.set_tag(f"sha256.{WEIGHTS_FILE}", digest)


def log_recognizer(model: Crnn, vocabulary: Vocabulary, height: int, split: Split, example: Path) -> Evaluation | None:
    """Export the model, check it on the validation images, test it where there are test images, and log it.

    Raises:
        TrainingError: the exported model does not agree with the trained one.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / ARTIFACT
        digests = save_recognizer(folder, to_onnx(model, height), vocabulary, height)
        recognizer = Recognizer.load(folder)
        if difference := disagreement(torch_recognizer(model, vocabulary, height), recognizer, split.validation):
            raise TrainingError(f"the exported model is not the trained one: {difference}; nothing is registered")
        mlflow.set_tags({f"sha256.{name}": digest for name, digest in digests.items()})
        tested = evaluation.evaluate(recognizer, split.test) if split.test else None
        if tested:
            log_test(tested)
        log_model(LOGGED_MODEL, folder, example.read_bytes())
    return tested


def _trained_before(config: TrainConfig) -> TrainedModel | None:
    """Return the model that the training goes on from, None where it starts from scratch.

    Raises:
        RegistryError: there is no such model.
        TrainingError: its backbone or height is another.
    """
    if config.init is None:
        return None
    found = load_trained(config.init)
    if (found.backbone, found.height) != (config.backbone, config.height):
        raise TrainingError(
            f"{found.uri} is {found.backbone} for height {found.height}, not {config.backbone} for {config.height}: "
            f"pass --backbone {found.backbone} --height {found.height} to go on from it"
        )
    return found


def start_from(config: TrainConfig, found: TrainedModel, vocabulary: Vocabulary, echo: Echo) -> Start:
    """Return the weights to go on from; log where they come from and say what is new to them.

    Raises:
        TrainingError: they are damaged.
    """
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


def fit(
    config: TrainConfig,
    split: Split,
    vocabulary: Vocabulary,
    echo: Echo,
    start: Start | None = None,
    keep_last: bool = False,
) -> tuple[Crnn, list[EpochResult]]:
    """Return the model of the best epoch, on the CPU, and the results of all epochs, each logged as it came.

    keep_last: the last epoch's in place of the best one's, where validation cannot tell.
    """
    results: list[EpochResult] = []
    weights: dict[str, torch.Tensor] = {}
    for result in train_epochs(config, split, vocabulary, _progress, _batches(config, split), start):
        results.append(result)
        if start and result.epoch == 0:
            echo(f"before training it reads {result.validation.exact_match:.2%} of the validation images")
        if result.epoch == 0:
            mlflow.log_params({"model_parameters": sum(p.numel() for p in result.model.parameters())})
        _log_epoch(config, result, echo)
        if result.chosen or keep_last:
            weights = {key: value.detach().cpu().clone() for key, value in result.model.state_dict().items()}
            best_epoch = result.epoch
        if result.epoch == config.epochs // 3:
            _warn(diagnosis(result), echo)
    _warn(diagnosis(results[-1]), echo)
    mlflow.log_metrics({"best_epoch": best_epoch})
    model = results[-1].model.cpu().to(memory_format=torch.contiguous_format)
    model.load_state_dict(weights)
    return model, results


def _batches(config: TrainConfig, split: Split) -> Iterator[list[Sample]] | None:
    """Return batches without end of drawn images, or half of them drawn; None where the folder's are all."""
    if not (config.drawn_style or config.drawn):
        return None
    drawn = drawn_samples(config, {sample.text for sample in [*split.validation, *split.test]})
    if config.drawn_style:
        return endless_batches(drawn, config.batch_size, start=sources.DRAWN_IMAGES)
    half = config.batch_size // 2
    real = shuffled_batches(split.train, config.batch_size - half, torch.Generator().manual_seed(config.seed))
    return (a + b for a, b in zip(real, endless_batches(drawn, half, start=0), strict=True))


def _warn(warning: str | None, echo: Echo) -> None:
    if warning:
        echo(f"warning: {warning}")


def _vocabulary(config: TrainConfig, split: Split, echo: Echo) -> Vocabulary:
    """Return the configured vocabulary, or that of the training labels and of the style drawn beside them."""
    if config.vocabulary:
        return Vocabulary(config.vocabulary)
    drawn = [load_style(config.drawn).alphabet] if config.drawn else []
    vocabulary = Vocabulary.from_texts([*(sample.text for sample in split.train), *drawn])
    unseen = Counter(c for s in [*split.validation, *split.test] for c in vocabulary.missing(s.text))
    if unseen:
        listed = " ".join(sorted(unseen))
        echo(f"warning: no training label holds {listed}: the labels with them, held back, cannot be read right")
    return vocabulary


def _progress(steps: "range") -> "tqdm[int]":
    return tqdm(steps, unit="step", disable=None, leave=False)


def log_inputs(config: TrainConfig, split: Split, vocabulary: Vocabulary) -> None:
    """Log the settings, what follows from them, and the data sets as MLflow's inputs."""
    sides = {"train": split.train, "validation": split.validation, "test": split.test}
    digests = {side: data.digest(samples) for side, samples in sides.items()}
    log_missing_params(
        {
            **config.model_dump(),
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
        dataset = MetaDataset(_source(folder), name=f"{short_name(folder)}-{side}", digest=digests[side])  # type: ignore[abstract]
        mlflow.log_input(dataset, context=side)


def _source(folder: str) -> DatasetSource:
    if folder.startswith("draw:"):
        return CodeDatasetSource({"drawn": folder})
    source: DatasetSource = LocalArtifactDatasetSource(Path(folder).resolve().as_uri())
    return source


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


def example_of(config: TrainConfig, sample: Sample) -> Path:
    """Return the path of an image to try the model on; a drawn one is written beside the runs."""
    folder = config.test_data or config.data
    if config.drawn_style is None or config.test_data:
        return Path(folder) / sample.name
    path = project_root() / "mlruns" / f"example-{sample.text.replace('/', '_')}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(cv2.imencode(".png", sample.image[:, :, ::-1])[1].tobytes())
    return path


def _command(tool: str) -> str:
    """Return how a person's shell, in the folder this runs in, calls a tool of this environment on these runs."""
    folder = Path(sys.executable).parent
    # A .venv inside the project is on PATH while make runs, not in the shell that make was called from.
    if str(folder) not in os.environ.get("PATH", "").split(os.pathsep) or project_root() in folder.parents:
        tool = os.path.relpath(folder / tool)
    # Without a word, MLflow takes the mlflow.db of the folder it is called in.
    uri = mlflow.get_tracking_uri()
    return tool if uri == f"sqlite:///{Path.cwd() / 'mlflow.db'}" else f"MLFLOW_TRACKING_URI={uri} {tool}"
