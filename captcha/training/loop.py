"""The training loop: batches in, one EpochResult after each epoch out. Knows neither MLflow nor the terminal."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from captcha import CaptchaError
from captcha.data.samples import Sample
from captcha.evaluation.results import Evaluation, evaluate
from captcha.reading.images import stack
from captcha.reading.recognizer import Recognizer
from captcha.training import ranks
from captcha.training.augmentation import augment
from captcha.training.batches import Batches
from captcha.training.checkpoint import Checkpoint
from captcha.training.export import torch_recognizer
from captcha.training.model import Crnn
from captcha.training.recipe import Recipe
from captcha.training.schedule import Schedule, Standing

DIAGNOSED_EPOCH = 5
"""Before this epoch, empty readings do not mean that the training is stuck."""

DIVERGED_FACTOR = 2
"""A validation loss so many times that of a model that knows nothing is a diverged training's."""

OVERFITTED_MATCH = 0.5
OVERFITTED_SHARE = 0.1  # a training loss below this share of the validation loss

Progress = Callable[[range], Iterable[int]]


class TrainingError(CaptchaError):
    """A training that cannot go on; one line that says why and what to do."""

    resumable = False


@dataclass(frozen=True)
class EpochResult:
    """The result of an epoch. Epoch 0 is the model before training, with no loss of its own."""

    epoch: int
    model: Crnn
    """The averaged model as of this epoch, on the device of the training; the next epoch changes it."""
    validation: Evaluation
    kept: bool
    """Whether this epoch's model takes the place of the one kept so far."""
    train_loss: float | None
    """CTC loss per image over the epoch, with augmentation and dropout."""
    learning_rate: float
    images_per_second: float
    epoch_seconds: float

    def metrics(self) -> dict[str, float]:
        """Return the metrics of an epoch by the names they are logged under."""
        validation = self.validation
        metrics = {"val/loss": validation.loss, "val/exact_match": validation.exact_match, "val/cer": validation.cer}
        if self.train_loss is not None:
            metrics |= {
                "train/loss": self.train_loss,
                "train/lr": self.learning_rate,
                "train/images_per_second": self.images_per_second,
                "train/epoch_seconds": self.epoch_seconds,
            }
        return metrics


class TrainingState:
    """All that a training changes: saved and loaded between two steps, it continues as if uninterrupted.

    Batches, augmentation and dropout are not part of it: they follow from the seed and the step.
    """

    def __init__(self, model: Crnn, recipe: Recipe) -> None:
        self.model = model
        self.forward = ranks.sharing(model)
        """The model's forward pass; learn through this one."""
        average = functools.partial(_move_average, recipe.average_decay)
        self.averaging = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        if self.average.gru is not None:
            self.average.gru.flatten_parameters()  # cuDNN wants them side by side in memory, which a copy's are not
        self.optimizer = make_optimizer(model, recipe.weight_decay)
        self.step = 0
        self.losses: list[float] = []
        """Of the steps of the epoch under way."""
        self.standing: Standing | None = None
        """After the last epoch; None before the model was evaluated for the first time."""
        self.kept_epoch = 0
        self.kept: dict[str, Tensor] = {}
        """The averaged weights as of the epoch kept, on the CPU."""

    @property
    def average(self) -> Crnn:
        """The moving average of the weights: the model that is evaluated and kept."""
        return cast(Crnn, self.averaging.module)

    def keep(self, epoch: int) -> None:
        """Keep a copy of the averaged weights as the training's result so far."""
        self.kept_epoch = epoch
        self.kept = dict(Checkpoint.of(self.average).weights)

    def state_dict(self) -> dict[str, Any]:
        """Return everything, as `torch.save` takes it and `torch.load(weights_only=True)` gives it back."""
        return {
            "model": self.model.state_dict(),
            "averaging": self.averaging.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "losses": list(self.losses),
            "standing": asdict(self.standing) if self.standing else None,
            "kept_epoch": self.kept_epoch,
            "kept": dict(self.kept),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned for a training of the same settings.

        Raises:
            RuntimeError, ValueError: it is of another model.
        """
        self.model.load_state_dict(state["model"])
        self.averaging.load_state_dict(state["averaging"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.losses = state["step"], list(state["losses"])
        self.standing = Standing(**state["standing"]) if state["standing"] else None
        self.kept_epoch, self.kept = state["kept_epoch"], dict(state["kept"])


def choose_device() -> torch.device:
    """Return the accelerator where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def train_epochs(
    state: TrainingState,
    batches: Batches,
    validation: Sequence[Sample],
    schedule: Schedule,
    progress: Progress = iter,
    teacher: Crnn | None = None,
) -> Iterator[EpochResult]:
    """Train from the state on, yielding after each epoch; `Schedule` says when it stops early.

    Args:
        state: new or loaded; up to date, so that it can be saved, whenever `progress` is asked for the next step.
        batches: what to learn from.
        validation: samples that choose the epoch.
        schedule: how long, and at which rates.
        progress: wraps the steps of an epoch, as tqdm does.
        teacher: a model of the same vocabulary and height whose log_probs are learned beside the labels; on the
            device of the training, in eval mode.

    Raises:
        TrainingError: the loss is no longer a number.
        CaptchaError: a batch cannot be drawn or read.
    """
    recognizer = torch_recognizer(state.average)
    if state.standing is None:
        evaluation = evaluate_together(recognizer, validation)
        state.standing = Standing(0, schedule.epochs, evaluation.exact_match, evaluation.loss)
        state.keep(0)
        yield EpochResult(0, state.average, evaluation, True, None, schedule.learning_rate, 0.0, 0.0)
    with contextlib.closing(batches.from_step(state.step)) as row:  # its workers end with it, whatever happens
        while not state.standing.ended:
            epoch = state.standing.epoch + 1
            steps = range(state.step, epoch * schedule.steps_per_epoch)
            rate = schedule.rate(steps.stop - 1, state.standing.last_epoch)
            started = time.perf_counter()
            for _ in progress(steps):
                train_step(state, next(row), batches.seed, schedule, teacher, batches.weight)
                if not math.isfinite(state.losses[-1]):
                    raise TrainingError(
                        f"the loss became {state.losses[-1]} in epoch {epoch}: train again with a lower learning rate "
                        f"than {schedule.learning_rate:g}"
                    )
            seconds = time.perf_counter() - started
            evaluation = evaluate_together(recognizer, validation)
            kept = schedule.keeps(evaluation.exact_match, state.standing.highest_match, len(validation))
            if kept:
                state.keep(epoch)
            state.standing = state.standing.after_epoch(evaluation.exact_match, evaluation.loss, schedule)
            loss, state.losses = sum(state.losses) / len(state.losses), []
            speed = len(steps) * batches.size / seconds
            yield EpochResult(epoch, state.average, evaluation, kept, loss, rate, speed, seconds)


def evaluate_together(recognizer: Recognizer, samples: Sequence[Sample]) -> Evaluation:
    """Return what is read of the samples; of several ranks each reads a part, and all get the whole."""
    if ranks.count() == 1:
        return evaluate(recognizer, samples)
    own = evaluate(recognizer, samples[ranks.rank() :: ranks.count()])
    readings, labels = zip(*ranks.gathered((own.readings, own.label_log_probabilities)), strict=True)
    return Evaluation.of(samples, ranks.in_turn(readings), ranks.in_turn(labels))


def train_step(
    state: TrainingState,
    samples: Sequence[Sample],
    seed: int,
    schedule: Schedule,
    teacher: Crnn | None = None,
    weight: float = 1.0,
) -> None:
    """Learn from one batch; the augmentation and the dropout follow from the seed, the step and the rank.

    Of several ranks each learns from its part, so that all take the step of the whole batch: the loss of each counts
    by `weight`, as in `Batches`, and the gradients and the batch norms' running statistics are the ranks' mean.
    """
    assert state.standing
    device = next(state.model.parameters()).device
    augmentation_rng = Generator(device)
    seeds = np.random.SeedSequence([seed, state.step, ranks.rank()])  # NumPy takes [seed, step] for [seed, step, 0]
    for_augmentation, for_dropout = seeds.generate_state(2, np.uint64).tolist()
    augmentation_rng.manual_seed(for_augmentation)
    torch.manual_seed(for_dropout)

    state.model.train()
    images = torch.from_numpy(stack([sample.image for sample in samples])).to(device)
    strength = schedule.augmentation_strength(state.step)
    images = augment(images, strength, augmentation_rng, schedule.recipe.augmentation)
    targets = [state.model.vocabulary.encode(sample.text) for sample in samples]
    with torch.autocast(device.type, torch.bfloat16, enabled=_has_bfloat16(device)):
        log_probs = state.forward(images.contiguous(memory_format=torch.channels_last))
    loss = ctc_loss(log_probs, targets)
    if teacher:
        with torch.no_grad():
            taught = teacher(images)
        loss = loss + distillation_loss(log_probs, taught)
    loss = weight * loss
    for group in state.optimizer.param_groups:
        group["lr"] = schedule.rate(state.step, state.standing.last_epoch)
    state.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(state.model.parameters(), schedule.recipe.gradient_norm)
    state.optimizer.step()
    ranks.average([buffer for buffer in state.model.buffers() if buffer.is_floating_point()])
    state.averaging.update_parameters(state.model)
    state.losses.append(ranks.mean(loss.item()))
    state.step += 1


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
            f"but {last.validation.exact_match:.0%} of the validation images read (loss {last.validation.loss:.2f}): "
            "more images will help, more epochs will not; check the labels too"
        )
    return None


def divergence(
    history: Sequence[Mapping[str, float]], kept_epoch: int, ignorant_loss: float, learning_rate: float
) -> str | None:
    """Return in one line that a training has diverged as of the epoch kept; None where it has not.

    It has where the model is much worse than one that knows nothing, on the validation images and also on those that
    it learns from: a model that has learned those by heart is only worse on the others.

    Args:
        history: the metrics of all epochs from 0 on.
        kept_epoch: the one whose model is kept.
        ignorant_loss: what a model that knows nothing loses on an image, at least; epoch 0 may lose more.
        learning_rate: the highest of the training.
    """
    ignorant = max(ignorant_loss, history[0]["val/loss"])
    kept = history[kept_epoch]
    if kept["val/loss"] <= DIVERGED_FACTOR * ignorant or kept.get("train/loss", 0.0) < ignorant:
        return None
    return (
        f"the training has diverged: after epoch {kept_epoch} its loss is {kept['val/loss']:.1f} on the validation "
        f"images, of a model that knows nothing {ignorant:.1f}; train again with a lower learning rate than "
        f"{learning_rate:g}"
    )


def ctc_loss(log_probs: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
    """Return the CTC loss per image of log_probs (T, N, C) and N sequences of class indices."""
    frames, count, _ = log_probs.shape
    joined = torch.tensor([label for target in targets for label in target])
    lengths = torch.tensor([len(target) for target in targets])
    # On the CPU: mps has no CTC loss, and the sums are small.
    total = F.ctc_loss(log_probs.cpu(), joined, torch.full((count,), frames), lengths, reduction="sum")
    return total / count


def distillation_loss(log_probs: Tensor, taught: Tensor) -> Tensor:
    """Return how far log_probs are from those of the teacher, both (T, N, C): the KL divergence per image.

    Summed over the frames, as the CTC loss is: both are in nats per image (Hinton et al., 2015, arXiv:1503.02531).
    """
    return F.kl_div(log_probs, taught, reduction="sum", log_target=True) / log_probs.shape[1]


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """Return Adam with decoupled weight decay on matrices and kernels, none on biases and norms; steps set its rate."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, fused=True)


def _move_average(decay: float, average: Any, weights: Any, updates: Tensor | int) -> None:
    """Move the average towards the weights: at first in larger steps, or it would show the first weights for epochs.

    The decay after n updates is (1 + n) / (10 + n), at most `decay`, as TensorFlow's ExponentialMovingAverage has it.
    """
    updates = int(updates)
    get_ema_multi_avg_fn(min(decay, (1 + updates) / (10 + updates)))(average, weights, updates)


def _has_bfloat16(device: torch.device) -> bool:
    """Return whether mixed precision in bfloat16 is faster than single precision there."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))
