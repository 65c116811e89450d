"""What a run holds: settings, inputs, pictures of predictions, the test's metrics and files."""

from collections.abc import Mapping, Sequence

import mlflow
import pandas as pd
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]
from mlflow.entities import LoggedModelInput

from captcha.data.samples import Sample, Split, digest
from captcha.data.sources import Folder, Source
from captcha.evaluation.metrics import character_confusion
from captcha.evaluation.results import Evaluation
from captcha.settings import written


def log_settings(settings: Mapping[str, object]) -> None:
    """Log the settings that the run lacks as params: `mlflow run` has logged some, and MLflow lets none change.

    None is logged as it is written on the command line.
    """
    run = mlflow.active_run()
    known = mlflow.get_run(run.info.run_id).data.params if run else {}
    mlflow.log_params({key: written(value) for key, value in settings.items() if key not in known})


def log_inputs(split: Split, sources: Mapping[str, Source]) -> None:
    """Log each side of a split, with its source, as an input of the run, and as params its count and digest."""
    sides = {"train": split.train, "validation": split.validation, "test": split.test}
    digests = {side: digest(samples) for side, samples in sides.items()}
    log_settings(
        {
            **{f"{side}_images": len(samples) for side, samples in sides.items()},
            **{f"{side}_digest": each for side, each in digests.items()},
            "split_digest": split.digest,
        }
    )
    for side, source in sources.items():
        name = f"{source.short_name}-{side}"
        mlflow.log_input(MetaDataset(_dataset_source(source), name=name, digest=digests[side]), context=side)  # type: ignore[abstract]


def _dataset_source(source: Source) -> DatasetSource:
    if isinstance(source, Folder):
        folder: DatasetSource = LocalArtifactDatasetSource(source.path.resolve().as_uri())
        return folder
    return CodeDatasetSource({"drawn": source.written})


def log_predictions(evaluation: Evaluation, key: str, step: int) -> None:
    """Log a picture of what is read at a step, beside the same images at other steps."""
    from captcha.evaluation.plots import prediction_grid  # brings matplotlib: not before it is needed

    mlflow.log_image(prediction_grid(evaluation), key=key, step=step)


def log_test(
    evaluation: Evaluation, prefix: str = "test", model_id: str | None = None, dataset: MetaDataset | None = None
) -> None:
    """Log the metrics of a test, every prediction, the confusions and a picture.

    Names begin with the prefix: "test" of a training's own test, "eval" of an evaluation; a logged model and a data
    set are what MLflow links the metrics to.
    """
    from captcha.evaluation.plots import confusion_figure, prediction_grid  # brings matplotlib, as above

    metrics = {f"{prefix}/{key}": value for key, value in evaluation.metrics().items()}
    repeats = evaluation.with_repeats()
    if repeats.samples:
        metrics[f"{prefix}/exact_match_repeats"] = repeats.exact_match
        metrics[f"{prefix}/n_repeats"] = len(repeats.samples)
    mlflow.log_metrics(metrics, step=0, model_id=model_id, dataset=dataset)
    mlflow.log_table(
        pd.DataFrame(
            {
                "file": [sample.name for sample in evaluation.samples],
                "label": evaluation.references,
                "prediction": evaluation.predictions,
                "right": [p == r for p, r in zip(evaluation.predictions, evaluation.references, strict=True)],
                "confidence": [reading.confidence for reading in evaluation.readings],
            }
        ),
        f"{prefix}_predictions.json",
    )
    confusion = character_confusion(evaluation.predictions, evaluation.references)
    rows = [(label, read, count) for (label, read), count in confusion.most_common()]
    mlflow.log_table(pd.DataFrame(rows, columns=["label", "prediction", "count"]), f"{prefix}_confusion.json")
    mlflow.log_figure(confusion_figure(evaluation), f"{prefix}_confusion.png")
    mlflow.log_image(prediction_grid(evaluation), artifact_file=f"{prefix}_predictions.png")


def log_overlap(evaluation: Evaluation) -> None:
    """Log as tags how many images were left out of a test, since training saw them, and how many of those are right."""
    seen = evaluation.seen
    tags = {"overlap": len(seen.samples) if seen else 0}
    mlflow.set_tags(tags | ({"overlap_right": len(seen.samples) - seen.wrong} if seen else {}))


def log_evaluated(samples: Sequence[Sample], source: Source, model_id: str | None) -> MetaDataset:
    """Log the images that a model is evaluated on, and the logged model, as inputs of the run; return the data set."""
    dataset: MetaDataset = MetaDataset(_dataset_source(source), name=source.short_name, digest=digest(samples))  # type: ignore[abstract]
    mlflow.log_input(dataset, context="eval", model=LoggedModelInput(model_id) if model_id else None)
    return dataset
