# SPDX-License-Identifier: Apache-2.0
"""How the pages are filled in: every value escaped, a missing one never an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

from jinja2 import ChainableUndefined, Environment, PackageLoader
from markupsafe import Markup, escape

from monai_memorization.reporting import formats
from monai_memorization.reporting.formats import NO_BREAK
from monai_memorization.reporting.glossary import read_glossary

_FORMATS = (
    formats.count,
    formats.decimal,
    formats.decimal_interval,
    formats.duration,
    formats.moment,
    formats.odds,
    formats.p_value,
    formats.percent,
    formats.percent_interval,
    formats.plain,
    formats.correlation,
    formats.size,
    formats.words,
)


# words of sentences that the code writes, and the word of the glossary that explains each
LINKED = {
    "copies planted": "planted copy",
    "planted copies": "planted copy",
    "95 % interval": "confidence interval",
    "FDR list": "FDR list",
    "copy rate": "copy rate",
    "false-alarm rate": "false-alarm rate",
    "p-value": "p-value",
    "alpha": "alpha",
    "AUC": "gap AUC",
    "planted": "planted copy",
    "honest": "honest image",
    "copies": "copy",
    "label": "label",
    "null rate": "null rate",
}


@cache
def environment() -> Environment:
    """Return the environment of all templates; the formats of numbers are its filters."""
    filled = Environment(
        loader=PackageLoader("monai_memorization.reporting"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filled.globals |= {"glossary": read_glossary(), "say": formats.say}
    filled.filters |= {function.__name__: function for function in _FORMATS}
    filled.filters |= {"code": _code, "entries": _entries, "linked": _linked, "tint": _tint}
    return filled


def _code(text: str) -> Markup:
    """Set what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _linked(text: str) -> Markup:
    """Link the words of `LINKED` to the glossary, each where it stands first."""
    html, glossary = str(escape(text)), read_glossary()
    seen: set[str] = set()

    def link(found: re.Match[str]) -> str:
        word = found[0].replace(NO_BREAK, " ")
        if word in seen:
            return found[0]
        seen.add(word)
        term = glossary[LINKED[word]]
        return f'<a class="term" href="#{term.anchor}" title="{escape(term.plain)}">{found[0]}</a>'

    words = "|".join(re.escape(word).replace("\\ ", f"[ {NO_BREAK}]") for word in LINKED)
    return Markup(re.sub(rf"\b(?:{words})\b", link, html))


def _entries(mapping: object) -> Iterable[tuple[object, object]]:
    return mapping.items() if isinstance(mapping, Mapping) else ()


def _tint(recall: object) -> str:
    """Shade a cell by its recall, white at 0."""
    return f"rgb(0 114 178 / {0.4 * recall:.2f})" if isinstance(recall, (int, float)) else "none"
