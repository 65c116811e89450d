"""Every setting with its default, unit and meaning; frozen, checked where it comes in."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MODEL_NAME = "captcha-crnn"
MODEL_NAME_PATTERN = r"^\w[\w .-]*$"  # what MLflow takes everywhere, in a URI and in a filter too
EXPERIMENT_NAME = "captcha"
CHAMPION = "champion"
DRAWN = "draw:kaptcha"

Backbone = Literal["resnet18", "compact"]


def _none_is_written(value: object) -> object:
    """`none` is how MLproject and the command line write None."""
    return None if value == "none" else value


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
    drawn: str | None = Field(
        None, description="style whose images, drawn meanwhile, are half of every batch, the folder's the other half"
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

    _none = field_validator("val_data", "test_data", "init", "drawn", "vocabulary", mode="before")(_none_is_written)

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

    @model_validator(mode="after")
    def _drawn_needs_a_folder(self) -> Self:
        if self.drawn and self.data.startswith("draw:"):
            raise ValueError(
                f"--drawn {self.drawn} is drawn beside a folder's images: {self.data} has drawn ones alone"
            )
        if self.drawn and self.batch_size < 2:
            raise ValueError("--drawn fills half of every batch: --batch-size must be 2 or more")
        return self

    @property
    def drawn_style(self) -> str | None:
        """The style after `draw:`, None where the data is a folder."""
        return self.data.removeprefix("draw:") if self.data.startswith("draw:") else None


class AdaptConfig(BaseModel):
    """What a self-training on images without labels is asked to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(description="folder of images; their names are not taken for labels")
    model: str = Field(
        f"models:/{MODEL_NAME}@{CHAMPION}", description="trained model to begin with, as --init of train takes it"
    )
    drawn: str | None = Field(
        None, description="style whose images, drawn meanwhile, are half of every batch; best the one it was trained on"
    )
    labelled: bool = Field(
        False, description="the folder is labelled after all: report figures by the labels, learn nothing from them"
    )
    name: str = Field(MODEL_NAME, pattern=MODEL_NAME_PATTERN, description="name of the registered model")
    threshold: float = Field(0.9, gt=0, lt=1, description="probability of a whole reading from which it is sure")
    rounds: int = Field(8, ge=1, description="rounds at the most; it ends before where no more images become sure")
    epochs: int = Field(4, ge=1, description="epochs in a round")
    batch_size: int = Field(16, ge=2, description="images in a training step")
    learning_rate: float = Field(0.001, gt=0, le=1, description="Adam's highest learning rate")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the tenth held out, the order and the augmentation")

    _none = field_validator("drawn", mode="before")(_none_is_written)


class BudgetConfig(BaseModel):
    """What a measurement of the label budget is asked to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(description="folder of labelled images")
    labels: str = Field("0,10,25,50,100,250,all", description="numbers of labels to train with, and all")
    seeds: int = Field(3, ge=1, description="how often each is measured, on another split each time")
    drawn: str | None = Field(
        "kaptcha", description="style drawn for the trainings with drawn images; none: measure labels alone"
    )
    init: str | None = Field(
        None, description="model trained on drawn images that those go on from; none: one is trained first"
    )
    drawn_epochs: int = Field(20, ge=1, description="epochs of that first training on drawn images")
    backbone: Backbone = Field("resnet18", description="resnet18, or compact, for CPUs; with --init that model's")
    epochs: int = Field(50, ge=1, description="epochs at the most of every other training")

    _none = field_validator("drawn", "init", mode="before")(_none_is_written)

    @field_validator("labels")
    @classmethod
    def _numbers(cls, value: str) -> str:
        for part in value.split(","):
            if part != "all" and not (part.isascii() and part.isdigit() and int(part) != 1):
                raise ValueError(f"{part!r} is no number of labels: write 0, numbers from 2 on, or all, as in 0,25,all")
        return value

    @model_validator(mode="after")
    def _drawn_needs_its_style(self) -> Self:
        if self.init and not self.drawn:
            raise ValueError("--init is where the trainings with drawn images begin: name their style with --drawn")
        if self.counts == [0] and not self.drawn:
            raise ValueError("without labels and without drawn images there is nothing to learn from")
        return self

    @property
    def counts(self) -> list[int | None]:
        """The numbers of labels, from few to many, each once; None stands for all."""
        numbers: list[int | None] = [*sorted({int(part) for part in self.labels.split(",") if part != "all"})]
        return [*numbers, None] if "all" in self.labels.split(",") else numbers


def project_root() -> Path:
    """The folder that holds MLproject where the package lies in one, else the working folder."""
    parent = Path(__file__).resolve().parent.parent
    return parent if (parent / "MLproject").exists() else Path.cwd()
