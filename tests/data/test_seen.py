import hashlib
from array import array

import numpy as np
import pytest

from captcha.data.samples import Sample, Split
from captcha.data.seen import SeenError, SeenPixels, pixel_key, without_seen


def sample(number: int) -> Sample:
    return Sample(f"{number}.png", str(number), np.full((2, 3, 3), number, np.uint8))


def seen(*numbers: int) -> SeenPixels:
    return SeenPixels.of(array("Q", [pixel_key(sample(number).digest) for number in numbers]))


def test_an_image_is_known_by_the_first_eight_bytes_of_its_digest() -> None:
    digest = hashlib.sha256(b"x").digest()
    assert pixel_key(digest.hex()) == int.from_bytes(digest[:8], "big")


def test_what_was_learned_from_what_chose_the_epoch_and_what_the_parent_saw_is_seen() -> None:
    parent = SeenPixels.of([], [sample(6), sample(7)])
    both = SeenPixels.of(array("Q", [pixel_key(sample(1).digest)] * 3), [sample(2), sample(6)], parent)
    assert both.among([sample(number) for number in range(9)]) == [number in (1, 2, 6, 7) for number in range(9)]
    assert both.count == 4
    assert both.among([]) == []


def test_a_file_gives_back_what_was_saved_and_needs_eight_bytes_an_image() -> None:
    many = SeenPixels.of(range(100, 3100), [sample(1)])
    content = many.to_bytes()
    assert 8 * 3001 <= len(content) <= 8 * 3001 + 200
    again = SeenPixels.from_bytes(content, "models:/old/1")
    assert (again.keys == many.keys).all()
    assert again.unknown == "models:/old/1"
    for torn in (b"", content[:-1], content[:20], b"[1, 2]", content.replace(b"<u8", b"<f8")):
        with pytest.raises(SeenError, match=r"^no list of training pixels: [^\n]*$"):
            SeenPixels.from_bytes(torn)


def test_what_is_unknown_of_a_parent_is_unknown_of_its_children() -> None:
    old = SeenPixels.not_noted("models:/old/1")
    child = SeenPixels.of([], [sample(1)], old)
    assert (child.count, SeenPixels.of([], [sample(2)], child).unknown) == (1, "models:/old/1")


def test_test_images_that_were_seen_are_refused_or_left_out() -> None:
    parts = Split([sample(1)], [sample(2)], [sample(3), sample(4), sample(5)])
    assert without_seen(parts, seen(1, 2, 9), "models:/m/1", False, "test on others") is parts
    line = (
        "^the training of models:/m/1 saw 2 of the 3 test images, so a test on them would say too much: test on others"
    )
    with pytest.raises(SeenError, match=f"{line}, or leave them out of the test with --allow-overlap$"):
        without_seen(parts, seen(3, 5), "models:/m/1", False, "test on others")
    with pytest.raises(SeenError, match=f"{line}$"):  # where there is no such option
        without_seen(parts, seen(3, 5), "models:/m/1", None, "test on others")
    left = without_seen(parts, seen(3, 5), "models:/m/1", True, "test on others")
    assert (left.train, left.validation) == (parts.train, parts.validation)
    assert ([s.name for s in left.test], [s.name for s in left.seen]) == (["4.png"], ["3.png", "5.png"])
    assert left.digest == Split(parts.train, parts.validation, [sample(4)]).digest


@pytest.mark.parametrize("allow", [True, False, None])
def test_a_test_whose_images_were_all_seen_is_refused_in_any_case(allow: bool | None) -> None:
    parts = Split([], [], [sample(3)])
    with pytest.raises(SeenError, match=r"saw 1 of the 1 test images, [^\n]*: test on others$"):
        without_seen(parts, seen(3), "models:/m/1", allow, "test on others")
