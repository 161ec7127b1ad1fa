"""Budgets as text."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.budget import Budget, BudgetError, parse_budget, show_amount


@pytest.mark.parametrize(
    ("text", "quantity", "expected"),
    [
        ("15ms", "latency", Budget("latency", 0, 15)),
        ("1.5 s", "latency", Budget("latency", 0, 1500)),
        ("800us", "latency", Budget("latency", 0, 0.8)),
        ("60%", "latency", Budget("latency", 0, 0.6, relative=True)),
        ("150M", "macs", Budget("macs", 0, 150e6)),
        ("0.95G..1.05G", "macs", Budget("macs", 0.95e9, 1.05e9)),
        ("40%..60%", "macs", Budget("macs", 0.4, 0.6, relative=True)),
        ("2000000", "params", Budget("params", 0, 2e6)),
    ],
)
def test_readable_budgets(text: str, quantity: str, expected: Budget) -> None:
    parsed = parse_budget(text, quantity)
    assert (parsed.quantity, parsed.relative) == (expected.quantity, expected.relative)
    assert (parsed.low, parsed.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("text", "quantity", "said"),
    [
        ("15", "latency", "15ms or 60%"),
        ("fast", "latency", "15ms or 60%"),
        ("", "latency", "15ms or 60%"),
        ("15MB", "latency", "15ms or 60%"),
        ("15ms", "macs", "150M"),
        ("0ms", "latency", "more than 0"),
        ("-3ms", "latency", "more than 0"),
        ("nanms", "latency", "more than 0"),
        ("infms", "latency", "more than 0"),
        ("0%", "params", "more than 0"),
        ("2G..1G", "macs", "smaller one"),
        ("50%..1G", "macs", "mixes"),
        ("1..2..3", "macs", "cannot be read"),
    ],
)
def test_unreadable_budgets_say_what_is_expected(text: str, quantity: str, said: str) -> None:
    with pytest.raises(BudgetError, match=said):
        parse_budget(text, quantity)


@given(st.text(max_size=12), st.sampled_from(["latency", "macs", "params"]))
def test_any_text_is_a_budget_or_a_clear_error(text: str, quantity: str) -> None:
    with contextlib.suppress(BudgetError):
        budget = parse_budget(text, quantity)
        assert 0 <= budget.low <= budget.high
        assert budget.high > 0


def test_percentages_are_of_the_unpruned_network() -> None:
    assert parse_budget("60%", "latency").resolved(5.0) == Budget("latency", 0, 3.0)
    assert parse_budget("4ms", "latency").resolved(5.0) == Budget("latency", 0, 4.0)


@pytest.mark.parametrize(
    ("value", "quantity", "shown"), [(0.18234, "latency", "0.182 ms"), (150e6, "macs", "150M"), (12, "params", "12")]
)
def test_amounts_as_people_read_them(value: float, quantity: str, shown: str) -> None:
    assert show_amount(value, quantity) == shown
