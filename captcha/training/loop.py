"""The training loop: samples in, one EpochResult after each epoch out. Knows neither MLflow nor the terminal."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from captcha import CaptchaError
from captcha.data.samples import Sample, Split
from captcha.evaluation.metrics import wilson_interval
from captcha.evaluation.results import Evaluation, evaluate
from captcha.reading.images import stack
from captcha.reading.vocabulary import Vocabulary
from captcha.settings import TrainConfig
from captcha.training.augmentation import augment
from captcha.training.checkpoint import Start, go_on_from
from captcha.training.export import torch_recognizer
from captcha.training.model import Crnn

EPOCH_IMAGES = 500
"""Images in an epoch at the least: a smaller folder is gone through several times, changed anew each time."""

WARM_UP_STEPS = 200
LANDING_PART = 6  # the learning rate falls over the sixth part of the epochs, also where they end early
AUGMENTATION_RAMP = 0.1  # share of the training over which the augmentation grows to its full strength
WEIGHT_DECAY = 0.01
GRADIENT_NORM = 5.0
CHANCE = 0.68  # confidence of the interval, one standard error, below which an epoch is worse than the best one
AVERAGE_DECAY = 0.99  # of the moving average of the weights, which is the model that counts

DIAGNOSED_EPOCH = 5
"""Before it, reading nothing yet is no sign of being stuck."""

OVERFITTED_MATCH = 0.5
OVERFITTED_SHARE = 0.1  # of the validation loss: a training loss below it

Progress = Callable[[range], Iterable[int]]


class TrainingError(CaptchaError):
    """A training that cannot go on; one line that says why and what to do."""


@dataclass(frozen=True)
class EpochResult:
    """What an epoch gave. Epoch 0 is the model before training, with no loss of its own."""

    epoch: int
    model: Crnn
    """The averaged model as of this epoch, on the device of the training; it changes with the next."""
    validation: Evaluation
    chosen: bool
    """Whether this epoch's model is the one to keep so far."""
    train_loss: float | None
    """CTC loss per image over the epoch, with augmentation and dropout."""
    learning_rate: float
    images_per_second: float
    epoch_seconds: float


def choose_device() -> torch.device:
    """Return the accelerator where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def train_epochs(
    config: TrainConfig,
    split: Split,
    vocabulary: Vocabulary,
    progress: Progress = iter,
    batches: Iterator[list[Sample]] | None = None,
    start: Start | None = None,
) -> Iterator[EpochResult]:
    """Train a CRNN, yielding after each epoch; ends early, its learning rate landed, where validation stands still.

    Args:
        config: what to do.
        split: its train side is learned from, its validation side chooses the epoch; test is not touched.
        vocabulary: holds every character of the training labels.
        progress: wraps the steps of an epoch, as tqdm does.
        batches: without end, learned from in place of the train side, which then only says how long an epoch is.
        start: weights to go on from, of a model with the same backbone and height; all else stays as without it.

    Raises:
        StartError: the weights of the start do not fit.
        TrainingError: when the loss is no longer a number.
    """
    seed_everything(config.seed)
    device = choose_device()
    # The order and the augmentation have generators of their own: evaluating more often changes neither.
    order = Generator().manual_seed(config.seed)
    changes = Generator(device).manual_seed(config.seed)
    model = Crnn(config.backbone, vocabulary.classes, config.height, config.dropout, config.pretrained)
    if start:
        go_on_from(start, model, vocabulary)
    model = model.to(device).to(memory_format=torch.channels_last)
    averaging = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY), use_buffers=True)
    average = cast(Crnn, averaging.module)
    average.gru.flatten_parameters()  # cuDNN wants them side by side in memory, which a copy's are not
    steps_per_epoch = math.ceil(max(EPOCH_IMAGES, len(split.train)) / config.batch_size)
    steps = steps_per_epoch * config.epochs
    ramp, warm_up = AUGMENTATION_RAMP * steps, min(WARM_UP_STEPS, steps // 10 + 1)
    landing = max(1, config.epochs // LANDING_PART)
    optimizer = _optimizer(model, config.learning_rate)
    batches = batches or shuffled_batches(split.train, config.batch_size, order)
    recognizer = torch_recognizer(average, vocabulary, config.height)

    validation = evaluate(recognizer, split.validation)
    yield EpochResult(0, average, validation, True, None, config.learning_rate, 0.0, 0.0)
    epoch, waited, last_epoch = 0, 0, config.epochs
    highest_match, lowest_loss, count = validation.exact_match, validation.loss, len(split.validation)
    while epoch < last_epoch:
        epoch += 1
        started = time.perf_counter()
        model.train()
        losses = []
        for index in progress(range(steps_per_epoch)):
            step = (epoch - 1) * steps_per_epoch + index
            samples = next(batches)
            images = torch.from_numpy(stack([sample.image for sample in samples])).to(device)
            images = augment(images, min(1.0, step / ramp), changes)
            targets = [vocabulary.encode(sample.text) for sample in samples]
            with torch.autocast(device.type, torch.bfloat16, enabled=_has_bfloat16(device)):
                log_probs = model(images.contiguous(memory_format=torch.channels_last))
            loss = ctc_loss(log_probs, targets)
            # Up in a straight line, level, and down to nothing over the last epochs, whichever these turn out to be.
            steps_left = last_epoch * steps_per_epoch - step
            rate = config.learning_rate * min(1, (step + 1) / warm_up, steps_left / (landing * steps_per_epoch))
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
            optimizer.step()
            averaging.update_parameters(model)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise TrainingError(
                    f"the loss became {losses[-1]} in epoch {epoch}: train again with a lower learning rate "
                    f"than {config.learning_rate:g}"
                )
        seconds = time.perf_counter() - started
        validation = evaluate(recognizer, split.validation)
        match = validation.exact_match
        # The latest epoch counts that is as good as the best one, chance apart: it has learned longer, at a lower
        # rate at last. The best of many by some dozens of images is the luckiest, too.
        chosen = match >= wilson_interval(round(highest_match * count), count, CHANCE)[0]
        # More matches, or a loss lower than ever while some are missing; nothing read yet is no standstill either.
        better = match > highest_match or (validation.loss < lowest_loss and match < 1) or not highest_match
        waited = 0 if better else waited + 1
        highest_match, lowest_loss = max(highest_match, match), min(lowest_loss, validation.loss)
        if waited >= config.patience:
            last_epoch = min(last_epoch, epoch + landing)
        yield EpochResult(
            epoch,
            average,
            validation,
            chosen,
            sum(losses) / len(losses),
            rate,
            steps_per_epoch * config.batch_size / seconds,
            seconds,
        )


def diagnosis(last: EpochResult) -> str | None:
    """Return in one line why a training is stuck as of this epoch; None where it is not, or it is too early to say."""
    if last.train_loss is None or last.epoch < DIAGNOSED_EPOCH:
        return None
    read = last.validation.predictions
    if not any(read):
        return (
            f"after {last.epoch} epochs every reading is empty (loss {last.train_loss:.1f}): the training sits on "
            "CTC's all-blank plateau; look at some images beside their labels (captcha check), then give it more "
            "epochs or images, or another learning rate"
        )
    if len(set(read)) == 1 and len(set(last.validation.references)) > 1:
        return (
            f"after {last.epoch} epochs every reading is {read[0]!r}: the model does not see the images; look at some "
            "beside their labels (captcha check), then try a lower learning rate"
        )
    if last.validation.exact_match < OVERFITTED_MATCH and last.train_loss < OVERFITTED_SHARE * last.validation.loss:
        return (
            f"after {last.epoch} epochs the training images are nearly known by heart (loss {last.train_loss:.2f}), "
            f"but {last.validation.exact_match:.0%} of validation's are read (loss {last.validation.loss:.2f}): more "
            "images will help, more epochs will not; check the labels too"
        )
    return None


def ctc_loss(log_probs: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
    """Return the CTC loss per image of log_probs (T, N, C) and N sequences of class indices."""
    frames, count, _ = log_probs.shape
    joined = torch.tensor([label for target in targets for label in target])
    lengths = torch.tensor([len(target) for target in targets])
    # On the CPU: mps has no CTC loss, and the sums are small.
    total = F.ctc_loss(log_probs.cpu(), joined, torch.full((count,), frames), lengths, reduction="sum")
    return total / count


def seed_everything(seed: int) -> None:
    """Seed what PyTorch draws from: weights and dropout. Nothing here draws from NumPy's or Python's generators."""
    torch.manual_seed(seed)


def _has_bfloat16(device: torch.device) -> bool:
    """Tell whether mixed precision in bfloat16 is faster than single precision there."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def _optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Return Adam with decoupled weight decay on matrices and kernels, none on biases and norms."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def shuffled_batches(samples: Sequence[Sample], size: int, generator: Generator) -> Iterator[list[Sample]]:
    """Yield batches for ever; each sample comes once before any comes again."""
    batch: list[Sample] = []
    while True:
        for index in torch.randperm(len(samples), generator=generator).tolist():
            batch.append(samples[index])
            if len(batch) == size:
                yield batch
                batch = []
