import urllib.error
from collections.abc import Callable
from http.client import RemoteDisconnected
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models import ResNet18_Weights, resnet18

from captcha.reading.images import FRAME_STRIDE
from captcha.reading.vocabulary import BLANK, Vocabulary
from captcha.settings import Backbone
from captcha.training.checkpoint import HEAD_AXES, Start, StartError, go_on_from
from captcha.training.export import to_onnx
from captcha.training.model import Crnn, PretrainedError

CLASSES, HEIGHT = 11, 32
BACKBONES: tuple[Backbone, ...] = ("compact", "resnet18")


def random_images(count: int, width: int, height: int = HEIGHT) -> Tensor:
    generator = torch.Generator().manual_seed(width)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def lived_in(model: Crnn) -> Crnn:
    """The model in eval mode, its batch norms no longer as they were made."""
    model.train()
    with torch.no_grad():
        model(random_images(4, 96))
    return model.eval()


@pytest.fixture(scope="module", params=BACKBONES)
def model(request: pytest.FixtureRequest) -> Crnn:
    torch.manual_seed(0)
    return lived_in(Crnn(request.param, CLASSES, HEIGHT))


@pytest.mark.parametrize(("count", "width"), [(1, 16), (3, 96), (2, 208)])
def test_log_probs_are_frames_by_images_by_classes_and_each_frame_sums_to_1(
    model: Crnn, count: int, width: int
) -> None:
    with torch.inference_mode():
        log_probs = model(random_images(count, width))
    assert log_probs.shape == (width // FRAME_STRIDE, count, CLASSES)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(2), torch.ones(width // FRAME_STRIDE, count))


@pytest.mark.parametrize("height", [48, 64, 128])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_images_may_have_any_height_that_a_config_allows(backbone: Backbone, height: int) -> None:
    with torch.inference_mode():
        log_probs = Crnn(backbone, CLASSES, height).eval()(random_images(1, 64, height))
    assert log_probs.shape == (64 // FRAME_STRIDE, 1, CLASSES)


def test_there_are_frames_enough_for_every_other_character_to_repeat() -> None:
    # An eighth of the width at the least; at a twentieth, labels with adjacent repeats cannot be read.
    assert FRAME_STRIDE <= 8


def test_bytes_and_floats_of_an_image_are_read_alike(model: Crnn) -> None:
    images = random_images(2, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), model(images.float()))


def test_what_an_image_says_does_not_depend_on_its_batch(model: Crnn) -> None:
    images = random_images(5, 64)
    images[3] = 255  # nor on one that is unlike the others
    with torch.inference_mode():
        together = model(images)
        for i in range(5):
            torch.testing.assert_close(model(images[i : i + 1])[:, 0], together[:, i], atol=1e-5, rtol=1e-5)


def test_what_stands_in_the_image_changes_what_is_read(model: Crnn) -> None:
    first, second = random_images(2, 64)
    with torch.inference_mode():
        assert not torch.allclose(model(first[None]), model(second[None]), atol=1e-3)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_dropout_is_applied_in_training_and_not_in_reading(backbone: Backbone) -> None:
    image = random_images(1, 64)

    def distinct_outputs(model: Crnn) -> int:
        with torch.no_grad():
            return len({model(image).numpy().tobytes() for _ in range(12)})

    dropping, keeping = Crnn(backbone, CLASSES, HEIGHT, dropout=0.1), Crnn(backbone, CLASSES, HEIGHT, dropout=0.0)
    assert distinct_outputs(dropping.train()) > 8
    assert distinct_outputs(keeping.train()) <= 2  # whole branches may be left out in training, for all dropout
    assert distinct_outputs(dropping.eval()) == 1


@pytest.mark.parametrize("classes", [3, 20, 200])
def test_before_training_a_frame_is_a_blank_three_times_in_four_whatever_the_gru_says(classes: int) -> None:
    torch.manual_seed(0)
    model = Crnn("compact", classes, HEIGHT).eval()
    images = torch.randint(0, 256, (4, 3, HEIGHT, 64), dtype=torch.uint8)
    with torch.inference_mode():
        blanks = model(images)[:, :, BLANK].exp()
        model.gru.reset_parameters()
        assert torch.equal(model(images)[:, :, BLANK].exp(), blanks)
    assert blanks.mean() == pytest.approx(0.75, abs=0.1)


def test_compact_has_about_a_million_parameters() -> None:
    assert 0.5e6 < sum(p.numel() for p in Crnn("compact", 37, 64).parameters()) < 2e6


@pytest.fixture
def imagenet_stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Tensor]:
    """Random weights in the place where torch keeps downloaded ones: a stand-in for ImageNet's."""
    torch.manual_seed(7)
    weights: dict[str, Tensor] = {key: value.clone() for key, value in resnet18().state_dict().items()}
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(weights, checkpoints / ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return weights


def test_pretrained_weights_are_those_that_training_starts_from(imagenet_stand_in: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    model = Crnn("resnet18", CLASSES, HEIGHT, pretrained=True)

    def trained_values(tensors: dict[str, Tensor]) -> list[Tensor]:
        return [value for value in tensors.values() if value.is_floating_point()]

    used = [value for key, value in imagenet_stand_in.items() if not key.startswith(("layer4.", "fc."))]
    expected = trained_values(dict(enumerate(used)))  # type: ignore[arg-type]
    found = trained_values(model.backbone.state_dict())
    assert len(found) == len(expected) > 70
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_without_pretrained_the_weights_follow_the_seed(imagenet_stand_in: dict[str, Tensor]) -> None:
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(Crnn("resnet18", CLASSES, HEIGHT))
    first, same, other = (next(model.backbone.parameters()) for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, imagenet_stand_in["conv1.weight"])


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("Name or service not known"),
        urllib.error.HTTPError("https://example.org", 404, "Not Found", None, None),  # type: ignore[arg-type]
        RemoteDisconnected("closed without an answer"),
        TimeoutError("timed\nout"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_weights_that_cannot_be_downloaded_are_one_line_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], failure: Exception
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise failure

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(PretrainedError, match=r"^the pretrained weights cannot be had from https://[^\n]*$") as caught:
        Crnn("resnet18", CLASSES, HEIGHT, pretrained=True)
    assert "train without --pretrained" in str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints") in str(caught.value)


def test_a_damaged_download_is_one_line_too(imagenet_stand_in: dict[str, Tensor], tmp_path: Path) -> None:
    (file,) = (tmp_path / "hub" / "checkpoints").iterdir()
    for content in (file.read_bytes()[:100_000], b"<html>no such file</html>", b""):
        file.write_bytes(content)
        with pytest.raises(PretrainedError, match=r"^[^\n]*train without --pretrained[^\n]*$"):
            Crnn("resnet18", CLASSES, HEIGHT, pretrained=True)


# Going on from a trained model

OLD = Vocabulary("abcdefghij")


def gone_on_from(model: Crnn, characters: str) -> tuple[Crnn, Crnn]:
    """A model of other characters that goes on from this one, and the same as it was before."""
    vocabulary = Vocabulary(characters)
    backbone: Backbone = "compact" if model.conv.in_channels == 128 else "resnet18"
    torch.manual_seed(1)
    fresh, new = (Crnn(backbone, vocabulary.classes, HEIGHT) for _ in range(2))
    fresh.load_state_dict(new.state_dict())
    go_on_from(Start(dict(model.state_dict()), OLD), new, vocabulary)
    return new.eval(), fresh


@pytest.mark.parametrize("characters", [OLD.characters, "jihgfedcba", "ceh", "f", "xcyhz", "äaöjü"])
def test_characters_known_to_the_start_are_read_as_it_reads_them(model: Crnn, characters: str) -> None:
    new, _ = gone_on_from(model, characters)
    known = [c for c in characters if c in OLD.characters]
    here, there = ([BLANK, *each.encode("".join(known))] for each in (Vocabulary(characters), OLD))
    images = random_images(3, 96)
    with torch.inference_mode():
        found, expected = new(images)[:, :, here], model(images)[:, :, there]
    # Among themselves: the classes that one of the two lacks take a share of the probability away.
    torch.testing.assert_close(found.log_softmax(2), expected.log_softmax(2), atol=1e-5, rtol=1e-5)


def test_going_on_with_the_same_characters_is_the_same_model(model: Crnn) -> None:
    new, _ = gone_on_from(model, OLD.characters)
    for key, value in model.state_dict().items():
        assert torch.equal(new.state_dict()[key], value), key


def test_new_characters_start_fresh_and_all_but_the_heads_is_the_starts(model: Crnn) -> None:
    new, fresh = gone_on_from(model, "xcyhz")
    for key, value in new.state_dict().items():
        if key not in HEAD_AXES:
            assert torch.equal(value, model.state_dict()[key]), key
            continue
        classes, fresh_classes, old_classes = (
            tensor.movedim(HEAD_AXES[key], 0) for tensor in (value, fresh.state_dict()[key], model.state_dict()[key])
        )
        for i, j in ((BLANK, BLANK), (2, OLD.encode("c")[0]), (4, OLD.encode("h")[0])):
            assert torch.equal(classes[i], old_classes[j]), (key, i)
        for i in (1, 3, 5):
            assert torch.equal(classes[i], fresh_classes[i]), (key, i)


def test_weights_that_do_not_fit_are_one_line_that_says_what_to_do() -> None:
    model = Crnn("compact", OLD.classes, HEIGHT)
    weights = dict(model.state_dict())
    for unfit in (
        {key: value for key, value in weights.items() if key != "local_head.bias"},
        {key: value for key, value in weights.items() if key != "conv.weight"},
        weights | {"conv.weight": weights["conv.weight"][:5]},
        weights | {"local_head.bias": torch.zeros(12)},
    ):
        with pytest.raises(StartError, match=r"^the weights to go on from do not fit [^\n]*; train without --init$"):
            go_on_from(Start(unfit, OLD), Crnn("compact", OLD.classes, HEIGHT), OLD)


@pytest.fixture(scope="module")
def onnx_log_probs(model: Crnn) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(to_onnx(model, HEIGHT), providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        (log_probs,) = session.run(["log_probs"], {"images": images})
        return np.asarray(log_probs)

    return run


@pytest.mark.parametrize(("count", "width"), [(1, 128), (1, 16), (3, 208), (7, 96)])
def test_the_exported_graph_computes_what_pytorch_does_for_any_batch_and_width(
    model: Crnn, onnx_log_probs: Callable[[NDArray[np.uint8]], NDArray[np.float32]], count: int, width: int
) -> None:
    images = random_images(count, width)
    with torch.inference_mode():
        expected = model(images).numpy()
    exported = onnx_log_probs(images.numpy())
    assert exported.dtype == np.float32
    np.testing.assert_allclose(exported, expected, atol=1e-4, rtol=0)


def test_the_exported_graph_keeps_its_digits_on_wide_images_and_with_large_weights() -> None:
    """A variance over all pixels at once, as ONNX Runtime sums it, is 20 times as far off here."""
    torch.manual_seed(0)
    model = Crnn("compact", CLASSES, 64).eval()
    with torch.no_grad():
        model.local_head.weight.mul_(30)
    images = torch.randint(0, 256, (1, 3, 64, 800), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images[..., 400:] = 250
    session = onnxruntime.InferenceSession(to_onnx(model, 64), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = model(images).numpy()
    (exported,) = session.run(["log_probs"], {"images": images.numpy()})
    np.testing.assert_allclose(exported, expected, atol=1e-5, rtol=0)


def test_exporting_leaves_the_model_as_it_is() -> None:
    model = Crnn("compact", CLASSES, HEIGHT).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = to_onnx(model, HEIGHT), to_onnx(model, HEIGHT)
    assert first == second
    assert model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
