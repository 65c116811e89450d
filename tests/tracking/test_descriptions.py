import pytest

from captcha.settings import CONTROLS, AdaptSettings, TrainSettings
from captcha.tracking.descriptions import run_name, short_uri, without_folders


def test_a_run_is_named_by_what_differs_from_the_defaults() -> None:
    plain = TrainSettings(backbone="compact", data="folder")
    assert run_name(plain, "compact", "folder", "64 px") == "compact · folder · 64 px"
    other = TrainSettings(learning_rate=0.002, seed=3, drawn="kaptcha", test_data="/somewhere/test", name="mine")
    assert run_name(other, "resnet18", "folder", "64 px", parent="models:/captcha-crnn/1") == (
        "resnet18 · folder · 64 px · tested on test · with drawn kaptcha · lr 0.002 · seed 3 · from v1"
    )
    adapted = AdaptSettings(data="folder", rounds=2)
    assert run_name(adapted, "adapt", "folder", parent="runs:/0123456789abcdef") == (
        "adapt · folder · rounds 2 · from run 01234567"
    )


def test_every_setting_that_shapes_a_training_can_stand_in_a_name() -> None:
    changed = {
        "val_data": "v", "test_data": "t", "pretrained": True, "drawn": "tilted", "vocabulary": "ab", "epochs": 7,
        "batch_size": 8, "learning_rate": 0.5, "dropout": 0.3, "patience": 9, "seed": 5,
    }  # fmt: skip
    for name, value in changed.items():
        assert run_name(TrainSettings.model_validate({name: value}), "x") != "x", name
    # These stand in front or at the end, or do not shape the model.
    elsewhere = {"data", "name", "problems", "allow_overlap", "backbone", "init", "height", "image_memory", "precision"}
    assert set(TrainSettings.model_fields) == set(changed) | elsewhere | CONTROLS


@pytest.mark.parametrize(
    ("uri", "short"),
    [("models:/captcha-crnn/12", "v12"), ("models:/mine/3", "mine v3"), ("runs:/01234567ab", "run 01234567")],
)
def test_a_models_uri_is_short_in_names(uri: str, short: str) -> None:
    assert short_uri(uri) == short


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            "not judged: [Errno 2] No such file or directory: '/home/a b/c/2.png'",
            "not judged: [Errno 2] No such file or directory: '2.png'",
        ),
        ("/srv/images/x.png: it is empty; so is /srv/y.png", "x.png: it is empty; so is y.png"),
        (
            "models:/mine/3 and runs:/01, 5 / 6, a/b, http://host/page",
            "models:/mine/3 and runs:/01, 5 / 6, a/b, http://host/page",
        ),
    ],
)
def test_of_an_absolute_path_the_last_part_is_left(text: str, left: str) -> None:
    assert without_folders(text) == left
