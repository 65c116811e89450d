"""Every setting with its default, unit and meaning; frozen, checked where it comes in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

MODEL_NAME = "captcha-crnn"
MODEL_NAME_PATTERN = r"^\w[\w .-]*$"  # what MLflow takes everywhere, in a URI and in a filter too
MODEL_NAME_LENGTH = 200  # the tables of MLflow hold 256, of models:/NAME/VERSION in other places 250
EXPERIMENT_NAME = "captcha"
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
"""Aliases of a registered model: the version read with unless another is named, the latest one that has not become
champion, and the champion that a rollback leads back to."""
PROMOTION_LEVEL = 0.05
"""A challenger becomes champion where chance makes such a difference with a probability below this."""
CHAMPION_URI = f"models:/{MODEL_NAME}@{CHAMPION}"

NONE = "none"
"""How MLproject, the command line and a run's params write None."""


class NamesImages:
    """Marks a setting that names images: a folder, or draw:STYLE where they may be drawn.

    `argument` tells that the command line takes it without the name of an option; a setting without a default is one.
    """

    def __init__(self, argument: bool = False) -> None:
        self.argument = argument


def _none_if_written(value: object) -> object:
    return None if value == NONE else value


OrNone = BeforeValidator(_none_if_written)
Backbone = Literal["resnet18", "compact", "student"]
BackboneUnlessInit = Annotated[
    Backbone, Field(description="resnet18, compact or student (for CPUs); --init brings its own")
]
ModelName = Annotated[
    str, Field(pattern=MODEL_NAME_PATTERN, max_length=MODEL_NAME_LENGTH, description="name of the registered model")
]
StyleName = Annotated[str | None, OrNone]
DrawnBeside = Annotated[
    StyleName,
    Field(description="style whose images, drawn during training, fill half of every batch beside the folder's"),
]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
MostEpochs = Annotated[Epochs, Field(description="maximum number of epochs")]
BatchSize = Annotated[int, Field(le=4096, description="images in a training step")]
LearningRate = Annotated[float, Field(gt=0, le=1, description="Adam's highest learning rate")]
OnProblems = Annotated[
    Literal["stop", "leave-out"],
    Field(description="what becomes of images with a problem: stop, name them and use none; leave-out, use the others"),
]
SEEDS = 2**32
"""Seeds are below it, as NumPy joins 32-bit words: a larger seed would stand for another one with another number."""
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
TrainingSeed = Annotated[Seed, Field(description="seed of the split, the weights, the order and the augmentation")]
MAX_HEIGHT = 256
IMAGE_MEMORY = 500
ImageMemory = Annotated[
    int, Field(ge=0, description="MB of decoded images to keep in memory; the others are decoded anew each time")
]
AllowOverlap = Annotated[
    bool,
    Field(description="leave out of the test what the model started from was trained on; else that ends the training"),
]


ValData = Annotated[
    str | None,
    OrNone,
    NamesImages(),
    Field(description="folder, Parquet or draw:STYLE for validation; none: a tenth of the data"),
]
TestData = Annotated[
    str | None,
    OrNone,
    NamesImages(),
    Field(description="folder, Parquet or draw:STYLE for the test; none: a tenth of the data"),
]
Patience = Annotated[
    int, Field(ge=1, description="epochs without a better validation result until the rate decays to zero")
]
RegisterBest = Annotated[
    bool,
    Field(description="where the training is stopped, or resumed, end with the best epoch so far: test, register"),
]
Resume = Annotated[
    str | None,
    OrNone,
    Field(
        description="go on with a run that was cut off: its id, or auto (the latest of these settings, else a new run)"
    ),
]
CheckpointMinutes = Annotated[
    float, Field(gt=0, le=1440, description="minutes after which a checkpoint is written within an epoch, too")
]
AcceptedPrecision = Annotated[
    float,
    Field(gt=0, le=1, description="share of right texts among those that the model accepts; its threshold follows"),
]
Length = Annotated[
    str | None,
    OrNone,
    Field(description="what is known of every text: its length, as 5, or the least and most, as 4-6"),
]
Characters = Annotated[
    str | None, OrNone, Field(description="what is known of every text: the characters that may occur in it")
]
Texts = Annotated[
    str | None, OrNone, Field(description="what is known of every text: it is one of those in this file, one a line")
]
Pattern = Annotated[
    str | None,
    OrNone,
    Field(description="what is known of every text: a regular expression of all of it, as [a-z]{3}[0-9]{2}"),
]
CONTROLS = {"resume", "checkpoint_minutes", "register_best"}
"""Settings that do not shape the result of a job."""


class Settings(BaseModel):
    """Base of every job's settings: frozen, and unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def shaping(self) -> dict[str, object]:
        """Return the settings that shape the result, as JSON holds them."""
        return self.model_dump(mode="json", exclude=CONTROLS)

    def given(self) -> set[str]:
        """Return the names of those that were given, and not left at their default."""
        return self.model_fields_set - CONTROLS


class TrainSettings(Settings):
    """Settings of one training run. MLproject and the CLI repeat names and defaults; a test compares."""

    data: Annotated[str, NamesImages()] = Field(
        "draw:kaptcha", description="folder of labelled images, Parquet, or draw:STYLE"
    )
    val_data: ValData = None
    test_data: TestData = None
    problems: OnProblems = "stop"
    name: ModelName = MODEL_NAME
    backbone: Backbone = Field(
        "resnet18",
        description="resnet18, compact (about 1 M parameters, for CPUs), or student (0.1 M, no GRU; see distill)",
    )
    pretrained: bool = Field(False, description="start resnet18 from torchvision's ImageNet weights (downloaded)")
    init: Annotated[str | None, OrNone] = Field(
        None, description="trained model to start from: models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID"
    )
    drawn: DrawnBeside = None
    vocabulary: Annotated[str | None, OrNone] = Field(
        None, min_length=1, description="characters to tell apart; none: those of the labels and the drawn style"
    )
    height: int = Field(
        64, ge=32, le=MAX_HEIGHT, multiple_of=16, description="height in pixels that images are resized to"
    )
    epochs: MostEpochs = 50
    batch_size: BatchSize = Field(16, ge=1)
    learning_rate: LearningRate = 0.001
    dropout: float = Field(0.1, ge=0, lt=1, description="share of features dropped in training")
    patience: Patience = 10
    seed: TrainingSeed = 0
    precision: AcceptedPrecision = 0.999
    image_memory: ImageMemory = IMAGE_MEMORY
    allow_overlap: AllowOverlap = False
    resume: Resume = None
    checkpoint_minutes: CheckpointMinutes = 10
    register_best: RegisterBest = False

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
    def _drawn_is_half_a_batch(self) -> Self:
        if self.drawn and self.batch_size < 2:
            raise ValueError("--drawn fills half of every batch: --batch-size must be 2 or more")
        return self


class DistillSettings(Settings):
    """Settings of a student's training; the teacher brings vocabulary and height."""

    data: Annotated[str, NamesImages(argument=True)] = Field(
        "draw:kaptcha", description="folder of labelled images, Parquet, or draw:STYLE"
    )
    teacher: str = Field(CHAMPION_URI, description="trained model to learn from, written as for --init of train")
    val_data: ValData = None
    test_data: TestData = None
    problems: OnProblems = "stop"
    name: ModelName = MODEL_NAME
    drawn: DrawnBeside = None
    epochs: MostEpochs = 50
    batch_size: BatchSize = Field(16, ge=2)
    learning_rate: LearningRate = 0.002
    patience: Patience = 10
    seed: TrainingSeed = 0
    precision: AcceptedPrecision = 0.999
    image_memory: ImageMemory = IMAGE_MEMORY
    allow_overlap: AllowOverlap = False
    resume: Resume = None
    checkpoint_minutes: CheckpointMinutes = 10
    register_best: RegisterBest = False


class AdaptSettings(Settings):
    """Settings of a self-training on images without labels."""

    data: Annotated[str, NamesImages()] = Field(description="folder of images; their names are not read as labels")
    problems: OnProblems = "stop"
    model: str = Field(CHAMPION_URI, description="trained model to start from, written as for --init of train")
    drawn: StyleName = Field(
        None, description="style whose images, drawn during training, fill half of every batch; the model's own is best"
    )
    labelled: bool = Field(
        False, description="the folder is labelled: report exact match by its labels, but learn nothing from them"
    )
    name: ModelName = MODEL_NAME
    length: Length = None
    characters: Characters = None
    texts: Texts = None
    pattern: Pattern = None
    threshold: float = Field(
        0.9, gt=0, lt=1, description="probability of a whole text from which on its reading counts as confident"
    )
    rounds: int = Field(
        8, ge=1, le=1000, description="maximum number of rounds; the first that adds no confident reading is the last"
    )
    epochs: Epochs = Field(4, description="epochs in a round")
    batch_size: BatchSize = Field(16, ge=2)
    learning_rate: LearningRate = 0.001
    seed: Seed = Field(0, description="seed of the tenth held out, the order and the augmentation")
    precision: AcceptedPrecision = 0.999
    image_memory: ImageMemory = IMAGE_MEMORY
    allow_overlap: AllowOverlap = False
    resume: Resume = None
    checkpoint_minutes: CheckpointMinutes = 10


class CrossvalSettings(Settings):
    """Settings of a cross-validation."""

    data: Annotated[str, NamesImages()] = Field(description="folder of labelled images")
    problems: OnProblems = "stop"
    folds: int = Field(5, ge=2, description="parts of the labels; each is read by a model trained on the others")
    seeds: int = Field(1, ge=1, le=100, description="how often all folds are trained, each time other ones")
    drawn: DrawnBeside = None
    init: Annotated[str | None, OrNone] = Field(
        None, description="model that every training starts from; its own must have seen none of these images"
    )
    backbone: BackboneUnlessInit = "resnet18"
    epochs: MostEpochs = 50
    length: Length = None
    characters: Characters = None
    texts: Texts = None
    pattern: Pattern = None
    resume: Resume = None
    checkpoint_minutes: CheckpointMinutes = 10


class AuditSettings(CrossvalSettings):
    """Settings of a search for wrong labels, and of the cross-validation that it makes unless one is named."""

    crossval: Annotated[str | None, OrNone] = Field(
        None, description="id of the run of a cross-validation of this folder to look into; none: one is made first"
    )
    apply: bool = Field(False, description="write the labels as corrected into the folder, as labels-corrected.csv")

    @model_validator(mode="after")
    def _one_crossval(self) -> Self:
        defaults = CrossvalSettings.model_fields
        given = [name for name in defaults if name not in ("data", "problems")]
        changed = [name for name in given if getattr(self, name) != defaults[name].default]
        if self.crossval and changed:
            raise ValueError(
                f"--crossval names a cross-validation that is made already: leave out --{changed[0].replace('_', '-')}"
            )
        return self


class TuneSettings(Settings):
    """Settings of a search for the settings and the recipe that validate best, by any number of processes at once."""

    data: Annotated[str, NamesImages(argument=True)] = Field(
        "draw:kaptcha", description="folder of labelled images, or draw:STYLE"
    )
    problems: OnProblems = "stop"
    name: ModelName = MODEL_NAME
    trials: int = Field(20, ge=1, le=100_000, description="trainings of the whole study, whoever makes them")
    space: Annotated[str | None, OrNone] = Field(
        None, description="TOML file of the ranges to search; none: those of the package's training/space.toml"
    )
    storage: Annotated[str | None, OrNone] = Field(
        None,
        description="where the study is kept, for processes to join it: postgresql://… or sqlite:///FILE; "
        "none: mlruns/optuna.db",
    )
    study: Annotated[str | None, OrNone] = Field(
        None, min_length=1, max_length=200, description="the study's name in the storage; none: that of the data"
    )
    seeds: int = Field(3, ge=1, le=100, description="trainings with the best trial's settings; one is registered")
    drawn: DrawnBeside = None
    backbone: Backbone = Field("resnet18", description="resnet18, compact or student; unless the space names it")
    epochs: MostEpochs = 50


class BudgetSettings(Settings):
    """Settings of a measurement of the label budget."""

    data: Annotated[str, NamesImages()] = Field(description="folder of labelled images")
    problems: OnProblems = "stop"
    labels: str = Field(
        "0,10,25,50,100,250,all", description="numbers of labels to train with; all: all but the test's"
    )
    seeds: int = Field(3, ge=1, le=100, description="trainings for each number of labels, each on a split of its own")
    drawn: StyleName = Field(
        "kaptcha", description="style of the trainings with drawn images; none: train on labels alone"
    )
    init: Annotated[str | None, OrNone] = Field(
        None, description="model that the trainings with drawn images start from; none: one is trained first"
    )
    drawn_epochs: Epochs = Field(20, description="epochs of the first training, on drawn images alone")
    backbone: BackboneUnlessInit = "resnet18"
    epochs: Epochs = Field(50, description="maximum number of epochs of every other training")
    resume: Resume = None
    checkpoint_minutes: CheckpointMinutes = 10

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


SETTINGS_OF: Mapping[str, type[Settings]] = {
    "train": TrainSettings,
    "distill": DistillSettings,
    "adapt": AdaptSettings,
    "budget": BudgetSettings,
    "crossval": CrossvalSettings,
    "audit": AuditSettings,
    "tune": TuneSettings,
}
"""The settings of each job that trains, by its command."""


def written(value: object) -> object:
    """Return a setting as MLproject, the command line and a run's params write it."""
    return NONE if value is None else value


def project_root() -> Path:
    """Return the folder that holds MLproject if the package lies in it, else the working folder."""
    parent = Path(__file__).resolve().parent.parent
    return parent if (parent / "MLproject").exists() else Path.cwd()
