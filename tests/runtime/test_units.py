"""Numbers as users write them."""

import pytest

from lrtrain.runtime.errors import UserError
from lrtrain.runtime.units import read_amount, read_memory


@pytest.mark.parametrize(
    ("text", "value"), [("2e9", 2e9), ("2_000", 2000), ("2B", 2e9), ("1.5 k", 1500), (".5M", 5e5), ("1e+3", 1000)]
)
def test_an_amount_is_what_it_looks_like(text: str, value: float) -> None:
    assert read_amount("--tokens", text, "tokens") == value


def test_memory_has_units_of_ten_and_of_two() -> None:
    assert [read_memory("--memory", text) for text in ("80GB", "80 gib", "1e3B")] == [80e9, 80 * 2**30, 1000]


@pytest.mark.parametrize("text", ["", "0", "-3", "e9", "1.2.3", "2 GB", "1e999", "nan"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--tokens .*: give tokens, a number above 0 as in 2e9 or 2B"):
        read_amount("--tokens", text, "tokens")
