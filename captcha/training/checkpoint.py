"""A trained model's weights and what they mean, for another training to go on from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from captcha import CaptchaError
from captcha.reading.vocabulary import BLANK, Vocabulary
from captcha.training.model import Crnn

HEAD_AXES = {"head.weight": 1, "head.bias": 0, "local_head.weight": 0, "local_head.bias": 0}
"""The tensors that have a part for each class, and the axis along which the classes stand."""


class StartError(CaptchaError):
    """Weights that a training cannot go on from; one line that says why and what to do."""


@dataclass(frozen=True)
class Start:
    """A trained model's weights and the characters that its classes stand for."""

    weights: dict[str, Tensor]
    vocabulary: Vocabulary


def go_on_from(start: Start, model: Crnn, vocabulary: Vocabulary) -> None:
    """Give the model, whose classes are of `vocabulary`, the weights of the start, character by character.

    The classes of the blank and of characters known to the start are copied wherever they stand; those of new
    characters stay as they are.

    Raises:
        StartError: the weights are not those of such a model.
    """
    known = [c for c in vocabulary.characters if c in start.vocabulary.characters]
    here = torch.tensor([BLANK, *vocabulary.encode("".join(known))])
    there = torch.tensor([BLANK, *start.vocabulary.encode("".join(known))])
    weights, fresh = dict(start.weights), model.state_dict()
    try:
        for name, axis in HEAD_AXES.items():
            if weights[name].shape[axis] != start.vocabulary.classes:
                raise ValueError(f"{name} has {weights[name].shape[axis]} classes, not {start.vocabulary.classes}")
            weights[name] = fresh[name].index_copy(axis, here, weights[name].index_select(axis, there))
        model.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError) as error:  # how torch tells of names and shapes that do not fit
        reason = " ".join(str(error).split())
        raise StartError(
            f"the weights to go on from do not fit this model, another version may have trained them: {reason:.200}; "
            "train without --init"
        ) from None
