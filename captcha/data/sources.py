"""Where samples come from: a labelled folder, or a style that draws them."""

import itertools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from tqdm import tqdm

from captcha.data import samples as data
from captcha.data.folders import read_images, read_samples
from captcha.data.problems import Problem, format_problems, leaks
from captcha.data.samples import DataError, Sample, Split, pixel_digest
from captcha.drawing.fonts import default_fonts, fonts_for
from captcha.drawing.rendering import draw_one
from captcha.drawing.styles import Style, StyleError, load_style
from captcha.reading.images import FRAME_STRIDE, resize_to_height
from captcha.reading.vocabulary import Vocabulary
from captcha.settings import TrainConfig

DRAWN_IMAGES = 2500
"""How many images `draw:STYLE` draws and splits: validation, test, and an epoch's worth, which training goes beyond."""

REDRAWN = 1 << 40  # far beyond any training's images

Echo = Callable[[str], None]


def short_name(folder: str) -> str:
    """Return the last part of a folder's path, or draw:STYLE as it is."""
    return folder if folder.startswith("draw:") else Path(folder).resolve().name


def read_folder(
    folder: str, height: int, vocabulary: Vocabulary | None, echo: Echo, labelled: bool = True
) -> list[Sample]:
    """Return the samples of a folder, resized to the height, while a bar shows how far it is.

    Raises:
        DataError: the folder has problems; all of them are echoed first.
    """
    with tqdm(desc=f"reading {folder}", unit="image", disable=None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        if labelled:
            samples, problems, _ = read_samples(Path(folder), height, vocabulary, FRAME_STRIDE, progress)
        else:
            samples, problems = read_images(Path(folder), height, progress)
    _refuse(problems, echo)
    return samples


class DrawnSamples:
    """Sample i, resized to the height, follows from style, fonts, seed and i alone.

    A text in `without`, those held back for validation and test, is drawn again.
    """

    def __init__(
        self, style: Style, fonts: Sequence[Path], height: int, seed: int, without: Collection[str] = frozenset()
    ) -> None:
        self.style, self.fonts, self.height, self.seed, self.without = style, fonts, height, seed, without

    def __getitem__(self, index: int) -> Sample:
        """Raise StyleError where the text does not fit its image."""
        for number in itertools.count(index, REDRAWN):
            text, image = draw_one(self.style, self.seed, number, self.fonts)
            if text not in self.without:
                break
        return Sample(f"{index:06}.png", text, resize_to_height(image, self.height), pixel_digest(image))


def drawn_samples(config: TrainConfig, without: Collection[str] = frozenset()) -> DrawnSamples:
    """Return the samples of the configured style, without end.

    Raises:
        StyleError: there is no such style, or it draws characters outside the vocabulary.
        ValueError: no font can draw it.
    """
    name = config.drawn_style or config.drawn or ""
    style = load_style(name)
    if config.vocabulary and (missing := Vocabulary(config.vocabulary).missing(style.alphabet)):
        raise StyleError(
            f"the style {name} draws {missing!r}, which is outside the vocabulary: take the style that the model was "
            "trained on, or one of your own without these characters"
        )
    fonts, _ = fonts_for(style, default_fonts())
    return DrawnSamples(style, fonts, config.height, config.seed, without)


def load_split(config: TrainConfig, echo: Echo) -> Split:
    """Return the samples that a configuration names, in their three parts.

    A fixed validation or test set takes the place of the part that would have been split off, which is trained on.

    Raises:
        DataError: the data has problems; all of them are echoed first.
    """
    vocabulary = Vocabulary(config.vocabulary) if config.vocabulary else None
    if config.drawn_style:
        endless = drawn_samples(config)
        samples = [endless[i] for i in range(DRAWN_IMAGES)]
    else:
        samples = read_folder(config.data, config.height, vocabulary, echo)
    fixed = [
        read_folder(folder, config.height, vocabulary, echo) if folder else None
        for folder in (config.val_data, config.test_data)
    ]
    if fixed == [None, None]:
        return data.split(samples, config.seed)
    validation, test = fixed
    parts = data.split(samples, config.seed) if validation is None or test is None else Split(samples, [], [])
    split = Split(
        parts.train + (parts.validation if validation else []) + (parts.test if test else []),
        validation or parts.validation,
        test or parts.test,
    )
    _refuse(leaks(split.train, [*split.validation, *split.test]), echo)
    return split


def _refuse(problems: Sequence[Problem], echo: Echo) -> None:
    """Echo all problems; raise where one is fatal."""
    if problems:
        echo(format_problems(problems))
    fatal = sum(problem.fatal for problem in problems)
    if fatal:
        raise DataError(f"{fatal} {'problem' if fatal == 1 else 'problems'} in the data, see above")
