"""This project's training of `compact` on a folder, without MLflow: a line of JSON for each epoch.

    python -m benchmarks.train_compact DIR SEED

The same steps, in the same order, as `captcha train --data DIR --backbone compact --seed SEED`.
"""

import json
import sys
import time

import torch

from captcha.jobs.train import batches_of, new_model, parse_sources, schedule_of, split_of, vocabulary_of
from captcha.settings import TrainSettings
from captcha.training import recipe as recipes
from captcha.training.loop import TrainingState, choose_device, train_epochs


def main(data: str, seed: int) -> None:
    """Train until the schedule ends, or whoever reads the lines ends it; seconds count from the first step."""
    settings, recipe = TrainSettings(data=data, backbone="compact", seed=seed), recipes.DEFAULT
    sources = parse_sources(settings)
    split = split_of(settings, sources)
    vocabulary = vocabulary_of(settings, sources, split)
    model = new_model(settings, vocabulary, recipe)
    schedule = schedule_of(
        split, settings.epochs, settings.batch_size, settings.learning_rate, settings.patience, recipe
    )
    batches = batches_of(sources, split, settings.batch_size, settings.seed, settings.height, vocabulary)
    state = TrainingState(model.to(choose_device()).to(memory_format=torch.channels_last), recipe)
    parameters = sum(each.numel() for each in model.parameters())
    started = began = 0.0
    for result in train_epochs(state, batches, split.validation, schedule):
        if result.epoch == 0:  # untrained: the first step comes next
            started, began = time.perf_counter(), time.process_time()
            print(json.dumps({"parameters": parameters}), flush=True)
            continue
        line = {
            "epoch": result.epoch,
            "seconds": time.perf_counter() - started,
            "processor_seconds": time.process_time() - began,
            "exact_match": result.validation.exact_match,
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
