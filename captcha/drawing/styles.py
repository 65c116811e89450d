"""What drawn captchas look like: a style's settings, and the styles, built in or a person's own, each a TOML file."""

import difflib
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from captcha import CaptchaError


class StyleError(CaptchaError):
    """A style that cannot be drawn; one line that names the style and what is wrong with it."""


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int | float | str) else value


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("its first value must not be above its second")
    return value


def _within(low: float, high: float) -> AfterValidator:
    def check(value: Any) -> Any:
        if not all(low <= side <= high for side in value):
            raise ValueError(f"must lie from {low} to {high}")
        return value

    return AfterValidator(check)


def _rgb(value: str) -> str:
    if not re.fullmatch("#[0-9a-fA-F]{6}", value):
        raise ValueError(f"{value!r} is no colour, write it as #rrggbb")
    return value


# Each image takes a value between the two, evenly distributed; one value alone stands for both.
Range = Annotated[tuple[float, float], BeforeValidator(_pair), AfterValidator(_ascending)]
Whole = Annotated[tuple[int, int], BeforeValidator(_pair), AfterValidator(_ascending)]
Colour = Annotated[str, AfterValidator(_rgb)]
# Each image takes red, green and blue, each for itself, between those of the two colours.
Colours = Annotated[tuple[Colour, Colour], BeforeValidator(_pair)]


class Style(BaseModel):
    """How captchas of one kind look.

    Where a setting is a range, each image takes its own value from it. Lengths are in pixels of the image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # What is written
    characters: str = Field(
        "abcdefghijklmnopqrstuvwxyz0123456789", min_length=1, description="a character given twice comes twice as often"
    )
    lengths: Annotated[Whole, _within(1, 40)] = Field((5, 5), description="characters in a text")
    texts: tuple[str, ...] = Field((), description="the texts themselves, in place of random ones")

    # The canvas
    width: int = Field(200, ge=16, le=2000)
    height: int = Field(50, ge=16, le=500)
    background: Colours = ("#ffffff", "#ffffff")
    background_end: Colours | None = Field(
        None, description="colour of the bottom right corner, where a gradient from `background` ends"
    )
    texture: Annotated[Range, _within(0, 128)] = Field(
        (0, 0), description="strength of coloured clouds, in shades of 255"
    )
    texture_size: int = Field(8, ge=1, le=500, description="size of a cloud")
    border: int = Field(0, ge=0, le=10, description="width of a black frame")

    # The letters
    ink: Colours = ("#000000", "#000000")
    letter_inks: bool = Field(False, description="each letter takes its own ink; curves, lines and dots have another")
    letter_fonts: bool = Field(False, description="each letter takes a font of its own; else the word takes one")
    digit_height: Annotated[Range, _within(8, 400)] = Field(
        (29, 29), description="height of the digit 8; letters keep their ratio to it"
    )
    stroke: Annotated[Range, _within(0.5, 100)] = Field((4.8, 6.8), description="thickness of an upright line")
    letter_width: Annotated[Range, _within(0.3, 3)] = Field((1, 1), description="a letter's width; 1 is its font's")
    own_width: Annotated[Range, _within(0.5, 2)] = Field((1, 1), description="each letter's own factor of its width")
    spacing: Annotated[Whole, _within(-200, 200)] = Field((2, 2), description="gap after a letter; at -2 letters touch")
    left: Whole | None = Field(None, description="where the word begins; none: centred")
    baseline: Whole | None = Field(None, description="distance from the top; none: centred")
    bounce: float = Field(0, ge=0, le=100, description="greatest shift of each letter, up or down")
    rotation: float = Field(0, ge=0, le=90, description="greatest turn of each letter, degrees to either side")
    shear: float = Field(0, ge=0, le=1, description="greatest slant to either side, as a share of the height")
    outline: float = Field(0, ge=0, le=10, description="thickness of the letters' outlines; 0: filled letters")
    shadow: int = Field(0, ge=0, le=50, description="how far right and down the word's shadow falls; 0: none")

    # Warps: 1 is as strong as Kaptcha's
    water: Annotated[Range, _within(0, 5)] = (0, 0)
    ripple: Annotated[Range, _within(0, 5)] = (0, 0)
    fish_eye: Annotated[Range, _within(0, 0.9)] = Field((0, 0), description="strength of a lens over a place; 0: none")

    # What lies over the word
    curves: int = Field(0, ge=0, le=10, description="Kaptcha's noise curves, of the word's ink")
    curve_width: Annotated[Range, _within(0.2, 5)] = Field((1, 1), description="the curves' thickness; 1 is Kaptcha's")
    lines: Annotated[Whole, _within(0, 100)] = Field((0, 0), description="straight lines, from side to side")
    line_width: Annotated[Whole, _within(1, 20)] = (1, 1)
    line_colour: Colours | None = Field(None, description="colour of each line; none: the word's ink")
    dots: Annotated[Whole, _within(0, 2000)] = Field((0, 0), description="dots of the word's ink")
    dot_size: Annotated[Range, _within(0.5, 20)] = Field((2, 2), description="diameter")

    # What happens to the finished picture
    blur: Annotated[Range, _within(0, 10)] = Field((0, 0), description="standard deviation")
    shrink: Annotated[Range, _within(0.2, 1)] = Field((1, 1), description="shrunk to this share, then enlarged again")
    jpeg_quality: Annotated[Whole, _within(1, 100)] | None = Field(None, description="quality as JPEG; none: no JPEG")

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        for text in (self.characters, *self.texts):
            if not text or not text.isprintable() or any(character.isspace() for character in text):
                raise ValueError(f"{text!r} holds nothing, a space or a character without ink")
        return self

    @property
    def alphabet(self) -> str:
        """Each character that may be written, once, in order."""
        return "".join(sorted(set("".join(self.texts) or self.characters)))


BUILT_IN = Path(__file__).with_name("builtin")  # a file for each style, in the form that users write
STYLES = tuple(sorted(file.stem for file in BUILT_IN.glob("*.toml")))


def load_style(name: str) -> Style:
    """Return the built-in style of a name, or the one that a TOML file (NAME.toml) describes.

    Raises:
        StyleError: if there is no such style, or the file describes none; every fault is named.
    """
    if name in STYLES:
        return _built_in(name)
    if not name.endswith(".toml"):
        nearest = difflib.get_close_matches(name, STYLES, n=1, cutoff=0.0)[0]
        raise StyleError(f"no drawing style {name!r}: did you mean {nearest!r}? A style of your own is a .toml file")
    return _read_style(name)


@cache
def _built_in(name: str) -> Style:
    return _read_style(BUILT_IN / f"{name}.toml")


def _read_style(file: str | Path) -> Style:
    """Return the style that a TOML file describes; not cached, as a person may change the file."""
    try:
        settings = tomllib.loads(Path(file).read_text("utf-8"))
    except OSError as error:
        raise StyleError(f"{file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StyleError(f"{file} is not a TOML file: {error}") from error
    try:
        return Style(**settings)
    except ValidationError as error:
        raise StyleError(f"{file}: {'; '.join(dict.fromkeys(map(_fault, error.errors())))}") from error


def _fault(detail: Any) -> str:
    if not detail["loc"]:
        return str(detail["ctx"]["error"])
    field = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(field, Style.model_fields, n=1, cutoff=0.0)[0]
        return f"no setting {field!r}: did you mean {nearest!r}?"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{field}: {message[:1].lower()}{message[1:]}, not {detail['input']!r}"
