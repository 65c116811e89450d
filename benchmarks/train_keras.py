"""The net and the recipe of Keras's example `captcha_ocr`, after its description: a line of JSON for each epoch.

    python benchmarks/train_keras.py SPLIT.json SEED EPOCHS

It runs in the peers' environment. SPLIT.json has `train` and `validation`, lists of [file, text]. In its favour the
images are decoded once and not in each epoch, they are shuffled anew for each, and no validation loss is taken.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from PIL import Image

WIDTH, HEIGHT = 200, 50
BATCH = 16
PARAMETERS = 433_000
PADDING = -1


def net(classes: int) -> Any:
    """Return the net: grey images (N, WIDTH, HEIGHT, 1) of values 0 to 1 → probabilities (N, WIDTH / 4, classes)."""
    images = layers.Input((WIDTH, HEIGHT, 1))
    features = images
    for filters in (32, 64):
        features = layers.Conv2D(filters, 3, activation="relu", kernel_initializer="he_normal", padding="same")(
            features
        )
        features = layers.MaxPooling2D(2)(features)
    sequence = layers.Reshape((WIDTH // 4, HEIGHT // 4 * 64))(features)
    sequence = layers.Dense(64, activation="relu")(sequence)
    sequence = layers.Dropout(0.2)(sequence)
    for units in (128, 64):
        sequence = layers.Bidirectional(layers.LSTM(units, return_sequences=True, dropout=0.25))(sequence)
    return keras.Model(images, layers.Dense(classes, activation="softmax")(sequence))


def ctc_loss(targets: Any, probabilities: Any) -> Any:
    """Return the CTC loss of each image; targets (N, S) end with PADDING, the blank is the last class."""
    targets = tf.cast(targets, tf.int32)
    places = tf.where(targets != PADDING)
    sparse = tf.SparseTensor(places, tf.gather_nd(targets, places), tf.shape(targets, out_type=tf.int64))
    log_probs = tf.math.log(tf.transpose(probabilities, [1, 0, 2]) + keras.config.epsilon())
    frames = tf.fill([tf.shape(log_probs)[1]], tf.shape(log_probs)[0])
    return tf.compat.v1.nn.ctc_loss(sparse, log_probs, frames)


def load(pairs: list[tuple[str, str]]) -> Any:
    """Return the images, (N, WIDTH, HEIGHT, 1): time is the width, so it comes first."""
    grey = [Image.open(file).convert("L").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR) for file, _ in pairs]
    return np.stack([np.asarray(image, np.float32).T[:, :, None] / 255 for image in grey])


def greedy(probabilities: Any, characters: str) -> list[str]:
    """Return the text on the most likely path of each image of probabilities (N, T, classes)."""
    texts = []
    for path in probabilities.argmax(2):
        kept = [label for place, label in enumerate(path) if place == 0 or label != path[place - 1]]
        texts.append("".join(characters[label] for label in kept if label < len(characters)))
    return texts


def main(split: Path, seed: int, epochs: int) -> None:
    """Train for so many epochs, or until whoever reads the lines ends it; seconds count from the first step."""
    threads = int(os.environ["OMP_NUM_THREADS"])
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    keras.utils.set_random_seed(seed)
    parts: dict[str, list[tuple[str, str]]] = json.loads(split.read_text())
    characters = "".join(sorted({character for _, text in parts["train"] for character in text}))
    longest = max(len(text) for _, text in parts["train"])
    targets = np.full((len(parts["train"]), longest), PADDING, np.int32)
    for row, (_, text) in zip(targets, parts["train"], strict=True):
        row[: len(text)] = [characters.index(character) for character in text]
    images, validation = load(parts["train"]), load(parts["validation"])

    model = net(len(characters) + 2)  # the example has a class for unknown characters, too, and the blank
    if abs(model.count_params() - PARAMETERS) > 3000:  # an alphabet of a dozen more or fewer characters
        raise SystemExit(
            f"the net has {model.count_params()} parameters, not about {PARAMETERS}: it is not the example's"
        )
    model.compile(keras.optimizers.Adam(1e-3), ctc_loss, jit_compile=False)
    print(json.dumps({"parameters": model.count_params()}), flush=True)
    started, began = time.perf_counter(), time.process_time()
    for epoch in range(1, epochs + 1):
        model.fit(images, targets, BATCH, epochs=1, shuffle=True, verbose=0)
        read = greedy(model.predict(validation, BATCH, verbose=0), characters)
        right = sum(text == label for text, (_, label) in zip(read, parts["validation"], strict=True))
        line = {
            "epoch": epoch,
            "seconds": time.perf_counter() - started,
            "processor_seconds": time.process_time() - began,
            "exact_match": right / len(read),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
