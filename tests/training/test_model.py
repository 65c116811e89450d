import urllib.error
from collections.abc import Callable
from http.client import RemoteDisconnected
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import ResNet18_Weights, resnet18

from captcha.reading.images import FRAME_STRIDE
from captcha.reading.vocabulary import BLANK, Vocabulary
from captcha.training.model import BACKBONES, Crnn, PretrainedError

Noise = Callable[..., Tensor]
VOCABULARY, HEIGHT = Vocabulary("abcdefghij"), 32
CLASSES = VOCABULARY.classes


@pytest.mark.parametrize(("count", "width"), [(1, 16), (3, 96), (2, 208)])
def test_log_probs_are_frames_by_images_by_classes_and_each_frame_sums_to_1(
    model: Crnn, count: int, width: int, random_images: Noise
) -> None:
    with torch.inference_mode():
        log_probs = model(random_images(count, width))
    assert log_probs.shape == (width // FRAME_STRIDE, count, CLASSES)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(2), torch.ones(width // FRAME_STRIDE, count))


@pytest.mark.parametrize("height", [48, 64, 128])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_images_may_have_any_height_that_a_config_allows(backbone: str, height: int, random_images: Noise) -> None:
    with torch.inference_mode():
        log_probs = Crnn(backbone, VOCABULARY, height).eval()(random_images(1, 64, height))
    assert log_probs.shape == (64 // FRAME_STRIDE, 1, CLASSES)


def test_there_are_frames_enough_for_every_other_character_to_repeat() -> None:
    # An eighth of the width at the least; at a twentieth, labels with adjacent repeats cannot be read.
    assert FRAME_STRIDE <= 8


def test_bytes_and_floats_of_an_image_are_read_alike(model: Crnn, random_images: Noise) -> None:
    images = random_images(2, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), model(images.float()))


def test_what_an_image_says_does_not_depend_on_its_batch(model: Crnn, random_images: Noise) -> None:
    images = random_images(5, 64)
    images[3] = 255  # nor on one that is unlike the others
    with torch.inference_mode():
        together = model(images)
        for i in range(5):
            torch.testing.assert_close(model(images[i : i + 1])[:, 0], together[:, i], atol=1e-5, rtol=1e-5)


def test_what_stands_in_the_image_changes_what_is_read(model: Crnn, random_images: Noise) -> None:
    first, second = random_images(2, 64)
    with torch.inference_mode():
        assert not torch.allclose(model(first[None]), model(second[None]), atol=1e-3)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_dropout_is_applied_in_training_and_not_in_reading(backbone: str, random_images: Noise) -> None:
    image = random_images(1, 64)

    def distinct_outputs(model: Crnn) -> int:
        with torch.no_grad():
            return len({model(image).numpy().tobytes() for _ in range(12)})

    dropping, keeping = Crnn(backbone, VOCABULARY, HEIGHT, dropout=0.1), Crnn(backbone, VOCABULARY, HEIGHT, dropout=0.0)
    assert distinct_outputs(dropping.train()) > 8
    assert distinct_outputs(keeping.train()) <= 2  # whole branches may be left out in training, for all dropout
    assert distinct_outputs(dropping.eval()) == 1


@pytest.mark.parametrize("characters", [2, 19, 199])
def test_before_training_a_frame_is_a_blank_three_times_in_four_whatever_the_gru_says(characters: int) -> None:
    torch.manual_seed(0)
    model = Crnn("compact", Vocabulary("".join(map(chr, range(0x4E00, 0x4E00 + characters)))), HEIGHT).eval()
    images = torch.randint(0, 256, (4, 3, HEIGHT, 64), dtype=torch.uint8)
    with torch.inference_mode():
        blanks = model(images)[:, :, BLANK].exp()
        assert model.gru
        model.gru.reset_parameters()
        assert torch.equal(model(images)[:, :, BLANK].exp(), blanks)
    assert blanks.mean() == pytest.approx(0.75, abs=0.1)


def test_compact_has_about_a_million_parameters() -> None:
    assert (
        0.5e6
        < sum(p.numel() for p in Crnn("compact", Vocabulary("abcdefghijklmnopqrstuvwxyz0123456789"), 64).parameters())
        < 2e6
    )


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
    model = Crnn("resnet18", VOCABULARY, HEIGHT, pretrained=True)

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
        models.append(Crnn("resnet18", VOCABULARY, HEIGHT))
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
        Crnn("resnet18", VOCABULARY, HEIGHT, pretrained=True)
    assert "train without --pretrained" in str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints") in str(caught.value)


def test_a_damaged_download_is_one_line_too(imagenet_stand_in: dict[str, Tensor], tmp_path: Path) -> None:
    (file,) = (tmp_path / "hub" / "checkpoints").iterdir()
    for content in (file.read_bytes()[:100_000], b"<html>no such file</html>", b""):
        file.write_bytes(content)
        with pytest.raises(PretrainedError, match=r"^[^\n]*train without --pretrained[^\n]*$"):
            Crnn("resnet18", VOCABULARY, HEIGHT, pretrained=True)


def test_the_gru_weight_is_the_share_of_images_in_training_and_the_weight_in_reading(random_images: Noise) -> None:
    torch.manual_seed(0)
    model = Crnn("compact", VOCABULARY, HEIGHT, dropout=0.0, gru_weight=0.0)
    images = random_images(400, 32)
    with torch.no_grad():
        without = {training: model.train(training)(images) for training in (True, False)}
        model.head.weight.normal_()  # it begins at nothing
        model.norm.reset_running_stats()
        assert torch.equal(model.train()(images), without[True])
        model.gru_weight = 0.25
        differ = (model.train()(images) != without[True]).any(2).any(0)
        assert 0.15 < differ.float().mean() < 0.35
        model.eval()
        distances = []
        for model.gru_weight in (0.0, 0.01, 0.02):
            distances.append(model(images[:1]))
    first, second = ((each - distances[0]).abs().mean().item() for each in distances[1:])
    assert second == pytest.approx(2 * first, rel=0.1)
