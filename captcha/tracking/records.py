"""What a run holds: settings, facts, inputs, pictures of predictions, the test's figures and files."""

import json
from collections.abc import Mapping, Sequence

import mlflow
import pandas as pd
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]

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


def log_facts(facts: Mapping[str, object]) -> None:
    """Log what a run has found, beside its settings, as tags: MLflow prints all params of a run under each picture."""
    mlflow.set_tags({key: str(value) for key, value in facts.items()})


class ImageSet(MetaDataset):
    """Images with labels as MLflow knows a data set: where they come from, their digest and their count."""

    def __init__(self, source: Source, samples: Sequence[Sample], context: str) -> None:
        self._images = len(samples)  # before what follows, which asks for the profile
        super().__init__(_dataset_source(source), name=f"{source.short_name}-{context}", digest=digest(samples))

    @property
    def profile(self) -> dict[str, int]:
        """The count, under the name by which MLflow shows it."""
        return {"num_rows": self._images}

    def to_dict(self) -> dict[str, str]:
        """Return what MLflow stores; a MetaDataset's own has no profile."""
        return {**super().to_dict(), "profile": json.dumps(self.profile)}


def log_inputs(split: Split, sources: Mapping[str, Source]) -> dict[str, ImageSet]:
    """Log each side of a split, with its source, as an input of the run, and its count and digest; return them."""
    sides = {"train": split.train, "validation": split.validation, "test": split.test}
    sets = {side: ImageSet(sources[side], samples, side) for side, samples in sides.items()}
    for side, each in sets.items():
        mlflow.log_input(each, context=side)
        log_facts({f"{side}_images": len(sides[side]), f"{side}_digest": each.digest})
    log_facts({"split_digest": split.digest})
    return sets


def _dataset_source(source: Source) -> DatasetSource:
    if isinstance(source, Folder):
        folder: DatasetSource = LocalArtifactDatasetSource(source.path.resolve().as_uri())
        return folder
    return CodeDatasetSource({"drawn": source.written})


def log_predictions(evaluation: Evaluation, key: str, step: int) -> None:
    """Log a picture of what is read at a step, beside the same images at other steps."""
    from captcha.evaluation.plots import prediction_grid  # brings matplotlib: not before it is needed

    mlflow.log_image(prediction_grid(evaluation), key=key, step=step)


def log_test(evaluation: Evaluation, model_id: str | None = None, images: ImageSet | None = None) -> None:
    """Log the figures of a test, every prediction, the confusions and a picture.

    Exact match and character error rate are metrics, which MLflow draws; all figures stand in `test.json`, and what
    a person compares versions by in tags. `model_id` and `images` are the logged model and the data set measured.
    """
    from captcha.evaluation.plots import confusion_figure, prediction_grid  # brings matplotlib, as above

    figures = evaluation.metrics()
    drawn = {f"test/{key}": figures[key] for key in ("exact_match", "cer")}
    mlflow.log_metrics(drawn, step=0, model_id=model_id, dataset=images)  # MLflow draws one bar for a metric at step 0
    repeats = evaluation.with_repeats()
    if repeats.samples:
        figures |= {"exact_match_repeats": repeats.exact_match, "n_repeats": len(repeats.samples)}
    mlflow.log_dict(figures, "test.json")
    log_facts(
        {
            "test_images": len(evaluation.samples),
            "test_right": len(evaluation.samples) - evaluation.wrong,
            "test_low": f"{figures['exact_match_low']:.4f}",
            "test_high": f"{figures['exact_match_high']:.4f}",
        }
    )
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
