from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from captcha import config
from captcha.config import TrainConfig, project_root


def test_the_defaults_are_valid_and_drawn_images_need_no_folder() -> None:
    defaults = TrainConfig()
    assert TrainConfig.model_validate(defaults.model_dump()) == defaults
    assert defaults.drawn_style == "kaptcha"
    assert TrainConfig(data="captchas/draw:me").drawn_style is None


def test_every_setting_is_explained() -> None:
    for name, field in TrainConfig.model_fields.items():
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
