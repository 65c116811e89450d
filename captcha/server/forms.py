"""The body of a request → its images, in base64, and parameters: MLflow's JSON and CSV, image files, form uploads.

Whatever the form, MLflow's application then gets one: what it does with odd ones is in docs/serving.md. No line of a
refusal repeats what the request holds.
"""

import asyncio
import base64
import csv
import io
import json
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, get_args

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from captcha.reading.constraints import CONSTRAINTS, ConstraintError, constraints_of
from captcha.reading.limits import MAX_BEAM_WIDTH, MAX_BODY, MAX_JSON_DEPTH, MAX_JSON_VALUES, MAX_ROWS
from captcha.reading.recognizer import Decoder
from captcha.server.visits import RefusalError

IMAGE_KINDS = ("image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif")
JSON_FORMS = ("inputs", "instances", "dataframe_split", "dataframe_records")
KINDS = ("application/json", "text/csv", "multipart/form-data", *IMAGE_KINDS)

PARAMS = ("decoder", "beam_width", "min_confidence", *CONSTRAINTS)

csv.field_size_limit(max(csv.field_size_limit(), MAX_BODY))


@dataclass(frozen=True)
class Form:
    """What a request asks for: images in base64, and the parameters named in PARAMS."""

    images: Sequence[str]
    params: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> bytes:
        """Return the one form of body that MLflow's application is given."""
        frame = {"columns": ["image"], "data": [[image] for image in self.images]}
        return json.dumps({"dataframe_split": frame, "params": self.params}).encode()


def read_form(content_type: str, body: bytes) -> Form:
    """Return what a body asks for.

    Raises:
        RefusalError: 415 for a content type that is none of KINDS, 400 for a body that is not what it says.
    """
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    if kind in IMAGE_KINDS:
        return _checked([base64.b64encode(body).decode()], {})
    if kind == "multipart/form-data":
        return _read_upload(content_type, body)
    if kind not in KINDS:
        raise RefusalError(415, f"the Content-Type must be one of {', '.join(KINDS)}")
    if any(each not in ("", "charset=utf-8", 'charset="utf-8"') for each in parameters):
        raise RefusalError(415, "a Content-Type of text must be in UTF-8 and have no parameter but charset")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RefusalError(400, "the body is not UTF-8") from None
    return _read_json(text) if kind == "application/json" else _read_csv(text)


def _read_json(text: str) -> Form:
    _check_json(text)
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise RefusalError(400, "the body is not JSON") from None
    given = [name for name in JSON_FORMS if isinstance(content, dict) and name in content]
    if len(given) != 1:
        raise RefusalError(400, f"the JSON body must be an object with exactly one of {', '.join(JSON_FORMS)}")
    (name,) = given
    column = _split_column(content[name]) if name == "dataframe_split" else _column(content[name], name)
    return _checked(column, content.get("params"))


# Strings, the marks between values, and long numbers. A string without an end reaches to the text's end, and nothing
# is tried again: the time is linear.
_MARKS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{\]},]|[-+.0-9eE]{25,}+', re.DOTALL)


def _check_json(text: str) -> None:
    """Raise RefusalError for a text that is too deep, of too many values or with too long a number, unparsed."""
    depth, values = 0, 0
    for found in _MARKS.finditer(text):
        mark = text[found.start()]
        if mark == '"':
            continue
        if mark in "[{":
            depth += 1
        elif mark in "]}":
            depth -= 1
        elif mark != ",":
            raise RefusalError(400, "the JSON body has a number of more than 24 digits")
        values += mark in "[{,"
        if depth > MAX_JSON_DEPTH:
            raise RefusalError(400, f"the JSON body has more than {MAX_JSON_DEPTH} levels")
        if values > MAX_JSON_VALUES:
            raise RefusalError(400, f"the JSON body has more than {MAX_JSON_VALUES} values")


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError  # NaN and Infinity are no JSON


NO_COLUMN = "give a list of images, a list of objects with `image`, or an object whose `image` is a list"


def _column(given: object, name: str) -> Sequence[object]:
    """Return the images in what stands under `inputs`, `instances` or `dataframe_records`."""
    if isinstance(given, dict) and "image" in given and name != "dataframe_records":
        images = given["image"]
        return images if isinstance(images, list) else [images]
    if not isinstance(given, list):
        raise RefusalError(400, f"{name}: {NO_COLUMN}")
    if name != "dataframe_records" and not any(isinstance(row, dict) for row in given):
        return given
    without = [place for place, row in enumerate(given) if not (isinstance(row, dict) and "image" in row)]
    if without:
        raise RefusalError(400, f"{name}: {_rows(without)} no object with `image`")
    return [row["image"] for row in given]


def _split_column(given: object) -> Sequence[object]:
    columns = given.get("columns") if isinstance(given, dict) else None
    rows = given.get("data") if isinstance(given, dict) else None
    if not (isinstance(columns, list) and columns.count("image") == 1 and isinstance(rows, list)):
        raise RefusalError(
            400, "dataframe_split must be an object with `columns`, one of them `image`, and `data`, a list"
        )
    unlike = [place for place, row in enumerate(rows) if not (isinstance(row, list) and len(row) == len(columns))]
    if unlike:
        raise RefusalError(400, f"dataframe_split: {_rows(unlike)} not as many values as there are columns")
    return [row[columns.index("image")] for row in rows]


def _rows(places: Sequence[int]) -> str:
    """Return which rows, the first being row 0, as the beginning of a sentence about what they have."""
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return (
        f"row {', '.join(map(str, places[:3]))}{more} (the first row is row 0) {'has' if len(places) == 1 else 'have'}"
    )


def _read_csv(text: str) -> Form:
    try:
        header, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except (csv.Error, ValueError):
        raise RefusalError(400, "the body is not CSV with a first line of columns") from None
    if header.count("image") != 1:
        raise RefusalError(400, "the first line of the CSV must name a column `image`, once")
    unlike = [place for place, row in enumerate(rows) if len(row) != len(header)]
    if unlike:
        raise RefusalError(400, f"the CSV: {_rows(unlike)} not as many values as the first line")
    return _checked([row[header.index("image")] for row in rows], {})


class _Upload(MultiPartParser):
    spool_max_size = MAX_BODY  # nothing of a request is written to a disk


def _read_upload(content_type: str, body: bytes) -> Form:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    async def parse() -> list[tuple[str, str | bytes]]:
        parser = _Upload(Headers({"content-type": content_type}), whole(), max_files=MAX_ROWS, max_fields=8)
        form = await parser.parse()
        try:
            return [
                (name, await part.read() if isinstance(part, UploadFile) else part) for name, part in form.multi_items()
            ]
        finally:
            await form.close()

    try:
        items = asyncio.run(parse())  # in a thread of its own: nothing else waits for it
    except (MultiPartException, ValueError, LookupError):
        line = f"the body is no form upload, or has more than {MAX_ROWS} files or 8 other fields"
        raise RefusalError(400, line) from None
    files = [value for _, value in items if isinstance(value, bytes)]
    params: dict[str, Any] = {name: value for name, value in items if isinstance(value, str)}
    if re.fullmatch(r"[0-9]{1,9}", params.get("beam_width", "")):  # a form's fields are text
        params["beam_width"] = int(params["beam_width"])
    if re.fullmatch(r"[01](\.[0-9]{1,20})?", params.get("min_confidence", "")):
        params["min_confidence"] = float(params["min_confidence"])
    if not files:
        raise RefusalError(400, "the form upload has no file: each image must have a filename")
    return _checked([base64.b64encode(content).decode() for content in files], params)


LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character, which JSON can name; pandas stops at it, where MLflow casts the images to text."""


def _checked(images: Iterable[object], params: object) -> Form:
    """Return the form of a request, its images text and its parameters known."""
    texts, problems = [], []
    for place, image in enumerate(images):
        if isinstance(image, str) and not LONE_SURROGATE.search(image):
            texts.append(image)
        else:
            what = "is null" if image is None else "must be text in base64"
            problems.append(f"row {place}: the image {what}")
    if problems:
        more = f"; and {len(problems) - 3} rows more" if len(problems) > 3 else ""
        raise RefusalError(400, "; ".join(problems[:3]) + more + " (the first row is row 0)")
    params = {} if params is None else params
    if not isinstance(params, dict) or not params.keys() <= set(PARAMS):
        raise RefusalError(400, f"params must be an object of no other names than {', '.join(PARAMS)}")
    if params.get("decoder", "greedy") not in get_args(Decoder):
        raise RefusalError(400, f"decoder must be {' or '.join(get_args(Decoder))}")
    width = params.get("beam_width", 1)
    if type(width) is not int or not 1 <= width <= MAX_BEAM_WIDTH:
        raise RefusalError(400, f"beam_width must be a whole number from 1 to {MAX_BEAM_WIDTH}")
    least = params.get("min_confidence")
    if least is not None and not (type(least) in (int, float) and 0 <= least <= 1):
        raise RefusalError(400, "min_confidence must be a number from 0 to 1")
    known = [params.get(name, "") for name in CONSTRAINTS]
    if not all(isinstance(each, str) for each in known):
        raise RefusalError(400, f"{', '.join(CONSTRAINTS)} must be text")
    try:
        constraints_of(*known)
    except ConstraintError as error:
        raise RefusalError(400, str(error)) from None
    return Form(texts, params)
