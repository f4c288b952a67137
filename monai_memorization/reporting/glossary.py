# SPDX-License-Identifier: Apache-2.0
"""The glossary that the report, the gallery and the documentation share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml


@dataclass(frozen=True)
class Term:
    """One word with one meaning.

    Args:
        term: The word as prose writes it.
        plain: What it means to the person who decides about a synthetic set.
        exact: What it means to an engineer: symbols, formula, source.
        keys: Where the value stands in `report.json` or `pairs.csv`.
    """

    term: str
    plain: str
    exact: str
    keys: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """The id of its entry in a page."""
        return "term-" + self.term.replace(" ", "-")


@cache
def read_glossary() -> dict[str, Term]:
    """Read all terms, by their word, in the order in which a reader meets them."""
    text = resources.files(__package__).joinpath("templates", "glossary.yaml").read_text(encoding="utf-8")
    terms = [Term(**{**entry, "keys": tuple(entry.get("keys", ()))}) for entry in yaml.safe_load(text)]
    return {term.term: term for term in terms}


def glossary_markdown() -> str:
    """Return the text of `docs/glossary.md`."""
    head = "# Glossary\n\nOne word, one meaning: here, in the code, in the records and on the pages of the report.\n"
    return head + "".join(_entry(term) for term in read_glossary().values())


def _entry(term: Term) -> str:
    keys = f"\nIn the records: {', '.join(f'`{key}`' for key in term.keys)}.\n" if term.keys else ""
    return f"\n## {term.term}\n\n{term.plain}\n\nExactly: {term.exact}\n{keys}"
