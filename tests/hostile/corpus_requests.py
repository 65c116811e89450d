"""Hostile HTTP requests by name, made of fixed seeds: base64, JSON, CSV, content types, HTTP itself.

Each is a `Case`: the bytes that go through a socket, and what stands in them that no answer may repeat.
"""

import base64
import functools
import gzip
import hashlib
import io
import json
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2

from tests.hostile.corpus_images import images, packed_zeros
from tests.hostile.pictures import stripes

SEED = 88
JSON, CSV = "application/json", "text/csv"
TEXT = "cab"
"""What the valid request's image says."""


@dataclass(frozen=True)
class Case:
    """One connection: what is sent, and what may come back."""

    name: str
    wire: bytes = field(repr=False)
    planted: tuple[str, ...] = ()
    """Text of the request that must not stand in an answer."""
    complete: bool = True
    """Whether the request is whole: of one that is not, the server is told that no more comes."""
    rows: int | None = None
    """How many predictions an answer of 200 must hold, where that can be told."""
    provokes: tuple[int, ...] = ()
    """503 or 504, where the case asks for more than a server may have time for."""


def picture(text: str = TEXT) -> bytes:
    """Return a PNG that the served model reads as this text of a, b and c."""
    return bytes(cv2.imencode(".png", stripes(text))[1].tobytes())


def encoded(content: bytes) -> str:
    """Return base64."""
    return base64.b64encode(content).decode()


GOOD = encoded(picture())


def marker(name: str) -> str:
    """Return twelve letters that stand in one case alone."""
    digest = hashlib.sha256(f"{SEED}:{name}".encode()).digest()
    return "Mk" + "".join(chr(ord("a") + byte % 26) for byte in digest[:10])


def post(
    name: str,
    body: bytes | str,
    content_type: str | None = JSON,
    rows: int | None = None,
    headers: str = "",
    provokes: tuple[int, ...] = (),
) -> Case:
    """Return a sound POST to /invocations; its marker goes into a header, and where MARK stands in the body."""
    mark = marker(name)
    content = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    content = content.replace(b"MARK", mark.encode())
    kind = f"Content-Type: {content_type}\r\n".replace("MARK", mark) if content_type is not None else ""
    head = (
        f"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX-Mark: {mark}\r\n"
        f"{headers.replace('MARK', mark)}{kind}Content-Length: {len(content)}\r\n\r\n"
    )
    return Case(name, head.encode("latin-1", "replace") + content, (mark,), rows=rows, provokes=provokes)


VALID = post("valid", json.dumps({"inputs": [GOOD]}), rows=1)
"""What is sent between the others, and must always get the same answer."""


def raw(name: str, wire: bytes | str, complete: bool = True) -> Case:
    """Return what is no sound HTTP, or none that every server would take; MARK in it is the marker."""
    mark = marker(name)
    content = wire.encode("latin-1") if isinstance(wire, str) else wire
    return Case(name, content.replace(b"MARK", mark.encode()), (mark,), complete)


@functools.cache
def requests() -> dict[str, Case]:
    """Return all cases but those of `image_requests`."""
    groups = (
        _base64(),
        _rows(),
        _json(),
        _wrong_types(),
        _csv(),
        _content_types(),
        _encodings(),
        _http(),
        _smuggling(),
    )
    cases = [case for group in groups for case in group]
    corpus = {case.name: case for case in cases}
    assert len(corpus) == len(cases), "two cases have one name"
    return corpus


@functools.cache
def image_requests() -> dict[str, Case]:
    """Return every file of the corpus of images as a request, in the forms of JSON by turns."""
    cases = {}
    for number, (name, content) in enumerate(images().items()):
        text = encoded(content)
        body = json.dumps(FORMS[number % len(FORMS)]([text]) | {"note": "MARK"})
        case = post(f"image/{name}", body, rows=1)
        planted = (*case.planted, text[:40]) if len(text) >= 40 else case.planted
        cases[case.name] = Case(case.name, case.wire, planted, rows=1)
    return cases


def _split(rows: list[Any]) -> dict[str, Any]:
    return {"dataframe_split": {"columns": ["image"], "data": [[row] for row in rows]}}


FORMS: list[Callable[[list[Any]], dict[str, Any]]] = [
    lambda rows: {"inputs": rows},
    lambda rows: {"inputs": {"image": rows}},
    lambda rows: {"inputs": [{"image": row} for row in rows]},
    lambda rows: {"instances": rows},
    lambda rows: {"instances": {"image": rows}},
    lambda rows: {"instances": [{"image": row} for row in rows]},
    _split,
    lambda rows: {"dataframe_records": [{"image": row} for row in rows]},
]
FORM_NAMES = ["inputs", "inputs-column", "inputs-rows", "instances", "instances-column", "instances-rows", "split"]
FORM_NAMES += ["records"]

Cases = Iterator[Case]


def _base64() -> Cases:
    rng = random.Random(SEED)
    texts: dict[str, str] = {}
    for length in sorted(rng.sample(range(1, len(GOOD)), 16)):
        texts[f"cut-{length}"] = GOOD[:length]
    odd = [
        "*",
        "-",
        "_",
        "=",
        "é",
        "\0",
        "\x1f",
        "\x7f",
        "\u2028",
        "Ａ",
        "\ud800",
        "\U0001f600",
        "%2B",
        "\\",
        "<",
        "MARK",
    ]
    for number, character in enumerate(odd):
        place = rng.randrange(1, len(GOOD))
        texts[f"with-{number}-at-{place}"] = GOOD[:place] + character + GOOD[place:]
    for count in (1, 2, 3, 4, 1000):
        texts[f"{count}-more-padding"] = GOOD + "=" * count
        texts[f"{count}-padding-first"] = "=" * count + GOOD
    for prefix in (
        "data:",
        "data:,",
        "data:;base64",
        "data:;base64,",
        "data:image/png,",
        "data:image/png;base64,data:,",
    ):
        texts[f"prefix-{prefix}"] = prefix + GOOD
    for prefix in (
        "data:text/html;base64,",
        "data:image/svg+xml;charset=utf-8;base64,",
        "DATA:IMAGE/PNG;BASE64,",
        "data:MARK;base64,",
    ):
        texts[f"prefix-{prefix}"] = prefix + GOOD
    texts["long-prefix"] = "data:" + "a" * 100_000 + ";base64," + GOOD
    texts["many-prefixes"] = "data:;base64," * 1000 + GOOD
    image = picture()
    texts |= {
        "twice": encoded(GOOD.encode()),
        "hexadecimal": image.hex(),
        "base32": base64.b32encode(image).decode(),
        "base85": base64.b85encode(image).decode(),
        "url-safe": base64.urlsafe_b64encode(bytes(range(256))).decode(),
        "percent": "".join(f"%{byte:02x}" for byte in image),
        "gzipped": encoded(gzip.compress(image, mtime=0)),
        "two-joined": GOOD + GOOD,
        "white-space": " \t\r\n\v\f\u00a0\u2003" + GOOD,
        "a-megabyte-of-spaces": " " * 10**6 + GOOD,
        "a-line-break-each": "\n".join(GOOD),
        "ten-megabytes-of-A": "A" * 10 * 10**6,
        "15-megabytes-of-A": "A" * 15 * 10**6,
        "14-megabytes-of-stars": "*" * 14 * 10**6,
        "empty": "",
        "None": "None",
        "nan": "nan",
        "null": "null",
        "only-padding": "====",
        "only-zeros": "AAAA" * 1000,
        "path": "/etc/MARK",
        "path-up": "../../../../etc/MARK",
        "file-url": "file:///etc/MARK",
        "http-url": "http://127.0.0.1:9/MARK.png",
        "s3-url": "s3://MARK/a.png",
        "model-uri": "models:/MARK@champion",
        "template": "{{7*7}}${jndi:ldap://127.0.0.1/MARK}",
        "sql": "' OR 1=1; DROP TABLE MARK; --",
        "format": "%s%s%s%n{0.__class__}MARK",
        "crlf": "MARK\r\nSet-Cookie: a=b",
        "right-to-left": "\u202eMARK\u202c",
        "escapes": "\x1b[2J\x1b]0;MARK\x07",
    }
    for number, (name, text) in enumerate(texts.items()):
        form = FORMS[number % len(FORMS)]
        yield post(f"base64/{name}", json.dumps(form([text]) | {"note": "MARK"}), rows=1)


def _rows() -> Cases:
    """Rows of which one is bad, at every place and in every form."""
    bad: dict[str, Any] = {
        "null": None,
        "number": 5,
        "star": "*MARK",
        "empty": "",
        "list": [GOOD],
        "object": {"a": "MARK"},
    }
    bad |= {"true": True, "long": "*" * 100_000}
    for form, name in zip(FORMS, FORM_NAMES, strict=True):
        for kind, value in bad.items():
            yield post(f"rows/{name}-{kind}-second", json.dumps(form([GOOD, value])), rows=2)
        yield post(f"rows/{name}-1025", json.dumps(form([GOOD] * 1025)), rows=1025)
        yield post(f"rows/{name}-10000-empty", json.dumps(form([""] * 10_000)), rows=10_000)
        yield post(f"rows/{name}-none", json.dumps(form([])), rows=0)
    flat = encoded(bytes(cv2.imencode(".png", stripes("", 10).repeat(1000, axis=1))[1].tobytes()))
    wide = {"inputs": [flat] * 1024}
    yield post("rows/1024-wide", json.dumps(wide), rows=1024, provokes=(504,))
    beam = wide | {"params": {"decoder": "beam", "beam_width": 100}}
    yield post("rows/1024-wide-by-beam", json.dumps(beam), rows=1024, provokes=(504,))
    beams: list[Any] = [0, -1, 101, 10**6, 2**63, 2**64, 10**400, 1.5, True, None, "5", [5], {"a": 5}, float("nan")]
    for number, width in enumerate(beams):
        params = {"decoder": "beam", "beam_width": width}
        yield post(f"params/beam-width-{number}", json.dumps({"inputs": [GOOD], "params": params}))
    for number, decoder in enumerate(
        ["", "MARK", "GREEDY", None, 1, True, ["beam"], {"beam": 1}, "beam\0", "b" * 10**6]
    ):
        yield post(f"params/decoder-{number}", json.dumps({"inputs": [GOOD], "params": {"decoder": decoder}}))
    wholes: list[Any] = [None, [], "MARK", 5, True, [["decoder", "beam"]], {}, {"MARK": 1}, {"": 1}]
    for number, whole in enumerate(wholes):
        yield post(f"params/whole-{number}", json.dumps({"inputs": [GOOD], "params": whole}))
    for name, values in _known_of_texts().items():
        for number, value in enumerate(values):
            params = {name: value}
            yield post(f"params/{name}-{number}", json.dumps({"inputs": [GOOD], "params": params}), provokes=(504,))
    yield post("params/100000", json.dumps({"inputs": [GOOD], "params": {f"MARK{n}": n for n in range(100_000)}}))


def _known_of_texts() -> dict[str, list[Any]]:
    """Return for each parameter of what is known of a text, and of what to accept, values that it should not have."""
    none: list[Any] = [None, 5, True, [5], {"a": "MARK"}, "", "MARK", "\0", "\ud800"]
    ranges = ["0", "-1", "5-4", "1-", "-", "1-2-3", "1e9", "1-" + "9" * 5000, "²", "٣"]
    lists = ["\n" * 100_000, "a" * 10**6, "\n".join(f"{n:b}".translate({48: "a", 49: "b"}) for n in range(2**18))]
    groups = ["(" * 5000, "(" * 5000 + "a" + ")" * 5000, "(a*)*" * 500, "a|" * 5000, "[" + "a-c" * 5000 + "]"]
    counts = ["(a|b)*a(a|b){20}", "a{1000000}", "((a{99}){99}){99}", "a{2,1}", "a{-1}", "(a|b|c){0,99}"]
    others = ["(", ")", "*", "[c-a]", "[", "\\", "\\1", "(?R)", "(?=a)b", "(?i)A", "^a$", "MARK(", "[^a]*"]
    odds = [-1, 2, 1e400, float("nan"), -0.0, 10**400, "0.5"]
    return {
        "length": none + ranges,
        "characters": [*none, "a" * 10**6, "MARK" * 10**5],
        "texts": none + lists,
        "pattern": none + groups + counts + others,
        "min_confidence": none + odds,
    }


def _json() -> Cases:
    valid = json.dumps({"inputs": [GOOD]})
    for depth in (100, 900, 1000, 10_000, 100_000):
        yield post(f"json/arrays-{depth}", "[" * depth + "]" * depth)
        yield post(f"json/objects-{depth}", '{"MARK":' * depth + "1" + "}" * depth)
        yield post(f"json/arrays-{depth}-in-inputs", '{"inputs": ' + "[" * depth + "]" * depth + "}")
        yield post(f"json/arrays-{depth}-unclosed", '{"inputs": ' + "[" * depth)
        yield post(
            f"json/objects-{depth}-in-params", '{"inputs": [], "params": ' + '{"a":' * depth + "1" + "}" * (depth + 1)
        )
    for digits in (19, 20, 309, 4300, 4301, 100_000):
        number = "9" * digits
        yield post(f"json/integer-{digits}", f'{{"inputs": [{number}]}}')
        yield post(f"json/integer-{digits}-alone", number)
        yield post(f"json/integer-{digits}-beside", f'{{"inputs": ["{GOOD}"], "note": {number}}}')
        yield post(f"json/integer-{digits}-beam", f'{{"inputs": ["{GOOD}"], "params": {{"beam_width": -{number}}}}}')
        yield post(f"json/fraction-{digits}", f'{{"inputs": [0.{number}]}}')
        yield post(f"json/exponent-{digits}", f'{{"inputs": [1e{number}]}}')
        yield post(
            f"json/index-{digits}",
            f'{{"dataframe_split": {{"columns": ["image"], "index": [{number}], "data": [["{GOOD}"]]}}}}',
        )
    for word in (
        "NaN",
        "Infinity",
        "-Infinity",
        "-0",
        "1.",
        ".5",
        "01",
        "+1",
        "0x10",
        "1_000",
        "True",
        "None",
        "undefined",
        "nan",
    ):
        yield post(f"json/word-{word}", f'{{"inputs": [{word}], "note": "MARK"}}')
    for name, body in {
        "inputs-twice": f'{{"inputs": ["{GOOD}"], "inputs": ["MARK"]}}',
        "inputs-twice-turned": f'{{"inputs": ["MARK"], "inputs": ["{GOOD}"]}}',
        "forms-together": json.dumps({"inputs": [GOOD], "instances": [GOOD], "MARK": 1}),
        "all-forms": json.dumps(FORMS[0]([GOOD]) | FORMS[3]([GOOD]) | FORMS[6]([GOOD]) | FORMS[7]([GOOD])),
        "params-twice": f'{{"inputs": ["{GOOD}"], "params": {{"decoder": "MARK"}}, "params": {{}}}}',
        "image-twice": f'{{"inputs": [{{"image": "{GOOD}", "image": "MARK"}}]}}',
        "single-quotes": "{'inputs': ['MARK']}",
        "comment": '{"inputs": [] /* MARK */}',
        "trailing-comma": '{"inputs": ["MARK",]}',
        "no-quotes": "{inputs: [MARK]}",
        "two-documents": valid + valid,
        "garbage-after": valid + "MARK",
        "guard-before": ")]}'\n" + valid,
        "callback": f"MARK({valid})",
        "lines": valid + "\n" + valid,
        "spaces-5-MB": " " * 5 * 10**6 + valid,
        "only-spaces-5-MB": " " * 5 * 10**6,
        "spaces-15-MB": " " * 15 * 10**6 + valid,
        "null-bytes": valid.replace("{", "{\0"),
        "empty": "",
        "a-string": '"MARK"',
        "a-long-string": '"' + "MARK" * 250_000 + '"',
        "a-long-key": '{"' + "MARK" * 250_000 + '": 1}',
        "a-long-key-beside": '{"inputs": [], "' + "MARK" * 250_000 + '": 1}',
        "100000-keys": "{" + ",".join(f'"MARK{n}": {n}' for n in range(100_000)) + "}",
        "100000-lists": '{"inputs": [' + ",".join(["[]"] * 100_000) + "]}",
        "100000-objects": '{"inputs": [' + ",".join(["{}"] * 100_000) + "]}",
        "colliding-keys": "{" + ",".join(f'"{n * (2**61 - 1)}": 1' for n in range(10_000)) + "}",
        "surrogate": '{"inputs": ["\\ud800MARK"]}',
        "surrogate-key": '{"\\udfff": ["MARK"], "inputs": []}',
        "surrogate-column": '{"dataframe_split": {"columns": ["\\ud83d"], "data": [["MARK"]]}}',
        "surrogate-decoder": f'{{"inputs": ["{GOOD}"], "params": {{"decoder": "\\ud800"}}}}',
        "bad-escape": '{"inputs": ["\\x41MARK"]}',
        "short-escape": '{"inputs": ["\\u12"]}',
        "control-character": '{"inputs": ["\nMARK"]}',
        "dunder": '{"inputs": {"__class__": ["MARK"], "__proto__": {"image": 1}}}',
        "tensor": '{"inputs": {"image": {"b64": "MARK"}}}',
        "signature-name": '{"signature_name": "MARK", "instances": []}',
        "messages": '{"messages": [{"role": "user", "content": "MARK"}]}',
        "prompt": '{"prompt": "MARK"}',
        "input": '{"input": "MARK"}',
        "messages-and-inputs": f'{{"messages": "MARK", "inputs": ["{GOOD}"]}}',
        "messages-null": '{"messages": null}',
    }.items():
        yield post(f"json/{name}", body)
    for name, content in {
        "split-no-data": {"columns": ["image"]},
        "split-no-columns": {"data": [["MARK"]]},
        "split-empty": {},
        "split-other-key": {"columns": ["image"], "data": [["MARK"]], "MARK": 1},
        "split-long-row": {"columns": ["image"], "data": [["MARK", "b"]]},
        "split-short-row": {"columns": ["image", "b"], "data": [["MARK"]]},
        "split-twice": {"columns": ["image", "image"], "data": [[GOOD, "MARK"]]},
        "split-index": {"columns": ["image"], "index": [1, 2, 3], "data": [["MARK"]]},
        "split-index-twice": {"columns": ["image"], "index": [1, 1], "data": [[GOOD], [GOOD]]},
        "split-index-lists": {"columns": ["image"], "index": [[1], {"a": 2}], "data": [[GOOD], [GOOD]]},
        "split-columns-number": {"columns": 5, "data": [["MARK"]]},
        "split-columns-null": {"columns": [None], "data": [["MARK"]]},
        "split-columns-lists": {"columns": [["image"]], "data": [["MARK"]]},
        "split-columns-objects": {"columns": [{"MARK": 1}], "data": [["MARK"]]},
        "split-columns-10000": {"columns": [f"MARK{n}" for n in range(10_000)], "data": [list(range(10_000))]},
        "split-data-object": {"columns": ["image"], "data": {"MARK": 1}},
        "split-data-text": {"columns": ["image"], "data": "MARK"},
        "split-data-flat": {"columns": ["image"], "data": ["MARK"]},
        "split-deep": {"columns": ["image"], "data": [[[["MARK"]]]]},
        "split-more-columns": {"columns": ["image", "MARK"], "data": [[GOOD, 1]]},
        "split-upper-case": {"columns": ["IMAGE"], "data": [["MARK"]]},
        "split-spaces": {"columns": [" image "], "data": [["MARK"]]},
    }.items():
        yield post(f"json/{name}", json.dumps({"dataframe_split": content}))
    rng = random.Random(SEED + 1)
    marked = json.dumps({"inputs": [GOOD], "note": "MARK", "params": {"decoder": "beam", "beam_width": 5}})
    for length in sorted(rng.sample(range(1, len(marked)), 12)):
        yield post(f"json/cut-{length}", marked[:length])
    for place in sorted(rng.sample([i for i in range(len(marked)) if not 12 < i < 12 + len(GOOD)], 20)):
        changed = bytearray(marked.encode())
        changed[place] ^= 1 << rng.randrange(8)
        yield post(f"json/flipped-{place}", bytes(changed))


def _wrong_types() -> Cases:
    """Every form with a value of every other type in the place of its list."""
    values: dict[str, Any] = {"null": None, "true": True, "number": 5, "fraction": 1.5, "text": "MARK", "image": GOOD}
    values |= {
        "empty-object": {},
        "object": {"MARK": 1},
        "nested": [["MARK", "b"], ["c", "d"]],
        "mixed": [1, "a", None],
    }
    values |= {
        "ragged": [["MARK"], ["b", "c"]],
        "columns": {"image": {"0": "MARK"}},
        "unequal": {"image": [GOOD], "b": []},
    }
    for key in ("inputs", "instances", "dataframe_split", "dataframe_records"):
        for name, value in values.items():
            yield post(f"types/{key}-{name}", json.dumps({key: value}))
    for key in (
        "Inputs",
        "inputs ",
        "input",
        "predictions",
        "dataframe",
        "data",
        "columns",
        "image",
        "images",
        "",
        "MARK",
    ):
        yield post(f"types/key-{key or 'empty'}", json.dumps({key: [GOOD]}))
    several: dict[str, list[Any]] = {
        "records-of-other-columns": [{"image": GOOD}, {"MARK": GOOD}],
        "records-and-text": [{"image": GOOD}, GOOD],
        "text-and-records": [GOOD, {"image": GOOD}],
        "records-with-list": [{"image": [GOOD, GOOD]}, {"image": GOOD}],
        "records-more-columns": [{"image": GOOD, "b": 1}, {"image": GOOD, "MARK": 2}],
        "records-empty": [{}, {}],
        "lists": [[GOOD], [GOOD]],
        "lists-ragged": [[GOOD], [GOOD, GOOD]],
        "list-and-text": [[GOOD], GOOD],
        "none-and-record": [None, {"image": GOOD}],
    }
    for name, rows in several.items():
        for key in ("inputs", "instances", "dataframe_records"):
            yield post(f"types/{key}-{name}", json.dumps({key: rows, "note": "MARK"}), rows=2)


def _csv() -> Cases:
    texts: dict[str, str | bytes] = {
        "empty": "",
        "line-break": "\n",
        "line-breaks": "\n" * 1000,
        "carriage-returns": f"image\r{GOOD}\r",
        "header-alone": "image\n",
        "header-without-end": "image",
        "no-header": f"{GOOD}\n{GOOD}\n",
        "other-header": "MARK\nx\n",
        "upper-case-header": f"IMAGE\n{GOOD}\n",
        "spaced-header": f" image \n{GOOD}\n",
        "quoted-header": f'"image"\n{GOOD}\n',
        "header-twice": f"image,image\n{GOOD},MARK\n",
        "header-again": f"image\nimage\n{GOOD}\n",
        "empty-header": f",\n{GOOD},\n",
        "semicolons": f"image;b\n{GOOD};MARK\n",
        "tabs": f"image\tb\n{GOOD}\tMARK\n",
        "open-quote": 'image\n"MARK',
        "open-quote-in-header": '"image\nMARK\n',
        "quotes-in-a-field": 'image\nMA"MARK"K\n',
        "many-quotes": "image\n" + '"' * 100_001 + "\n",
        "quoted-breaks": f'image\n"{GOOD[:40]}\n{GOOD[40:]}"\n',
        "escaped": 'image\n"\\"MARK\\""\n',
        "long-row": f"image\n{GOOD},MARK,c\n",
        "long-row-later": f"image\n{GOOD}\n{GOOD},MARK,c\n",
        "short-row": f"image,b,c\n{GOOD}\n",
        "ragged": "image,b\n1\n1,2,3\n1,2,3,MARK\n",
        "null-byte": f"image\n{GOOD[:20]}\0MARK\n",
        "null-bytes": "\0" * 1000,
        "null-header": "im\0age\nMARK\n",
        "bom": f"\ufeffimage\n{GOOD}\n",
        "utf-16": "image\nMARK\n".encode("utf-16"),
        "utf-32": "image\nMARK\n".encode("utf-32"),
        "latin-1": "image\nMARK\xe9\n".encode("latin-1"),
        "overlong": b"image\nMARK\xc0\xaf\n",
        "surrogate": b"image\nMARK\xed\xa0\x80\n",
        "binary": picture(),
        "numbers": "image\n1\n2.5\n1e400\n",
        "long-number": "image\n" + "9" * 5000 + "\n",
        "nothing-and-nan": "image\n\nNaN\nnull\nNA\n",
        "truths": "image\nTrue\nFalse\n",
        "dates": "image\n2020-01-01\n",
        "formula": "image\n=cmd|' /C calc'!MARK\n",
        "comment": f"# MARK\nimage\n{GOOD}\n",
        "json-in-it": 'image\n{"inputs": ["MARK"]}\n',
        "json": '{"inputs": ["MARK"]}',
        "html": "<table><tr><td>MARK</td></tr></table>",
        "path": "image\n/etc/MARK\n",
        "url": "image\nhttp://127.0.0.1:9/MARK\n",
        "path-alone": "/etc/MARK",
        "url-alone": "http://127.0.0.1:9/MARK.csv",
        "index": f",image\n0,{GOOD}\n1,{GOOD}\n",
        "index-alone": f"image\n0,{GOOD}\n",
        "10000-columns": ",".join(f"MARK{n}" for n in range(10_000)) + "\n" + "1," * 9_999 + "1\n",
        "3000-equal-columns": ",".join(["image"] * 3_000) + "\n" + "MARK," * 2_999 + "1\n",
        "100000-rows": "image\n" + "MARK\n" * 100_000,
        "1025-rows": "image\n" + f"{GOOD}\n" * 1025,
        "1025-empty-rows": "image\n" + '""\n' * 1025,
        "a-field-of-a-megabyte": "image\n" + "MARK" * 250_000 + "\n",
        "a-header-of-a-megabyte": "MARK" * 250_000 + "\n1\n",
        "3000-commas": "image\n" + "," * 3_000 + "\n",
        "spaces-of-a-megabyte": "image\n" + " " * 1_000_000,
        "thousands": 'image\n"1,000"\n',
        "gzipped": gzip.compress(b"image\nMARK\n", mtime=0),
        "zipped": b"PK\3\4image\nMARK\n",
        "bad-second": f"image\n{GOOD}\nMARK*\n",
        "unicode-header": "图像\nMARK\n",
        "right-to-left": "\u202eimage\nMARK\n",
        "line-separators": f"image\u2028{GOOD}\u2028",
        "form-feeds": f"image\f{GOOD}\f",
    }
    for name, text in texts.items():
        yield post(f"csv/{name}", text, CSV)
    rng = random.Random(SEED + 2)
    sound = f'image,b\n{GOOD},"a ""b"" c"\n{GOOD},2\n'.encode()
    for number in range(12):
        changed = bytearray(sound)
        for _ in range(number + 1):
            changed[rng.randrange(len(changed))] = rng.choice(b'",\n\r\0;\xff')
        yield post(f"csv/damaged-{number}", bytes(changed), CSV)


def _content_types() -> Cases:
    body = json.dumps({"inputs": [GOOD], "note": "MARK"})
    yield post("type/none", body, None)
    yield post("type/none-without-body", b"", None)
    yield post("type/none-csv", f"image\n{GOOD}\n", None)
    for kind in (
        "",
        " ",
        ";",
        "/",
        "json",
        "application",
        "application/",
        "/json",
        "text/plain",
        "text/json",
        "*/*",
        "MARK",
    ):
        yield post(f"type/{kind or 'empty'}", body, kind)
    for kind in (
        "APPLICATION/JSON",
        "Application/Json",
        "application/json ",
        "application/x-json",
        "application/json,text/csv",
    ):
        yield post(f"type/{kind}", body, kind)
    for charset in (
        "utf-8",
        "UTF-8",
        "utf8",
        '"utf-8"',
        "latin-1",
        "utf-16",
        "utf-7",
        "cp037",
        "rot13",
        "idna",
        "MARK",
        "",
        "a" * 5000,
    ):
        yield post(f"type/charset-{charset[:20]}", body, f"application/json; charset={charset}")
    for rest in (
        "charset",
        "charset=utf-8; charset=utf-16",
        "; ; ;",
        "a=b",
        "boundary=MARK",
        "charset = utf-8",
        "=utf-8",
        "version=1",
    ):
        yield post(f"type/parameter-{rest}", body, f"application/json; {rest}")
    yield post("type/long", body, "application/" + "MARK" * 2000)
    yield post("type/not-ascii", body, "application/jsön")
    yield post("type/twice", body, JSON, headers="Content-Type: text/csv\r\n")
    yield post("type/twice-equal", body, JSON, headers="Content-Type: application/json\r\n")
    yield post("type/csv-holds-json", body, CSV)
    yield post("type/json-holds-csv", f"image\n{GOOD}\n", JSON)
    for kind in ("csv", "xml", "html", "plain", "yaml", "javascript", "event-stream"):
        yield post(f"type/text-{kind}", f"image\n{GOOD}\nMARK\n", f"text/{kind}; charset=utf-8")
    for kind in (
        "x-pickle",
        "octet-stream",
        "x-yaml",
        "xml",
        "zip",
        "gzip",
        "msgpack",
        "x-protobuf",
        "cbor",
        "x-ndjson",
        "pdf",
    ):
        yield post(f"type/application-{kind}", b"\x80\x04cos\nsystem\n(S'MARK'\ntR.", f"application/{kind}")
    image = picture()
    for kind in ("png", "jpeg", "webp", "gif", "bmp", "svg+xml", "tiff", "x-icon", "*", "PNG", "png; charset=utf-8"):
        yield post(f"type/image-{kind}", image, f"image/{kind}")
        yield post(f"type/image-{kind}-garbage", b"MARK" * 10, f"image/{kind}")
        yield post(f"type/image-{kind}-empty", b"", f"image/{kind}")
    parquet = "application/vnd.apache.parquet"
    for name, content in {
        "garbage": b"MARK" * 100,
        "empty": b"",
        "magic-alone": b"PAR1PAR1",
        "magic-and-length": b"PAR1" + bytes(40) + b"\xff\xff\xff\x7fPAR1",
        "zeros": b"PAR1" + bytes(100_000) + b"\x10\0\0\0PAR1",
        "whole": _parquet({"image": [GOOD]}),
        "other-column": _parquet({"MARK": ["a"]}),
        "cut": _parquet({"image": [GOOD]})[:-30],
        "a-million-rows": _parquet({"image": [""] * 1_000_000}),
        "numbers": _parquet({"image": [1, 2]}),
        "flipped": _flipped(_parquet({"image": [GOOD]})),
    }.items():
        yield post(f"type/parquet-{name}", content, parquet)
    part = 'Content-Disposition: form-data; name="image"; filename="MARK.png"\r\nContent-Type: image/png\r\n\r\n'
    whole = b"--X\r\n" + part.encode() + image + b"\r\n--X--\r\n"
    for name, (boundary, content) in {
        "whole": ("; boundary=X", whole),
        "no-boundary": ("", whole),
        "empty-boundary": ("; boundary=", whole),
        "other-boundary": ("; boundary=MARK", whole),
        "long-boundary": ("; boundary=" + "X" * 5000, whole),
        "odd-boundary": ('; boundary="X\\"', whole),
        "unclosed": ("; boundary=X", whole[:-8]),
        "cut": ("; boundary=X", whole[:60]),
        "empty": ("; boundary=X", b""),
        "no-parts": ("; boundary=X", b"--X--\r\n"),
        "no-disposition": ("; boundary=X", b"--X\r\n\r\nMARK\r\n--X--\r\n"),
        "no-name": ("; boundary=X", whole.replace(b' name="image";', b"")),
        "no-filename": (
            "; boundary=X",
            b'--X\r\nContent-Disposition: form-data; name="image"\r\n\r\nMARK\r\n--X--\r\n',
        ),
        "path-filename": ("; boundary=X", whole.replace(b"MARK.png", b"../../MARK")),
        "two-images": ("; boundary=X", whole[:-4].replace(b"--X--", b"") + whole),
        "10000-parts": ("; boundary=X", (b"--X\r\n" + part.encode() + b"x\r\n") * 10_000 + b"--X--\r\n"),
        "10000-headers": ("; boundary=X", b"--X\r\n" + b"A: MARK\r\n" * 10_000 + b"\r\nx\r\n--X--\r\n"),
        "long-header": ("; boundary=X", b"--X\r\nA: " + b"MARK" * 100_000 + b"\r\n\r\nx\r\n--X--\r\n"),
        "long-name": ("; boundary=X", whole.replace(b'name="image"', b'name="' + b"MARK" * 20_000 + b'"')),
        "nested": ("; boundary=X", whole.replace(b"image/png", b"multipart/mixed; boundary=Y")),
        "transfer-encoding": (
            "; boundary=X",
            whole.replace(b"image/png", b"image/png\r\nContent-Transfer-Encoding: base64"),
        ),
        "line-feeds": ("; boundary=X", whole.replace(b"\r\n", b"\n")),
        "preamble": ("; boundary=X", b"MARK" * 50_000 + b"\r\n" + whole),
        "garbage-image": ("; boundary=X", whole.replace(image, b"MARK" * 30)),
        "charset": ("; boundary=X", whole.replace(b'name="image"', b'name="_charset_"')),
    }.items():
        yield post(f"multipart/{name}", content, "multipart/form-data" + boundary)
    yield post("type/form", f"image={GOOD}&MARK=1", "application/x-www-form-urlencoded")
    yield post("type/form-100000", "&".join(f"MARK{n}=1" for n in range(100_000)), "application/x-www-form-urlencoded")


def _flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    for place in range(4, len(changed) - 4, 37):
        changed[place] ^= 0x10
    return bytes(changed)


@functools.cache
def _parquet_of(column: str, values: tuple[Any, ...]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({column: list(values)}), stream)
    return stream.getvalue()


def _parquet(table: dict[str, list[Any]]) -> bytes:
    [(column, values)] = table.items()
    return _parquet_of(column, tuple(values))


def _encodings() -> Cases:
    body = json.dumps({"inputs": [GOOD], "note": "MARK"})
    for codec in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-7", "cp037", "cp500"):
        mark = marker(f"encoding/{codec}")
        yield post(f"encoding/{codec}", body.replace("MARK", mark).encode(codec))
    for name, content in {
        "latin-1": '{"inputs": ["MARK\xe9"]}'.encode("latin-1"),
        "overlong": b'{"inputs": ["MARK\xc0\xaf"]}',
        "surrogate-bytes": b'{"inputs": ["MARK\xed\xa0\x80"]}',
        "cut-character": b'{"inputs": ["MARK\xe2\x82"]}',
        "five-bytes": b'{"inputs": ["MARK\xf8\x88\x80\x80\x80"]}',
        "ff": b"\xff" * 1000,
        "fe-ff": b"\xfe\xff",
        "two-boms": b"\xef\xbb\xbf\xef\xbb\xbf" + body.encode(),
        "zeros": bytes(10_000),
        "png": picture(),
    }.items():
        yield post(f"encoding/{name}", content)
    bomb = zlib.compress(b"x")
    for coding, content in {
        "gzip": gzip.compress(body.encode(), mtime=0),
        "gzip-bomb": gzip.compress(gzip.compress(bytes(10**7), mtime=0), mtime=0),
        "deflate": zlib.compress(body.encode()),
        "deflate-bomb": packed_zeros(2**26),
        "br": bomb,
        "zstd": b"\x28\xb5\x2f\xfd" + bytes(20),
        "compress": b"\x1f\x9d" + bytes(20),
        "identity": body.encode(),
        "MARK": body.encode(),
        "gzip, gzip, gzip": bomb,
    }.items():
        kind = coding.removesuffix("-bomb")
        yield post(f"coding/{coding}", content, JSON, headers=f"Content-Encoding: {kind}\r\n")


def _request(
    line: str = "POST /invocations HTTP/1.1",
    headers: str = "Host: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n",
    body: str | None = None,
    length: str | None = None,
) -> str:
    """Return a request of pieces, any of which may be wrong."""
    body = f'{{"inputs": ["{GOOD}"], "note": "MARK"}}' if body is None else body
    stated = f"Content-Length: {len(body) + 8 * body.count('MARK')}\r\n" if length is None else length
    return f"{line}\r\n{headers}{stated}\r\n{body}"


HOST = "Host: 127.0.0.1\r\n"
KIND = "Content-Type: application/json\r\n"
CLOSE = "Connection: close\r\n"


def _http() -> Cases:
    methods = (
        "GET",
        "HEAD",
        "PUT",
        "DELETE",
        "OPTIONS",
        "TRACE",
        "PATCH",
        "CONNECT",
        "PROPFIND",
        "post",
        "MARK",
        "POST/",
        "P\0ST",
    )
    for method in (*methods, "X" * 100, "X" * 100_000, "", "(POST)", "G\xc9T"):
        yield raw(f"http/method-{method[:12] or 'none'}-{len(method)}", _request(f"{method} /invocations HTTP/1.1"))
    paths: tuple[str, ...] = (
        "/",
        "/MARK",
        "/invocations/",
        "//invocations",
        "/./invocations",
        "/INVOCATIONS",
        "/invocations?MARK=1",
        "*",
        "/invocations;a=MARK",
        "/invocations#MARK",
        "/invocations%00",
        "/invocations%0d%0aMARK",
        "/%69nvocations",
        "",
        "/../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%c0%af../etc/passwd",
        "/..\\..\\MARK",
        "\\invocations",
        "http://127.0.0.1/invocations",
        "http://MARK.example/invocations",
        "http://[::1",
        "//MARK.example/",
        "MARK",
        "/%",
        "/%zz",
        "/\xff\xfe",
        "/ping",
        "/health",
        "/version",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/redoc",
        "/static/../x",
        "/ping/MARK",
        "/.git/config",
        "/favicon.ico",
        "/robots.txt",
        "/admin",
        "/api/2.0/mlflow/experiments/search",
        "/graphql",
    )
    for number, path in enumerate(
        (*paths, "/" + "a" * 10_000, "/" + "MARK" * 30_000, "/" + "../" * 5_000, "/?" + "MARK=1&" * 10_000)
    ):
        get = raw(
            f"http/path-{number}-{path[:24]}",
            _request(f"GET {path} HTTP/1.1", HOST + "X-Mark: MARK\r\n" + CLOSE, "", ""),
        )
        yield Case(get.name.encode("ascii", "backslashreplace").decode(), get.wire, get.planted)
        if number % 3 == 0:
            named = f"http/post-path-{number}"
            yield raw(named, _request(f"POST {path} HTTP/1.1"))
    for version in (
        "HTTP/0.9",
        "HTTP/1.0",
        "HTTP/1.2",
        "HTTP/1.10",
        "HTTP/2.0",
        "HTTP/3",
        "http/1.1",
        "HTTP/1",
        "HTTP/-1.1",
        "MARK/1.1",
        "HTTP/1.1 MARK",
    ):
        yield raw(f"http/version-{version}", _request(f"POST /invocations {version}"))
    yield raw("http/no-version", "GET /ping\r\n\r\n")
    yield raw("http/two-spaces", _request("POST  /invocations  HTTP/1.1"))
    yield raw("http/tabs", _request("POST\t/invocations\tHTTP/1.1"))
    yield raw("http/line-feeds", _request().replace("\r\n", "\n"))
    yield raw("http/carriage-returns", _request().replace("\r\n", "\r"), complete=False)
    yield raw("http/blank-lines-first", "\r\n" * 10 + _request())
    yield raw("http/10000-blank-lines-first", "\r\n" * 10_000 + _request())
    yield raw("http/space-first", " " + _request())
    hosts: dict[str, str] = {"none": "", "empty": "Host:\r\n", "other": "Host: MARK.example\r\n", "two": HOST * 2}
    hosts |= {
        "two-different": HOST + "Host: MARK.example\r\n",
        "port-text": "Host: 127.0.0.1:MARK\r\n",
        "port-0": "Host: 127.0.0.1:0\r\n",
    }
    hosts |= {
        "port-large": "Host: 127.0.0.1:99999\r\n",
        "user": "Host: MARK@127.0.0.1\r\n",
        "path": "Host: 127.0.0.1/MARK\r\n",
    }
    hosts |= {
        "ipv6": "Host: [::1]:5000\r\n",
        "ipv6-open": "Host: [::1\r\n",
        "spaces": "Host: 127.0.0.1 MARK\r\n",
        "comma": "Host: a, MARK\r\n",
    }
    hosts |= {
        "long": "Host: " + "MARK" * 2000 + "\r\n",
        "not-ascii": "Host: \xff\xfe\r\n",
        "localhost": "Host: localhost\r\n",
    }
    hosts |= {
        "forwarded": HOST + "X-Forwarded-Host: MARK.example\r\nForwarded: host=MARK\r\nX-Forwarded-For: 1.1.1.1\r\n"
    }
    hosts |= {"underscore": "Host: _\r\n", "dots": "Host: ...\r\n", "metadata": "Host: 169.254.169.254\r\n"}
    for name, host in hosts.items():
        yield raw(f"http/host-{name}", _request(headers=host + KIND + CLOSE))
    lengths = (
        "-1",
        "+5",
        "5,5",
        "5, 6",
        "0x10",
        "1e3",
        "",
        " ",
        "five",
        "1.0",
        "5 5",
        "99999999999999999999999999",
        "\x00",
        "٥",
    )
    for number, length in enumerate(lengths):
        wire = _request(length="").replace("\r\n\r\n", f"\r\nContent-Length: {length}\r\n\r\n").encode("utf-8")
        yield raw(f"http/length-{number}", wire, complete=False)
    for name, lines in {
        "twice": "Content-Length: 5\r\nContent-Length: 5\r\n",
        "twice-different": "Content-Length: 5\r\nContent-Length: 6\r\n",
        "zero": "Content-Length: 0\r\n",
        "one-more": "Content-Length: 500\r\n",
        "ten-digits": "Content-Length: 4294967296\r\n",
        "a-gigabyte": "Content-Length: 1000000000\r\n",
        "19-digits": "Content-Length: 9223372036854775807\r\n",
        "zeros-first": "Content-Length: 0000000000000000000000000000000005\r\n",
        "space-before-colon": "Content-Length : 5\r\n",
        "underscore": "Content_Length: 5\r\n",
        "tab-first": "\tContent-Length: 5\r\n",
        "folded": "Content-Length:\r\n 5\r\n",
    }.items():
        yield raw(f"http/length-{name}", _request(length=lines), complete=False)
    yield raw("http/length-short", _request(length="Content-Length: 20\r\n"))
    yield raw("http/no-length", _request(length=""))
    flood = "".join(f"X-{n}: MARK\r\n" for n in range(90))
    for name, lines in {
        "90": flood,
        "1000": flood * 11,
        "100000": "A: MARK\r\n" * 100_000,
        "10-kB": "A: " + "MARK" * 2_500 + "\r\n",
        "100-kB": "A: " + "MARK" * 25_000 + "\r\n",
        "2-MB": "A: " + "MARK" * 500_000 + "\r\n",
        "long-name": "MARK" * 25_000 + ": a\r\n",
        "no-colon": "MARK\r\n",
        "no-name": ": MARK\r\n",
        "null": "A: MA\0MARK\r\n",
        "null-name": "A\0: MARK\r\n",
        "not-ascii": "A: \xff\xfeMARK\r\n",
        "not-ascii-name": "\xe4: MARK\r\n",
        "folded": "A: MARK\r\n B\r\n\tC\r\n",
        "carriage-return": "A: MA\rMARK\r\n",
        "line-feed": "A: MA\nMARK: 1\r\n",
        "space-before-colon": "A : MARK\r\n",
        "space-first": " A: MARK\r\n",
        "brackets": "A(): MARK\r\n",
        "cookies": "Cookie: " + "a=MARK; " * 5_000 + "\r\n",
        "authorization": "Authorization: Bearer MARK\r\n",
        "authorization-basic": "Authorization: Basic !!!MARK\r\n",
        "api-key": "X-API-Key: MARK\r\n",
        "range": "Range: bytes=0-MARK,0-0," + ",".join(["0-1"] * 1000) + "\r\n",
        "expect": "Expect: 100-continue\r\n",
        "expect-other": "Expect: MARK\r\n",
        "upgrade-h2c": "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\nConnection: Upgrade, HTTP2-Settings\r\n",
        "upgrade-websocket": "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: MARK\r\n",
        "connection-length": "Connection: Content-Length\r\n",
        "method-override": "X-HTTP-Method-Override: DELETE\r\n",
        "original-url": "X-Original-URL: /MARK\r\nX-Rewrite-URL: /MARK\r\n",
        "accept": "Accept: " + "MARK/" * 5_000 + "\r\n",
        "origin": "Origin: https://MARK.example\r\nReferer: https://MARK.example\r\n",
        "user-agent": "User-Agent: () { :;}; echo MARK; ${jndi:ldap://127.0.0.1/MARK}\r\n",
        "request-id": "X-Request-ID: MARK\x1b[31m\r\n",
        "traceparent": "traceparent: 00-MARK-01\r\n",
    }.items():
        yield raw(f"http/header-{name}", _request(headers=HOST + lines + KIND + CLOSE))
    for name, wire in {
        "nothing": b"",
        "one-byte": b"P",
        "blank-lines": b"\r\n" * 5,
        "request-line": b"POST /invocations HTTP/1.1\r\n",
        "half-a-head": _request()[:60].encode(),
        "head-alone": _request().partition("\r\n\r\n")[0].encode() + b"\r\n\r\n",
        "half-a-body": _request()[:-30].encode(),
    }.items():
        yield raw(f"http/cut-{name}", wire, complete=False)
    rng = random.Random(SEED + 3)
    for name, wire in {
        "zeros": bytes(65_536),
        "letters": b"A" * 100_000,
        "tls": bytes.fromhex("16030100c8010000c40303") + rng.randbytes(195),
        "ssh": b"SSH-2.0-MARK\r\n",
        "smtp": b"EHLO MARK\r\n",
        "proxy": b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n" + _request().encode(),
        "proxy-2": b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c" + bytes(12),
        "http-2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        "redis": b"*1\r\n$4\r\nMARK\r\n",
        "json": b'{"inputs": ["MARK"]}',
        "answer": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nMARK",
        **{f"random-{n}": rng.randbytes(10 ** (n % 4 + 1)) for n in range(8)},
    }.items():
        yield raw(f"http/other-{name}", wire, complete=False)


def _smuggling() -> Cases:
    """Requests whose end two servers would see in two places, chunks that are none, and many requests at once."""
    body = f'{{"inputs": ["{GOOD}"], "note": "MARK"}}'
    size = len(body) + 8
    whole = f"{size:x}\r\n{body}\r\n0\r\n\r\n"
    hidden = "GET /MARK HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    head = HOST + KIND + CLOSE
    chunked = head + "Transfer-Encoding: chunked\r\n"
    for name, (headers, content) in {
        "sound": (chunked, whole),
        "bad-size": (chunked, "MARK\r\n" + whole),
        "negative-size": (chunked, "-5\r\nabcde\r\n" + whole),
        "empty-size": (chunked, "\r\n" + whole),
        "huge-size": (chunked, "FFFFFFFFFFFFFFFF\r\n" + body),
        "20-digits": (chunked, "F" * 20 + "\r\n" + body),
        "0x-size": (chunked, f"0x{size:x}\r\n{body}\r\n0\r\n\r\n"),
        "plus-size": (chunked, f"+{size:x}\r\n{body}\r\n0\r\n\r\n"),
        "space-size": (chunked, f"{size:x} \r\n{body}\r\n0\r\n\r\n"),
        "zeros-size": (chunked, f"{'0' * 60}{size:x}\r\n{body}\r\n0\r\n\r\n"),
        "short-size": (chunked, f"{size - 5:x}\r\n{body}\r\n0\r\n\r\n"),
        "long-size": (chunked, f"{size + 5:x}\r\n{body}\r\n0\r\n\r\n"),
        "no-line-end": (chunked, f"{size:x}\r\n{body}0\r\n\r\n"),
        "line-feeds": (chunked, whole.replace("\r\n", "\n")),
        "no-end": (chunked, f"{size:x}\r\n{body}\r\n"),
        "half-an-end": (chunked, f"{size:x}\r\n{body}\r\n0\r\n"),
        "nothing": (chunked, ""),
        "empty": (chunked, "0\r\n\r\n"),
        "extension": (chunked, f"{size:x};MARK=1\r\n{body}\r\n0\r\n\r\n"),
        "long-extension": (chunked, f"{size:x};" + "MARK" * 20_000 + f"\r\n{body}\r\n0\r\n\r\n"),
        "trailer": (chunked, f"{size:x}\r\n{body}\r\n0\r\nA: MARK\r\n\r\n"),
        "trailer-length": (chunked, f"{size:x}\r\n{body}\r\n0\r\nContent-Length: 5\r\n\r\n"),
        "many-trailers": (chunked, f"{size:x}\r\n{body}\r\n0\r\n" + "A: MARK\r\n" * 10_000 + "\r\n"),
        "byte-by-byte": (chunked, "".join(f"1\r\n{c}\r\n" for c in body.replace("MARK", "mark")) + "0\r\n\r\n"),
        "100000-small": (chunked, "1\r\n \r\n" * 100_000 + whole),
        "gzip-chunked": (head + "Transfer-Encoding: gzip, chunked\r\n", whole),
        "chunked-gzip": (head + "Transfer-Encoding: chunked, gzip\r\n", whole),
        "chunked-twice": (head + "Transfer-Encoding: chunked, chunked\r\n", whole),
        "two-lines": (chunked + "Transfer-Encoding: chunked\r\n", whole),
        "two-lines-differ": (chunked + "Transfer-Encoding: MARK\r\n", whole),
        "identity": (head + "Transfer-Encoding: identity\r\n", whole),
        "unknown": (head + "Transfer-Encoding: xchunked\r\n", whole),
        "upper-case": (head + "Transfer-Encoding: CHUNKED\r\n", whole),
        "space-before-colon": (head + "Transfer-Encoding : chunked\r\n", whole),
        "tab": (head + "Transfer-Encoding:\tchunked\r\n", whole),
        "vertical-tab": (head + "Transfer-Encoding: \x0bchunked\r\n", whole),
        "folded": (head + "Transfer-Encoding:\r\n chunked\r\n", whole),
        "quoted": (head + 'Transfer-Encoding: "chunked"\r\n', whole),
        "null": (head + "Transfer-Encoding: chunked\0\r\n", whole),
        "underscore": (head + "Transfer_Encoding: chunked\r\n", whole),
        "hidden-in-header": (head + "X: a\nTransfer-Encoding: chunked\r\n", whole),
    }.items():
        yield raw(f"chunked/{name}", f"POST /invocations HTTP/1.1\r\n{headers}\r\n{content}", complete=False)
    both = {
        "length-0": (HOST + KIND + "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", whole),
        "length-4": (HOST + KIND + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", whole),
        "turned": (HOST + KIND + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", whole),
        "length-of-all": (HOST + KIND + f"Content-Length: {len(whole) + 8}\r\nTransfer-Encoding: chunked\r\n", whole),
        "obscured": (HOST + KIND + "Content-Length: 4\r\nTransfer-Encoding: xchunked\r\n", whole),
        "obscured-tab": (HOST + KIND + "Content-Length: 4\r\nTransfer-Encoding\t: chunked\r\n", whole),
        "two-lengths": (HOST + KIND + f"Content-Length: 0\r\nContent-Length: {size}\r\n", body),
        "length-list": (HOST + KIND + f"Content-Length: 0, {size}\r\n", body),
        "length-zero": (HOST + KIND + "Content-Length: 0\r\n", ""),
        "get-with-body": (HOST + KIND + f"Content-Length: {size}\r\n", body),
        "http-1.0-chunked": (HOST + KIND + "Transfer-Encoding: chunked\r\n", whole),
    }
    for name, (headers, content) in both.items():
        line = {"get-with-body": "GET /ping HTTP/1.1", "http-1.0-chunked": "POST /invocations HTTP/1.0"}.get(name)
        request = f"{line or 'POST /invocations HTTP/1.1'}\r\n{headers}\r\n{content}{hidden}"
        yield raw(f"smuggling/{name}", request, complete=False)
    ping = "GET /ping HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    last = "GET /ping HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    one = _request(headers=HOST + KIND)
    for name, wire in {
        "2": ping + last,
        "100": ping * 99 + last,
        "300": ping * 299 + last,
        "10-readings": one * 9 + _request(),
        "junk-after": one + "MARK\r\n\r\n",
        "junk-first": "MARK\r\n\r\n" + one,
        "bad-and-good": _request(headers=HOST + KIND, body="MARK") + _request(),
        "good-after-close": last + hidden,
        "half-after": one + one[:40],
        "unknown-paths": hidden.replace("Connection: close\r\n", "") * 50 + hidden,
        "options-first": ping.replace("GET", "OPTIONS") * 5 + last,
    }.items():
        yield raw(f"pipelined/{name}", wire, complete=False)
