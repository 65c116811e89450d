"""Measure a trained model on a folder of labelled images, in a tracked run of its own."""

import captcha
from captcha.data.problems import Problem
from captcha.data.samples import ImageMemory, digest
from captcha.data.sources import parse_folder
from captcha.evaluation.results import evaluate as read
from captcha.settings import IMAGE_MEMORY, OnProblems
from captcha.tracking.records import log_left_out, log_settings, log_test
from captcha.tracking.runs import tracked_run


def evaluate(folder: str, model: str, problems: OnProblems = "stop") -> dict[str, float]:
    """Return the metrics of a registered or logged model, or of a recognizer's folder, on a folder of labelled images.

    Raises:
        DataError: the folder has problems; all of them are logged first.
        RegistryError: there is no such model.
        RecognizerError: the model's files are damaged.
    """
    source = parse_folder(folder)
    recognizer = captcha.load(model)
    left_out: list[Problem] | None = [] if problems == "leave-out" else None
    samples = source.samples(recognizer.height, memory=ImageMemory(IMAGE_MEMORY), left_out=left_out)
    with tracked_run(f"evaluate {source.short_name}"):
        log_settings({"data": source.written, "model": model, "problems": problems, "test_digest": digest(samples)})
        log_left_out(left_out or ())
        evaluation = read(recognizer, samples)
        log_test(evaluation)
    return evaluation.metrics()
