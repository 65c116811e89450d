"""Measure a trained model on a folder of labelled images, in a tracked run of its own."""

from captcha.data import samples as data
from captcha.data.sources import Echo, read_folder, short_name
from captcha.evaluation import results as evaluation
from captcha.tracking.models import load_recognizer
from captcha.tracking.records import log_missing_params, log_test
from captcha.tracking.runs import tracked_run


def evaluate(folder: str, model: str, echo: Echo) -> dict[str, float]:
    """Measure a registered or logged model on a folder of labelled images, in a tracked run of its own.

    Raises:
        DataError: the folder has problems; all of them are echoed first.
    """
    recognizer = load_recognizer(model)
    samples = read_folder(folder, recognizer.height, None, echo)
    with tracked_run(f"evaluate {short_name(folder)}"):
        log_missing_params({"data": folder, "model": model, "test_digest": data.digest(samples)})
        tested = evaluation.evaluate(recognizer, samples)
        log_test(tested)
    return tested.figures()
