import pickle
import re
import shutil
import tomllib
from pathlib import Path

import pytest

from captcha.drawing.styles import BUILT_IN, STYLES, Style, StyleError, load_style

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "styles.md"


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
def test_a_copy_of_a_built_in_file_is_the_same_style(name: str, tmp_path: Path) -> None:
    copy = shutil.copy(BUILT_IN / f"{name}.toml", tmp_path / "my.toml")
    assert load_style(str(copy)) == load_style(name)


@pytest.mark.parametrize("name", STYLES)
def test_a_style_reaches_another_process_unchanged(name: str) -> None:
    assert pickle.loads(pickle.dumps(load_style(name))) == load_style(name)


def test_the_built_in_styles_are_those_that_the_docs_list() -> None:
    table = re.findall(r"(?m)^\| `(\w+)` \|", DOCS.read_text("utf-8"))
    assert set(table) == set(STYLES) == {"kaptcha", "tilted", "outlined", "textured"}


def test_pip_installs_the_file_of_every_built_in_style() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["captcha"]
    installed = {path for pattern in patterns for path in (ROOT / "captcha").glob(pattern)}
    assert installed >= set(BUILT_IN.iterdir())


def test_a_file_that_was_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    for width in (90, 120):
        path.write_text(f"width = {width}")
        assert load_style(str(path)).width == width


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
    found = re.search(r"```toml\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert found
    assert Style(**tomllib.loads(found[1])) == Style()
    commented_in = tomllib.loads(re.sub(r"(?m)^# (\w+ = )", r"\1", found[1]))
    assert list(commented_in) == list(Style.model_fields)
    Style(**commented_in)
