"""Train, track, register and serve recognisers of text CAPTCHAs (CRNN + CTC) with MLflow."""

__version__ = "0.1.0"


class CaptchaError(ValueError):
    """What a person caused and can mend, in one line: what is wrong, where, what to do."""
