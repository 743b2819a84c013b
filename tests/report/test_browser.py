"""The page in headless Chromium: no complaint, no request, the viewer draws, a phone needs no sideways scrolling, paper has all."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from foundation.report.page import write_report
from tests.report import made_up
from tests.report.browser import Browser, find_browser

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine: apt-get install chromium")
READY = "document.getElementById('viewer').dataset.ready === 'yes'"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a made-up run whose texts are full of markup."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    content = {name: made_up.poisoned(data) for name, data in made_up.files().items()}
    made_up.write(folder, content, made_up.rows(), made_up.HOSTILE.replace("\ud800", "") + ",b\n1,2\n")
    (folder / "a.sdf").write_text(made_up.sdf("*CC(*)c1ccccc1", 10))
    (folder / "b.sdf").write_text(made_up.sdf("*OC(C)C(=O)*", 20, count=1))
    write_report(folder, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests: starting it is what takes long."""
    assert PROGRAM is not None
    with Browser(PROGRAM) as started:
        yield started


def pixels(browser: Browser, selector: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(height, width, 3) of an element on the screen."""
    from PIL import Image

    box = f"(() => {{ const r = document.querySelector('{selector}').getBoundingClientRect();"
    place = browser.evaluate(f"{box} return {{x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height}}; }})()")
    return np.asarray(Image.open(io.BytesIO(browser.screenshot(place))).convert("RGB"))


def show_viewer(browser: Browser, page: Path, scheme: str = "light") -> None:
    """Open the page and wait until the viewer has drawn."""
    browser.events.clear()
    browser.prefer(scheme)
    browser.open(page)
    browser.evaluate("document.getElementById('viewer').scrollIntoView({behavior: 'instant'})")
    browser.wait_for(READY)


def test_the_page_opens_quietly_asks_for_nothing_and_draws(browser: Browser, page: Path) -> None:
    browser.resize(1200, 900)
    show_viewer(browser, page)
    first = pixels(browser, "#viewer canvas")
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 50  # a shaded chain in the colours of its units
    assert (first != first[0, 0]).any(axis=2).mean() > 0.005
    seen = [first]
    for change in ("pick.value = 2", "style.value = 'sphere'", "colour.value = 'element'"):
        name = change.split(".")[0]
        browser.evaluate(f"{{ const {name} = document.getElementById('{name}'); {change}; {name}.dispatchEvent(new Event('change')); }}")
        seen.append(pixels(browser, "#viewer canvas"))
    browser.evaluate("document.querySelector('[data-act=left]').click()")
    seen.append(pixels(browser, "#viewer canvas"))
    assert all((a != b).any() for a, b in zip(seen, seen[1:], strict=False))
    assert "b, conformation 1" in browser.evaluate("document.getElementById('announce').textContent")
    assert browser.complaints() == []
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.evaluate("window.hacked") is None


def test_the_policy_stops_what_would_leave_the_page(browser: Browser, page: Path) -> None:
    """The tests above could not fail if these were allowed, or if requests were not seen."""
    show_viewer(browser, page)
    assert browser.evaluate("fetch('data:text/plain,x').then(() => 'came', () => 'stopped')") == "stopped"
    browser.evaluate("document.body.append(Object.assign(document.createElement('img'), {src: 'http://127.0.0.1:9/x.png'}))")
    browser.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked = 1'}))")
    assert browser.evaluate("window.hacked") is None
    assert len(browser.complaints()) >= 3


@pytest.mark.parametrize("width", [375, 320])
def test_a_phone_needs_no_sideways_scrolling(browser: Browser, page: Path, width: int) -> None:
    browser.resize(width, 812, 2)
    show_viewer(browser, page)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    small = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('svg.plot:not(.chain) text')].map((t) => 12 * t.ownerSVGElement.clientWidth"
        " / t.ownerSVGElement.viewBox.baseVal.width))"
    )
    assert small >= (9 if width == 375 else 8)  # CSS pixels
    if width == 375:  # the verdict is on the screen, not beyond its edge
        assert (
            browser.evaluate("Math.max(...[...document.querySelectorAll('td.sign')].map((t) => t.getBoundingClientRect().right))") <= width
        )


def test_a_dark_page_is_dark_and_its_viewer_too(browser: Browser, page: Path) -> None:
    browser.resize(1200, 900)
    show_viewer(browser, page, "dark")
    for selector in ("header", "#viewer canvas"):
        assert np.median(pixels(browser, selector)) < 60, selector
    browser.prefer("light")
    browser.wait_for("getComputedStyle(document.body).backgroundColor === 'rgb(251, 251, 249)'")
    assert np.median(pixels(browser, "#viewer canvas")) > 240
    assert browser.complaints() == []


def test_paper_has_the_drawings_and_no_controls(browser: Browser, page: Path) -> None:
    browser.resize(1200, 900)
    show_viewer(browser, page)
    browser.prefer("light", media="print")
    shown = "(selector) => [...document.querySelectorAll(selector)].filter((e) => e.getClientRects().length).length"
    assert browser.evaluate(f"({shown})('nav, .viewer, select, button')") == 0
    assert browser.evaluate(f"({shown})('svg.chain')") == 2
    assert browser.pdf().startswith(b"%PDF")
    browser.prefer("light")


def test_without_webgl_the_drawings_remain(page: Path) -> None:
    assert PROGRAM is not None
    with Browser(PROGRAM, webgl=False) as plain:
        plain.open(page)
        plain.evaluate("document.getElementById('viewer').scrollIntoView({behavior: 'instant'})")
        plain.wait_for("document.getElementById('viewer').textContent.includes('no WebGL')")
        assert plain.complaints() == []
