from itertools import islice
from pathlib import Path

import pytest

from captcha.data.samples import Sample
from captcha.data.sources import DrawnSamples
from captcha.drawing.fonts import default_fonts
from captcha.drawing.rendering import draw
from captcha.drawing.styles import Style, StyleError, load_style
from captcha.training.batches import endless_batches

OUTLINED = load_style("outlined")
FEW = Style(texts=("one", "two", "six", "ten"))
FONTS = default_fonts()


def samples(style: Style = OUTLINED, height: int = 32, seed: int = 0, without: tuple[str, ...] = ()) -> DrawnSamples:
    return DrawnSamples(style, FONTS, height, seed, without)


def identities(batch: list[Sample]) -> list[tuple[str, str, str]]:
    return [(sample.name, sample.text, sample.digest) for sample in batch]


def test_samples_are_the_drawn_images_resized_to_the_models_height() -> None:
    drawn = draw(OUTLINED, 4, seed=3, fonts=FONTS)
    same_height = samples(height=OUTLINED.height, seed=3)
    for i, (text, image) in enumerate(drawn):
        assert same_height[i].text == text
        assert (same_height[i].image == image).all()
    assert samples(height=32)[0].image.shape == (32, OUTLINED.width * 32 // OUTLINED.height, 3)


def test_one_seed_gives_the_same_samples_and_another_seed_others() -> None:
    first, same, other = (identities([samples(seed=seed)[i] for i in range(5)]) for seed in (0, 0, 1))
    assert first == same
    assert not set(first) & set(other)


def test_batches_go_on_from_their_start_and_repeat_nothing() -> None:
    batches = list(islice(endless_batches(samples(), 4, start=10, workers=0), 25))
    assert [sample.name for batch in batches for sample in batch] == [f"{i:06}.png" for i in range(10, 110)]
    assert len({sample.digest for batch in batches for sample in batch}) == 100


def test_workers_draw_what_one_process_draws() -> None:
    """Two real processes."""
    alone, together = (
        [identities(batch) for batch in islice(endless_batches(samples(), 3, 0, workers), 5)] for workers in (0, 2)
    )
    assert alone == together


def test_texts_held_back_are_never_drawn_and_the_others_as_before() -> None:
    free, barred = samples(FEW), samples(FEW, without=("one", "ten"))
    texts = [barred[i].text for i in range(40)]
    assert set(texts) == {"two", "six"}
    for i in range(40):
        if free[i].text not in ("one", "ten"):
            assert free[i].digest == barred[i].digest


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_text_that_does_not_fit_is_said_in_one_line(workers: int, tmp_path: Path) -> None:
    batches = endless_batches(samples(Style(texts=("w" * 40,))), 2, 0, workers)
    with pytest.raises(StyleError, match=r"^the text 'w+' does not fit: [^\n]*$"):
        next(batches)
