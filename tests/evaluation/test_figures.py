import pytest

from infinitevl.evaluation.figures import _short


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.5, "0.5"), (16, "16"), (7_808, "7.81K"), (999_499, "999K"), (999_500, "1M"), (1.25e6, "1.25M")],
)
def test_large_numbers_are_short(number: float, text: str):
    assert _short(number) == text
