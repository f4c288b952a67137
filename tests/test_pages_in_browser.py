# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from report_examples import EXAMPLES, HOSTILE

from monai_memorization.reporting.pages import (
    GalleryPair,
    write_comparison_page,
    write_gallery_page,
    write_report_page,
)

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine"
)

ARGUMENTS = [
    "--no-sandbox",  # Chromium refuses to run as root with it
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# how large and where the text of the figures is, in pixels of the screen
FIGURE_TEXTS = """() => [...document.querySelectorAll("figure svg text")].map(text => {
    const svg = text.closest("svg"), inner = text.getBoundingClientRect(), outer = svg.getBoundingClientRect();
    const scale = outer.width / svg.viewBox.baseVal.width;
    return {
        text: text.textContent,
        size: scale * parseFloat(getComputedStyle(text).fontSize),
        inside: inner.left >= outer.left - 1 && inner.right <= outer.right + 1,
    };
})"""
# the text with the least contrast to its ground, by the formula of WCAG 2
LEAST_CONTRAST = """() => {
    const parse = text => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
    const over = ([r, g, b, a = 1], under) => [r, g, b].map((value, i) => a * value + (1 - a) * under[i]);
    const linear = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const style = getComputedStyle;
    const ground = element =>
        element ? over(parse(style(element).backgroundColor), ground(element.parentElement)) : [255, 255, 255];
    const hasText = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    return [...document.querySelectorAll("body *:not(svg *):not(script):not(style)")].filter(hasText).map(element => {
        const under = ground(element);
        const lights = [light(under), light(over(parse(style(element).color), under))];
        const contrast = (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
        return {contrast, text: element.textContent.trim().slice(0, 40)};
    }).sort((a, b) => a.contrast - b.contrast)[0];
}"""
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 800}
SHOWN = ".pairs > li:not([hidden])"


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser) -> Iterator[playwright.Page]:
    """A page that must stay quiet: no message, no error, no request but for the file itself."""
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    noise: list[str] = []
    page.on("console", lambda message: noise.append(message.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("dialog", lambda dialog: noise.append(dialog.message))
    page.on(
        "request",
        lambda request: noise.append(request.url) if not request.url.startswith(("file:", "data:", "blob:")) else None,
    )
    yield page
    context.close()
    assert noise == []


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("reports")
    for name, example in EXAMPLES.items():
        write_report_page(example(), folder / f"{name}.html")
    return {name: (folder / f"{name}.html").as_uri() for name in EXAMPLES}


def pairs(n: int, **changes: object) -> list[GalleryPair]:
    image = torch.linspace(0, 1, 64 * 64).reshape(1, 64, 64)
    return [
        GalleryPair(
            **{
                "synthetic_id": f"sample_{i:04d}.png",
                "training_id": f"scan-{i}.png",
                "training_patient_id": f"patient-{i}",
                "score": 0.99 - i / 10_000,
                "p_value": 1 / 61,
                "copy_candidate": True,
                "in_fdr_list": True,
                "near_identical": False,
                "synthetic": (image + 0.1 * torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(i))).clamp(
                    0, 1
                ),
                "training": image,
                **changes,
            }
        )
        for i in range(n)
    ]


@pytest.fixture
def gallery(tmp_path) -> str:
    write_gallery_page(pairs(3), tmp_path / "gallery.html")
    return (tmp_path / "gallery.html").as_uri()


def exported(page: playwright.Page, folder: Path) -> list[list[str]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Export decisions").click()
    assert download.value.suggested_filename == "decisions.csv"
    download.value.save_as(folder / "decisions.csv")
    with (folder / "decisions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def decisions(page: playwright.Page) -> list[str | None]:
    return page.locator(".pairs > li").evaluate_all("cards => cards.map(card => card.getAttribute('data-decision'))")


def counters(page: playwright.Page) -> list[str]:
    return [button.inner_text() for button in page.locator(".filters button").all()]


@pytest.mark.parametrize(
    "viewport", [DESKTOP, PHONE, {"width": 360, "height": 640}], ids=["desktop", "phone", "small phone"]
)
@pytest.mark.parametrize("name", EXAMPLES)
def test_report_fits_the_screen(name, viewport, reports, page):
    page.set_viewport_size(viewport)
    page.goto(reports[name])

    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert page.locator("h2#verdict").is_visible()


@pytest.mark.parametrize(
    "viewport", [DESKTOP, PHONE, {"width": 360, "height": 640}], ids=["desktop", "phone", "small phone"]
)
@pytest.mark.parametrize("names", [("copies_found", "hostile"), ("labels_on_reconstructions", "all_null")])
def test_comparison_fits_the_screen_and_can_be_read(names, viewport, page, tmp_path):
    write_comparison_page(*(EXAMPLES[name]() for name in names), tmp_path / "compare.html")
    page.set_viewport_size(viewport)
    page.goto((tmp_path / "compare.html").as_uri())

    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert page.evaluate(LEAST_CONTRAST)["contrast"] >= 4.5
    assert [text for text in page.evaluate(FIGURE_TEXTS) if not text["inside"] or text["size"] < 10] == []
    assert page.title() == "Two memorization audits compared"


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_text_of_the_figures_stays_inside_and_readable(viewport, reports, page):
    page.set_viewport_size(viewport)
    page.goto(reports["copies_found"])
    texts = page.evaluate(FIGURE_TEXTS)

    assert len(texts) > 40
    assert [text for text in texts if not text["inside"]] == []
    assert min(text["size"] for text in texts) >= 10


def test_hostile_strings_do_nothing_in_the_report(reports, page):
    page.goto(reports["hostile"])

    assert page.title() == "Memorization audit: copies found"
    assert page.locator("img").count() == 0
    assert HOSTILE in page.locator("main").inner_text()


def test_terms_lead_to_the_glossary_with_the_keyboard(reports, page):
    page.goto(reports["copies_found"])
    page.locator("a.term", has_text="copy candidates").first.focus()
    page.keyboard.press("Enter")

    page.wait_for_url(lambda url: url.endswith("#term-copy-candidate"))  # the browser tells of it a moment later
    assert page.locator("#term-copy-candidate").is_visible()
    assert page.locator("a.term").first.get_attribute("title")


def test_text_has_enough_contrast(reports, gallery, page):
    for uri in (reports["copies_found"], reports["few_patients"], reports["no_copies_found"], gallery):
        page.goto(uri)
        worst = page.evaluate(LEAST_CONTRAST)
        assert worst["contrast"] >= 4.5, worst


def test_report_prints_on_a4_with_its_colours(reports, page, tmp_path):
    page.goto(reports["copies_found"])
    pdf = page.pdf(prefer_css_page_size=True)

    assert pdf.startswith(b"%PDF")
    assert b"/MediaBox [0 0 594.9" in pdf or b"/MediaBox [0 0 595" in pdf
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 673, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 673
    assert not page.locator("nav").is_visible()


def test_decisions_by_mouse_are_counted_and_exported(gallery, page, tmp_path):
    page.goto(gallery)
    cards = page.locator(".pairs > li")
    cards.nth(0).get_by_role("button", name="Confirm: copy").click()
    cards.nth(2).get_by_role("button", name="Reject: not a copy").click()

    assert counters(page) == ["All 3", "Undecided 1", "Confirmed 1", "Rejected 1", "Unsure 0"]
    assert page.get_by_role("status").inner_text() == "2 of 3 pairs decided"
    assert exported(page, tmp_path) == [
        ["synthetic_id", "training_id", "score", "p_value", "decision"],
        ["sample_0000.png", "scan-0.png", "0.990000", "0.016393", "confirmed"],
        ["sample_0001.png", "scan-1.png", "0.989900", "0.016393", "undecided"],
        ["sample_0002.png", "scan-2.png", "0.989800", "0.016393", "rejected"],
    ]


def test_decisions_survive_closing_and_belong_to_these_pairs(gallery, page, tmp_path):
    page.goto(gallery)
    page.locator(".pairs > li").nth(1).get_by_role("button", name="Unsure").click()
    page.reload()

    assert decisions(page) == [None, "unsure", None]
    assert (
        page.locator(".pairs > li").nth(1).get_by_role("button", name="Unsure").get_attribute("aria-pressed") == "true"
    )

    write_gallery_page(pairs(3, p_value=0.5), tmp_path / "gallery.html")
    page.reload()
    assert decisions(page) == [None, None, None]


def test_a_second_press_takes_a_decision_back(gallery, page):
    page.goto(gallery)
    button = page.locator(".pairs > li").nth(0).get_by_role("button", name="Confirm: copy")
    button.click()
    button.click()
    page.reload()

    assert decisions(page) == [None, None, None]
    assert button.get_attribute("aria-pressed") == "false"


def test_keys_walk_and_decide(gallery, page):
    page.goto(gallery)
    for key in ("j", "c", "r", "k", "u", "ArrowLeft", "ArrowLeft", "r"):
        page.keyboard.press(key)

    # c decides the first and goes on, r the second; back to it, u takes its place; back to the first, which r changes
    assert decisions(page) == ["rejected", "unsure", None]
    assert page.locator(".pairs > li.current").get_attribute("aria-label") == "Pair 2"


def test_keys_with_control_are_the_browsers_own(gallery, page):
    page.goto(gallery)
    page.keyboard.press("j")
    page.keyboard.press("Control+c")

    assert decisions(page) == [None, None, None]


def test_filters_show_what_they_say(gallery, page):
    page.goto(gallery)
    page.keyboard.press("j")
    page.keyboard.press("c")

    page.get_by_role("button", name="Confirmed").click()
    assert page.locator(SHOWN).count() == 1
    page.get_by_role("button", name="Undecided").click()
    assert page.locator(SHOWN).count() == 2
    page.get_by_role("button", name="Rejected").click()
    assert page.locator(SHOWN).count() == 0
    assert page.get_by_text("No pairs to show here.").is_visible()
    page.get_by_role("button", name="All").click()
    assert page.locator(SHOWN).count() == 3


def test_deciding_the_undecided_walks_through_them(gallery, page):
    page.goto(gallery)
    page.get_by_role("button", name="Undecided").click()
    page.locator("body").press("j")
    for key in "cru":
        page.keyboard.press(key)

    assert decisions(page) == ["confirmed", "rejected", "unsure"]
    assert page.locator(SHOWN).count() == 0


def test_hostile_file_names_do_nothing_and_come_back_unchanged(page, tmp_path):
    names = [HOSTILE, 'a,"b"\n<b>.png', "</li></ol><script>document.title='owned'</script>", "javascript:alert(1)"]
    images = [
        pairs(1, synthetic_id=name, training_id=name + "t", training_patient_id=name, score=0.9 - i / 10)[0]
        for i, name in enumerate(names)
    ]
    write_gallery_page(images, tmp_path / "gallery.html")
    page.goto((tmp_path / "gallery.html").as_uri())
    rows = exported(page, tmp_path)

    assert page.title() == "Pairs to look at (patient data)"
    assert page.locator("b").count() == 0
    assert page.locator("img").count() == 3 * len(names)
    assert [row[0] for row in rows[1:]] == names
    assert [row[1] for row in rows[1:]] == [name + "t" for name in names]


def test_pictures_are_shown(gallery, page):
    page.goto(gallery)
    page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    sizes = page.evaluate("[...document.images].map(image => [image.naturalWidth, image.naturalHeight])")

    assert sizes == [[64, 64]] * 9
    assert page.locator(".pairs img").first.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"


def walked(page) -> list[str]:
    """How far the pictures of the first pair are moved up, in slices."""
    return page.evaluate(
        """() => [...document.querySelectorAll(".pairs > li:first-child img")].map(image => {
            const top = image.parentElement.getBoundingClientRect().top - image.getBoundingClientRect().top;
            return Math.round(top / image.parentElement.getBoundingClientRect().height);
        })"""
    )


def test_slices_of_volumes_are_walked_with_keys_and_slider(page, tmp_path):
    volumes = {"synthetic": torch.rand(1, 6, 8, 10), "training": torch.rand(1, 6, 8, 10)}
    write_gallery_page(pairs(2, **volumes), tmp_path / "gallery.html")
    page.goto((tmp_path / "gallery.html").as_uri())
    page.evaluate("Promise.all([...document.images].map(image => image.decode()))")

    assert walked(page) == [3] * 3 + [4] * 3 + [2] * 3  # five of the ten slices across the last axis are shown
    page.keyboard.press("j")
    page.keyboard.press("ArrowUp")
    assert walked(page) == [4] * 3 + [5] * 3 + [3] * 3
    for _ in range(9):
        page.keyboard.press("ArrowDown")
    assert walked(page) == [0] * 9
    page.locator(".walk input").first.fill("1")
    assert walked(page) == [5] * 3 + [7] * 3 + [4] * 3
    assert decisions(page) == [None, None]


def test_gallery_fits_a_phone(page, tmp_path):
    write_gallery_page(pairs(2, synthetic_id="x" * 300, training_id="y/" * 100), tmp_path / "gallery.html")
    page.set_viewport_size(PHONE)
    page.goto((tmp_path / "gallery.html").as_uri())

    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.locator(".warning").is_visible()


def test_each_of_hundreds_of_pairs_has_its_decision(page, tmp_path):
    write_gallery_page(pairs(400), tmp_path / "gallery.html")
    page.goto((tmp_path / "gallery.html").as_uri())
    page.keyboard.press("j")
    for _ in range(20):
        page.keyboard.press("c")

    assert counters(page)[2] == "Confirmed 20"
    assert decisions(page)[:21] == ["confirmed"] * 20 + [None]


def test_a_browser_that_keeps_nothing_says_so(page, tmp_path, gallery):
    page.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new Error('blocked'); }})")
    page.goto(gallery)
    page.keyboard.press("j")
    page.keyboard.press("c")

    assert page.get_by_text("export them before you close the page").is_visible()
    assert exported(page, tmp_path)[1][4] == "confirmed"
