import re
import tomllib
from pathlib import Path

import pytest

from captcha.drawing.styles import STYLES, Style, StyleError, load_style


def test_a_style_written_to_a_file_is_read_as_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'texts = ["ab", "cd"]\nwidth = 90\nink = "#102030"\nstroke = 3\nspacing = [-2, 1]\n'
        'background = ["#c0c0c0", "#ffffff"]\njpeg_quality = [40, 90]\n'
    )
    assert load_style(str(path)) == Style(
        texts=("ab", "cd"),
        width=90,
        ink=("#102030", "#102030"),
        stroke=(3, 3),
        spacing=(-2, 1),
        background=("#c0c0c0", "#ffffff"),
        jpeg_quality=(40, 90),
    )


def test_an_empty_file_is_the_default_style(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.touch()
    assert load_style(str(path)) == Style()


@pytest.mark.parametrize("name", STYLES)
def test_built_in_styles_hold_what_a_file_may_hold(name: str) -> None:
    assert load_style(name) is STYLES[name]
    assert Style.model_validate(STYLES[name].model_dump()) == STYLES[name]  # so none was made past its checks


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("strok = 3", "no setting 'strok': did you mean 'stroke'?"),
        ("widht = 3\ncolors = 1", "no setting 'widht': did you mean 'width'?; no setting 'colors': did you mean"),
        ('width = "wide"', "width: input should be a valid integer, unable to parse string as an integer, not 'wide'"),
        ("width = 3", "width: input should be greater than or equal to 16, not 3"),
        ("stroke = [6, 3]", "stroke: its first value must not be above its second, not [6, 3]"),
        ("stroke = [1, 2, 3]", "stroke: "),
        ("stroke = 1000", "stroke: must lie from 0.5 to 100, not 1000"),
        ("stroke = nan", "stroke: must lie from 0.5 to 100, not nan"),
        ('ink = "red"', "ink: 'red' is no colour, write it as #rrggbb, not 'red'"),
        ("lengths = 2.5", "lengths: "),
        ('characters = "a b"', "'a b' holds nothing, a space or a character without ink"),
        ('texts = [""]', "'' holds nothing, a space"),
    ],
)
def test_faults_in_a_file_are_told_in_one_line_that_names_the_setting(tmp_path: Path, content: str, fault: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(StyleError) as caught:
        load_style(str(path))
    assert str(caught.value).startswith(f"{path}: {fault}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"width: 3", b"\xff\xfe"])
def test_what_is_no_toml_is_called_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(StyleError, match=r"mine\.toml is not a TOML file: "):
        load_style(str(path))


def test_an_unknown_name_is_answered_with_the_nearest_built_in_style() -> None:
    with pytest.raises(StyleError, match=r"^no drawing style 'tiltd': did you mean 'tilted'\?"):
        load_style("tiltd")


def test_the_alphabet_is_that_of_the_texts_where_there_are_any() -> None:
    assert Style(characters="cabb").alphabet == "abc"
    assert Style(characters="xyz", texts=("ba", "ca")).alphabet == "abc"


def test_the_example_in_the_docs_holds_every_setting_with_its_default() -> None:
    docs = Path(__file__).parents[2] / "docs" / "styles.md"
    found = re.search(r"```toml\n(.*?)```", docs.read_text("utf-8"), re.DOTALL)
    assert found
    assert Style(**tomllib.loads(found[1])) == Style()
    commented_in = tomllib.loads(re.sub(r"(?m)^# (\w+ = )", r"\1", found[1]))
    assert list(commented_in) == list(Style.model_fields)
    Style(**commented_in)
