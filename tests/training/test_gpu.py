"""What only a CUDA device can show, in mixed precision where it has that; `pytest -m gpu`, nothing else runs it."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from captcha.data.samples import Sample
from captcha.reading.images import Image, stack
from captcha.reading.vocabulary import Vocabulary
from captcha.training.augmentation import augment
from captcha.training.batches import Batches
from captcha.training.export import torch_recognizer
from captcha.training.loop import TrainingState, choose_device, ctc_loss, train_epochs
from captcha.training.model import Crnn
from captcha.training.recipe import Augmentation, Recipe
from captcha.training.schedule import Schedule

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason=f"no CUDA device: torch {torch.__version__}, built for CUDA {torch.version.cuda}, "
        f"sees {torch.cuda.device_count()}",
    ),
]

TEXTS = ["274", "055", "918", "360"]
VOCABULARY = Vocabulary("0123456789")
HEIGHT = 32

TOLERANCE = 0.02
"""How far a log-probability may lie from the CPU's; where that is below -1, relative to it.

The GPU reads in numbers of 10 bits of mantissa (cuDNN's convolutions round their inputs to TF32), a step of
2**-10 = 0.001. Roundings are independent, so those of a dozen layers add up to a few steps; 20 are allowed. A layer
left out, or in another mode, is wrong by far more.
"""


@pytest.fixture(scope="module")
def samples(draw: Callable[..., Image]) -> list[Sample]:
    return [Sample(f"{text}.png", text, draw(text, width=64)) for text in TEXTS]


# The average is a copy whose GRU's weights lie apart: slower to read with, no more.
@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous:UserWarning")
def test_a_training_on_the_gpu_lowers_the_loss_and_its_model_reads_alike_on_the_cpu(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    unchanged = Augmentation.model_validate(dict.fromkeys(Augmentation.model_fields, 0))
    recipe = Recipe(average_decay=0.5, augmentation=unchanged)  # the average follows within a few steps
    mixed: set[tuple[bool, bool]] = set()
    usual = Crnn.features

    def note(self: Crnn, images: Tensor) -> Tensor:
        mixed.add((self.training, torch.is_autocast_enabled("cuda")))
        assert images.is_cuda
        return usual(self, images)

    monkeypatch.setattr(Crnn, "features", note)
    model = Crnn("compact", VOCABULARY, HEIGHT, dropout=0.0)
    state = TrainingState(model.to(choose_device()).to(memory_format=torch.channels_last), recipe)
    schedule = Schedule(20, 20, 0.001, 10, recipe)
    first, *results = train_epochs(state, Batches(samples, None, 4, 0), samples, schedule)

    monkeypatch.undo()
    assert mixed == {(True, torch.cuda.is_bf16_supported(including_emulation=False)), (False, False)}
    last = results[-1]
    assert last.train_loss is not None
    assert results[0].train_loss is not None
    assert last.train_loss < results[0].train_loss / 2
    assert last.validation.loss < first.validation.loss / 2
    assert last.validation.predictions == TEXTS

    images = [sample.image for sample in samples]
    there = torch_recognizer(last.model)
    here = torch_recognizer(copy.deepcopy(last.model).cpu())
    assert [reading.text for reading in there.read(images)] == [reading.text for reading in here.read(images)] == TEXTS
    for (_, a), (_, b) in zip(there.log_probs(images), here.log_probs(images), strict=True):
        assert (np.abs(a - b) / np.maximum(1, np.abs(b))).max() < TOLERANCE


def test_the_loss_and_its_gradient_of_what_lies_on_the_gpu_are_the_cpus() -> None:
    targets = [[1], [1, 2], [2, 2], [1, 2, 1]]
    logits = torch.randn((6, len(targets), 3), generator=Generator().manual_seed(0))
    here, there = logits.clone().requires_grad_(), logits.cuda().requires_grad_()
    losses = [ctc_loss(leaf.log_softmax(2), targets) for leaf in (here, there)]
    for loss in losses:
        loss.backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-5)
    assert here.grad is not None
    assert there.grad is not None
    assert there.grad.is_cuda
    torch.testing.assert_close(there.grad.cpu(), here.grad, rtol=1e-4, atol=1e-6)


def test_one_seed_of_a_generator_on_the_gpu_gives_the_same_changes_and_another_seed_others(
    samples: list[Sample],
) -> None:
    images = torch.from_numpy(stack([sample.image for sample in samples])).cuda()
    first, same, other = (augment(images, 1, Generator("cuda").manual_seed(seed)) for seed in (3, 3, 4))
    assert first.is_cuda
    assert first.isfinite().all()
    # To the bit: none of the changes sums in an order that is left to chance.
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
