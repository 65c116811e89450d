"""Every setting with its default, unit and meaning; frozen, checked where it comes in."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MODEL_NAME = "captcha-crnn"
MODEL_NAME_PATTERN = r"^\w[\w .-]*$"  # what MLflow takes everywhere, in a URI and in a filter too
EXPERIMENT_NAME = "captcha"
CHAMPION = "champion"
DRAWN = "draw:kaptcha"

FRAME_STRIDE = 4
"""Columns of a resized image that one frame of the model covers: T = W / FRAME_STRIDE."""

Backbone = Literal["resnet18", "compact"]


class TrainConfig(BaseModel):
    """What one training run is asked to do. MLproject and the CLI repeat names and defaults; a test compares."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(DRAWN, description="folder of labelled images, or draw:STYLE for drawn ones")
    val_data: str | None = Field(None, description="folder for validation; without it a part of the data")
    test_data: str | None = Field(None, description="folder for the test; without it a part of the data")
    name: str = Field(MODEL_NAME, pattern=MODEL_NAME_PATTERN, description="name of the registered model")
    backbone: Backbone = Field("resnet18", description="resnet18, or compact (about 1 M parameters, for CPUs)")
    pretrained: bool = Field(False, description="start resnet18 from torchvision's ImageNet weights (downloaded)")
    init: str | None = Field(
        None, description="trained model to go on from: models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID"
    )
    vocabulary: str | None = Field(
        None, min_length=1, description="characters to tell apart; without it those of the labels"
    )
    height: int = Field(64, ge=32, le=256, multiple_of=16, description="height in pixels that images are resized to")
    epochs: int = Field(50, ge=1, description="epochs at the most")
    batch_size: int = Field(16, ge=1, description="images in a training step")
    learning_rate: float = Field(0.001, gt=0, le=1, description="Adam's highest learning rate")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of features dropped in training")
    patience: int = Field(10, ge=1, description="epochs without a better validation result before it ends")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the split, the weights, the order and the augmentation")

    @field_validator("val_data", "test_data", "init", "vocabulary", mode="before")
    @classmethod
    def _none_is_written(cls, value: object) -> object:
        """`none` is how MLproject and the command line write None."""
        return None if value == "none" else value

    @model_validator(mode="after")
    def _pretrained_needs_resnet18(self) -> Self:
        if self.pretrained and self.backbone != "resnet18":
            raise ValueError(f"pretrained weights exist for backbone resnet18 only, not for {self.backbone}")
        return self

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.pretrained and self.init:
            raise ValueError("--pretrained and --init are two different starts: give one of them")
        return self

    @property
    def drawn_style(self) -> str | None:
        """The style after `draw:`, None where the data is a folder."""
        return self.data.removeprefix("draw:") if self.data.startswith("draw:") else None


def project_root() -> Path:
    """The folder that holds MLproject where the package lies in one, else the working folder."""
    parent = Path(__file__).resolve().parent.parent
    return parent if (parent / "MLproject").exists() else Path.cwd()
