import base64
import contextlib
import json
import time
from typing import Any

import pytest

from captcha.server.forms import Form, read_form
from captcha.server.visits import RefusalError

JSON = "application/json"
IMAGES = ["QUJD", "REVG"]
RECORDS = [{"image": image} for image in IMAGES]
FORMS: dict[str, Any] = {
    "inputs": {"inputs": IMAGES},
    "inputs by column": {"inputs": {"image": IMAGES}},
    "inputs by row": {"inputs": RECORDS},
    "instances": {"instances": IMAGES},
    "instances by column": {"instances": {"image": IMAGES}},
    "instances by row": {"instances": RECORDS},
    "dataframe_split": {"dataframe_split": {"columns": ["image"], "data": [[image] for image in IMAGES]}},
    "another column": {"dataframe_split": {"columns": ["id", "image"], "data": [[1, "QUJD"], [2, "REVG"]]}},
    "an index": {"dataframe_split": {"index": [0, 1], "columns": ["image"], "data": [["QUJD"], ["REVG"]]}},
    "dataframe_records": {"dataframe_records": RECORDS},
}


def refusal(body: bytes | str, kind: str = JSON) -> str:
    """The line of a refusal with status 400."""
    with pytest.raises(RefusalError) as caught:
        read_form(kind, body.encode() if isinstance(body, str) else body)
    assert caught.value.status == 400
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 300
    return line


@pytest.mark.parametrize("form", FORMS)
def test_every_json_form_gives_its_images(form: str) -> None:
    assert list(read_form(JSON, json.dumps(FORMS[form]).encode()).images) == IMAGES


def test_params_are_kept_and_a_byte_order_mark_is_none_of_the_text() -> None:
    body = json.dumps({"inputs": IMAGES, "params": {"decoder": "beam", "beam_width": 7}})
    assert read_form("application/json; charset=UTF-8", b"\xef\xbb\xbf" + body.encode()).params == {
        "decoder": "beam",
        "beam_width": 7,
    }


def test_what_is_known_of_the_texts_comes_as_params() -> None:
    known = {"length": "4-6", "characters": "abc", "texts": "abca\nbcab", "pattern": "a.*"}
    assert read_form(JSON, json.dumps({"inputs": IMAGES, "params": known}).encode()).params == known
    upload = UPLOAD.replace(b'name="decoder"\r\n\r\nbeam', b'name="length"\r\n\r\n5')
    assert read_form("multipart/form-data; boundary=X", upload).params == {
        "length": "5",
        "beam_width": 5,
        "min_confidence": 0.75,
    }


def test_mlflow_is_given_one_form() -> None:
    assert json.loads(Form(IMAGES, {"decoder": "beam"}).as_json()) == {
        "dataframe_split": {"columns": ["image"], "data": [["QUJD"], ["REVG"]]},
        "params": {"decoder": "beam"},
    }


@pytest.mark.parametrize("kind", ["image/png", "IMAGE/JPEG", "image/webp", "image/bmp", "image/gif"])
def test_an_image_file_is_a_body(kind: str) -> None:
    assert list(read_form(kind, b"\x89PNG").images) == [base64.b64encode(b"\x89PNG").decode()]


UPLOAD = (
    b'--X\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\nABC\r\n'
    b'--X\r\nContent-Disposition: form-data; name="decoder"\r\n\r\nbeam\r\n'
    b'--X\r\nContent-Disposition: form-data; name="beam_width"\r\n\r\n5\r\n'
    b'--X\r\nContent-Disposition: form-data; name="min_confidence"\r\n\r\n0.75\r\n'
    b'--X\r\nContent-Disposition: form-data; name="other"; filename="b.png"\r\n\r\nDEF\r\n--X--\r\n'
)


def test_a_form_upload_gives_its_files_and_its_fields() -> None:
    form = read_form("multipart/form-data; boundary=X", UPLOAD)
    assert list(form.images) == IMAGES
    assert form.params == {"decoder": "beam", "beam_width": 5, "min_confidence": 0.75}


@pytest.mark.parametrize(
    "body",
    [b"", b"--X", UPLOAD[:60], UPLOAD.replace(b"--X", b"--Y"), b"--X--\r\n", UPLOAD.replace(b"beam\r\n", b"best\r\n")],
)
def test_a_bad_form_upload_is_refused(body: bytes) -> None:
    refusal(body, "multipart/form-data; boundary=X")


def test_a_form_upload_without_a_boundary_or_with_too_many_files_is_refused() -> None:
    refusal(UPLOAD, "multipart/form-data")
    file = b'--X\r\nContent-Disposition: form-data; name="i"; filename="a"\r\n\r\nA\r\n'
    assert "more than 1024 files" in refusal(file * 1025 + b"--X--\r\n", "multipart/form-data; boundary=X")


def test_csv_gives_its_column() -> None:
    assert list(read_form("text/csv", b"image\nQUJD\nREVG\n").images) == IMAGES
    assert list(read_form("text/csv; charset=utf-8", b'id,image\r\n1,"QUJD"\r\n\r\n2,REVG').images) == IMAGES
    assert list(read_form("text/csv", b"image\n" + b"A" * 400_000).images) == ["A" * 400_000]  # no limit of csv's own


@pytest.mark.parametrize("body", [b"", b"\n", b"picture\nA", b"image,image\nA,B", b"image\nA,B", b'image\n"A', b"\0"])
def test_bad_csv_is_refused(body: bytes) -> None:
    refusal(body, "text/csv")


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("[" * 10_000, "more than 8 levels"),
        ('{"inputs":' + "[" * 10_000 + "]" * 10_000 + "}", "more than 8 levels"),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, "more than 8 levels"),
        ('{"inputs": ["A"], "x": ' + "9" * 4300 + "}", "a number of more than 24 digits"),
        ('{"inputs": ["A"], "x": -0.' + "9" * 4300 + "}", "a number of more than 24 digits"),
        ('{"inputs": [' + "1," * 20_000 + "1]}", "more than 16384 values"),
        ("[]" * 20_000, "more than 16384 values"),
        ("", "not JSON"),
        ("{", "not JSON"),
        ("nonsense", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        ('{"inputs": ["A"], "params": {"beam_width": NaN}}', "not JSON"),
        ("null", "exactly one of"),
        ("5", "exactly one of"),
        ("[]", "exactly one of"),
        ("{}", "exactly one of"),
        ('{"inputs": ["A"], "instances": ["A"]}', "exactly one of"),
        ('{"inputs": "A"}', "inputs: give a list of images"),
        ('{"inputs": null}', "inputs: give a list of images"),
        ('{"inputs": {"picture": ["A"]}}', "inputs: give a list of images"),
        ('{"dataframe_records": {"image": ["A"]}}', "dataframe_records: give a list of images"),
        ('{"dataframe_records": ["A"]}', "row 0 (the first row is row 0) has no object with `image`"),
        ('{"dataframe_split": {"columns": ["picture"], "data": [["A"]]}}', "one of them `image`"),
        ('{"dataframe_split": {"columns": ["image", "image"], "data": []}}', "one of them `image`"),
        ('{"dataframe_split": [["A"]]}', "one of them `image`"),
        (
            '{"dataframe_split": {"columns": ["image"], "data": [["A", "B"], [], "C", ["A"], 5]}}',
            "row 0, 1, 2 and 1 more",
        ),
        ('{"inputs": ["A", null, 5, {}, []]}', "row 0, 1, 2 and 2 more (the first row is row 0) have no object"),
        ('{"inputs": ["A", "\\ud800"]}', "row 1: the image must be text in base64"),
        (
            '{"inputs": ["A", null, 5, true, [], "A"]}',
            "row 1: the image is null; row 2: the image must be text in base64",
        ),
        ('{"inputs": ["A"], "params": ["beam"]}', "params must be an object"),
        (
            '{"inputs": ["A"], "params": {"beam_widht": 5}}',
            "no other names than decoder, beam_width, min_confidence, length, characters, texts, pattern",
        ),
        ('{"inputs": ["A"], "params": {"decoder": "SECRET"}}', "decoder must be greedy or beam"),
        ('{"inputs": ["A"], "params": {"decoder": ["beam"]}}', "decoder must be greedy or beam"),
        ('{"inputs": ["A"], "params": {"length": 5}}', "length, characters, texts, pattern must be text"),
        ('{"inputs": ["A"], "params": {"pattern": null}}', "length, characters, texts, pattern must be text"),
        ('{"inputs": ["A"], "params": {"length": "SECRET"}}', "the length must be a number of characters such as 5"),
        ('{"inputs": ["A"], "params": {"texts": "\\n"}}', "the list of valid texts is empty"),
        ('{"inputs": ["A"], "params": {"beam_width": 101}}', "beam_width must be a whole number from 1 to 100"),
        ('{"inputs": ["A"], "params": {"beam_width": true}}', "beam_width must be a whole number from 1 to 100"),
        ('{"inputs": ["A"], "params": {"beam_width": "5"}}', "beam_width must be a whole number from 1 to 100"),
        *(
            (
                f'{{"inputs": ["A"], "params": {{"min_confidence": {bad}}}}}',
                "min_confidence must be a number from 0 to 1",
            )
            for bad in ('"0.5"', "-0.1", "1.001", "true", "1e400", "[0.5]")
        ),
        ('{"inputs": ["A"], "params": {"beam_width": 1e400}}', "beam_width must be a whole number from 1 to 100"),
    ],
)
def test_bad_json_is_refused_in_one_line_without_a_word_of_it(body: bytes | str, line: str) -> None:
    told = refusal(body)
    assert line in told
    assert "SECRET" not in told


def test_two_instances_of_which_one_has_no_image_are_not_answered_as_one() -> None:
    """MLflow joins the columns of the rows that have them, and so loses a row."""
    assert "row 1" in refusal(json.dumps({"instances": [{"image": "QUJD"}, {"picture": "REVG"}]}))
    assert "row 1" in refusal(json.dumps({"instances": [{"image": "QUJD"}, {}]}))


@pytest.mark.parametrize("kind", ["", "text/plain", "image/tiff", "application/vnd.apache.parquet", "json", "a" * 5000])
def test_another_content_type_is_refused(kind: str) -> None:
    with pytest.raises(RefusalError) as caught:
        read_form(kind, b'{"inputs": ["QUJD"]}')
    assert caught.value.status == 415
    assert len(str(caught.value)) < 300


def test_another_charset_is_refused() -> None:
    for kind in ("application/json; charset=utf-16", "text/csv; charset=latin-1", "application/json; profile=x"):
        with pytest.raises(RefusalError) as caught:
            read_form(kind, b'{"inputs": ["QUJD"]}')
        assert caught.value.status == 415


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b'\\"' * 5_000_000,
        b'{"inputs": ["' + b"\\/" * 5_000_000 + b'"]}',
        b'"' * 10_000_000,
        b" " * 10_000_000,
        b"1" * 10_000_000,
        b"1 " * 5_000_000,
        b"[" + b'"",' * 3_000_000,
    ],
)
def test_ten_megabytes_of_anything_take_seconds_at_most(body: bytes) -> None:
    begun = time.monotonic()
    with contextlib.suppress(RefusalError):
        read_form(JSON, body)
    assert time.monotonic() - begun < 20  # what is not linear takes hours
