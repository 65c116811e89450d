"""The numbers that shape a training beyond its settings; docs/decisions.md says how they were found."""

from pydantic import BaseModel, ConfigDict, Field


class Augmentation(BaseModel):
    """The full range of each random change to an image. Lengths are shares of the image's height."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rotation: float = Field(5, ge=0, le=180, description="degrees to each side")
    slant: float = Field(0.2, ge=0, description="columns a row")
    size: float = Field(0.12, ge=0, description="natural logarithm of the scale")
    stretch: float = Field(0.05, ge=0, description="likewise, of the width against the height")
    shift_x: float = Field(0.1, ge=0, description="to each side")
    shift_y: float = Field(0.12, ge=0, description="up or down, of half the height")
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
    """What a training does where nobody says otherwise. Not on the command line; a tuning reaches it from Python."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch_images: int = Field(
        500, ge=1, description="images in an epoch at the least: a smaller folder is gone through several times"
    )
    warm_up_steps: int = Field(200, ge=1, description="steps of the rate's rise; a tenth of a short training at most")
    decay_part: int = Field(6, ge=1, description="the rate falls over this part of the epochs, the sixth")
    augmentation_ramp: float = Field(
        0.1, gt=0, le=1, description="share of the training over which the augmentation grows to its full strength"
    )
    weight_decay: float = Field(0.01, ge=0, description="of matrices and kernels, decoupled")
    gradient_norm: float = Field(5.0, gt=0, description="a longer gradient is cut to this length")
    average_decay: float = Field(
        0.99, ge=0, lt=1, description="of the moving average of the weights, the model that counts"
    )
    keep_confidence: float = Field(
        0.68, gt=0, lt=1, description="of the interval below which an epoch is worse than the best one, not by chance"
    )
    gru_weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of a batch's images in whose logits the GRU takes part; its weight in reading",
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
