"""The report in a real browser: nothing is asked of the network, no errors, tables sort, it fits a phone, light and dark."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentknobs.evaluation.report import Report
from latentknobs.reporting import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_path(finished: Path, report: Report) -> Path:
    return write_report(finished, report)


def opened(browser: Any, path: Path, **options: Any) -> tuple[Any, list[str]]:
    page = browser.new_page(**options)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(path.as_uri())
    return page, wrong


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_errors_requests_or_scrolling_sideways(browser: Any, page_path: Path, scheme: str) -> None:
    page, wrong = opened(browser, page_path, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    paper, ink = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    brightness = [sum(int(part) for part in colour.strip("rgb()").split(",")[:3]) for colour in (paper, ink)]
    assert (brightness[0] > brightness[1]) == (scheme == "light")
    assert wrong == []


def test_on_a_phone_names_and_captions_stay_in_view_and_a_figure_is_large_enough_to_read(browser: Any, page_path: Path) -> None:
    page, _ = opened(browser, page_path, viewport={"width": 390, "height": 844})
    for shown in page.locator("details").all():
        shown.evaluate("element => { element.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    table, figure = page.locator(".wide").first, page.locator("figure").first
    for scrolled in (table, figure):
        scrolled.evaluate("element => { element.scrollLeft = 200 }")
    assert table.locator("td").first.bounding_box()["x"] >= 0 and figure.locator("figcaption").bounding_box()["x"] >= 0
    heights = page.evaluate("[...document.querySelectorAll('figure svg text')].map(t => t.getBoundingClientRect().height)")
    assert min(heights) > 8


def test_a_heading_sorts_its_table_both_ways_and_back(browser: Any, page_path: Path) -> None:
    page, wrong = opened(browser, page_path)
    table = page.locator("table").first
    before = table.inner_text()
    for heading, place in (("mean reward", 2), ("p*", 4)):
        column, orders = table.locator(f"tbody tr td:nth-child({place})"), []
        for _ in range(2):
            table.locator("th", has_text=heading).click()
            found = [text.replace("< ", "").split() for text in column.all_inner_texts()]
            orders.append([float(words[0]) for words in found if words])  # the head has no p, and stays last
        assert orders[0] == sorted(orders[0], reverse=True) and orders[1] == sorted(orders[1]) and wrong == []
        table.locator("th", has_text=heading).click()
        assert table.inner_text() == before


def test_a_token_that_is_tapped_shows_its_option(browser: Any, page_path: Path) -> None:
    page, _ = opened(browser, page_path)
    token = page.locator(".response span").first
    assert token.get_attribute("title")
    token.click()
    assert page.locator(".legend output").inner_text() == token.get_attribute("title")
