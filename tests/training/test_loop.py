import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from captcha.data.samples import Sample, Split
from captcha.evaluation.results import Evaluation, evaluate
from captcha.reading.recognizer import Reading
from captcha.reading.vocabulary import Vocabulary
from captcha.settings import TrainConfig
from captcha.training import loop as training
from captcha.training.checkpoint import Start
from captcha.training.export import torch_recognizer
from captcha.training.loop import EpochResult, TrainingError, ctc_loss, diagnosis, train_epochs
from captcha.training.model import Crnn

TEXTS = ["274", "055", "918", "360"]
VOCABULARY = Vocabulary("0123456789")


@pytest.fixture(autouse=True)
def _small_and_on_one_core(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setattr(training, "choose_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(training, "EPOCH_IMAGES", 1)


@pytest.fixture(scope="module")
def samples(draw: Callable[..., NDArray[np.uint8]]) -> list[Sample]:
    return [Sample(f"{text}.png", text, draw(text, width=64)) for text in TEXTS]


def config(**settings: object) -> TrainConfig:
    return TrainConfig.model_validate({"backbone": "compact", "height": 32, "batch_size": 4, "epochs": 2} | settings)


def run(samples: list[Sample], **settings: object) -> list[EpochResult]:
    return list(train_epochs(config(**settings), Split(samples, samples, []), VOCABULARY))


# The loss


def log_probability(log_probs: NDArray[np.float64], target: Sequence[int]) -> float:
    """log P(target) as the sum over every path, the definition of CTC: (T, C) log_probs."""
    total = 0.0
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        if [label for label, _ in itertools.groupby(path) if label] == list(target):
            total += math.exp(sum(frame[label] for frame, label in zip(log_probs, path, strict=True)))
    return math.log(total)


def test_the_loss_is_minus_the_log_probability_of_all_paths_averaged_over_images() -> None:
    targets = [[1], [1, 2], [2, 2], [1, 2, 1], [2]]
    log_probs = torch.randn((4, len(targets), 3), generator=torch.Generator().manual_seed(0)).log_softmax(2)
    expected = [-log_probability(log_probs[:, n].double().numpy(), target) for n, target in enumerate(targets)]
    assert ctc_loss(log_probs, targets).item() == pytest.approx(sum(expected) / len(targets), rel=1e-5)
    for n, target in enumerate(targets):
        assert ctc_loss(log_probs[:, n : n + 1], [target]).item() == pytest.approx(expected[n], rel=1e-5)


def test_a_label_that_cannot_align_is_not_hidden() -> None:
    log_probs = torch.zeros((2, 2, 3)).log_softmax(2)
    assert math.isinf(ctc_loss(log_probs, [[1], [2, 2]]).item())


# The loop


def test_a_few_images_are_learned_by_heart(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "EPOCH_IMAGES", 80)
    monkeypatch.setattr(training, "AVERAGE_DECAY", 0.5)  # the average follows within a few steps
    monkeypatch.setattr(training, "augment", lambda images, strength, generator: images.float())
    split = Split(samples, samples, [])
    for result in train_epochs(config(epochs=20, dropout=0.0), split, VOCABULARY):
        if result.validation.exact_match == 1:
            break
    assert result.validation.predictions == TEXTS
    assert result.train_loss is not None
    assert result.train_loss < 3
    readings = torch_recognizer(result.model, VOCABULARY, 32).read([sample.image for sample in samples])
    assert readings == result.validation.readings


def test_one_seed_gives_the_same_losses_and_another_seed_others(samples: list[Sample]) -> None:
    def losses(seed: int) -> list[float | None]:
        results = run(samples, seed=seed, batch_size=3)
        return [loss for result in results for loss in (result.train_loss, result.validation.loss)]

    first = losses(5)
    torch.rand(3)  # what was drawn before does not matter
    assert losses(5) == first
    other = losses(6)
    assert all(a != b for a, b in zip(first, other, strict=True) if a is not None)


def test_epoch_0_is_the_model_before_training_and_each_epoch_changes_every_weight(samples: list[Sample]) -> None:
    states: list[dict[str, Tensor]] = []
    results: list[EpochResult] = []
    # Steps of two images: the GRU learns from the second step on, its head begins at nothing.
    for result in train_epochs(config(epochs=2, batch_size=2), Split(samples * 2, samples, []), VOCABULARY):
        states.append({key: value.clone() for key, value in result.model.named_parameters()})
        results.append(result)
    assert [result.epoch for result in results] == [0, 1, 2]
    assert results[0].train_loss is None
    assert results[0].chosen
    assert all(result.train_loss and math.isfinite(result.train_loss) for result in results[1:])
    assert all(result.images_per_second > 0 < result.epoch_seconds for result in results[1:])
    for before, after in itertools.pairwise(states):
        assert [key for key in before if torch.equal(before[key], after[key])] == []


def test_every_image_is_learned_from_before_any_comes_again(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def note(log_probs: Tensor, targets: list[list[int]]) -> Tensor:
        seen.extend(map(tuple, targets))
        return ctc_loss(log_probs, targets)

    monkeypatch.setattr(training, "ctc_loss", note)
    monkeypatch.setattr(training, "EPOCH_IMAGES", 12)
    run(samples, epochs=1, batch_size=3)
    assert len(seen) == 12
    rounds = [sorted(seen[start : start + 4]) for start in (0, 4, 8)]
    assert rounds == [sorted(tuple(VOCABULARY.encode(text)) for text in TEXTS)] * 3


def test_the_train_part_alone_is_learned_from_and_the_validation_part_alone_is_read(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()

    def note(log_probs: Tensor, targets: list[list[int]]) -> Tensor:
        seen.update(map(VOCABULARY.decode, targets))
        return ctc_loss(log_probs, targets)

    monkeypatch.setattr(training, "ctc_loss", note)
    results = list(train_epochs(config(epochs=1), Split(samples[:3], samples[3:], []), VOCABULARY))
    assert seen == set(TEXTS[:3])
    assert [result.validation.references for result in results] == [TEXTS[3:]] * 2


def test_the_test_part_is_not_touched(samples: list[Sample]) -> None:
    split = Split(samples, samples, cast("list[Sample]", None))
    assert len(list(train_epochs(config(epochs=1), split, VOCABULARY))) == 2


def test_images_of_several_widths_are_trained_on_together(
    samples: list[Sample], draw: Callable[..., NDArray[np.uint8]]
) -> None:
    wide = [Sample(f"wide {text}", text, draw(text, width=130)) for text in TEXTS]
    results = run(samples + wide, epochs=1, batch_size=8)
    assert results[-1].train_loss is not None
    assert math.isfinite(results[-1].train_loss)


def test_progress_wraps_the_steps_of_each_epoch(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "EPOCH_IMAGES", 9)
    wrapped: list[range] = []

    def progress(steps: range) -> range:
        wrapped.append(steps)
        return steps

    list(train_epochs(config(epochs=2), Split(samples, samples, []), VOCABULARY, progress))
    assert wrapped == [range(3), range(3)]


def test_the_model_is_the_one_configured(samples: list[Sample]) -> None:
    result = next(train_epochs(config(dropout=0.35, height=48), Split(samples, samples, []), VOCABULARY))
    assert (result.model.dropout.p, result.model.gru.dropout) == (0.35, 0.35)
    assert result.model.conv.kernel_size == (3, 3)  # as high as the features of 48 rows
    assert result.model.head.out_channels == VOCABULARY.classes


# Going on from a trained model


def test_epoch_0_reads_as_the_model_did_that_the_training_goes_on_from(samples: list[Sample]) -> None:
    torch.manual_seed(3)
    model = Crnn("compact", VOCABULARY.classes, 32)
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 32, 64) * 255)  # its batch norms are no longer as they were made
    start = Start({key: value.clone() for key, value in model.state_dict().items()}, VOCABULARY)
    first = next(train_epochs(config(), Split(samples, samples, []), VOCABULARY, start=start))
    expected = evaluate(torch_recognizer(model, VOCABULARY, 32), samples)
    assert first.validation.loss == pytest.approx(expected.loss, rel=1e-5)
    assert first.validation.predictions == expected.predictions
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, start.weights[key]), key


def test_a_start_that_no_epoch_comes_near_is_kept_and_not_waited_for(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LANDING_PART", 6)
    scripted(monkeypatch, [(4, 9.0), *[(3, 5.0)] * 20])
    results = run(samples, epochs=12, patience=2)
    assert [result.chosen for result in results] == [True, *[False] * 5]
    # The loss fell below the start's once; then patience counts, and landing takes the sixth part of 12.
    assert results[-1].epoch == 5


# The steps


@dataclass(frozen=True)
class Step:
    """What the optimizer had before it at a step, and what it made of it."""

    rates: list[float]
    """The learning rate of each group."""
    gradient: float
    """The norm of all gradients."""
    weights: list[Tensor]
    """After the step."""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Every step of the optimizers of a test's trainings, as they come."""
    noted: list[Step] = []
    usual = training._optimizer

    def watched(model: Crnn, learning_rate: float) -> torch.optim.Optimizer:
        optimizer = usual(model, learning_rate)
        before: list[tuple[list[float], float]] = []

        def note_before(*_: object) -> None:
            gradients = [p.grad.norm() for p in model.parameters() if p.grad is not None]
            before.append(([g["lr"] for g in optimizer.param_groups], float(torch.stack(gradients).norm())))

        def note_after(*_: object) -> None:
            noted.append(Step(*before.pop(), [p.detach().clone() for p in model.parameters()]))

        optimizer.register_step_pre_hook(note_before)
        optimizer.register_step_post_hook(note_after)
        return optimizer

    monkeypatch.setattr(training, "_optimizer", watched)
    return noted


def test_the_learning_rate_rises_in_a_straight_line_is_level_and_falls_to_nothing(
    samples: list[Sample], steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LANDING_PART", 2)
    monkeypatch.setattr(training, "WARM_UP_STEPS", 4)
    monkeypatch.setattr(training, "EPOCH_IMAGES", 32)
    scripted(monkeypatch, [(0, 9.0)] * 5)
    results = run(samples, epochs=4, learning_rate=0.016)
    rising, level, falling = [0.004, 0.008, 0.012], [0.016] * 14, [0.001 * left for left in range(15, 0, -1)]
    assert [step.rates[0] for step in steps] == pytest.approx([*rising, *level, *falling])
    assert all(step.rates == step.rates[:1] * 2 for step in steps)
    assert [result.learning_rate for result in results[1:]] == [step.rates[0] for step in steps[7::8]]


def test_a_short_training_warms_up_over_a_tenth_of_it(
    samples: list[Sample], steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [(0, 9.0)] * 2)
    monkeypatch.setattr(training, "EPOCH_IMAGES", 40)
    run(samples, epochs=1, learning_rate=0.01)
    assert [step.rates[0] for step in steps] == pytest.approx([0.005, *[0.01 * left / 10 for left in range(9, 0, -1)]])


def test_no_step_goes_by_a_longer_gradient_than_allowed(
    samples: list[Sample], steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "GRADIENT_NORM", 0.125)
    run(samples, epochs=1)
    assert [step.gradient for step in steps] == pytest.approx([0.125], rel=1e-3)  # it would be longer, untrained


def test_each_step_goes_by_its_own_batch_and_the_loss_of_an_epoch_is_the_mean_of_its_steps(
    samples: list[Sample], steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = iter([1.0, 0.0, 0.0])
    losses: list[float] = []

    def fade(log_probs: Tensor, targets: list[list[int]]) -> Tensor:
        loss = ctc_loss(log_probs, targets) * next(factors)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(training, "ctc_loss", fade)
    monkeypatch.setattr(training, "EPOCH_IMAGES", 12)
    result = run(samples, epochs=1)[-1]
    assert [step.gradient > 0 for step in steps] == [True, False, False]
    assert losses[0] > 0
    assert result.train_loss == pytest.approx(losses[0] / 3)


def test_the_moving_average_of_the_weights_is_what_is_read_with_and_given_out(
    samples: list[Sample], steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "AVERAGE_DECAY", 0.75)
    monkeypatch.setattr(training, "EPOCH_IMAGES", 12)
    result = run(samples, epochs=1, learning_rate=0.01)[-1]
    first, second, third = (step.weights for step in steps)
    assert not torch.equal(first[0], third[0])
    for average, a, b, c in zip(result.model.parameters(), first, second, third, strict=True):
        torch.testing.assert_close(average, 0.75 * (0.75 * a + 0.25 * b) + 0.25 * c)
    readings = torch_recognizer(result.model, VOCABULARY, 32).read([sample.image for sample in samples])
    assert readings == result.validation.readings


def test_the_augmentation_grows_to_its_full_strength_and_follows_the_seed_as_the_order_does(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    strengths: list[float] = []
    seeds: list[int] = []
    batches = training.shuffled_batches

    def note(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
        strengths.append(strength)
        seeds.append(generator.initial_seed())
        return images.float()

    def note_order(samples: Sequence[Sample], size: int, generator: torch.Generator) -> Iterator[list[Sample]]:
        seeds.append(generator.initial_seed())
        return batches(samples, size, generator)

    monkeypatch.setattr(training, "augment", note)
    monkeypatch.setattr(training, "shuffled_batches", note_order)
    monkeypatch.setattr(training, "AUGMENTATION_RAMP", 0.5)
    monkeypatch.setattr(training, "EPOCH_IMAGES", 32)
    run(samples, epochs=1, seed=7)
    assert strengths == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert set(seeds) == {7}


def test_matrices_and_kernels_decay_and_biases_and_norms_do_not() -> None:
    model = Crnn("compact", 11, 32)
    groups = training._optimizer(model, 0.01).param_groups
    decays = {p: group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        assert decays[p] == (0.0 if p.ndim == 1 else training.WEIGHT_DECAY), name
    assert training.WEIGHT_DECAY > 0


# When it ends


def scripted(monkeypatch: pytest.MonkeyPatch, figures: Sequence[tuple[int, float]]) -> None:
    """Put evaluations with these (right of four, loss) in the place of what the model reads."""
    rest = iter(figures)

    def stand_in(recognizer: object, samples: list[Sample]) -> Evaluation:
        right, loss = next(rest)
        texts = [sample.text if i < right else "" for i, sample in enumerate(samples)]
        return Evaluation(samples, [Reading(text, 0.5, []) for text in texts], loss)

    monkeypatch.setattr(training, "evaluate", stand_in)


def test_the_learning_rate_lands_once_validation_has_stood_still_for_as_many_epochs_as_patience_says(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing read yet for longer than patience; then a lower loss alone; then neither more matches nor a lower loss.
    monkeypatch.setattr(training, "LANDING_PART", 6)
    monkeypatch.setattr(training, "WARM_UP_STEPS", 1)
    scripted(monkeypatch, [(0, 9.0), *[(0, 9.5)] * 4, (1, 8.0), (1, 7.0), (0, 7.5), *[(1, 7.0)] * 20])
    results = run(samples, epochs=14, patience=3)
    assert results[-1].epoch == 11  # patience is over after epoch 9, landing takes the sixth part of 14
    assert results[-1].learning_rate == results[-2].learning_rate / 2


def test_a_loss_that_still_falls_is_not_waited_for_once_all_is_read(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [(0, 9.0), (4, 8.0), (4, 7.0), (4, 6.0), *[(4, 5.0)] * 20])
    assert run(samples, epochs=12, patience=2)[-1].epoch == 5


def test_the_learning_rate_lands_over_the_last_epochs(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LANDING_PART", 2)
    monkeypatch.setattr(training, "WARM_UP_STEPS", 1)
    rates = [result.learning_rate for result in run(samples, epochs=8, learning_rate=0.01)]
    assert rates[1:] == pytest.approx([0.01, 0.01, 0.01, 0.01, 0.01, 0.0075, 0.005, 0.0025])


def test_an_epoch_is_chosen_unless_it_is_more_than_chance_worse_than_the_best_one(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of 100 images: 90 have a standard error of sqrt(0.9 * 0.1 / 100), three images. The loss does not matter.
    right = [0, 90, 87, 86, 87, 91, 87, 89]
    scripted(monkeypatch, [(count, 20.0 + count) for count in right])
    split = Split(samples, (samples * 100)[:100], [])
    results = list(train_epochs(config(epochs=7, patience=15), split, VOCABULARY))
    assert [result.chosen for result in results] == [True, True, True, False, True, True, False, True]


def test_only_an_epoch_that_reads_all_takes_the_place_of_one_that_did(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [(0, 9.0), (4, 8.0), (3, 1.0), (4, 9.0)])
    assert [result.chosen for result in run(samples, epochs=3)] == [True, True, False, True]


def test_a_loss_that_is_no_number_ends_the_training_in_one_line(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "augment", lambda images, strength, generator: images.float() * math.nan)
    with pytest.raises(TrainingError, match=r"^the loss became nan in epoch 1: [^\n]*lower learning rate than 0.01$"):
        run(samples, learning_rate=0.01)


# The diagnosis


def epoch(
    number: int, predictions: Sequence[str], train_loss: float | None, loss: float, references: Sequence[str] = TEXTS
) -> EpochResult:
    samples = [Sample("", text, np.zeros((1, 1, 3), np.uint8)) for text in references]
    validation = Evaluation(samples, [Reading(text, 0.5, []) for text in predictions], loss)
    return EpochResult(number, cast(Crnn, None), validation, False, train_loss, 0.001, 100.0, 1.0)


def test_a_training_that_reads_nothing_is_told_to_sit_on_the_plateau() -> None:
    line = diagnosis(epoch(20, [""] * 4, 9.0, 9.0))
    assert line is not None
    assert line.startswith("after 20 epochs every reading is empty (loss 9.0)")
    assert "all-blank plateau" in line
    assert "\n" not in line


def test_a_training_that_reads_one_text_everywhere_does_not_see_the_images() -> None:
    line = diagnosis(epoch(20, ["2"] * 4, 9.0, 9.0))
    assert line is not None
    assert line.startswith("after 20 epochs every reading is '2': the model does not see the images")
    assert diagnosis(epoch(20, ["2"] * 4, 9.0, 9.0, references=["2"] * 4)) is None


def test_a_training_that_knows_its_images_by_heart_needs_more_of_them() -> None:
    line = diagnosis(epoch(50, ["274", "0", "9", "3"], 0.02, 6.0))
    assert line is not None
    assert "nearly known by heart (loss 0.02), but 25% of validation's are read (loss 6.00)" in line


def test_a_training_that_goes_well_is_left_in_peace() -> None:
    assert diagnosis(epoch(50, TEXTS, 0.02, 0.01)) is None  # it reads
    assert diagnosis(epoch(50, ["274", "0", "9", "3"], 5.0, 6.0)) is None  # it still learns
    assert diagnosis(epoch(50, ["274", "055", "918", "3"], 0.02, 6.0)) is None  # most are right


def test_the_first_epochs_are_not_judged() -> None:
    stuck = [""] * 4
    assert diagnosis(epoch(0, stuck, None, 9.0)) is None
    assert diagnosis(epoch(1, stuck, 9.0, 9.0)) is None
    assert diagnosis(epoch(5, stuck, 9.0, 9.0)) is not None
