from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from captcha import settings as module
from captcha.settings import (
    AdaptSettings,
    AuditSettings,
    Backbone,
    BudgetSettings,
    CrossvalSettings,
    DistillSettings,
    TrainSettings,
    TuneSettings,
    project_root,
    written,
)
from captcha.training.model import BACKBONES
from captcha.training.recipe import Augmentation, Recipe


def test_the_defaults_are_valid_and_drawn_images_need_no_folder() -> None:
    defaults = TrainSettings()
    assert TrainSettings.model_validate(defaults.model_dump()) == defaults
    assert defaults.data == "draw:kaptcha"


@pytest.mark.parametrize(
    "settings",
    [
        TrainSettings,
        DistillSettings,
        AdaptSettings,
        BudgetSettings,
        CrossvalSettings,
        AuditSettings,
        TuneSettings,
        Recipe,
        Augmentation,
    ],
)
def test_every_setting_is_explained(settings: type[BaseModel]) -> None:
    for name, field in settings.model_fields.items():
        assert field.description or name == "augmentation", name


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainSettings().epochs = 3  # type: ignore[misc]


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match=r"epoch\n.*not permitted"):
        TrainSettings.model_validate({"epoch": 3})


def test_none_can_be_written() -> None:
    as_none = TrainSettings.model_validate(
        {"val_data": "none", "test_data": "none", "init": "none", "vocabulary": "none"}
    )
    assert as_none == TrainSettings()
    assert [written(value) for value in (None, 3, "x")] == ["none", 3, "x"]


def test_pretrained_weights_exist_for_resnet18_alone() -> None:
    assert TrainSettings(backbone="resnet18", pretrained=True).pretrained
    with pytest.raises(ValidationError, match="pretrained weights exist for backbone resnet18 only, not for compact"):
        TrainSettings(backbone="compact", pretrained=True)


def test_a_training_has_one_start() -> None:
    assert TrainSettings(init="models:/captcha-crnn@champion").init == "models:/captcha-crnn@champion"
    with pytest.raises(ValidationError, match="--pretrained and --init are two different starts: give one of them"):
        TrainSettings(init="models:/captcha-crnn@champion", pretrained=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backbone", "vgg"),
        ("batch_size", 0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("epochs", 0),
        ("height", 40),  # the backbones halve it four times
        ("height", 16),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("name", ""),
        ("name", "mine/captcha"),  # what MLflow would refuse after the training
        ("name", "models:/mine"),
        ("name", "it's"),
        ("patience", 0),
        ("problems", "ignore"),
        ("seed", -1),
        ("seed", 2**32),
        ("vocabulary", ""),
        ("image_memory", -1),
    ],
)
def test_values_that_no_training_can_have_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        TrainSettings.model_validate({name: value})


def test_the_project_root_holds_mlproject_else_it_is_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert (project_root() / "MLproject").is_file()
    installed = tmp_path / "site-packages" / "captcha" / "settings.py"
    monkeypatch.setattr(module, "__file__", str(installed))
    monkeypatch.chdir(tmp_path)
    assert project_root() == tmp_path


def test_the_numbers_of_labels_are_sorted_and_all_comes_last() -> None:
    assert BudgetSettings(data="d", labels="25,all,0,100,25").counts == [0, 25, 100, None]
    assert BudgetSettings(data="d").counts == [0, 10, 25, 50, 100, 250, None]


@pytest.mark.parametrize("labels", ["", "ten", "10,,20", "-5", "1", "1.5", "all of them"])
def test_numbers_of_labels_that_cannot_be_are_refused(labels: str) -> None:
    with pytest.raises(ValidationError, match="is no number of labels"):
        BudgetSettings(data="d", labels=labels)


def test_drawn_images_are_half_of_a_batch() -> None:
    assert TrainSettings(data="d", drawn="kaptcha").drawn == "kaptcha"
    assert TrainSettings(data="d", drawn="none").drawn is None
    with pytest.raises(ValidationError, match="must be 2 or more"):
        TrainSettings(data="d", drawn="kaptcha", batch_size=1)


def test_a_start_for_the_trainings_with_drawn_images_needs_their_style() -> None:
    with pytest.raises(ValidationError, match="name their style"):
        BudgetSettings(data="d", init="runs:/1", drawn="none")
    with pytest.raises(ValidationError, match="nothing to learn from"):
        BudgetSettings(data="d", labels="0", drawn="none")


def test_the_backbones_that_can_be_asked_for_are_those_there_are() -> None:
    assert get_args(Backbone) == tuple(BACKBONES)


def test_a_recipe_tells_what_it_changes() -> None:
    assert Recipe().changes() == {}
    changed = Recipe(warm_up_steps=20, augmentation=Augmentation(rotation=9))
    assert changed.changes() == {"warm_up_steps": 20, "augmentation.rotation": 9}
    with pytest.raises(ValidationError, match="frozen"):
        changed.warm_up_steps = 3  # type: ignore[misc]


def test_a_cross_validation_has_folds() -> None:
    assert (CrossvalSettings(data="d").folds, CrossvalSettings(data="d").seeds) == (5, 1)
    for folds in (0, 1, -2):
        with pytest.raises(ValidationError, match="greater than or equal to 2"):
            CrossvalSettings(data="d", folds=folds)


def test_an_audit_makes_a_cross_validation_or_is_told_of_one() -> None:
    assert AuditSettings(data="d", crossval="0", folds=5, epochs=50).crossval == "0"  # as mlflow run passes defaults
    with pytest.raises(ValidationError, match="names a cross-validation that is made already: leave out --epochs"):
        AuditSettings(data="d", crossval="0", epochs=3)
