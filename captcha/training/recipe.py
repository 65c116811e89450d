"""The numbers that shape a training beyond its settings; docs/decisions.md says how they were found."""

from pydantic import BaseModel, ConfigDict, Field


class Augmentation(BaseModel):
    """The full range of each random change to an image. Lengths are shares of the image's height."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rotation: float = Field(5, ge=0, le=180, description="degrees to each side")
    slant: float = Field(0.2, ge=0, description="columns per row")
    size: float = Field(0.12, ge=0, description="natural logarithm of the scale")
    stretch: float = Field(0.05, ge=0, description="natural logarithm of the width's scale against the height's")
    shift_x: float = Field(0.1, ge=0, description="greatest shift to each side")
    shift_y: float = Field(0.12, ge=0, description="greatest shift up or down, in halves of the height")
    bend: float = Field(0.02, ge=0, description="standard deviation of the bending field")
    lines: int = Field(3, ge=0, description="lines across an image, each with the probability line_share")
    line_share: float = Field(0.4, ge=0, le=1, description="probability of each of these lines")
    hue_share: float = Field(0.5, ge=0, le=1, description="share of images whose colour channels change places")
    grey_share: float = Field(0.2, ge=0, le=1, description="share of images that become grey")
    contrast: float = Field(0.6, ge=0, le=1, description="bend of the contrast curve")
    boxes: int = Field(2, ge=0, description="boxes that are covered with the image's mean colour")
    box_size: float = Field(0.25, ge=0, description="a box's greatest width and height")
    blur: float = Field(0.5, ge=0, le=1, description="weight of the neighbouring pixels")
    noise: float = Field(40, ge=0, le=255, description="range of the noise, in shades of 255")


class Recipe(BaseModel):
    """The numbers that a training takes by default. No options set them; a tuning does so from Python."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch_images: int = Field(500, ge=1, description="fewest images in an epoch: a smaller folder is repeated")
    warm_up_steps: int = Field(50, ge=1, description="steps over which the rate rises, at most a tenth of all")
    decay_part: int = Field(6, ge=2, description="the rate decays over the last 1/decay_part of the epochs")
    nearly_all: float = Field(
        0.98, gt=0, le=1, description="exact match from which on half the patience is enough, and a lower loss no gain"
    )
    augmentation_ramp: float = Field(
        0.1, gt=0, le=1, description="share of the training over which the augmentation grows to its full strength"
    )
    weight_decay: float = Field(0.01, ge=0, description="decoupled, of matrices and kernels")
    gradient_norm: float = Field(5.0, gt=0, description="a longer gradient is cut to this length")
    average_decay: float = Field(
        0.99, ge=0, lt=1, description="of the moving average of the weights, the model that is evaluated and kept"
    )
    keep_confidence: float = Field(
        0.68, gt=0, lt=1, description="of the Wilson interval of the best exact match; no epoch below it is kept"
    )
    gru_weight: float = Field(
        0.5, ge=0, le=1, description="share of a batch's images in whose logits the GRU has part; its weight in reading"
    )
    blank_prior: float = Field(0.75, gt=0, lt=1, description="probability of the blank in a frame, before training")
    augmentation: Augmentation = Augmentation()

    def changes(self) -> dict[str, object]:
        """Return the numbers that differ from the defaults, by name; those of the augmentation as augmentation.NAME."""
        return {name: value for name, value in _flat(self).items() if value != _DEFAULTS[name]}


def _flat(recipe: Recipe) -> dict[str, object]:
    numbers = recipe.model_dump(exclude={"augmentation"})
    return numbers | {f"augmentation.{name}": value for name, value in recipe.augmentation.model_dump().items()}


DEFAULT = Recipe()
_DEFAULTS = _flat(DEFAULT)
