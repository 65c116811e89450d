from pathlib import Path

import pytest
from starlette.datastructures import Headers

from captcha.server.keys import Keys, KeysError

FIRST, SECOND, THIRD = "first-key-of-the-test", "second-key-of-the-test", "third-key-of-the-test"


def bearer(key: str) -> Headers:
    return Headers({"Authorization": f"Bearer {key}"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# who may ask\n{FIRST}\n\n  alice {SECOND} # from Monday on\n")
    return path


def test_a_key_is_known_by_its_name_or_its_line(file: Path) -> None:
    keys = Keys(file)
    assert keys.name_of(bearer(FIRST)) == "line 2"
    assert keys.name_of(bearer(SECOND)) == "alice"
    assert keys.name_of(Headers({"Authorization": f"bearer  {SECOND} "})) == "alice"
    assert keys.name_of(Headers({"X-API-Key": SECOND})) == "alice"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {FIRST}"},
        {"Authorization": FIRST},
        {"Authorization": f"Bearer {FIRST}x"},
        {"Authorization": f"Bearer {FIRST[:-1]}"},
        {"Authorization": "Bearer alice"},
        {"X-API-Key": "#"},
        {"X-API-Key": "é" * 20},
    ],
)
def test_what_is_no_key_has_no_name(file: Path, headers: dict[str, str]) -> None:
    assert Keys(file).name_of(Headers(headers)) is None


def test_a_changed_file_is_read_again(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = Keys(file)
    file.write_text(f"bob {THIRD}\n")
    assert keys.name_of(bearer(THIRD)) == "bob"
    assert keys.name_of(bearer(FIRST)) is None
    assert "holds 1 keys now" in capsys.readouterr().err
    replacement = file.with_name("new")
    replacement.write_text(f"eve {SECOND}\n")
    replacement.replace(file)
    assert keys.name_of(bearer(SECOND)) == "eve"
    assert keys.name_of(bearer(THIRD)) is None


def test_a_file_that_went_bad_leaves_the_keys_as_they_were_and_says_so_once(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = Keys(file)
    for spoil in (lambda: file.write_text("short\n"), file.unlink):
        spoil()
        assert keys.name_of(bearer(FIRST)) == "line 2"
        assert keys.name_of(bearer(THIRD)) is None
    told = capsys.readouterr().err
    assert told.count("the keys stay as they were") == 1
    assert FIRST not in told
    file.write_text(f"{THIRD}\n")
    assert keys.name_of(bearer(THIRD)) == "line 1"


@pytest.mark.parametrize("content", ["", "# nothing\n", "short\n", f"two names {FIRST}\n", f"{FIRST} short\n"])
def test_a_file_without_sound_keys_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(KeysError, match=rf"^{path}[^\n]+$") as caught:
        Keys(path)
    assert FIRST not in str(caught.value)


def test_a_missing_file_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"no-such cannot be read: No such file or directory$"):
        Keys(tmp_path / "no-such")
