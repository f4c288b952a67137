# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import ChainableUndefined

from monai_memorization.reporting import formats

NB = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0, "0 %"),
        (0.00001, "below 0.01 %"),
        (0.0021, "0.21 %"),
        (0.021, "2.1 %"),
        (0.05, "5 %"),
        (0.6149, "61 %"),
        (0.99, "99 %"),
        (0.9967, "99.7 %"),
        (0.9996, "above 99.9 %"),
        (1, "100 %"),
    ],
)
def test_percentages_read_as_people_write_them(rate, text):
    assert formats.percent(rate) == text.replace(" %", f"{NB}%")


@given(st.floats(1e-9, 1 - 1e-9))
def test_a_rate_that_is_not_all_or_nothing_never_reads_so(rate):
    text = formats.percent(rate).removesuffix(f"{NB}%")
    assert text.startswith(("below", "above")) or 0 < float(text) < 100


@given(st.floats(0, 1))
def test_a_percentage_is_within_half_a_unit_of_the_rate(rate):
    text = formats.percent(rate).removeprefix("below ").removeprefix("above ").removesuffix(f"{NB}%")
    assert abs(float(text) - 100 * rate) <= (0.5 if rate >= 0.0995 else 0.05 if rate >= 0.0095 else 0.01) + 1e-9


@given(st.floats(0, 1), st.sampled_from([0.05, 0.8, 0.9]))
def test_a_rate_never_reads_like_the_limit_that_it_differs_from(rate, limit):
    if abs(rate - limit) > 1e-7:
        assert formats.percent(rate, limit) != formats.percent(limit)
        assert float(formats.decimal(rate, 2, limit)) != limit


@given(st.floats(-1, 1 - 1e-6))
def test_a_similarity_or_auc_below_one_never_reads_one(value):
    assert float(formats.correlation(value)) < 1
    assert float(formats.decimal(value)) < 1


@pytest.mark.parametrize(
    ("value", "text"), [(0.735, "0.735"), (0.98765, "0.988"), (0.9951, "0.9951"), (0.99931, "0.99931"), (1.0, "1.000")]
)
def test_similarities_near_one_keep_the_digits_that_tell_them_apart(value, text):
    assert formats.correlation(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (7, "7"), (2.44, "2.4"), (48.7, "49"), (1000, "1,000"), (10.0, "10"), (9.97, "10")]
)
def test_counts_keep_a_decimal_only_where_it_tells_something(value, text):
    assert formats.count(value) == text


def test_interval_names_the_unit_once():
    assert formats.percent_interval([0.571, 0.652]) == f"57 to 65{NB}%"


@pytest.mark.parametrize(
    ("p", "text"), [(1 / 61, "about 1 in 61"), (1 / 3000, "about 1 in 3,000"), (0.43, "about 43 in 100")]
)
def test_odds_say_how_many_images_come_as_close(p, text):
    assert formats.odds(p) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_have_no_sixtieth_second(seconds, text):
    assert formats.duration(seconds).replace(NB, " ") == text


@pytest.mark.parametrize(
    ("created", "text"), [("2026-03-02T10:15:00+00:00", "2 March 2026, 10:15 UTC"), ("yesterday", "yesterday")]
)
def test_moments_read_as_dates_where_they_are(created, text):
    assert formats.moment(created) == text


@pytest.mark.parametrize(
    "function",
    [
        "count",
        "decimal",
        "decimal_interval",
        "duration",
        "moment",
        "p_value",
        "percent",
        "percent_interval",
        "plain",
        "correlation",
        "size",
    ],
)
@pytest.mark.parametrize("value", [None, ChainableUndefined(name="absent")], ids=["null", "absent"])
def test_what_is_not_known_has_no_text(function, value):
    assert getattr(formats, function)(value) is None


def test_a_number_that_is_none_has_no_text():
    assert formats.percent(math.nan) is None
    assert formats.percent_interval([0.1, None]) is None
    assert formats.say("{} of {}", "3", None) is None


def test_settings_are_written_out():
    assert formats.plain({"alpha": 0.05, "gallery": False, "size": [64, 64], "encoder": None}) == (
        "alpha: 0.05, gallery: no, size: 64, 64, encoder: not known"
    )
