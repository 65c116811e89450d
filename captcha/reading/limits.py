"""Every limit of a request, and of the server in front of the model: an environment variable and its default.

They are read once, when this module is imported: as a model is loaded, or a command begins to read. docs/serving.md
says what each means, and a test compares the two. A registered model has a copy of this file, so it needs the
standard library alone.
"""

import os

from captcha import CaptchaError

DEFAULTS: dict[str, int] = {}
"""Each variable's default."""


class LimitError(CaptchaError):
    """A limit's environment variable that holds no such number; one line."""


def _limit(name: str, default: int) -> int:
    """Return the whole number in an environment variable, or the default where it is not set."""
    DEFAULTS[name] = default
    written = os.environ.get(name, "").strip() or str(default)
    if not (written.isascii() and written.isdigit() and len(written) <= 15 and int(written) > 0):
        raise LimitError(f"{name} must be a whole number from 1 on, such as {default}, not {written!r:.40}")
    return int(written)


# Of one image.
MAX_BYTES = _limit("CAPTCHA_MAX_BYTES", 10 * 2**20)
MAX_PIXELS = _limit("CAPTCHA_MAX_PIXELS", 10_000_000)
MAX_ASPECT = _limit("CAPTCHA_MAX_ASPECT", 100)
MAX_SCANS = _limit("CAPTCHA_MAX_SCANS", 100)  # a progressive JPEG of a few bytes a scan could last for hours
MAX_SEGMENTS = _limit("CAPTCHA_MAX_SEGMENTS", 1000)  # of a JPEG: Pillow takes quadratic time over those of EXIF data
MAX_COLUMNS = _limit("CAPTCHA_MAX_COLUMNS", 2048)  # resized; a text's confidences take time that grows by their square

# Of one request to the model: what 1,024 images of 512 columns ask for, or of 200 pixels squared.
MAX_ROWS = _limit("CAPTCHA_MAX_ROWS", 1024)
MAX_REQUEST_PIXELS = _limit("CAPTCHA_MAX_REQUEST_PIXELS", 40_000_000)
MAX_REQUEST_COLUMNS = _limit("CAPTCHA_MAX_REQUEST_COLUMNS", 1024 * 512)
MAX_BEAM_WIDTH = _limit("CAPTCHA_MAX_BEAM_WIDTH", 100)
MAX_BEAM_COLUMNS = _limit("CAPTCHA_MAX_BEAM_COLUMNS", 1024 * 512 * 10)  # columns times beam_width
MAX_PATTERN = _limit("CAPTCHA_MAX_PATTERN", 1000)  # characters, also once repetitions are written out
MAX_TRANSITIONS = _limit("CAPTCHA_MAX_TRANSITIONS", 100_000)  # of the automaton that a text must keep to
DEADLINE = _limit("CAPTCHA_DEADLINE", 60)  # seconds
THREADS = _limit("CAPTCHA_THREADS", 4)  # of the model for one request, where there are as many cores

# Of the server in front of the model, `captcha serve`.
MAX_BODY = _limit("CAPTCHA_MAX_BODY", 10 * 2**20)  # bytes of one request
MAX_BODIES = _limit("CAPTCHA_MAX_BODIES", 100 * 2**20)  # bytes of all requests that are there at once
MAX_REQUESTS = _limit("CAPTCHA_MAX_REQUESTS", 64)  # that are there whole, and not answered yet
MAX_CONNECTIONS = _limit("CAPTCHA_MAX_CONNECTIONS", 512)
MAX_JSON_DEPTH = _limit("CAPTCHA_MAX_JSON_DEPTH", 8)
MAX_JSON_VALUES = _limit("CAPTCHA_MAX_JSON_VALUES", 16_384)
HEADER_SECONDS = _limit("CAPTCHA_HEADER_SECONDS", 10)
BODY_SECONDS = _limit("CAPTCHA_BODY_SECONDS", 30)
WATCH_SECONDS = _limit("CAPTCHA_WATCH_SECONDS", 5)  # between two looks at the champion's alias
