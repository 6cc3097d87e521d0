"""Values as they are written, and the messages about those that cannot be."""

import pytest

from ltp.errors import UserError, check_choice, check_range, format_number, format_value, suggest


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2e-5, "2e-05"),
        (0.1 + 0.2, "0.30000000000000004"),
        (1.0, "1"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        ([0.3, 0.50], "[0.3,0.5]"),
        ([], "[]"),
        (["a", None, True], "[a,None,True]"),
    ],
)
def test_values_are_written_as_on_a_command_line(value, text):
    assert format_value(value) == text


def test_a_number_is_as_short_as_it_can_be_and_still_itself():
    for value in (0.01, -0.2, 1e-7, 1 / 3, 123456789.0):
        assert float(format_number(value)) == value


def test_a_range():
    check_range(True, "lr", 0.1, "below 1")
    with pytest.raises(UserError, match=r"^lr=2 is out of range: it must be below 1$"):
        check_range(False, "lr", 2.0, "below 1")


def test_an_option():
    check_choice("device", None, ("auto", "cpu"))
    check_choice("device", "cpu", ("auto", "cpu"))
    with pytest.raises(UserError, match=r"^device=cpuu: no such option\. Did you mean cpu\? Options: auto, cpu$"):
        check_choice("device", "cpuu", ("auto", "cpu"))
    with pytest.raises(UserError, match=r"^device=x: no such option\. Options: auto, cpu$"):
        check_choice("device", "x", ("auto", "cpu"))
    assert suggest("sofft", ["soft", "hard", "softer"]) == " Did you mean soft or softer?"
