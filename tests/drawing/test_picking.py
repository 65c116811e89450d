import numpy as np

from captcha.drawing.picking import pick, pick_colour, pick_whole


def test_whole_numbers_reach_both_ends_of_the_range_and_all_between() -> None:
    rng = np.random.default_rng(0)
    assert {pick_whole(rng, (-2, 2)) for _ in range(100)} == {-2, -1, 0, 1, 2}


def test_numbers_fill_the_range_evenly() -> None:
    rng = np.random.default_rng(0)
    picked = np.array([pick(rng, (3, 5)) for _ in range(1000)])
    assert 3 <= picked.min() < 3.05
    assert 4.95 < picked.max() <= 5
    assert abs(picked.mean() - 4) < 0.1


def test_red_green_and_blue_lie_between_the_two_colours_whichever_is_the_greater() -> None:
    rng = np.random.default_rng(0)
    picked = np.array([pick_colour(rng, ("#0010ff", "#0410fd")) for _ in range(100)])
    assert [set(channel) for channel in picked.T.tolist()] == [{0, 1, 2, 3, 4}, {16}, {253, 254, 255}]


def test_a_range_of_one_value_uses_up_no_random_number() -> None:
    """So a setting that is added with one value as its default changes no image drawn before."""
    used, unused = np.random.default_rng(0), np.random.default_rng(0)
    assert (pick(used, (2, 2)), pick_whole(used, (3, 3)), pick_colour(used, ("#010203", "#010203"))) == (
        2,
        3,
        (1, 2, 3),
    )
    assert used.random() == unused.random()
