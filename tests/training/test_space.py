from pathlib import Path

import pytest

from captcha.settings import TrainSettings
from captcha.training.recipe import Augmentation, Recipe
from captcha.training.space import BUILT_IN, Range, Space, SpaceError, load_space, recipe_in, settings_in

TUNABLE = ("backbone", "batch_size", "dropout", "learning_rate", "patience")


def load(folder: Path, content: str, **settings: object) -> Space:
    file = folder / "space.toml"
    file.write_text(content)
    return load_space(file, TrainSettings.model_validate(settings), TUNABLE)


def told(folder: Path, content: str, **settings: object) -> str:
    """Return what is said against a file, after its name."""
    with pytest.raises(SpaceError) as raised:
        load(folder, content, **settings)
    line = str(raised.value)
    assert "\n" not in line
    assert line.startswith(f"{folder / 'space.toml'}")
    return line.removeprefix(f"{folder / 'space.toml'}").removeprefix(": ")


def test_lists_are_choices_and_tables_are_ranges(tmp_path: Path) -> None:
    space = load(
        tmp_path,
        """
        [settings]
        backbone = ["compact", "student"]
        learning_rate = { low = 1e-4, high = 1e-2, log = true }
        [recipe]
        warm_up_steps = { low = 10, high = 90 }
        [recipe.augmentation]
        noise = { low = 0, high = 60 }
        """,
    )
    assert dict(space.dimensions) == {
        "backbone": ("compact", "student"),
        "learning_rate": Range(1e-4, 1e-2, log=True, whole=False),
        "recipe.warm_up_steps": Range(10, 90, log=False, whole=True),
        "recipe.augmentation.noise": Range(0, 60, log=False, whole=False),
    }


def test_a_point_of_a_space_is_settings_and_a_recipe() -> None:
    values = {"batch_size": 8, "recipe.weight_decay": 0.5, "recipe.augmentation.rotation": 9}
    assert settings_in(values) == {"batch_size": 8}
    assert recipe_in(values) == Recipe(weight_decay=0.5, augmentation=Augmentation(rotation=9))
    assert recipe_in({}) == Recipe()


def test_a_digest_tells_spaces_apart_and_not_their_files(tmp_path: Path) -> None:
    first = load(tmp_path, "[settings]\nbatch_size = [8, 16]\ndropout = { low = 0.0, high = 0.5 }")
    second = load(tmp_path, "# the same\nsettings.dropout = { high = 0.5, low = 0 }\nsettings.batch_size = [8, 16]")
    other = load(tmp_path, "[settings]\nbatch_size = [8, 16]\ndropout = { low = 0.0, high = 0.6 }")
    assert first.digest == second.digest != other.digest


def test_the_built_in_space_has_the_defaults_in_it() -> None:
    space = load_space(BUILT_IN, TrainSettings(), TUNABLE)
    defaults = TrainSettings().model_dump() | {f"recipe.{k}": v for k, v in Recipe().model_dump().items()}
    defaults |= {f"recipe.augmentation.{k}": v for k, v in Augmentation().model_dump().items()}
    for name, dimension in space.dimensions.items():
        if isinstance(dimension, Range):
            assert dimension.low <= defaults[name] <= dimension.high, name
        else:
            assert defaults[name] in dimension, name


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("[settings]\nlearning_rte = [1]", "settings.learning_rte: no such name to search, did you mean 'learning_rat"),
        ("[settings]\nseed = [1, 2]", "settings.seed: no such name to search"),  # tried again with others in the end
        ("[recipe]\naugmentation = 3", "recipe.augmentation: is a table, not 3"),
        ("[recipe.augmentation]\ntwist = [1]", "recipe.augmentation.twist: no such name to search, did you mean"),
        ("[training]\nepochs = [1]", "training: no such table: there are [settings], [recipe] and [recipe.augmentati"),
        ("batch_size = [8]", "batch_size: no such table: there are"),
        ("[settings]\nbatch_size = 8", "settings.batch_size: is a list of choices, or a table with low, high and"),
        ("[settings]\ndropout = { low = 0.1 }", "settings.dropout: is a list of choices, or a table with low, high"),
        ("[settings]\ndropout = { low = 0, high = 1e-1, step = 1 }", "settings.dropout: is a list of choices, or a t"),
        ("[settings]\nbatch_size = []", "settings.batch_size: has no choices"),
        ("[settings]\nbatch_size = [8, 8]", "settings.batch_size: has the choice 8 twice"),
        ("[settings]\nbatch_size = ['8']", "settings.batch_size: input should be a valid integer, not '8'"),
        ("[settings]\nbatch_size = { low = 1, high = 8.5 }", "settings.batch_size: input should be a valid integer"),
        ("[settings]\nbatch_size = [true]", "settings.batch_size: input should be a valid integer, not True"),
        ("[settings]\nbackbone = ['vgg']", "settings.backbone: input should be 'resnet18', 'compact' or 'student', n"),
        ("[settings]\nbackbone = { low = 1, high = 2 }", "settings.backbone: input should be 'resnet18', 'compact' "),
        ("[settings]\ndropout = { low = 'a', high = 'b' }", "settings.dropout: low and high are numbers, not 'a'"),
        ("[settings]\ndropout = { low = 0.3, high = 0.1 }", "settings.dropout: is empty: low, 0.3, is not below hig"),
        ("[settings]\ndropout = { low = 0.1, high = 0.1 }", "settings.dropout: is empty: low, 0.1, is not below hig"),
        ("[settings]\ndropout = { low = 0, high = 0.1, log = true }", "settings.dropout: with log = true low is abo"),
        ("[settings]\ndropout = { low = 0, high = 0.1, log = 1 }", "settings.dropout: log is true or false, not 1"),
        ("[settings]\ndropout = { low = 0, high = 2 }", "settings.dropout: input should be less than 1, not 2"),
        ("[recipe]\ngru_weight = { low = 0.1, high = nan }", "recipe.gru_weight: "),
        ("", "names nothing to search: see space.toml of the package for its form"),
        ("[settings", "is not a TOML file: "),
    ],
)
def test_what_describes_no_space_is_refused_in_a_line_with_file_and_key(
    content: str, line: str, tmp_path: Path
) -> None:
    assert told(tmp_path, content).strip().startswith(line)


def test_a_value_has_to_be_valid_beside_the_other_settings(tmp_path: Path) -> None:
    content = "[settings]\nbatch_size = [1, 8]"
    assert load(tmp_path, content).dimensions == {"batch_size": (1, 8)}
    assert told(tmp_path, content, data="d", drawn="kaptcha").startswith("settings.batch_size: --drawn fills half of ")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"absent\.toml cannot be read: No such file or directory$"):
        load_space(tmp_path / "absent.toml", TrainSettings(), TUNABLE)
