"""A TrainingState on disk: written whole or not at all, recognised by its sha256, the one before kept.

Tensors and JSON in one safetensors file, no pickle. A file's name holds its step and the sha256 of its content.
"""

import hashlib
import json
import logging
import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from captcha import CaptchaError
from captcha.data.files import write_whole
from captcha.training.loop import TrainingState

logger = logging.getLogger(__name__)

NAME = re.compile(r"step-(\d{9})-([0-9a-f]{64})\.safetensors")
MEANING = "captcha"
KEPT = 2
"""Snapshots that are kept: the last one, and the one before it in case that is damaged."""


class SnapshotError(CaptchaError):
    """A snapshot that does not belong to the training; one line that says why and what to do."""


@dataclass(frozen=True)
class Snapshot:
    """A state between two steps, and what its training needs beside it to go on."""

    state: Mapping[str, Any]
    """As of `TrainingState.state_dict`."""
    learned_from: "array[int]"
    """The `pixel_key` of every sample learned from so far."""
    notes: Mapping[str, Any]
    """What the caller keeps with it, as JSON."""

    def restore(self, state: TrainingState) -> None:
        """Give the state to a new one of the same settings.

        Raises:
            SnapshotError: it is of another model.
        """
        try:
            state.load_state_dict(_laid_out_as(state, self.state))
        except (KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise SnapshotError(f"the checkpoint is not of this training: {reason:.200}; start a new run") from None


def save_snapshot(folder: Path, state: TrainingState, learned_from: "array[int]", notes: Mapping[str, Any]) -> Path:
    """Write a snapshot into the folder, remove all but the last two, and return its path."""
    whole = state.state_dict()
    optimizer = whole["optimizer"]
    tensors: dict[str, Tensor] = {"learned_from": torch.from_numpy(np.array(learned_from, np.uint64).view(np.int64))}
    for part in ("model", "averaging", "kept"):
        tensors |= {f"{part}/{name}": value for name, value in whole[part].items()}
    for number, values in optimizer["state"].items():
        tensors |= {f"optimizer/{number}/{name}": value for name, value in values.items()}
    meaning = {name: whole[name] for name in ("step", "losses", "standing", "kept_epoch")}
    meaning |= {"groups": optimizer["param_groups"], "notes": dict(notes)}
    # A copy of each: weights that share memory, as a GRU's do on a GPU, cannot be saved.
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    content = save(plain, {MEANING: json.dumps(meaning)})
    path = folder / f"step-{state.step:09}-{hashlib.sha256(content).hexdigest()}.safetensors"
    write_whole(path, content)
    for older in _found(folder)[KEPT:]:
        older.unlink()
    return path


def load_snapshot(folder: Path) -> Snapshot | None:
    """Return the last snapshot of a folder that is whole, None where there is none."""
    for path in _found(folder):
        content = path.read_bytes()
        match = NAME.fullmatch(path.name)
        assert match
        if hashlib.sha256(content).hexdigest() != match[2]:
            logger.warning("%s is damaged: its sha256 differs; the checkpoint before it is used", path)
            continue
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return _parsed(load(content), json.loads(header["__metadata__"][MEANING]))
    return None


def _found(folder: Path) -> list[Path]:
    """Return a folder's snapshots, the last written first."""
    files = [file for file in folder.glob("step-*.safetensors") if NAME.fullmatch(file.name)]
    return sorted(files, key=lambda file: (file.name.split("-")[1], file.stat().st_mtime_ns), reverse=True)


def _parsed(tensors: Mapping[str, Tensor], meaning: Mapping[str, Any]) -> Snapshot:
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "averaging": {}, "kept": {}}
    optimizer: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        if part in parts:
            parts[part][rest] = value
        elif part == "optimizer":
            number, _, key = rest.partition("/")
            optimizer.setdefault(int(number), {})[key] = value
    state = {name: meaning[name] for name in ("step", "losses", "standing", "kept_epoch")}
    groups = [{**group, "betas": tuple(group["betas"])} for group in meaning["groups"]]  # JSON has no tuples
    state |= {**parts, "optimizer": {"state": optimizer, "param_groups": groups}}
    learned_from = array("Q", tensors["learned_from"].numpy().view(np.uint64).tobytes())
    return Snapshot(state, learned_from, meaning["notes"])


def _laid_out_as(state: TrainingState, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved state with the optimizer's tensors laid out in memory as its parameters are.

    The optimizer's fused steps go through both side by side, whatever their strides.
    """
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    optimizer = saved["optimizer"]
    values = {
        number: {
            name: torch.empty_like(parameters[number]).copy_(value)
            if value.shape == parameters[number].shape
            else value
            for name, value in each.items()
        }
        for number, each in optimizer["state"].items()
    }
    return {**saved, "optimizer": {**optimizer, "state": values}}
