# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

from report_examples import EXAMPLES

from monai_memorization.reporting.glossary import glossary_markdown, read_glossary

PAGE = Path(__file__).parent.parent / "docs" / "glossary.md"


def test_documentation_shows_the_glossary_of_the_report():
    assert PAGE.read_text(encoding="utf-8") == glossary_markdown(), "write glossary_markdown() to docs/glossary.md"


def test_each_term_is_defined_once_and_for_both_audiences():
    anchors = [term.anchor for term in read_glossary().values()]

    assert len(set(anchors)) == len(anchors)
    for term in read_glossary().values():
        assert len(term.plain) > 20, term.term
        assert term.exact, term.term


def test_plain_definitions_need_no_formula():
    for term in read_glossary().values():
        assert not re.search(r"[=<>≤≥_]|\bmax\b", term.plain), term.term


def test_every_number_of_the_fixed_keys_is_explained():
    explained = {key for term in read_glossary().values() for key in term.keys}
    report = EXAMPLES["copies_found"]()
    for section in ("paper_protocol", "calibrated", "controls"):
        for key in report[section]:
            name = f"{section}.{key}"
            assert name in explained or key in ("n_mem", "mem_rate", "n_copies", "copy_rate", "mem_null_rate"), name
