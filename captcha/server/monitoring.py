"""What is told of requests: a line of JSON for each on standard error, and figures for Prometheus. Never an image."""

import json
import sys
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from captcha.server.visits import Visit

PATHS = ("/invocations", "/ping", "/health", "/version", "/metrics")
"""Paths that figures are kept for; the others together are `other`, or strangers could make a figure for each."""

METRICS_KIND = "text/plain; version=0.0.4; charset=utf-8"


class Monitor:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("captcha_requests", "Requests answered", ["path", "status"], registry=self.registry)
        self._seconds = Histogram(
            "captcha_request_seconds",
            "Seconds from a request's headers to its answer",
            ["path"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=self.registry,
        )
        self._images = Counter("captcha_images", "Images read", registry=self.registry)
        self._texts = Counter("captcha_texts", "Images that had a text", registry=self.registry)
        self._model = Info("captcha_model", "The version that is served", registry=self.registry)
        self.running = Gauge("captcha_requests_running", "Requests that are being answered", registry=self.registry)

    def note(self, visit: Visit, method: str, path: str, status: int, seconds: float) -> None:
        """Count a request and write its line; status 499 is a caller who did not wait."""
        shown = path if path in PATHS else "other"
        self._requests.labels(shown, str(status)).inc()
        self._seconds.labels(shown).observe(seconds)
        self._images.inc(visit.images)
        self._texts.inc(visit.texts)
        write_line(
            request_id=visit.request_id,
            method=method[:20],
            path=path[:100],
            status=status,
            seconds=round(seconds, 4),
            images=visit.images,
            model=visit.model,
            key=visit.key,
        )

    def figures(self, model: str) -> bytes:
        """Return the figures in Prometheus's form."""
        name, _, version = model.rpartition("/")
        self._model.info({"name": name or model, "version": version if name else ""})
        return generate_latest(self.registry)


def write_line(**content: object) -> None:
    """Write a line of JSON to standard error, with the time before the rest."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    sys.stderr.write(json.dumps({"time": time} | content) + "\n")
    sys.stderr.flush()
