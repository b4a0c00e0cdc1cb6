"""What is said of a name that does not exist."""

from lrtrain.runtime.hints import near, nearest


def test_a_slip_of_the_pen_is_told_the_name_that_is_meant() -> None:
    assert near("widht", ["depth", "width"]) == "did you mean width?"


def test_what_is_like_nothing_is_told_what_there_is() -> None:
    assert near("x", ["depth", "width"]) == "there are depth, width"
    assert near("x", ["fit", "plan"], "the commands are") == "the commands are fit, plan"
    assert near("x", []) == "there are none"


def test_a_choice_among_many_is_told_the_three_nearest() -> None:
    metrics = ["val/loss", "train/loss", "val/perplexity", "lr", "epoch"]
    assert nearest("val/los", metrics) == "there are val/loss, train/loss, val/perplexity"
    assert nearest("ÿ", metrics) == "there are epoch, lr, train/loss, val/loss, val/perplexity"
