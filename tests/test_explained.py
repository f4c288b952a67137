# SPDX-License-Identifier: Apache-2.0
"""Whoever reads a page can explain every number on it from the page itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder

import pytest
from report_examples import EXAMPLES
from test_comparison import improved
from test_pages import VOID

from monai_memorization.reporting.glossary import read_glossary
from monai_memorization.reporting.pages import write_comparison_page, write_report_page
from monai_memorization.reporting.templating import environment
from monai_memorization.statistics.power import FAMILIES

COMPARED = ("copies_found", "labels_on_reconstructions")


class Tree(HTMLParser):
    """The elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._builder = TreeBuilder()
        self.feed(text)
        self.close()
        self.root: Element = self._builder.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in VOID:
            self._builder.end(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            self._builder.end(tag)

    def handle_data(self, data: str) -> None:
        self._builder.data(data)


def said(element: Element) -> str:
    return " ".join(" ".join(element.itertext()).split())


def having(root: Element, tag: str, *names: str) -> list[Element]:
    return [element for element in root.iter(tag) if set(names) <= set(element.get("class", "").split())]


def is_linked(element: Element) -> bool:
    return bool(having(element, "a", "term"))


def sections(root: Element) -> Iterator[Element]:
    return (section for section in root.iter("section") if section.get("aria-labelledby") != "glossary")


@pytest.fixture(
    scope="module",
    params=[*(("report", name) for name in EXAMPLES if name != "hostile"), *(("compare", name) for name in COMPARED)],
    ids="-".join,
)
def page(request, tmp_path_factory) -> Element:
    kind, name = request.param
    path: Path = tmp_path_factory.mktemp(name) / "page.html"
    if kind == "report":
        write_report_page(EXAMPLES[name](), path)
    else:
        write_comparison_page(EXAMPLES[name](), improved(), path)
    return Tree(path.read_text(encoding="utf-8")).root


def test_every_quantity_has_a_line_of_its_own(page):
    lines = [said(having(row, "p", "explained")[0]) for div in having(page, "div", "quantities") for row in rows(div)]

    assert len(lines) > 10
    assert min(len(line.split()) for line in lines) >= 5
    assert len(set(lines)) == len(lines)


def rows(table: Element) -> list[Element]:
    return [row for body in table.iter("tbody") for row in body.iter("tr")]


def test_every_key_number_leads_to_the_glossary(page):
    assert all(is_linked(tile) for key in having(page, "dl", "key") for tile in key)


def test_every_fact_is_explained(page):
    for section in sections(page):
        before = None
        for element in section.iter():
            if element.tag == "dl" and "listed" in element.get("class", "").split():
                assert before is not None
                assert "explained" in before.get("class", "")
            elif element.tag == "dl" and "facts" in element.get("class", "").split():
                for name in element.iter("dt"):
                    assert name.find("small") is not None or is_linked(name), said(name)
            if element.tag in ("p", "dl"):
                before = element


def test_every_column_is_explained_where_it_stands(page):
    for section in sections(page):
        prose = " ".join(said(p) for p in section.iter("p")).lower()
        for table in section.iter("table"):
            for head in table.iter("th"):
                if head.get("scope") == "col" and said(head) not in ("", "Quantity", "Value", "Before", "After"):
                    assert is_linked(head) or said(head).split(",")[0].lower() in prose, said(head)


def test_every_strength_says_what_it_is(page):
    (table,) = having(page, "table", "recall") or [Element("table")]
    names = {said(row.find("th")): row for row in rows(table) if "group" not in row.get("class", "")}

    for name, row in names.items():
        assert row.find("th/small") is not None, name
    assert not names or len(names) >= len({family.name for family in FAMILIES})


def test_every_line_of_a_figure_is_in_its_caption(page):
    for figure in page.iter("figure"):
        (caption,) = (said(element) for element in figure.iter("figcaption"))
        drawn = " ".join(said(text) for svg in figure.iter("svg") for text in svg.iter("text"))
        for mark in ("α", "τ", "q", "threshold", "share of the set"):
            if re.search(rf"\b{mark}\b", drawn):
                assert re.search(rf"\b{mark}\b", caption.lower()), (mark, caption)


def test_every_term_leads_to_the_glossary_somewhere(page):
    text = " ".join(said(section) for section in sections(page))
    links = {link.get("href") for link in having(page, "a", "term")}

    for term in read_glossary().values():
        if re.search(rf"\b{re.escape(term.term)}\b", text):
            assert f"#{term.anchor}" in links, term.term
    assert "#term-confidence-interval" in links


@pytest.mark.parametrize("text", ["Of the copies planted to test", "Of planted copies altered"])
def test_planted_copies_are_not_taken_for_confirmed_ones(text):
    assert re.findall(r'href="#([\w-]+)"', environment().filters["linked"](text)) == ["term-planted-copy"]


def test_what_another_program_wrote_is_escaped_before_it_is_linked():
    linked = environment().filters["linked"]('<b title="alpha">alpha</b>')

    assert "<b" not in linked
    assert linked.count("<a ") == 1
