"""What `recommend --explain` shows: a sum where the score is one, else what it would lose."""

from __future__ import annotations

from modules.servable.explained import Explanation, Part, Reason


def test_exact_parts_are_shown_as_the_sum_and_items_by_what_they_add():
    parts = (Part("history", 2.5, True), Part("bias", -1.25, True))
    reasons = (Reason("50", "Star Wars", 2.0), Reason("7", "", 0.5), Reason("9", "Alien", -0.1))
    assert Explanation(parts, reasons, True).lines() == [
        ("", "= history 2.500 − bias 1.250", ""),
        ("50", "  because of Star Wars", "+2.000"),
        ("7", "  because of", "+0.500"),
    ]


def test_what_was_left_out_is_shown_by_how_the_score_would_change():
    parts = (Part("learned", -2.5, True), Part("age", -0.5, False), Part("job", 0.25, False))
    assert Explanation(parts, (Reason("50", "Star Wars", 2.0),), False).lines() == [
        ("", "= − learned 2.500", ""),
        ("", "  without age", "+0.500"),
        ("", "  without job", "-0.250"),
        ("50", "  without Star Wars", "-2.000"),
    ]
