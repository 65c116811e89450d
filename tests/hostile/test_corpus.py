import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.hostile.corpus_images import images
from tests.hostile.corpus_requests import VALID, image_requests, requests

ROOT = Path(__file__).parents[2]


def corpus_digest() -> str:
    digest = hashlib.sha256()
    for name, content in [*images().items(), *((case.name, case.wire) for case in requests().values())]:
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


@pytest.mark.slow
def test_the_corpus_is_the_same_each_time_it_is_made() -> None:
    command = "from tests.hostile.test_corpus import corpus_digest; print(corpus_digest())"
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # another order of sets than here
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
    made = subprocess.run([sys.executable, "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert made.stdout.strip() == corpus_digest(), made.stderr


def test_the_corpus_is_large_and_its_cases_differ() -> None:
    assert len(images()) >= 400
    assert len(requests()) >= 700
    for contents in (images().values(), [case.wire for case in requests().values()]):
        digests = Counter(hashlib.sha256(content).digest() for content in contents)
        assert len(digests) > 0.98 * sum(digests.values())
    kinds = Counter(name.partition("/")[0] for name in images())
    assert kinds.keys() >= {"whole", "cut", "flipped", "claimed", "size", "colour", "bomb", "polyglot", "noise"}
    kinds = Counter(name.partition("/")[0] for name in requests())
    assert kinds.keys() >= {
        "base64",
        "rows",
        "json",
        "types",
        "csv",
        "type",
        "multipart",
        "encoding",
        "http",
        "chunked",
    }


def test_every_request_holds_text_that_no_answer_may_repeat() -> None:
    bare = []  # there is no room for it in what is no request at all
    for case in (*requests().values(), *image_requests().values()):
        assert case.planted
        assert len(case.planted[0]) == 12
        if case.planted[0].encode() not in case.wire:
            bare.append(case.name)
    assert len(bare) < 40
    assert all(name.startswith(("http/", "chunked/", "pipelined/")) for name in bare), bare
    assert len({case.planted[0] for case in requests().values()}) == len(requests())
    assert VALID.planted[0].encode() in VALID.wire
