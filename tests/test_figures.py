# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest

from monai_memorization.reporting import figures


def draw(name: str, scale: int = 1) -> str:
    if name == "score":
        return figures.score_histogram([0, 0.25, 0.5, 0.75, 1], [5, 9, 2, 0], [3 * scale, 0, 4, 8], 0.71)
    if name == "p-values":
        return figures.p_value_histogram([0, 0.1, 0.5, 1], [40 * scale, 30, 10], 0.05)
    if name == "sorted":
        return figures.sorted_p_values([0.01, 0.01, 0.05, 0.3 * scale, 1], 0.05)
    return figures.accumulation_curve([10, 20, 30], [4, 7, 9 * scale], [1, 2])


FIGURES = ["score", "p-values", "sorted", "accumulation"]


def texts(svg: str) -> list[str]:
    return [text.strip() for text in ET.fromstring(svg).itertext() if text.strip()]


@pytest.mark.parametrize("name", FIGURES)
def test_same_numbers_give_the_same_text(name):
    assert draw(name) == draw(name)
    assert draw(name) != draw(name, scale=2)


@pytest.mark.parametrize("name", FIGURES)
def test_users_settings_of_matplotlib_do_not_matter(name):
    plain = draw(name)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.fonttype": "path"}):
        assert draw(name) == plain


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_one_labelled_element_that_asks_for_nothing(name):
    svg = draw(name)
    root = ET.fromstring(svg)

    assert root.attrib["role"] == "img"
    assert len(root.attrib["aria-label"]) > 30
    assert "width" not in root.attrib
    assert "<?xml" not in svg
    assert "<!DOCTYPE" not in svg
    assert not re.search(r"""(?:href|src)=["'](?!#)|url\((?!#)|@import""", svg)


def test_ids_do_not_repeat_from_figure_to_figure():
    ids = [identifier for name in FIGURES for identifier in set(re.findall(r'\bid="([^"]+)"', draw(name)))]

    assert len(ids) == len(set(ids))


def test_axes_and_lines_are_named():
    assert {"score (0: like everybody, 1: the same picture)", "threshold 0.710"} <= set(texts(draw("score")))
    assert {"p-value", "α = 0.05", "if nothing were copied"} <= set(texts(draw("p-values")))
    assert {"FDR line, q = 0.05", "rank, as a share of the set"} <= set(texts(draw("sorted")))
    assert {"images drawn", "training images matched"} <= set(texts(draw("accumulation")))


def test_reconstructions_are_named_in_place_of_validation_images():
    histogram = figures.score_histogram([0, 0.5, 1], [5, 9], [3, 4], calibration="reconstructed")
    curve = figures.accumulation_curve([10, 20], [4, 7], [1, 2], "reconstructed")

    assert "reconstructed → training" in texts(histogram)
    assert "reconstructed images" in texts(curve)
    assert "validation" not in histogram + curve


def test_what_is_not_known_is_not_drawn():
    svg = figures.score_histogram([0, 0.5, 1], [5, 9], [3, 4])

    assert not any("threshold" in text or "τ" in text for text in texts(svg))


def test_sets_of_different_size_are_drawn_as_shares():
    few = figures.score_histogram([0, 0.5, 1], [1, 3], [1, 3])
    many = figures.score_histogram([0, 0.5, 1], [1, 3], [1000, 3000])

    assert few == many


@pytest.mark.parametrize("n_bins", [1, 3, 6, 15, 70])
def test_label_of_each_tick_is_the_share_at_its_height(n_bins):
    edges, counts = [i / n_bins for i in range(n_bins + 1)], [1] * n_bins
    audit = figures.ScoreHistogram(edges, counts, counts)
    for svg in (
        figures.score_histogram(edges, counts, counts),
        figures.p_value_histogram(edges, counts),
        figures.two_score_histograms(audit, audit, same_threshold=True),
    ):
        labels = [text for text in ET.fromstring(svg).iter() if (text.text or "").endswith("%")]
        shares = np.array([float(text.text.rstrip("%")) for text in labels])
        heights = np.array([float(text.attrib["y"]) for text in labels])

        assert len(labels) > 3
        assert (heights - heights[0]) / (heights[-1] - heights[0]) == pytest.approx(shares / shares[-1], abs=1e-4)


def test_curves_of_nothing_stand_on_whole_numbers():
    numbers = texts(figures.accumulation_curve([0, 10, 20], [0, 0, 0], [0, 0]))

    assert numbers.count("0") == 2
    assert "1" in numbers


def test_empty_counts_are_drawn():
    assert "<svg" in figures.score_histogram([0, 0.5, 1], [0, 0], [1, 3])


def test_a_single_p_value_is_drawn():
    assert "<svg" in figures.sorted_p_values([0.5], 0.05)
