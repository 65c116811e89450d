"""Fuzz the image reader, guided by coverage: python -m tests.hostile.fuzz_images [options of libFuzzer] [folder]."""

import sys
import tempfile
import warnings
from pathlib import Path

from tests.hostile.pictures import small_files, with_sums

SEEDS = Path(__file__).parent / "seeds_images.txt"
LIMITS = ["-timeout=20", "-rss_limit_mb=2048", "-max_len=4096"]
"""Seconds, megabytes and bytes that one input may take."""


def seeds() -> dict[str, bytes]:
    """Return what the fuzzer starts from: small files of every kind, and the files in which it has found something."""
    found = (line.split() for line in SEEDS.read_text().splitlines() if line and not line.startswith("#"))
    return small_files() | {name: bytes.fromhex(content) for name, content in found}


def check(data: bytes) -> None:
    """Read a file; whatever it holds, it is an image or refused in one line, without a warning, each time the same."""
    from captcha.reading.images import ImageError, decode_image

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", append=True)  # after what the reader itself has asked for
        try:
            image = decode_image(data)
        except ImageError as error:
            line = str(error)
            assert "\n" not in line, line
            assert 5 < len(line) < 120, line
            assert line.isascii(), line  # so that no content of the file stands in it
            assert line.isprintable(), line
        else:
            rows, columns, channels = image.shape
            assert (str(image.dtype), channels) == ("uint8", 3), (image.dtype, image.shape)
            assert 0 < rows * columns <= 10_000_000, image.shape
            assert max(rows, columns) <= 100 * min(rows, columns), image.shape
            assert (image == decode_image(data)).all(), "read twice, it is two pictures"
    assert not warned, warned[0]


def main() -> None:
    """Fuzz until libFuzzer's options say enough."""
    import atheris  # type: ignore[import-untyped]

    with atheris.instrument_imports(include=["captcha", "PIL"]):
        import captcha.reading.images  # noqa: F401 - what `check` uses

    def mutate(data: bytes, size: int, seed: int) -> bytes:
        """Change a file; every other PNG gets its check sums back, or none would be read beyond the first chunk."""
        changed = atheris.Mutate(data, size)
        return with_sums(changed)[:size] if seed % 2 else changed

    with tempfile.TemporaryDirectory() as folder:
        for name, content in seeds().items():
            (Path(folder) / name).write_bytes(content)
        atheris.Setup([*sys.argv, *LIMITS, folder], check, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
