from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from captcha import settings as config
from captcha.settings import AdaptConfig, BudgetConfig, TrainConfig, project_root


def test_the_defaults_are_valid_and_drawn_images_need_no_folder() -> None:
    defaults = TrainConfig()
    assert TrainConfig.model_validate(defaults.model_dump()) == defaults
    assert defaults.drawn_style == "kaptcha"
    assert TrainConfig(data="captchas/draw:me").drawn_style is None


@pytest.mark.parametrize("settings", [TrainConfig, AdaptConfig, BudgetConfig])
def test_every_setting_is_explained(settings: type[BaseModel]) -> None:
    for name, field in settings.model_fields.items():
        assert field.description, name


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().epochs = 3  # type: ignore[misc]


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match=r"epoch\n.*not permitted"):
        TrainConfig.model_validate({"epoch": 3})


def test_none_can_be_written() -> None:
    written = TrainConfig.model_validate(
        {"val_data": "none", "test_data": "none", "init": "none", "vocabulary": "none"}
    )
    assert written == TrainConfig()


def test_pretrained_weights_exist_for_resnet18_alone() -> None:
    assert TrainConfig(backbone="resnet18", pretrained=True).pretrained
    with pytest.raises(ValidationError, match="pretrained weights exist for backbone resnet18 only, not for compact"):
        TrainConfig(backbone="compact", pretrained=True)


def test_a_training_has_one_start() -> None:
    assert TrainConfig(init="models:/captcha-crnn@champion").init == "models:/captcha-crnn@champion"
    with pytest.raises(ValidationError, match="--pretrained and --init are two different starts: give one of them"):
        TrainConfig(init="models:/captcha-crnn@champion", pretrained=True)


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
        ("seed", -1),
        ("seed", 2**32),
        ("vocabulary", ""),
    ],
)
def test_values_that_no_training_can_have_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        TrainConfig.model_validate({name: value})


def test_the_project_root_holds_mlproject_else_it_is_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert (project_root() / "MLproject").is_file()
    installed = tmp_path / "site-packages" / "captcha" / "config.py"
    monkeypatch.setattr(config, "__file__", str(installed))
    monkeypatch.chdir(tmp_path)
    assert project_root() == tmp_path


def test_the_numbers_of_labels_are_sorted_and_all_comes_last() -> None:
    assert BudgetConfig(data="d", labels="25,all,0,100,25").counts == [0, 25, 100, None]
    assert BudgetConfig(data="d").counts == [0, 10, 25, 50, 100, 250, None]


@pytest.mark.parametrize("labels", ["", "ten", "10,,20", "-5", "1", "1.5", "all of them"])
def test_numbers_of_labels_that_cannot_be_are_refused(labels: str) -> None:
    with pytest.raises(ValidationError, match="is no number of labels"):
        BudgetConfig(data="d", labels=labels)


def test_drawn_images_stand_beside_a_folders_not_beside_drawn_ones() -> None:
    assert TrainConfig(data="d", drawn="kaptcha").drawn == "kaptcha"
    assert TrainConfig(data="d", drawn="none").drawn is None
    with pytest.raises(ValidationError, match="drawn beside a folder's images"):
        TrainConfig(drawn="kaptcha")
    with pytest.raises(ValidationError, match="must be 2 or more"):
        TrainConfig(data="d", drawn="kaptcha", batch_size=1)


def test_a_start_for_the_trainings_with_drawn_images_needs_their_style() -> None:
    with pytest.raises(ValidationError, match="name their style"):
        BudgetConfig(data="d", init="runs:/1", drawn="none")
    with pytest.raises(ValidationError, match="nothing to learn from"):
        BudgetConfig(data="d", labels="0", drawn="none")
