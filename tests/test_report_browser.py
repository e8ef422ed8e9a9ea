"""The report as a browser shows it: headless Chromium, from the disk, on wide and narrow screens and on paper."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from needs import chromium
from PIL import Image
from reporting import COMPLETE, DIVERGED, FAILED, HOSTILE, PRUNED, RUNNING, Ending, sweep_folder
from specs import ALPHA, make

from sweep.report.__main__ import main
from sweep.report.page import write_report
from sweep.report.pngs import FOLDER

LIMIT_MS = 120_000  # of a loaded machine
MOST_BYTES = 20_000_000
NAMES = "名字 émoji 🦾 \"quoted\" 'single' <b>&amp;"

pytestmark = [pytest.mark.browser, pytest.mark.needs("chromium"), pytest.mark.xdist_group("browser")]


class Opened:
    """A page in the browser, with what it said and asked for."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> None:
        self._context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.page = self._context.new_page()
        self.page.set_default_timeout(LIMIT_MS)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri(), timeout=LIMIT_MS, wait_until="load")

    def wait_until_drawn(self) -> int:
        """The number of figures, all of them drawn."""
        drawn = "() => [...document.querySelectorAll('.plotly-graph-div')].every(p => p.querySelector('.main-svg'))"
        self.page.wait_for_function(drawn)
        return int(self.page.evaluate("document.querySelectorAll('.js-plotly-plot').length"))

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def cut_off(self) -> list[str]:
        """Texts of figures that reach over their figure's edge."""
        script = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => {
          const box = plot.getBoundingClientRect();
          return [...plot.querySelectorAll('.main-svg text')].filter(text => {
            const own = text.getBoundingClientRect();
            return own.width && (own.left < box.left - 2 || own.right > box.right + 2 || own.bottom > box.bottom + 2);
          }).map(text => text.textContent);
        })"""
        return list(self.page.evaluate(script))

    def close(self) -> None:
        self._context.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = driver.chromium.launch(executable_path=chromium(), args=options, timeout=LIMIT_MS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep with trials of every kind, three parameters and names that nobody expects."""
    parameters = ALPHA | {
        "base_lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
        "mask_ratio": {"distribution": "q_uniform", "min": 0.5, "max": 0.9, "q": 0.05},
    }
    ways = [Ending(COMPLETE, (2.0 - n / 10, 1.0 - n / 20, 0.9 - n / 30)) for n in range(9)]
    ways += [Ending(PRUNED, (1.9,), "stopped early"), Ending(DIVERGED, (1.0, math.nan), NAMES), Ending(RUNNING, (1.5,))]
    ways.append(Ending(FAILED, reason=HOSTILE))
    spec = make(parameters=parameters, description=f"{NAMES} {HOSTILE}", run_cap=13)
    folder = sweep_folder(tmp_path_factory.mktemp("a 名 #%3F") / "结果 🦾 'x'", *ways, spec=spec)
    for trial in ("0000", "0008"):
        picture = folder / "trials" / trial / "pictures" / "reconstruction.png"
        picture.parent.mkdir()
        Image.new("RGB", (1300, 300), "teal").save(picture)
    write_report(folder)
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_page_draws_every_figure_asks_for_nothing_says_no_error_and_does_not_scroll_sideways(
    browser, swept, width, scheme
):
    opened = Opened(browser, swept / "report.html", width, scheme)
    figures = opened.wait_until_drawn()
    html = (swept / "report.html").read_text(encoding="utf-8")
    assert figures == html.count('class="plotly-graph-div"') > 5
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith(("data:", "blob:"))] == [(swept / "report.html").as_uri()]
    assert opened.overflow() <= 0
    colours = opened.page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    ink, paper = (sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) for colour in colours)
    assert (ink > paper) == (scheme == "dark")
    assert opened.page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert opened.page.evaluate("window.hacked") is None
    opened.close()


def test_contents_lead_to_every_section(browser, swept):
    opened = Opened(browser, swept / "report.html")
    targets = opened.page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.hash)")
    titles = opened.page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.textContent)")
    reached = opened.page.evaluate(
        "hashes => hashes.map(h => document.querySelector(h + ' > h2').textContent)", targets
    )
    assert reached == titles
    assert {"Reconstructions", "Diagnosis", "Trials", "Provenance"} <= set(titles)
    opened.close()


def test_print_has_all_figures_within_its_pages(browser, swept, tmp_path):
    opened = Opened(browser, swept / "report.html", scheme="dark")
    figures = opened.page.evaluate("document.querySelectorAll('.plotly-graph-div').length")  # not all drawn yet
    opened.page.set_viewport_size({"width": 680, "height": 960})  # A4, less its margins
    opened.page.emulate_media(media="print")
    opened.page.evaluate("onPaper(true)")
    assert (opened.overflow() <= 0, opened.cut_off()) == (True, [])
    opened.page.evaluate("onPaper(false)")
    opened.page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert opened.wait_until_drawn() == figures
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") >= 3
    assert opened.said == []
    opened.close()


def test_live_page_reloads_itself_and_the_last_one_does_not(browser, tmp_path):
    folder = sweep_folder(tmp_path / "r", Ending(RUNNING, (0.9,)))
    write_report(folder, live_s=1)
    opened = Opened(browser, folder / "report.html")
    assert "reloads itself every 1 s" in opened.page.inner_text("main")
    write_report(folder)
    opened.page.wait_for_function("() => !document.body.innerText.includes('reloads itself')")
    assert "location.reload" not in opened.page.content()
    opened.close()


def test_page_about_10000_trials_is_small_and_every_figure_of_it_is_drawn(browser, tmp_path):
    parameters = ALPHA | {"base_lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}}
    folder = sweep_folder(tmp_path / "r", spec=make(parameters=parameters, run_cap=10_000))
    with (folder / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", "preset", "epochs_done", "alpha", "base_lr", "objective/value"])
        for number in range(10_000):
            alpha, lr = 0.1 + 0.8 * (number * 0.618 % 1), 1e-4 * 100 ** (number * 0.414 % 1)
            state = "complete" if number % 3 == 0 else "pruned"
            writer.writerow([f"{number:04d}", state, "", 8, alpha, lr, (alpha - 0.6) ** 2 + abs(math.log10(lr) + 3)])
    assert write_report(folder).stat().st_size < MOST_BYTES
    opened = Opened(browser, folder / "report.html")
    opened.wait_until_drawn()
    assert opened.said == []
    assert opened.overflow() <= 0
    opened.close()


def test_png_writes_each_figure_and_takes_away_those_of_an_earlier_call(swept, capsys):
    out = swept / FOLDER
    out.mkdir()
    (out / "99-gone.png").touch()
    (out / "mine.png").touch()
    assert main([str(swept), "--png"]) == 0
    html = (swept / "report.html").read_text(encoding="utf-8")
    images = sorted(path for path in out.glob("*.png") if path.name != "mine.png")
    assert len(images) == html.count('class="plotly-graph-div"')
    assert f"{len(images)} images in {out}" in capsys.readouterr().out
    assert (out / "mine.png").exists()
    assert not (out / "99-gone.png").exists()
    for path in images:
        with Image.open(path) as image:
            assert image.size == (1800, 1040)
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20  # not blank


def test_png_without_a_browser_says_what_to_install_and_the_page_is_written(tmp_path, monkeypatch, capsys):
    folder = sweep_folder(tmp_path / "r", Ending(COMPLETE, (0.5,)))
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "absent"))
    assert main([str(folder), "--png"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "apt-get install chromium" in message
    assert (folder / "report.html").exists()
