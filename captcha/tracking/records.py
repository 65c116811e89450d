"""What a run holds: its params, the figures of a test, files."""

from collections.abc import Mapping

import mlflow
import pandas as pd

from captcha.evaluation.metrics import character_confusion
from captcha.evaluation.plots import confusion_figure, prediction_grid
from captcha.evaluation.results import Evaluation


def log_missing_params(params: Mapping[str, object]) -> None:
    """Log what the run does not have yet: `mlflow run` has logged some, and refuses a change in their spelling.

    None is logged as none, as it is written on the command line.
    """
    run = mlflow.active_run()
    known = mlflow.get_run(run.info.run_id).data.params if run else {}
    missing = {key: value for key, value in params.items() if key not in known}
    mlflow.log_params({key: "none" if value is None else value for key, value in missing.items()})


def log_test(tested: Evaluation) -> None:
    """Log the figures of a test, every prediction, the confusions and a picture."""
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
