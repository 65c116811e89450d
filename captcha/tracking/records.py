"""What a run holds: settings, inputs, pictures of predictions, the test's metrics and files."""

from collections.abc import Mapping, Sequence

import mlflow
import pandas as pd
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]

from captcha.data.problems import Problem, printable
from captcha.data.samples import Split, digest
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


def log_left_out(problems: Sequence[Problem]) -> None:
    """Log how many files were left out for their problems, as a tag, and the problems as problems.csv, if any."""
    mlflow.set_tags({"left_out": len({problem.file for problem in problems})})
    if problems:
        rows = [(printable(problem.file), problem.kind, problem.message) for problem in problems]
        mlflow.log_text(pd.DataFrame(rows, columns=["file", "kind", "message"]).to_csv(index=False), "problems.csv")


def _dataset_source(source: Source) -> DatasetSource:
    if isinstance(source, Folder):
        folder: DatasetSource = LocalArtifactDatasetSource(source.path.resolve().as_uri())
        return folder
    return CodeDatasetSource({"drawn": source.written})


def log_predictions(evaluation: Evaluation, key: str, step: int) -> None:
    """Log a picture of what is read at a step, beside the same images at other steps."""
    from captcha.evaluation.plots import prediction_grid  # brings matplotlib: not before it is needed

    mlflow.log_image(prediction_grid(evaluation), key=key, step=step)


def log_test(evaluation: Evaluation) -> None:
    """Log the metrics of a test, every prediction, the confusions and a picture."""
    from captcha.evaluation.plots import confusion_figure, prediction_grid  # brings matplotlib, as above

    metrics = {f"test/{key}": value for key, value in evaluation.metrics().items()}
    repeats = evaluation.with_repeats()
    if repeats.samples:
        metrics["test/exact_match_repeats"] = repeats.exact_match
        metrics["test/n_repeats"] = len(repeats.samples)
    mlflow.log_metrics(metrics)
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
        "test_predictions.json",
    )
    confusion = character_confusion(evaluation.predictions, evaluation.references)
    rows = [(label, read, count) for (label, read), count in confusion.most_common()]
    mlflow.log_table(pd.DataFrame(rows, columns=["label", "prediction", "count"]), "test_confusion.json")
    mlflow.log_figure(confusion_figure(evaluation), "test_confusion.png")
    mlflow.log_image(prediction_grid(evaluation), artifact_file="test_predictions.png")
