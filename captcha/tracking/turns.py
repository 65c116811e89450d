"""One process at a time moves the aliases of a registered model, whatever store it is in."""

import json
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from mlflow import MlflowClient

from captcha.tracking.runs import RegistryError
from captcha.tracking.unfinished import Process

TURN = "moving."
"""How the tags of a registered model begin by which processes tell each other that they move its aliases."""

FORGOTTEN_AFTER = 60
"""Seconds after which a tag counts no longer, if nobody can see whether its process is there."""

PATIENCE = 30
"""Seconds to wait for others."""


@contextmanager
def turn(client: MlflowClient, name: str) -> Iterator[None]:
    """Keep other processes from moving the aliases of this model while `with` lasts.

    No call of the registry compares before it writes. So each process first writes a tag of its own, then looks for
    those of others: of two, the one that writes later sees the other's (as in Dekker's algorithm), and whoever sees one
    steps back and comes again after a random while.

    Raises:
        RegistryError: others have moved them for too long.
    """
    own = f"{TURN}{uuid.uuid4().hex}"
    deadline = time.monotonic() + PATIENCE
    while True:
        client.set_registered_model_tag(name, own, json.dumps({**asdict(Process.this()), "time": time.time()}))
        try:
            if not _others(client, name, own):
                yield
                return
        finally:
            client.delete_registered_model_tag(name, own)
        if time.monotonic() > deadline:
            raise RegistryError(
                f"{name}: another process has been moving its aliases for {PATIENCE} seconds; try again"
            )
        time.sleep(random.uniform(0.05, 0.5))  # nosec: no secret


def waiting(tags: dict[str, str]) -> list[str]:
    """Return the names of the tags of processes that move a model's aliases, those that were killed among them."""
    return [key for key in tags if key.startswith(TURN)]


def _others(client: MlflowClient, name: str, own: str) -> bool:
    """Return whether another process is at it; remove the tags of those that are gone."""
    tags = client.get_registered_model(name).tags
    others = {key: json.loads(tags[key]) for key in waiting(tags) if key != own}
    for key, noted in others.items():
        began = noted.pop("time")
        if Process(**noted).gone or time.time() - began > FORGOTTEN_AFTER:
            client.delete_registered_model_tag(name, key)
        else:
            return True
    return False
