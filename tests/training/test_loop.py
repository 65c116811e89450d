import itertools
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import scipy.special
import torch
from numpy.typing import NDArray
from torch import Tensor

from captcha.data.samples import Sample
from captcha.evaluation.results import Evaluation, evaluate
from captcha.reading.images import stack
from captcha.reading.recognizer import Reading
from captcha.reading.vocabulary import Vocabulary
from captcha.training import loop
from captcha.training.batches import Batches
from captcha.training.checkpoint import Checkpoint
from captcha.training.export import torch_recognizer
from captcha.training.loop import (
    EpochResult,
    Progress,
    TrainingError,
    TrainingState,
    ctc_loss,
    diagnosis,
    distillation_loss,
    divergence,
    make_optimizer,
    train_epochs,
)
from captcha.training.model import Crnn
from captcha.training.recipe import Augmentation, Recipe
from captcha.training.schedule import Schedule

TEXTS = ["274", "055", "918", "360"]
VOCABULARY = Vocabulary("0123456789")
ONCE = Recipe(epoch_images=1)
"""An epoch is the images there are."""


@pytest.fixture(autouse=True)
def _on_one_core(one_thread: None) -> None:
    pass


@pytest.fixture(scope="module")
def samples(draw: Callable[..., NDArray[np.uint8]]) -> list[Sample]:
    return [Sample(f"{text}.png", text, draw(text, width=64)) for text in TEXTS]


def training(
    samples: list[Sample],
    validation: list[Sample] | None = None,
    *,
    model: Crnn | None = None,
    recipe: Recipe = ONCE,
    epochs: int = 2,
    batch_size: int = 4,
    learning_rate: float = 0.001,
    patience: int = 10,
    dropout: float = 0.1,
    seed: int = 0,
    progress: Progress = iter,
) -> Iterator[EpochResult]:
    """A small training on the CPU that has not begun; without a validation part it reads what it learns from."""
    torch.manual_seed(seed)
    model = model or Crnn("compact", VOCABULARY, 32, dropout)
    state = TrainingState(model.to(memory_format=torch.channels_last), recipe)
    steps = math.ceil(max(recipe.epoch_images, len(samples)) / batch_size)
    schedule = Schedule(epochs, steps, learning_rate, patience, recipe)
    return train_epochs(state, Batches(samples, None, batch_size, seed), validation or samples, schedule, progress)


def run(samples: list[Sample], **options: Any) -> list[EpochResult]:
    return list(training(samples, **options))


# The loss


def log_probability(log_probs: NDArray[np.float64], target: Sequence[int]) -> float:
    """log P(target) as the sum over every path, the definition of CTC: (T, C) log_probs."""
    total = 0.0
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        if [label for label, _ in itertools.groupby(path) if label] == list(target):
            total += math.exp(sum(frame[label] for frame, label in zip(log_probs, path, strict=True)))
    return math.log(total)


def test_the_distillation_loss_is_the_divergence_from_the_teacher_summed_over_frames() -> None:
    rng = np.random.default_rng(0)
    student, teacher = (rng.dirichlet(np.ones(5), (7, 3)) for _ in range(2))  # (T, N, C)
    expected = scipy.special.rel_entr(teacher, student).sum() / 3
    log_student, log_teacher = (torch.from_numpy(np.log(each)) for each in (student, teacher))
    assert distillation_loss(log_student, log_teacher).item() == pytest.approx(expected, rel=1e-9)
    assert distillation_loss(log_teacher, log_teacher).item() == pytest.approx(0, abs=1e-12)


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


def test_a_few_images_are_learned_by_heart(samples: list[Sample]) -> None:
    unchanged = Augmentation.model_validate(dict.fromkeys(Augmentation.model_fields, 0))
    recipe = Recipe(epoch_images=80, average_decay=0.5, augmentation=unchanged)  # the average follows in a few steps
    for result in training(samples, recipe=recipe, epochs=20, dropout=0.0):
        if result.validation.exact_match == 1:
            break
    assert result.validation.predictions == TEXTS
    assert result.train_loss is not None
    assert result.train_loss < 3
    readings = torch_recognizer(result.model).read([sample.image for sample in samples])
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
    for result in training(samples * 2, samples, batch_size=2):
        states.append({key: value.clone() for key, value in result.model.named_parameters()})
        results.append(result)
    assert [result.epoch for result in results] == [0, 1, 2]
    assert results[0].train_loss is None
    assert results[0].kept
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

    monkeypatch.setattr(loop, "ctc_loss", note)
    run(samples, epochs=1, batch_size=3, recipe=Recipe(epoch_images=12))
    assert len(seen) == 12
    rounds = [sorted(seen[start : start + 4]) for start in (0, 4, 8)]
    assert rounds == [sorted(tuple(VOCABULARY.encode(text)) for text in TEXTS)] * 3


def test_a_student_comes_nearer_to_its_teacher_which_stays_as_it_is(samples: list[Sample]) -> None:
    torch.manual_seed(3)
    teacher = Crnn("compact", VOCABULARY, 32).eval()
    with torch.no_grad():
        cast(Tensor, teacher.local_head.bias).copy_(torch.linspace(-2, 2, VOCABULARY.classes))  # it says its own
    before = Checkpoint.of(teacher).to_bytes()
    torch.manual_seed(0)
    recipe = Recipe(epoch_images=1, average_decay=0.5)
    state = TrainingState(Crnn("student", VOCABULARY, 32, dropout=0.0), recipe)
    schedule = Schedule(8, 4, 0.01, 8, recipe)
    images = torch.from_numpy(stack([sample.image for sample in samples]))
    distances = []
    for result in train_epochs(state, Batches(samples, None, 1, 0), samples, schedule, teacher=teacher):
        with torch.no_grad():
            distances.append(distillation_loss(result.model.eval()(images), teacher(images)).item())
    assert distances[-1] < 0.7 * distances[0]
    assert Checkpoint.of(teacher).to_bytes() == before
    assert not teacher.training


def test_the_train_part_alone_is_learned_from_and_the_validation_part_alone_is_read(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()

    def note(log_probs: Tensor, targets: list[list[int]]) -> Tensor:
        seen.update(map(VOCABULARY.decode, targets))
        return ctc_loss(log_probs, targets)

    monkeypatch.setattr(loop, "ctc_loss", note)
    results = list(training(samples[:3], samples[3:], epochs=1))
    assert seen == set(TEXTS[:3])
    assert [result.validation.references for result in results] == [TEXTS[3:]] * 2


def test_images_of_several_widths_are_trained_on_together(
    samples: list[Sample], draw: Callable[..., NDArray[np.uint8]]
) -> None:
    wide = [Sample(f"wide {text}", text, draw(text, width=130)) for text in TEXTS]
    results = run(samples + wide, epochs=1, batch_size=8)
    assert results[-1].train_loss is not None
    assert math.isfinite(results[-1].train_loss)


def test_progress_wraps_the_steps_of_each_epoch(samples: list[Sample]) -> None:
    wrapped: list[range] = []

    def progress(steps: range) -> range:
        wrapped.append(steps)
        return steps

    run(samples, recipe=Recipe(epoch_images=9), progress=progress)
    assert wrapped == [range(3), range(3, 6)]


# Going on from a trained model


def test_epoch_0_reads_as_the_model_did_that_the_training_goes_on_from(samples: list[Sample]) -> None:
    torch.manual_seed(3)
    model = Crnn("compact", VOCABULARY, 32)
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 32, 64) * 255)  # its batch norms are no longer as they were made
    checkpoint = Checkpoint.of(model)
    first = next(training(samples, model=checkpoint.model()))
    expected = evaluate(torch_recognizer(model), samples)
    assert first.validation.loss == pytest.approx(expected.loss, rel=1e-5)
    assert first.validation.predictions == expected.predictions
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, checkpoint.weights[key]), key


def test_a_start_that_no_epoch_comes_near_is_kept_and_not_waited_for(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [(4, 9.0), *[(3, 5.0)] * 20])
    results = run(samples, epochs=12, patience=2)
    assert [result.kept for result in results] == [True, *[False] * 4]
    # The loss fell below the start's once; then patience counts, and the rate falls over one epoch.
    assert results[-1].epoch == 4


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

    def watched(model: Crnn, weight_decay: float) -> torch.optim.Optimizer:
        optimizer = make_optimizer(model, weight_decay)
        before: list[tuple[list[float], float]] = []

        def note_before(*_: object) -> None:
            gradients = [p.grad.norm() for p in model.parameters() if p.grad is not None]
            before.append(([g["lr"] for g in optimizer.param_groups], float(torch.stack(gradients).norm())))

        def note_after(*_: object) -> None:
            noted.append(Step(*before.pop(), [p.detach().clone() for p in model.parameters()]))

        optimizer.register_step_pre_hook(note_before)
        optimizer.register_step_post_hook(note_after)
        return optimizer

    monkeypatch.setattr(loop, "make_optimizer", watched)
    return noted


def test_the_learning_rate_rises_in_a_straight_line_is_level_and_falls_to_nothing(
    samples: list[Sample], steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [(0, 9.0)] * 5)
    recipe = Recipe(epoch_images=32, warm_up_steps=4, decay_part=2)
    results = run(samples, epochs=4, learning_rate=0.016, recipe=recipe)
    rising, level, falling = [0.004, 0.008, 0.012], [0.016] * 14, [0.001 * left for left in range(15, 0, -1)]
    assert [step.rates[0] for step in steps] == pytest.approx([*rising, *level, *falling])
    assert all(step.rates == step.rates[:1] * 2 for step in steps)
    assert [result.learning_rate for result in results[1:]] == [step.rates[0] for step in steps[7::8]]


def test_a_short_training_warms_up_over_a_tenth_of_it(
    samples: list[Sample], steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [(0, 9.0)] * 2)
    run(samples, epochs=1, learning_rate=0.01, recipe=Recipe(epoch_images=40))
    assert [step.rates[0] for step in steps] == pytest.approx([0.005, *[0.01 * left / 10 for left in range(9, 0, -1)]])


def test_no_step_goes_by_a_longer_gradient_than_allowed(samples: list[Sample], steps: list[Step]) -> None:
    run(samples, epochs=1, recipe=Recipe(epoch_images=1, gradient_norm=0.125))
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

    monkeypatch.setattr(loop, "ctc_loss", fade)
    result = run(samples, epochs=1, recipe=Recipe(epoch_images=12))[-1]
    assert [step.gradient > 0 for step in steps] == [True, False, False]
    assert losses[0] > 0
    assert result.train_loss == pytest.approx(losses[0] / 3)


def test_the_moving_average_of_the_weights_is_what_is_read_with_and_given_out(
    samples: list[Sample], steps: list[Step]
) -> None:
    result = run(samples, epochs=1, learning_rate=0.01, recipe=Recipe(epoch_images=12, average_decay=0.75))[-1]
    first, second, third = (step.weights for step in steps)
    assert not torch.equal(first[0], third[0])
    for average, a, b, c in zip(result.model.parameters(), first, second, third, strict=True):
        # After the first update, (1 + n) / (10 + n) of the average is left: 2 of 11, then 3 of 12.
        torch.testing.assert_close(average, 3 / 12 * (2 / 11 * a + 9 / 11 * b) + 9 / 12 * c)
    readings = torch_recognizer(result.model).read([sample.image for sample in samples])
    assert readings == result.validation.readings


def test_the_average_comes_to_move_by_the_decay_given(samples: list[Sample], steps: list[Step]) -> None:
    result = run(samples, epochs=1, learning_rate=0.01, recipe=Recipe(epoch_images=12, average_decay=0.2))[-1]
    first, second, third = (step.weights for step in steps)
    for average, a, b, c in zip(result.model.parameters(), first, second, third, strict=True):
        torch.testing.assert_close(average, 0.2 * (2 / 11 * a + 9 / 11 * b) + 0.8 * c)


def test_the_augmentation_grows_to_its_full_strength_and_each_steps_follows_from_seed_and_step(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    strengths: list[float] = []
    seeds: list[int] = []

    def note(images: Tensor, strength: float, generator: torch.Generator, full: Augmentation) -> Tensor:
        strengths.append(strength)
        seeds.append(generator.initial_seed())
        assert full == ONCE.augmentation
        return images.float()

    monkeypatch.setattr(loop, "augment", note)
    recipe = Recipe(epoch_images=32, augmentation_ramp=0.25)
    for seed in (7, 7, 8):
        run(samples, epochs=2, seed=seed, recipe=recipe)
    assert strengths[:16] == [0.0, 0.25, 0.5, 0.75, *[1.0] * 12]
    assert seeds[:16] == seeds[16:32]
    assert len(set(seeds)) == 32  # no two steps are changed alike, in the second epoch either


def test_matrices_and_kernels_decay_and_biases_and_norms_do_not() -> None:
    model = Crnn("compact", VOCABULARY, 32)
    groups = make_optimizer(model, 0.25).param_groups
    decays = {p: group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        assert decays[p] == (0.0 if p.ndim == 1 else 0.25), name


# When it ends


def scripted(monkeypatch: pytest.MonkeyPatch, figures: Sequence[tuple[int, float]]) -> None:
    """Put evaluations with these (right of four, loss) in the place of what the model reads."""
    rest = iter(figures)

    def stand_in(recognizer: object, samples: list[Sample]) -> Evaluation:
        right, loss = next(rest)
        texts = [sample.text if i < right else "" for i, sample in enumerate(samples)]
        return Evaluation(samples, [Reading(text, 0.5, []) for text in texts], loss)

    monkeypatch.setattr(loop, "evaluate", stand_in)


def test_the_learning_rate_falls_once_validation_has_stood_still_for_as_many_epochs_as_patience_says(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing read yet for longer than patience; then a lower loss alone; then neither more matches nor a lower loss.
    scripted(monkeypatch, [(0, 9.0), *[(0, 9.5)] * 4, (1, 8.0), (1, 7.0), (0, 7.5), *[(1, 7.0)] * 20])
    recipe = Recipe(epoch_images=1, warm_up_steps=1, decay_part=3)
    results = run(samples, epochs=14, patience=3, recipe=recipe, learning_rate=0.01)
    # Patience is over after epoch 9: with four epochs more, a third of the training is the decay.
    assert [result.learning_rate for result in results[8:]] == pytest.approx([0.01, 0.01, 0.01, 0.0075, 0.005, 0.0025])


@pytest.mark.parametrize(("right", "last"), [(100, 5), (98, 5), (97, 12)])
def test_where_nearly_all_is_read_half_the_patience_is_enough_and_a_lower_loss_is_no_gain(
    right: int, last: int, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [(0, 99.0), *[(right, 50.0 - epoch) for epoch in range(20)]])
    results = run(samples, validation=(samples * 100)[:100], epochs=12, patience=5)
    assert results[-1].epoch == last  # the first is best, three epochs are no better, and the rate falls over one


def test_the_learning_rate_falls_over_the_last_epochs(samples: list[Sample]) -> None:
    recipe = Recipe(epoch_images=1, warm_up_steps=1, decay_part=2)
    rates = [result.learning_rate for result in run(samples, epochs=8, learning_rate=0.01, recipe=recipe)]
    assert rates[1:] == pytest.approx([0.01, 0.01, 0.01, 0.01, 0.01, 0.0075, 0.005, 0.0025])


def test_an_epoch_is_kept_unless_it_is_more_than_chance_worse_than_the_best_one(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of 100 images: 90 have a standard error of sqrt(0.9 * 0.1 / 100), three images. The loss does not matter.
    right = [0, 90, 87, 86, 87, 91, 87, 89]
    scripted(monkeypatch, [(count, 20.0 + count) for count in right])
    results = run(samples, validation=(samples * 100)[:100], epochs=7, patience=15)
    assert [result.kept for result in results] == [True, True, True, False, True, True, False, True]


def test_only_an_epoch_that_reads_all_takes_the_place_of_one_that_did(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [(0, 9.0), (4, 8.0), (3, 1.0), (4, 9.0)])
    assert [result.kept for result in run(samples, epochs=3)] == [True, True, False, True]


def test_a_loss_that_is_no_number_ends_the_training_in_one_line(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "augment", lambda images, *_: images.float() * math.nan)
    with pytest.raises(TrainingError, match=r"^the loss became nan in epoch 1: [^\n]*lower learning rate than 0.01$"):
        run(samples, learning_rate=0.01)


# Saved and loaded

JOB = """
import math, sys
from pathlib import Path
import numpy as np
import torch
from captcha.data.folders import read_samples
from captcha.data.samples import split
from captcha.data.sources import parse_style
from captcha.reading.vocabulary import Vocabulary
from captcha.training import batches
from captcha.training.loop import TrainingState, train_epochs
from captcha.training.model import Crnn
from captcha.training.recipe import Recipe
from captcha.training.schedule import Schedule
from captcha.training.snapshot import load_snapshot, save_snapshot

folder, at, load, save = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "load", sys.argv[4]
torch.set_num_threads(1)
batches.WORKERS = 0  # what the batches hold does not depend on it, and a process takes seconds

class Broken(Exception):
    pass

for kind in ("folder", "drawn", "half"):
    torch.manual_seed(99 if load else 1)  # other weights, which loading must replace
    vocabulary = Vocabulary("".join(sorted(set("0123456789abcdefgmnpwxy"))))
    recipe = Recipe(epoch_images=12)
    state = TrainingState(Crnn("compact", vocabulary, 32, 0.1).to(memory_format=torch.channels_last), recipe)
    if load:
        load_snapshot(Path(f"{save}.{kind}.part")).restore(state)
    parts = split(read_samples(folder, 32)[0], 0)
    drawn = None if kind == "folder" else parse_style("kaptcha").samples(32, 5)
    row = batches.Batches([] if kind == "drawn" else parts.train, drawn, 4, seed=5)

    def progress(steps):
        for step in steps:
            if step == at and not load:
                Path(f"{save}.{kind}.part").mkdir()
                save_snapshot(Path(f"{save}.{kind}.part"), state, row.learned_from, {})
                raise Broken
            yield step

    try:
        results = list(train_epochs(state, row, parts.validation, Schedule(3, 3, 0.01, 10, recipe), progress))
    except Broken:
        continue
    torch.save(state.state_dict() | {"last_loss": results[-1].train_loss}, f"{save}.{kind}")
"""


def every_tensor(state: Any, path: str = "") -> dict[str, Any]:
    """Each tensor and number in a saved state, by where it stands."""
    if isinstance(state, dict):
        parts = [every_tensor(value, f"{path}/{key}") for key, value in state.items()]
    elif isinstance(state, list | tuple):
        parts = [every_tensor(value, f"{path}/{i}") for i, value in enumerate(state)]
    else:
        return {path: state}
    return {key: value for part in parts for key, value in part.items()}


# Of three epochs of three steps: in the middle of the second, or before it begins.
@pytest.mark.parametrize("at", [4, pytest.param(3, marks=pytest.mark.slow)])
def test_a_training_saved_and_loaded_in_a_new_process_goes_on_to_the_bit(
    at: int, tmp_path: Path, draw_digits: Callable[[Path, int], Path]
) -> None:
    folder = draw_digits(tmp_path / "digits", 60)
    for arguments in (["-1", "new", "whole"], [str(at), "new", "parts"], [str(at), "load", "parts"]):
        command = [sys.executable, "-c", JOB, str(folder), *arguments[:2], str(tmp_path / arguments[2])]
        subprocess.run(command, check=True, timeout=300)
    for kind in ("folder", "drawn", "half"):
        whole, parts = (
            every_tensor(torch.load(tmp_path / f"{name}.{kind}", weights_only=True)) for name in ("whole", "parts")
        )
        assert whole.keys() == parts.keys()
        assert len(whole) > 200
        for key, value in whole.items():
            same = torch.equal(value, parts[key]) if isinstance(value, Tensor) else value == parts[key]
            assert same, (kind, key)
        assert whole["/step"] == 9


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
    assert "nearly known by heart (loss 0.02), but 25% of the validation images read (loss 6.00)" in line


def test_a_training_that_goes_well_is_left_in_peace() -> None:
    assert diagnosis(epoch(50, TEXTS, 0.02, 0.01)) is None  # it reads
    assert diagnosis(epoch(50, ["274", "0", "9", "3"], 5.0, 6.0)) is None  # it still learns
    assert diagnosis(epoch(50, ["274", "055", "918", "3"], 0.02, 6.0)) is None  # most are right


def test_the_first_epochs_are_not_judged() -> None:
    stuck = [""] * 4
    assert diagnosis(epoch(0, stuck, None, 9.0)) is None
    assert diagnosis(epoch(1, stuck, 9.0, 9.0)) is None
    assert diagnosis(epoch(5, stuck, 9.0, 9.0)) is not None


def test_a_training_has_diverged_where_it_is_worse_than_nothing_on_all_images() -> None:
    before = {"val/loss": 6.0}
    line = divergence([before, {"val/loss": 47.0, "train/loss": 20.0}], 1, 4.8, 0.5)
    assert line == (
        "the training has diverged: after epoch 1 its loss is 47.0 on the validation images, of a model that knows "
        "nothing 6.0; train again with a lower learning rate than 0.5"
    )
    for kept in (
        {"val/loss": 47.0, "train/loss": 0.1},
        {"val/loss": 11.0, "train/loss": 7.0},
    ):  # by heart; a slow start
        assert divergence([before, kept], 1, 4.8, 0.5) is None
    diverged = {"val/loss": 47.0, "train/loss": 20.0}
    assert divergence([before, {"val/loss": 1.0, "train/loss": 1.0}, diverged], 1, 4.8, 0.5) is None  # it is not kept
    assert divergence([before, diverged], 0, 4.8, 0.5) is None
    started = [{"val/loss": 0.1}, {"val/loss": 0.4, "train/loss": 0.5}]  # from a model that reads well
    assert divergence(started, 1, 4.8, 0.5) is None
