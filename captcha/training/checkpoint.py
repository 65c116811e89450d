"""A trained model in one safetensors file: its weights, and in the file's metadata what they mean."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from captcha import CaptchaError
from captcha.reading.vocabulary import BLANK, Vocabulary
from captcha.training import recipe
from captcha.training.model import BACKBONES, Crnn

FORMAT = 1
MEANING = "captcha"
"""The entry of the file's metadata, JSON, that says what the weights mean."""

HEAD_AXES = {"head.weight": 1, "head.bias": 0, "local_head.weight": 0, "local_head.bias": 0}
"""The tensors that have a part for each class, and the axis along which the classes stand."""


class CheckpointError(CaptchaError):
    """Weights that a training cannot start from; one line that says why and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained model on the CPU, apart from any run: what another training starts from."""

    backbone: str
    vocabulary: Vocabulary
    height: int
    gru_weight: float
    weights: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: Crnn) -> Self:
        """Return a copy of a model as it is now, on the CPU."""
        weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        return cls(model.backbone_name, model.vocabulary, model.height, model.gru_weight, weights)

    @classmethod
    def from_bytes(cls, content: bytes, meaning: Mapping[str, str] | None = None) -> Self:
        """Return what `to_bytes` saved; `meaning` completes a file of the first versions, which lacks it.

        Raises:
            CheckpointError: the file is damaged, of an unknown format, or does not say what its weights mean.
        """
        try:
            weights = load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            said = json.loads(header.get("__metadata__", {}).get(MEANING, "{}"))
            if said.get("format", FORMAT) != FORMAT:
                raise CheckpointError(f"the weights have format {said['format']!r}, this version reads {FORMAT}")
            said = {"gru_weight": recipe.DEFAULT.gru_weight} | dict(meaning or {}) | said
            vocabulary, height = Vocabulary(said["vocabulary"]), int(said["height"])
            if said["backbone"] not in BACKBONES:
                raise CheckpointError(f"the weights are of backbone {said['backbone']!r}, which this version has not")
            return cls(said["backbone"], vocabulary, height, float(said["gru_weight"]), weights)
        except CheckpointError:
            raise
        except SafetensorError as error:
            raise CheckpointError(f"the weights are damaged: {error}") from None
        except KeyError as error:
            raise CheckpointError(f"the weights do not say their {error.args[0]}") from None
        except (AttributeError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"the weights do not say what they mean: {error}") from None

    def to_bytes(self) -> bytes:
        """Return the content of a safetensors file, the same for the same model."""
        said = {
            "format": FORMAT,
            "backbone": self.backbone,
            "vocabulary": self.vocabulary.characters,
            "height": self.height,
            "gru_weight": self.gru_weight,
        }
        # One entry: safetensors writes several in any order.
        return save(
            {name: value.contiguous() for name, value in self.weights.items()},
            {MEANING: json.dumps(said, sort_keys=True)},
        )

    def model(self, dropout: float = 0.0) -> Crnn:
        """Return the model on the CPU.

        Raises:
            CheckpointError: the weights are not those of such a model.
        """
        model = Crnn(self.backbone, self.vocabulary, self.height, dropout, gru_weight=self.gru_weight)
        warm_start(model, self)
        return model


def warm_start(model: Crnn, checkpoint: Checkpoint) -> None:
    """Give the model the checkpoint's weights, those of its heads character by character.

    The classes of the blank and of characters known to the checkpoint are copied wherever they stand; those of new
    characters stay as they are.

    Raises:
        CheckpointError: the weights are not those of such a model.
    """
    known = "".join(c for c in model.vocabulary.characters if c in checkpoint.vocabulary.characters)
    here = torch.tensor([BLANK, *model.vocabulary.encode(known)])
    there = torch.tensor([BLANK, *checkpoint.vocabulary.encode(known)])
    weights, fresh = dict(checkpoint.weights), model.state_dict()
    try:
        for name, axis in HEAD_AXES.items():
            if weights[name].shape[axis] != checkpoint.vocabulary.classes:
                raise ValueError(f"{name} has {weights[name].shape[axis]} classes, not {checkpoint.vocabulary.classes}")
            weights[name] = fresh[name].index_copy(axis, here, weights[name].index_select(axis, there))
        model.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError) as error:  # how torch tells of names and shapes that do not fit
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the weights to start from do not fit this model, another version may have trained them: {reason:.200}; "
            "train without --init"
        ) from None
