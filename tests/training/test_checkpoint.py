from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from captcha.reading.vocabulary import BLANK, Vocabulary
from captcha.training.checkpoint import HEAD_AXES, Checkpoint, CheckpointError, warm_start
from captcha.training.model import BACKBONES, Crnn

Noise = Callable[..., Tensor]
HEIGHT = 32
OLD = Vocabulary("abcdefghij")


def warm_started(model: Crnn, characters: str) -> tuple[Crnn, Crnn]:
    """A model of other characters that goes on from this one, and the same as it was before."""
    torch.manual_seed(1)
    fresh, new = (Crnn(model.backbone_name, Vocabulary(characters), HEIGHT) for _ in range(2))
    fresh.load_state_dict(new.state_dict())
    warm_start(new, Checkpoint.of(model))
    return new.eval(), fresh


@pytest.mark.parametrize("characters", [OLD.characters, "jihgfedcba", "ceh", "f", "xcyhz", "äaöjü"])
def test_characters_known_to_the_checkpoint_are_read_as_it_reads_them(
    model: Crnn, characters: str, random_images: Noise
) -> None:
    new, _ = warm_started(model, characters)
    known = [c for c in characters if c in OLD.characters]
    here, there = ([BLANK, *each.encode("".join(known))] for each in (Vocabulary(characters), OLD))
    images = random_images(3, 96)
    with torch.inference_mode():
        found, expected = new(images)[:, :, here], model(images)[:, :, there]
    # Among themselves: the classes that one of the two lacks take a share of the probability away.
    torch.testing.assert_close(found.log_softmax(2), expected.log_softmax(2), atol=1e-5, rtol=1e-5)


def test_going_on_with_the_same_characters_is_the_same_model(model: Crnn) -> None:
    new, _ = warm_started(model, OLD.characters)
    for key, value in model.state_dict().items():
        assert torch.equal(new.state_dict()[key], value), key


def test_new_characters_start_fresh_and_all_but_the_heads_is_the_checkpoints(model: Crnn) -> None:
    new, fresh = warm_started(model, "xcyhz")
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
    checkpoint = Checkpoint.of(Crnn("compact", OLD, HEIGHT))
    weights = dict(checkpoint.weights)
    for unfit in (
        {key: value for key, value in weights.items() if key != "local_head.bias"},
        {key: value for key, value in weights.items() if key != "conv.weight"},
        weights | {"conv.weight": weights["conv.weight"][:5]},
        weights | {"local_head.bias": torch.zeros(12)},
    ):
        with pytest.raises(
            CheckpointError, match=r"^the weights to start from do not fit [^\n]*; train without --init$"
        ):
            replace(checkpoint, weights=unfit).model()


# The file


def test_a_checkpoint_comes_back_from_its_file_with_what_its_weights_mean(model: Crnn) -> None:
    model.gru_weight = 0.25
    checkpoint = Checkpoint.of(model)
    back = Checkpoint.from_bytes(checkpoint.to_bytes())
    model.gru_weight = 0.5
    assert (back.backbone, back.vocabulary, back.height) == (model.backbone_name, OLD, HEIGHT)
    assert back.gru_weight == back.model().gru_weight == 0.25
    assert back.weights.keys() == checkpoint.weights.keys()
    assert all(torch.equal(value, back.weights[name]) for name, value in checkpoint.weights.items())


def test_the_same_model_gives_the_same_file(model: Crnn) -> None:
    assert len({Checkpoint.of(model).to_bytes() for _ in range(8)}) == 1


def test_a_checkpoint_is_a_copy(model: Crnn) -> None:
    checkpoint = Checkpoint.of(model)
    before = checkpoint.weights["conv.weight"].clone()
    with torch.no_grad():
        model.conv.weight.add_(1)
        same = torch.equal(checkpoint.weights["conv.weight"], before)
        model.conv.weight.sub_(1)
    assert same


def test_weights_of_the_first_versions_take_their_meaning_from_beside_the_file(model: Crnn) -> None:
    bare = save(dict(model.state_dict()))
    meaning = {"backbone": model.backbone_name, "vocabulary": OLD.characters, "height": str(HEIGHT)}
    assert Checkpoint.from_bytes(bare, meaning).model().vocabulary == OLD
    with pytest.raises(CheckpointError, match=r"^the weights do not say their vocabulary$"):
        Checkpoint.from_bytes(bare)


def test_a_damaged_file_and_one_of_another_format_are_one_line() -> None:
    content = Checkpoint.of(Crnn("compact", OLD, HEIGHT)).to_bytes()
    for damaged in (b"", b"torn", content[:1000], b"\0" * 100):
        with pytest.raises(CheckpointError, match=r"^the weights are damaged: [^\n]+$"):
            Checkpoint.from_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"^the weights have format 9, this version reads 1$"):
        Checkpoint.from_bytes(content.replace(rb"\"format\": 1", rb"\"format\": 9"))


TENSORS = st.dictionaries(
    st.text("abc.", min_size=1, max_size=9), st.lists(st.floats(width=32), min_size=1, max_size=9), max_size=4
)
SMALL = st.builds(
    lambda backbone, characters, height, gru_weight, tensors: Checkpoint(
        backbone, Vocabulary("".join(characters)), height, gru_weight, {k: torch.tensor(v) for k, v in tensors.items()}
    ),
    st.sampled_from(sorted(BACKBONES)),
    st.lists(st.characters(), min_size=1, max_size=9, unique=True),
    st.integers(1, 512),
    st.floats(0, 1),
    TENSORS,
)


def same(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two checkpoints are equal to the bit, NaN included."""
    parts = [(each.backbone, each.vocabulary, each.height, each.gru_weight) for each in (one, other)]
    bits = [{k: v.view(torch.int32).tolist() for k, v in each.weights.items()} for each in (one, other)]
    return parts[0] == parts[1] and bits[0] == bits[1]


@given(SMALL)
def test_any_checkpoint_comes_back_from_its_file(checkpoint: Checkpoint) -> None:
    assert same(Checkpoint.from_bytes(checkpoint.to_bytes()), checkpoint)


@given(SMALL, st.data())
def test_a_file_that_is_cut_or_goes_on_is_refused(checkpoint: Checkpoint, data: st.DataObject) -> None:
    content = checkpoint.to_bytes()
    kept = data.draw(st.integers(0, len(content) - 1))
    for damaged in (content[:kept], content + content[:1]):
        with pytest.raises(CheckpointError, match=r"^the weights [^\n]+$"):
            Checkpoint.from_bytes(damaged)


@settings(max_examples=100)
@given(SMALL, st.data())
def test_a_changed_bit_is_refused_or_changes_one_number(checkpoint: Checkpoint, data: st.DataObject) -> None:
    """What is refused is one line; where weights were noted with their sha256, the registry refuses the others too."""
    content = checkpoint.to_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = Checkpoint.from_bytes(bytes(changed))
    except CheckpointError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - either is right
        return
    if place >= 8 + int.from_bytes(content[:8], "little"):  # behind the header: the numbers
        assert not same(found, checkpoint)
        bits = [
            torch.cat([each.weights[k].view(torch.int32) for k in sorted(each.weights)]) for each in (found, checkpoint)
        ]
        assert int((bits[0] != bits[1]).sum()) == 1


def test_a_meaning_that_is_none_is_one_line() -> None:
    weights = {"a": torch.zeros(1)}
    for said in (
        "[1]",
        "no JSON",
        '{"backbone": "vgg", "vocabulary": "ab", "height": 32}',
        '{"backbone": "compact", "vocabulary": "ab", "height": "x"}',
        '{"backbone": "compact", "vocabulary": "ab", "height": 1e999}',
        "[" * 100_000,
    ):
        with pytest.raises(CheckpointError, match=r"^the weights [^\n]+$"):
            Checkpoint.from_bytes(save(weights, {"captcha": said}))
