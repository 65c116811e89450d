from collections.abc import Callable, Sequence

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from captcha.data.samples import Sample
from captcha.evaluation import plots as pictures
from captcha.evaluation.plots import (
    BudgetPoint,
    TrialPoint,
    budget_figure,
    comparison_grid,
    confidence_figure,
    confusion_figure,
    importances_figure,
    learning_curves,
    mistake_grid,
    prediction_grid,
    small_grid,
    tuning_figure,
)
from captcha.evaluation.results import Comparison, Evaluation
from captcha.reading.recognizer import Reading

# What matplotlib reads as mathematics, what its font lacks, what is not printed.
AWKWARD = ["$x$", "a_b^c", r"$\frac", r"\$5$", "$$", "中文字", "ไทย", "😀", "<b>&", "{}%", "   ", "\u200b", ""]


def made(pairs: Sequence[tuple[str, str]], loss: float = 1.0) -> Evaluation:
    """An evaluation of (label, prediction) pairs."""
    images = np.random.default_rng(0).integers(0, 256, (len(pairs), 32, 64, 1), dtype=np.uint8).repeat(3, axis=3)
    samples = [Sample(f"{i}.png", label, images[i]) for i, (label, _) in enumerate(pairs)]
    return Evaluation(samples, [Reading(read, 0.5, [0.5] * len(read)) for _, read in pairs], loss)


def metrics(train_loss: float | None, validation: Evaluation) -> dict[str, float]:
    """What is logged of an epoch; of epoch 0 there is no loss of training."""
    logged = {"val/loss": validation.loss, "val/exact_match": validation.exact_match, "val/cer": validation.cer}
    return logged if train_loss is None else logged | {"train/loss": train_loss}


def drawn(figure: Figure) -> NDArray[np.uint8]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def green_and_red(picture: NDArray[np.uint8]) -> tuple[int, int]:
    """How many pixels are clearly the one, and the other; the images here are grey."""
    red_over_green = picture[:, :, 0].astype(int) - picture[:, :, 1]
    return int((red_over_green < -50).sum()), int((red_over_green > 50).sum())


@pytest.mark.parametrize("count", [1, 5, 33])
def test_the_grid_is_a_picture_of_at_most_32_images(count: int) -> None:
    picture = prediction_grid(made([("abc", "abc")] * count))
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert picture.shape == prediction_grid(made([("abc", "abc")] * min(count, 32))).shape
    assert np.unique(picture).size > 100  # the images are in it


@pytest.mark.parametrize("label", ["ab", "abcde", "abcdefgh"])
def test_the_small_grid_stays_legible_in_256_pixels(label: str) -> None:
    height, width, _ = small_grid(made([(label, label[::-1])] * 33)).shape
    assert 256 / max(height, width) > 0.9


def test_mistakes_are_marked_in_their_colour_and_right_readings_in_theirs() -> None:
    green, red = green_and_red(prediction_grid(made([("abc", "abc")] * 4)))
    assert green > 50
    assert red == 0
    green, red = green_and_red(prediction_grid(made([("abc", "abd")] * 4)))
    assert green == 0
    assert red > 50


def test_each_image_stands_under_what_was_read_and_how_surely_and_a_mistake_under_its_label_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(pictures, "_rendered", figures.append)
    prediction_grid(made([("abc", "abc"), ("abc", "abd"), ("abc", "")]))
    titles = [axes.get_title() for axes in figures[0].axes]
    assert titles == ["✓ abc  50%", "✗ abd ≠ abc  50%", "✗ (nothing) ≠ abc  50%", ""]


def compared(readings: Sequence[tuple[str, str]]) -> Comparison:
    """A comparison of two models on images labelled abc, by what each of the two reads."""
    first, second = (made([("abc", pair[i]) for pair in readings]) for i in (0, 1))
    return Comparison(first, second)


def test_each_image_on_which_two_models_differ_stands_between_their_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(pictures, "_rendered", figures.append)
    comparison_grid(compared([("abc", "abc"), ("x", "abc"), ("abc", ""), ("y", "z")]), "v2", "v3")
    shown = [(axes.get_title(), axes.get_xlabel()) for axes in figures[0].axes]
    assert shown == [("✓ v2: abc", "✗ v3: (nothing)"), ("✗ v2: x", "✓ v3: abc"), ("", ""), ("", "")]
    [held] = figures[0].axes[0].images
    assert np.array_equal(held.get_array(), made([("abc", "abc")] * 4).samples[2].image)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ours", "theirs", "of_ours", "of_theirs"), [(40, 40, 16, 16), (40, 3, 29, 3), (3, 40, 3, 29), (5, 7, 5, 7)]
)
def test_where_not_all_can_be_shown_both_models_have_their_share(
    ours: int, theirs: int, of_ours: int, of_theirs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(pictures, "_rendered", figures.append)
    comparison_grid(compared([("abc", "x")] * ours + [("x", "abc")] * theirs), "a", "b")
    titles = [axes.get_title() for axes in figures[0].axes]
    assert (titles.count("✓ a: abc"), titles.count("✗ a: x")) == (of_ours, of_theirs)


def test_the_two_readings_have_their_colours_and_no_difference_is_said() -> None:
    green, red = green_and_red(comparison_grid(compared([("abc", "x")] * 4), "a", "b"))
    assert min(green, red) > 50
    green, red = green_and_red(comparison_grid(compared([("abc", "abc")]), "a", "b"))
    assert green > 50
    assert red == 0


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that grids are drawn from, each drawn as it is when a grid is made."""
    made_of: list[Figure] = []

    def render(figure: Figure) -> NDArray[np.uint8]:
        made_of.append(figure)
        return drawn(figure)

    monkeypatch.setattr(pictures, "_rendered", render)
    return made_of


def test_the_picture_of_mistakes_shows_the_wrong_ones_alone_the_confident_first(figures: list[Figure]) -> None:
    evaluation = made([("ab", "ab"), ("cd", "cx"), ("ef", "ef"), ("gh", ""), ("ij", "xj")])
    confidences = [0.9, 0.25, 0.1, 0.5, 0.75]
    readings = [Reading(r.text, c, []) for r, c in zip(evaluation.readings, confidences, strict=True)]
    mistake_grid(Evaluation(evaluation.samples, readings, 1.0))
    titles = [axes.get_title() for axes in figures[0].axes]
    assert titles == ["✗ xj ≠ ij  75%", "✗ (nothing) ≠ gh  50%", "✗ cx ≠ cd  25%", ""]
    shown = [np.asarray(axes.images[0].get_array()) for axes in figures[0].axes[:3]]
    assert all(np.array_equal(shown[i], evaluation.samples[n].image) for i, n in enumerate((4, 3, 1)))


def test_the_picture_of_mistakes_is_of_so_many_at_most(figures: list[Figure]) -> None:
    mistake_grid(made([("a", "a")] + [("a", "b")] * 7), shown=3)
    assert [axes.get_title() != "" for axes in figures[0].axes] == [True, True, True, False]


def test_no_mistake_is_said_in_words(figures: list[Figure]) -> None:
    mistake_grid(made([("ab", "ab")] * 3))
    assert [text.get_text() for text in figures[0].texts] == ["no image of 3 was read wrongly"]


@pytest.mark.parametrize(
    ("label", "read"),
    [
        ("abcde", "abcdf"),
        ("abcdefghijkl", "abcdefghijkm"),
        ("WWWWWWWWWWWW", "MMMMMMMMMMMM"),
        ("中文字中文字中文字中文字", "中文字中文字中文字中文中"),
        ("m" * 60, "w" * 60),
    ],
)
def test_titles_overlap_neither_each_other_nor_images_nor_the_edge(
    figures: list[Figure], label: str, read: str
) -> None:
    wide = np.zeros((64, 400, 3), np.uint8)
    samples = [Sample(f"{i}.png", label, wide) for i in range(5)]
    prediction_grid(Evaluation(samples, [Reading(read, 1.0, [])] * 5, 1.0))
    titles = [axes.title.get_window_extent() for axes in figures[0].axes if axes.get_title()]
    images = [axes.images[0].get_window_extent() for axes in figures[0].axes if axes.images]
    assert len(titles) == len(images) == 5
    boxes = [*titles, *images]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    width, height = figures[0].canvas.get_width_height()
    assert all(min(box.x0, box.y0) >= 0 and box.x1 <= width and box.y1 <= height for box in titles)


@pytest.mark.parametrize("read", ["abcdf", "what a new network"])
def test_images_stand_four_side_by_side_even_where_one_reading_is_long(figures: list[Figure], read: str) -> None:
    prediction_grid(made([("abcde", "abcdf")] * 7 + [("abcde", read)]))
    assert len({round(axes.get_position().x0, 3) for axes in figures[0].axes}) == 4


def test_labels_of_any_characters_can_be_shown() -> None:
    pairs = [(label, read) for label in AWKWARD for read in (label, "x", "")]
    prediction_grid(made(pairs), shown=len(pairs))
    drawn(confusion_figure(made(pairs), shown=100))


def test_what_the_font_lacks_can_be_told_apart() -> None:
    first, second = (prediction_grid(made([(label, label)])) for label in ("中", "文"))
    assert not np.array_equal(first, second)


def test_a_dollar_sign_is_drawn_as_one(draw: Callable[..., NDArray[np.uint8]]) -> None:
    titles = {text: prediction_grid(made([(text, text)])) for text in ("$a_b$", "$a$b$", "a_b", "ab")}
    drawings = list(titles.values())
    assert all(not np.array_equal(a, b) for i, a in enumerate(drawings) for b in drawings[:i])


def test_the_curves_show_every_epoch() -> None:
    history = [metrics(None, made([("abc", "")], 12.0))]
    history += [metrics(10 / i, made([("abc", "abc" if i > 2 else "ab")], 11 / i)) for i in range(1, 5)]
    figure = learning_curves(history)
    losses, figures = figure.axes
    lines = {
        line.get_label(): np.asarray(line.get_xydata()).tolist()
        for axes in (losses, figures)
        for line in axes.get_lines()
    }
    assert lines["train, augmented"] == [[i, 10 / i] for i in range(1, 5)]
    assert lines["validation"] == [[0, 12.0]] + [[i, 11 / i] for i in range(1, 5)]
    assert lines["exact match"] == [[0, 0], [1, 0], [2, 0], [3, 1], [4, 1]]
    assert lines["character error rate"] == [
        [0, 1],
        [1, pytest.approx(1 / 3)],
        [2, pytest.approx(1 / 3)],
        [3, 0],
        [4, 0],
    ]
    drawn(figure)


@pytest.mark.parametrize("loss", [0.0, float("nan")])
def test_the_curves_of_a_loss_that_is_nothing_or_not_known_are_drawn(loss: float) -> None:
    drawn(learning_curves([metrics(None, made([("a", "")], loss)), metrics(0.5, made([("a", "a")], loss))]))


def test_the_curves_of_an_untrained_model_are_drawn() -> None:
    drawn(learning_curves([metrics(None, made([("a", "")]))]))


def test_confusions_are_bars_from_the_most_frequent_on() -> None:
    figure = confusion_figure(made([("aab", "aac"), ("ab", "ac"), ("ax", "a"), ("a", "ay"), ("q", "q")]), shown=2)
    (axes,) = figure.axes
    assert axes.get_yticklabels()[0].get_text() == "b → c"
    assert [bar.get_width() for bar in axes.patches] == [2, 1]  # type: ignore[attr-defined]
    drawn(figure)


def test_no_confusion_is_said_in_words() -> None:
    (axes,) = confusion_figure(made([("ab", "ab")])).axes
    assert [text.get_text() for text in axes.texts] == ["no character was read wrongly"]


def test_confidences_are_drawn_against_what_is_right_and_errors_against_what_is_accepted() -> None:
    evaluation = made([("a", "a"), ("a", "b"), ("a", "a"), ("a", "a")])
    rows = [(0.9, 0.8, True), (0.5, 0.6, False), (0.7, 0.7, True), (0.3, 0.4, False)]  # confidence, probability
    readings = [Reading(r.text, c, [], p, ok) for r, (c, p, ok) in zip(evaluation.readings, rows, strict=True)]
    figure = confidence_figure(Evaluation(evaluation.samples, readings, 1.0))
    diagram, curve = figure.axes
    _, calibrated, raw = (line.get_xydata().tolist() for line in diagram.lines)  # type: ignore[union-attr]
    assert calibrated == [[0.3, 1.0], [0.5, 0.0], [0.7, 1.0], [0.9, 1.0]]
    assert raw == [[0.4, 1.0], [0.6, 0.0], [0.7, 1.0], [0.8, 1.0]]
    steps, cross = (line.get_xydata().tolist() for line in curve.lines)  # type: ignore[union-attr]
    assert steps == [[0.25, 0.0], [0.5, 0.0], [0.75, pytest.approx(1 / 3)], [1.0, 0.25]]
    assert cross == [[0.5, 0.0]]
    drawn(figure)


def test_probabilities_that_nothing_has_changed_are_drawn_once_and_no_threshold_is() -> None:
    figure = confidence_figure(made([("a", "a"), ("a", "b")]))
    assert [len(axes.lines) for axes in figure.axes] == [2, 1]
    drawn(figure)


def test_without_a_label_a_reading_is_neither_right_nor_wrong() -> None:
    assert green_and_red(prediction_grid(made([("", "abc")] * 4))) == (0, 0)


def test_the_budget_has_a_curve_for_each_arm_with_its_points_and_intervals() -> None:
    points = [
        BudgetPoint("labels_alone", 100, 60, 80, 0.65, 0.83, 9.0),
        BudgetPoint("labels_alone", 10, 4, 80, 0.02, 0.12, 9.0),
        BudgetPoint("with_drawn", 0, 72, 80, 0.81, 0.95, 9.0),
    ]
    figure = budget_figure(points)
    (axes,) = figure.axes
    alone, drawn_too = axes.containers
    assert [alone.get_label(), drawn_too.get_label()] == ["labels alone", "with drawn"]
    assert alone[0].get_xydata().tolist() == [[10, 0.05], [100, 0.75]]
    assert drawn_too[0].get_xydata().tolist() == [[0, 0.9]]
    ends = [segment[:, 1].tolist() for segment in alone[2][0].get_segments()]
    assert ends == [pytest.approx([0.02, 0.12]), pytest.approx([0.65, 0.83])]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "10", "100"]
    assert drawn(figure).size


def test_a_tuning_shows_every_trial_and_the_lowest_loss_so_far() -> None:
    points = [
        TrialPoint(0, 3.0, "complete"),
        TrialPoint(1, 9.0, "pruned"),
        TrialPoint(3, 4.0, "complete"),
        TrialPoint(4, 1.0, "complete"),
        TrialPoint(5, float("inf"), "pruned"),
    ]
    (axes,) = tuning_figure(points).axes
    lines = {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in axes.lines}
    assert lines == {
        "complete: 3": [[0, 3], [3, 4], [4, 1]],
        "pruned: 1": [[1, 9]],  # what is no number has no place
        "lowest so far": [[0, 3], [3, 3], [4, 1]],
    }
    assert axes.get_yscale() == "linear"
    drawn(tuning_figure(points))
    (axes,) = tuning_figure([*points, TrialPoint(6, 0.1, "complete")]).axes
    assert axes.get_yscale() == "log"


def test_importances_are_bars_the_most_important_above() -> None:
    (axes,) = importances_figure({"learning_rate": 0.75, "dropout": 0.25}, 7).axes
    assert [bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)] == [0.75, 0.25]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["learning_rate", "dropout"]
    assert axes.yaxis_inverted()
    assert "7 complete trials" in axes.get_xlabel()
