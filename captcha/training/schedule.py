"""How long a training lasts, its rate at each step, which epoch it keeps: functions of numbers alone."""

from dataclasses import dataclass

from captcha.evaluation.metrics import wilson_interval
from captcha.training.recipe import Recipe


@dataclass(frozen=True)
class Schedule:
    """The course of a training as planned; steps count from 0, epochs from 1.

    The learning rate rises linearly over the warm-up, stays level, and decays to zero over the last 1/decay_part of the
    epochs. Stops early: after `patience` epochs without a better validation result the rate decays to zero, over the
    same share of the then shorter training, and training ends.
    """

    epochs: int
    steps_per_epoch: int
    learning_rate: float
    patience: int
    recipe: Recipe

    def rate(self, step: int, last_epoch: int) -> float:
        """Return the learning rate of a step, in a training that ends with `last_epoch`."""
        warm_up = min(self.recipe.warm_up_steps, self.epochs * self.steps_per_epoch // 10 + 1)
        steps_left = last_epoch * self.steps_per_epoch - step
        decay_epochs = max(1, last_epoch // self.recipe.decay_part)
        return self.learning_rate * min(1, (step + 1) / warm_up, steps_left / (decay_epochs * self.steps_per_epoch))

    def last_epoch(self, epoch: int) -> int:
        """Return the last epoch of a training whose rate begins to decay after this one."""
        return epoch + max(1, epoch // (self.recipe.decay_part - 1))

    def augmentation_strength(self, step: int) -> float:
        """Return how strong a step's augmentation is, from 0 to 1."""
        return min(1.0, step / (self.recipe.augmentation_ramp * self.epochs * self.steps_per_epoch))

    def keeps(self, match: float, highest_match: float, count: int) -> bool:
        """Return whether an epoch's model takes the place of the one kept, by exact match on `count` images.

        The latest epoch that is as good as the best one, except for chance, is kept: it has learned for longer, and at
        a lower rate; and the best of many epochs, measured on few images, is partly the luckiest.
        """
        return match >= wilson_interval(round(highest_match * count), count, self.recipe.keep_confidence)[0]


@dataclass(frozen=True)
class Standing:
    """Where a training stands after an epoch, by its validation results; epoch 0 is the model before training."""

    epoch: int
    last_epoch: int
    highest_match: float
    lowest_loss: float
    waited: int = 0
    """Epochs since validation was last better."""

    @property
    def ended(self) -> bool:
        """Whether no epoch is left."""
        return self.epoch >= self.last_epoch

    def after_epoch(self, match: float, loss: float, schedule: Schedule) -> "Standing":
        """Return the standing after one more epoch.

        An epoch is better if its exact match is higher than ever, or its loss is lower than ever while it does not read
        nearly all, or no epoch has read any image yet. After `patience` epochs that are not, or after half of them with
        one that reads nearly all, the rate's decay begins.
        """
        nearly_all = match >= schedule.recipe.nearly_all
        better = match > self.highest_match or (loss < self.lowest_loss and not nearly_all) or not self.highest_match
        waited = 0 if better else self.waited + 1
        epoch, last_epoch = self.epoch + 1, self.last_epoch
        if waited >= (-(-schedule.patience // 2) if nearly_all else schedule.patience):
            last_epoch = min(last_epoch, schedule.last_epoch(epoch))
        return Standing(epoch, last_epoch, max(self.highest_match, match), min(self.lowest_loss, loss), waited)
