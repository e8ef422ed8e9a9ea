"""RESULTS/figures/*.png: the page's figures as images, for slides and papers. kaleido draws them with a Chromium."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.errors import UserError, one_line
from sweep.report.base import Figure

FOLDER = "figures"
WIDTH, HEIGHT, SCALE = 900, 520, 2  # pixels, and how many of the image to one of them: sharp on paper
LIMIT_S = 300  # for a figure: a loaded machine takes long to start a browser
NAME_BYTES = 120  # of a file's name, which file systems limit to 255
CALL = re.compile(r"Plotly\.newPlot\(\s*\"[^\"]+\",\s*")  # up to the data
OURS = re.compile(r"\d{2,}-.*\.png")  # what an earlier call wrote

INSTALL_KALEIDO = "--png: kaleido is not installed; run: pip install 'tactile-sweep[png]'"
INSTALL_BROWSER = (
    "--png: no Chrome or Chromium is found to draw the images with; run: apt-get install chromium "
    "(or plotly_get_chrome), or name one with BROWSER_PATH=/path/to/it"
)


def write_pngs(folder: Path, sections: Mapping[str, Sequence[Figure]]) -> list[Path]:
    """Write figures/NN-section-title.png of every drawn figure; those of an earlier call go. Returns the files.

    Raises UserError where kaleido or a browser is missing, or the browser draws nothing; what it drew is there then.
    """
    try:
        import kaleido
        from choreographer.errors import ChromeNotFoundError
    except ImportError:
        raise UserError(INSTALL_KALEIDO) from None
    out = folder / FOLDER
    options = {"format": "png", "width": WIDTH, "height": HEIGHT, "scale": SCALE}
    files = {out / name: figure for name, figure in _named(sections)}
    jobs = [{"fig": _on_paper(figure), "path": file, "opts": options} for file, figure in files.items()]
    if not jobs:
        return []
    out.mkdir(exist_ok=True)
    try:
        # mathjax would come from the network
        failed = kaleido.write_fig_from_object_sync(jobs, kopts={"mathjax": False, "timeout": LIMIT_S})
    except ChromeNotFoundError:
        raise UserError(INSTALL_BROWSER) from None
    except Exception as error:  # of the browser: it has no one class for that
        raise UserError(f"--png: the browser failed ({type(error).__name__}: {one_line(error)})") from None
    written = [file for file in files if file.is_file()]
    if failed or len(written) < len(jobs):
        why = f" ({' '.join(str(failed[0]).split())})" if failed else ""
        raise UserError(f"--png: {len(jobs) - len(written)} of {len(jobs)} figures could not be drawn{why}")
    for old in out.glob("*.png"):
        if OURS.fullmatch(old.name) and old not in files:
            old.unlink()
    return written


def plotly_json(html: str) -> dict[str, Any]:
    """The figure in plotly's own `to_html`, {"data": [...], "layout": {...}}. Raises ValueError where there is none."""
    call = CALL.search(html)
    if call is None:
        raise ValueError("no call of Plotly.newPlot in it")
    decoder = json.JSONDecoder()
    data, end = decoder.raw_decode(html, call.end())
    comma = re.compile(r",\s*").match(html, end)
    if comma is None:
        raise ValueError("no layout after the data")
    layout, _ = decoder.raw_decode(html, comma.end())
    return {"data": data, "layout": layout}


def _named(sections: Mapping[str, Sequence[Figure]]) -> Iterable[tuple[str, Figure]]:
    """File name -> figure, in the page's order; figures that are a sentence only have none."""
    drawn = [
        (section, figure) for section, figures in sections.items() for figure in figures if CALL.search(figure.html)
    ]
    for number, (section, figure) in enumerate(drawn, start=1):
        words = re.sub(r"[^\w.]+", "-", f"{section} {figure.title}").strip("-.").lower()
        short = words.encode()[:NAME_BYTES].decode(errors="ignore")
        yield f"{number:02d}-{short}.png", figure


def _on_paper(figure: Figure) -> dict[str, Any]:
    """On white and with its title: the page gives a figure both."""
    content = plotly_json(figure.html)
    layout = content["layout"]
    margin = layout.get("margin", {})
    layout["paper_bgcolor"] = layout["plot_bgcolor"] = "white"
    layout["title"] = {"text": _plain(figure.title), "x": 0.02, "y": 0.97, "yanchor": "top"}
    layout["margin"] = margin | {"t": margin.get("t", 10) + 70}  # the title, and a legend of two lines
    return content


def _plain(text: str) -> str:
    """Text that plotly shows as it is: it takes simple HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
