"""Train, track, register and serve recognisers of text CAPTCHAs (CRNN + CTC) with MLflow."""

__version__ = "0.1.0"
