"""A process that promotes versions of a model as soon as a file is there, by what stand-ins read; then prints how."""

import json
import sys
import time
from pathlib import Path


def main(start: str, calls: str) -> None:
    """Promote each of the versions of `calls`, JSON of what `promote` takes, and print what each call came to."""
    from captcha import CaptchaError
    from captcha.tracking.promotion import promote
    from tests.tracking.standin import stand_in

    stand_in(setattr)
    print("ready", flush=True)
    while not Path(start).exists():
        time.sleep(0.001)
    for call in json.loads(calls):
        try:
            print(json.dumps([call["named"], promote(**call).promoted]), flush=True)
        except CaptchaError as error:
            print(json.dumps([call["named"], str(error)]), flush=True)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])
    main(*sys.argv[1:])
