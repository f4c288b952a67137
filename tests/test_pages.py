# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import copy
import hashlib
import html
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from report_examples import (
    EXAMPLES,
    HOSTILE,
    all_null,
    copies_found,
    few_patients,
    gap_not_measured,
    labels_on_reconstructions,
    no_copies_found,
    released,
    unknown_patients,
)

from monai_memorization.errors import InputError
from monai_memorization.reporting.pages import GalleryPair, write_gallery_page, write_report_page

VOID = {"meta", "link", "img", "br", "hr", "input", "path", "use", "rect", "line"}


class Page(HTMLParser):
    """Text, ids, links and requests of a page; fails on an element that is not closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in ("src", "href", "xlink:href", "data", "action", "srcset", "poster"):
                self.sources.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def written(report: dict[str, Any], folder: Path) -> str:
    write_report_page(report, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def without_figures(report: dict[str, Any]) -> dict[str, Any]:
    return {**report, "distributions": None}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: written(example(), tmp_path_factory.mktemp(name)) for name, example in EXAMPLES.items()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_page_is_well_formed_and_its_links_lead_somewhere(name, pages):
    page = Page(pages[name])

    assert len(page.ids) == len(set(page.ids))
    inner = [link[1:] for link in page.links if link.startswith("#")]
    assert len(inner) > 30
    assert set(inner) <= set(page.ids)


@pytest.mark.parametrize("name", EXAMPLES)
def test_page_asks_for_nothing_from_outside(name, pages):
    page = Page(pages[name])

    assert {source for source in page.sources if not source.startswith(("#", "data:"))} == set()
    assert "default-src 'none'" in pages[name]
    assert "<script" not in pages[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_there_is_a_space_between_sentences(name, pages):
    assert [words for words in Page(pages[name]).words if re.search(r"[a-z)][.!?][A-Z]", words)] == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_value_of_the_program_shows_through(name, pages):
    page = Page(pages[name])

    assert not {"None", "nan", "True", "False"} & {word.strip(" ,;:.") for word in page.words}
    assert not re.search(r"\bNone\b|\bnan\b|undefined|Undefined|[{}]", page.text)


def test_same_report_gives_the_same_page(tmp_path):
    assert written(copies_found(), tmp_path / "a") == written(copies_found(), tmp_path / "b")


def test_report_is_not_changed(tmp_path):
    report = copies_found()
    before = copy.deepcopy(report)

    written(report, tmp_path)

    assert report == before


def test_reader_meets_the_verdict_first_and_the_glossary_last(pages):
    order = re.findall(r'<h2 id="([\w-]+)">', pages["copies_found"])

    assert order[:5] == ["verdict", "counts", "scores", "p-values", "power"]
    assert order[-3:] == ["limits", "audited", "glossary"]
    assert order.index("counts") < order.index("paper")
    assert "not a privacy guarantee" in pages["copies_found"].split('id="counts"')[0]


@pytest.mark.parametrize(
    ("name", "label"),
    [("copies_found", "Copies found"), ("no_copies_found", "No copies found"), ("few_patients", "Inconclusive")],
)
def test_verdict_is_named_and_coloured(name, label, pages):
    assert f'<section class="verdict {EXAMPLES[name]()["verdict"]["status"]}"' in pages[name]
    assert f'<h2 id="verdict">{label}</h2>' in pages[name]


def test_counts_stand_beside_what_chance_explains(tmp_path):
    report = without_figures(copies_found())
    report["calibrated"] |= {
        "n_copies": 652,
        "flagged_rate": 0.652,
        "expected_false_copies": 17.8,
        "n_mem": 120,
        "n_mem_expected_false": 17.8,
    }
    report["paper_protocol"] |= {"n_mem": 200, "mem_rate": 0.78125, "mem_null_rate": 0.185}

    text = Page(written(report, tmp_path)).text.replace("\N{NO-BREAK SPACE}", " ")

    assert "652 of 1,000 (65 %) 18 expected to be false" in text
    assert "120 of 256 18 expected from false alarms" in text
    assert re.search(r"200 of 256 \(78 %\) 18 %", text)


def test_only_a_clean_verdict_says_what_would_have_been_noticed(tmp_path):
    report = without_figures(no_copies_found())
    report["verdict"]["noticeable_rate"] = 0.0213
    assert Page(written(report, tmp_path)).text.count("2.1 %") == 2

    report["verdict"] |= {"status": "inconclusive", "reasons": ["synthetic_differs"]}
    assert "2.1 %" not in Page(written(report, tmp_path)).text


def test_clean_verdict_says_which_conditions_it_met(tmp_path):
    report = without_figures(no_copies_found())
    report["power_summary"]["working_recall"], report["controls"]["gap_auc"] = 0.93, 0.71
    text = Page(written(report, tmp_path)).text.replace("\N{NO-BREAK SPACE}", " ")

    assert "400 validation patients (at least 19 needed); 93 % of planted copies found (at least 80 % needed)" in text
    assert "a gap AUC of 0.71 (at most 0.90 allowed)" in text
    report["verdict"] |= {"status": "inconclusive", "reasons": ["synthetic_differs"]}
    assert "Nothing points to copies" not in Page(written(report, tmp_path)).text


def said(report: dict[str, Any], folder: Path) -> str:
    return Page(written(report, folder)).text.replace("\N{NO-BREAK SPACE}", " ")


def test_leaks_that_were_looked_for_read_none(tmp_path):
    text = said(without_figures(copies_found()), tmp_path)

    assert "Images in both sets none Patients in both sets none Training images that repeat another none" in text


def test_leaks_that_could_not_be_looked_for_say_so(tmp_path):
    text = said(without_figures(unknown_patients()), tmp_path)

    assert "Images in both sets 2 Patients in both sets not known could not be looked for" in text
    assert "Training images that repeat another 5 One of the same patient not known patients of the training" in text


def test_leaks_are_said_beside_the_verdict_with_what_to_do(tmp_path):
    text = said(without_figures(unknown_patients()), tmp_path)

    assert "agree pixel by pixel with a training image: 2. They make copies look ordinary" in text
    assert "repeat another one, pixel by pixel: 5. What a generator sees twice" in text
    assert "leaks.csv" not in said(without_figures(copies_found()), tmp_path).split("Glossary")[0]


def test_audit_on_reconstructions_says_so_wherever_it_speaks_of_them(tmp_path):
    text = said(labels_on_reconstructions(), tmp_path)

    assert "Measured against 298 reconstructed real images of other patients" in text
    assert "298 reconstructed validation images of 298 patients show" in text
    assert "298 reconstructed validation images: how similar the reconstruction of a real image" in text
    assert "reconstructed → training" in text
    assert "validation → training" not in text
    assert "even reconstructed real images of other patients (blue)" in text
    assert "Gap between synthetic and reconstructed validation images" in text
    assert "nearest of 300 validation images" in text  # the paper protocol knows no reconstructions
    assert re.search(r"Reconstructed training 100 90 .*Validation 300 300 .*Reconstructed validation 298 298 ", text)
    assert "Autoencoder passes through the generator's own" in text


def test_audit_without_reconstructions_does_not_speak_of_them(tmp_path):
    text = said(copies_found(), tmp_path).rsplit("Glossary", 1)[0]

    assert "validation → training" in text
    offered = ("reconstructions to calibrate on", "--reconstructed-training")
    assert "reconstructed" not in re.sub("|".join(offered), "", text.lower())


def test_labels_are_listed_with_what_they_allow(tmp_path):
    text = said(without_figures(labels_on_reconstructions()), tmp_path)

    assert "p-values were taken within label" in text
    assert "ill 12 12 400 0.077 none: too few patients" in text
    assert "well 286 286 600 0.0035 0.735" in text
    assert "not measured it differs by label" in text


def test_without_labels_no_table_of_labels(pages):
    assert "within label" not in Page(pages["copies_found"]).text.split("Glossary")[1]
    assert 'class="labels"' not in pages["copies_found"]


def test_gap_that_was_not_measured_says_why(tmp_path):
    text = said(without_figures(gap_not_measured()), tmp_path)

    assert "Gap between synthetic and validation images" in text
    assert "not measured the classifier needs 10 validation patients and synthetic images, found 300 and 8" in text


def test_files_that_were_left_out_are_counted(tmp_path):
    report = without_figures(copies_found())
    report["sets"]["training"] |= {"n_images": 256, "n_patients": 230, "n_unreadable": 3, "n_ignored": 2}

    text = said(report, tmp_path)

    assert "Training 256 230 3 2 0 0" in text
    assert "Validation 300 300 0 given as a list 0 0" in text


def test_intensities_that_were_cut_off_are_said(tmp_path):
    report = copies_found()
    report["encoder"]["clip"] = [-1000.0, 400.0]

    assert "Intensities cut off at before they are scaled −1000 and 400" in said(report, tmp_path)
    assert "cut off at" not in said(copies_found(), tmp_path)


def test_recall_below_the_one_needed_does_not_read_like_it(tmp_path):
    report = without_figures(copies_found())
    report["power_summary"] |= {"seen": 0.95, "unseen": 0.797, "working_recall": 0.797}

    text = said(report, tmp_path)

    assert text.count("79.7 %") >= 3
    assert text.count("below 80 % there is no clean verdict") == 1


def test_weaknesses_of_the_paper_protocol_are_said_as_they_are(tmp_path):
    many, few = copies_found(), copies_found()
    few["sets"]["synthetic"]["n_images"] = 20

    assert "the mean over all ways to draw them" in said(without_figures(many), tmp_path)
    assert "mean of 100 draws" in said(without_figures(few), tmp_path).rsplit("Glossary", 1)[0]
    assert "mean of 100 draws" not in said(without_figures(many), tmp_path).rsplit("Glossary", 1)[0]
    assert "a guide to its size, not a bound" in said(without_figures(many), tmp_path)


def test_null_reads_not_measured_and_says_why(pages):
    text = Page(pages["all_null"]).text

    assert text.count("not measured") > 20
    assert "not measured this control was not run" in text
    assert "not measured no copies were planted, so it is not known what this audit overlooks" in text
    assert "not known to the audit" in text


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, dict):
            yield from leaves(inner, (*path, key))


NEEDED = {("calibrated",), ("calibrated", "alpha"), ("calibrated", "strata"), ("sets",)}
NEEDED |= {("verdict",), ("verdict", "status")}
NEEDED |= {("sets", role, *more) for role in ("training", "validation", "synthetic") for more in ((), ("n_images",))}


@pytest.mark.parametrize("example", [copies_found, no_copies_found, few_patients], ids=lambda example: example.__name__)
def test_any_value_may_be_null_or_absent(example, tmp_path):
    for path in set(leaves(without_figures(example()))) - NEEDED:
        for absent in (False, True):
            report = without_figures(example())
            holder = report
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = None
            if absent:
                del holder[path[-1]]
            assert not re.search(r"\bNone\b|\bnan\b", Page(written(report, tmp_path)).text), path


def test_further_keys_are_no_error(tmp_path):
    report = without_figures(copies_found())
    for section in ("calibrated", "sets", "controls", "provenance", "encoder", "verdict"):
        report[section]["a_later_key"] = {"nested": [1, None]}
    report["a_later_section"] = [1, 2]

    assert "Copies found" in written(report, tmp_path)


def test_strings_of_other_programs_are_escaped(pages):
    assert HOSTILE not in pages["hostile"]
    assert "<img" not in pages["hostile"]
    assert html.escape(HOSTILE, quote=True).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in pages["hostile"]


def test_recalls_of_seen_and_unseen_families_stand_apart(tmp_path):
    report = all_null()
    report["power"] = [
        {"family": "blur", "strength": 0.02, "n": 25, "recall": 0.96, "seen_in_training": True},
        {"family": "elastic", "strength": "strong", "n": 20, "recall": None, "seen_in_training": False},
    ]
    report["power"].append(
        {"family": "splice", "strength": 0.25, "recall": 0.1, "seen_in_training": False, "whole": False}
    )
    report["power_summary"] = {"seen": 0.96, "unseen": 0.5, "working_recall": 0.5, "partial": 0.1}

    text = Page(written(report, tmp_path)).text.replace("\N{NO-BREAK SPACE}", " ")

    assert "20 to 25 planted of each" in text
    assert "Alterations that the encoder saw in training: mean 96 % Blur standard deviation, as a share of" in text
    assert "of the shorter side 96 % 0.02" in text
    assert (
        "Alterations that it never saw: mean 50 % Elastic shift, as a share of the shorter side not measured strong"
        in text
    )
    assert "Partial copies, which the verdict leaves out: mean 10 % Splice" in text


def test_page_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "report.html").mkdir()

    with pytest.raises(InputError, match=r"report\.html: cannot be written"):
        write_report_page(without_figures(copies_found()), tmp_path / "report.html")


# --- gallery ---


def pair(name: str, score: float, **changes: Any) -> GalleryPair:
    image = torch.linspace(0, 1, 12).reshape(1, 3, 4)
    return GalleryPair(
        **{
            "synthetic_id": f"{name}.png",
            "training_id": f"training/{name}.png",
            "training_patient_id": f"patient-{name}",
            "score": score,
            "p_value": 1 / 61,
            "copy_candidate": True,
            "in_fdr_list": False,
            "near_identical": False,
            "synthetic": image,
            "training": image.flip(2),
            **changes,
        }
    )


def gallery(pairs: list[GalleryPair], folder: Path) -> str:
    write_gallery_page(pairs, folder / "gallery.html")
    return (folder / "gallery.html").read_text(encoding="utf-8")


def test_gallery_says_first_that_it_holds_patient_data(tmp_path):
    assert (
        Page(gallery([pair("a", 0.9)], tmp_path))
        .text.split("Pairs to look at (patient data)")[1]
        .startswith(" Contains patient data.")
    )


def test_most_similar_pair_comes_first(tmp_path):
    text = Page(gallery([pair("a", 0.5), pair("b", 0.99), pair("c", 0.7)], tmp_path)).text

    assert text.index("b.png") < text.index("c.png") < text.index("a.png")


def test_order_of_the_pairs_does_not_matter(tmp_path):
    pairs = [pair("a", 0.5), pair("b", 0.5), pair("c", 0.7)]

    assert gallery(pairs, tmp_path) == gallery(pairs[::-1], tmp_path)


def test_score_and_p_value_are_said_in_words(tmp_path):
    text = Page(gallery([pair("a", 0.98765)], tmp_path)).text

    assert "Score 0.988. Of honest images about 1 in 61 would come this close to a training image by chance" in text


def test_gallery_defines_copy_candidate_and_copy(tmp_path):
    text = Page(gallery([pair("a", 0.9)], tmp_path)).text

    assert "A copy candidate is flagged by the machine" in text
    assert "becomes a copy when a person confirms it" in text


def test_other_pairs_have_another_place_for_decisions(tmp_path):
    def key(pairs: list[GalleryPair]) -> str:
        return re.search(r'data-content="(\w+)"', gallery(pairs, tmp_path))[1]

    assert key([pair("a", 0.9)]) == key([pair("a", 0.9)])
    assert len({key([pair("a", 0.9)]), key([pair("b", 0.9)]), key([pair("a", 0.8)]), key([])}) == 4


def test_only_our_own_script_may_run(tmp_path):
    text = gallery([pair("a", 0.9)], tmp_path)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()

    assert len(scripts) == 1
    assert f"script-src 'sha256-{allowed}'" in html.unescape(text)
    assert {source for source in Page(text).sources if not source.startswith("data:")} == set()


@pytest.mark.parametrize(("shape", "n_pictures"), [((1, 6, 6), 3), ((3, 6, 6), 3), ((1, 4, 5, 6), 9), ((2, 6, 6), 6)])
def test_grey_coloured_and_volume_pairs_are_shown(shape, n_pictures, tmp_path):
    text = gallery([pair("a", 0.9, synthetic=torch.rand(shape), training=torch.rand(shape))], tmp_path)

    assert text.count('src="data:image/png;base64,') == n_pictures


def test_gallery_without_pairs_says_so(tmp_path):
    text = Page(gallery([], tmp_path)).text

    assert "0 pairs to look at" in text
    assert "No pairs to show here." in text


def test_page_of_a_release_says_what_the_filter_may_have_left(tmp_path):
    text = Page(written(released(), tmp_path)).text

    assert "of 610 images drawn, 412 passed another detector" in text
    assert "3.2 %" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "What the filter may have left" not in Page(written(no_copies_found(), tmp_path)).text


def test_page_of_a_release_is_worded_for_one(tmp_path):
    stopped = copies_found() | {"release": released()["release"]}
    stopped["provenance"]["settings"]["encoder_of_other_images"] = True

    text = Page(written(stopped, tmp_path)).text

    assert "Release audit: copies found" in text
    assert "Release audit of 1,000 synthetic images A filter let them pass, of 610 images drawn." in text
    assert "Where it did not, nothing was handed out" in text
    assert "Draw from an earlier model of the same training, or train anew" in text
    assert "Leave --judge out" in text
    assert "monai-memorization release" not in text


@pytest.mark.parametrize("name", EXAMPLES)
def test_link_bar_leads_to_every_section(name, pages):
    bar = re.search(r'<nav aria-label="Contents">(.*?)</nav>', pages[name], re.DOTALL)[1]

    assert re.findall(r'href="#([\w-]+)"', bar) == re.findall(r'<h2 id="([\w-]+)">', pages[name])[1:]


def test_limits_name_the_parts_that_are_looked_for_and_those_that_are_not(pages):
    text = Page(pages["no_copies_found"]).text.split("What this audit cannot see")[1]

    assert "of the whole image, and of a half or a quarter of it in the same place. A smaller detail" in text
    assert "a part that was moved or turned, may go unseen" in text


def test_page_of_copies_names_the_page_with_remedies(tmp_path):
    assert "docs/copies_found.md" in Page(written(copies_found(), tmp_path)).text
    assert (Path(__file__).parent.parent / "docs" / "copies_found.md").is_file()
