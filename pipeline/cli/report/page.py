"""A report as one self-contained page: tables, plots as SVG, images as data. No script, no request to anywhere.

matplotlib draws with two placeholder colours that the page's style sheet replaces, so that plots follow light and dark.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import RequestError
from ...process import install_hint

INK, FILL = "#010203", "#040506"
PHOTO_QUALITY = 80
STYLE = """
:root { color-scheme: light dark; --ink: #1d2433; --soft: #5b6578; --page: #fbfbfd; --card: #ffffff; --line: #e2e6ee;
  --fill: #3f6fd8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9f0; --soft: #9aa4b8; --page: #12151c; --card: #1a1f29;
  --line: #2b3240; --fill: #7aa2ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 3rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; overflow-wrap: anywhere; } h2 { font-size: 1.05rem; margin: 0 0 .6rem; }
p { color: var(--soft); margin: 0 0 1rem; overflow-wrap: anywhere; }
main { columns: 20rem; column-gap: 1rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; min-width: 0;
  margin-bottom: 1rem; break-inside: avoid; }
section.wide { column-span: all; margin-top: 1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .22rem .6rem .22rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 500; color: var(--soft); } th + th, td.number { text-align: right; }
td.text { overflow-wrap: anywhere; }
.gallery + .scroll { margin-top: 1rem; } tr:last-child > * { border-bottom: 0; }
@media (max-width: 40rem) {
  .cards tr:first-child { display: none; }
  .cards tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .cards td, .cards th { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .1rem 0; }
  .cards td::before, .cards th::before { content: attr(data-name); color: var(--soft);
    font-weight: 400; white-space: nowrap; }
  .cards th { color: var(--ink); } }
svg { width: 100%; height: auto; display: block; } svg text { font-family: inherit; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; } figcaption { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
figure div { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem; }
figure img { width: 100%; max-height: 16rem; object-fit: contain; border-radius: .3rem; }
.heat { image-rendering: pixelated; }
.scale { display: flex; gap: .4rem; align-items: center; color: var(--soft); font-size: .8rem; grid-column: 1 / -1; }
.scale i { flex: 1; height: .5rem; border-radius: .2rem;
  background: linear-gradient(to right, #440154, #3b528b, #21918c, #5ec962, #fde725); }
figure.whole { grid-column: 1 / -1; }
figure .strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(31%, 9rem), 1fr)); gap: .4rem; }
figure .strip > span { display: block; } .strip img { max-height: 9rem; display: block; margin-bottom: .25rem; }
.strip small { display: block; text-align: center; color: var(--soft); }
summary { cursor: pointer; color: var(--soft); }
details { padding: .2rem 0; } h3 { font-size: .95rem; font-weight: 500; margin: 1.2rem 0 .5rem; }
h3:first-child { margin-top: 0; }
"""


@dataclass(frozen=True, kw_only=True)
class Section:
    title: str
    body: str
    wide: bool = False


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    parts = [
        f"<section{' class=wide' if section.wide else ''}><h2>{html.escape(section.title)}</h2>{section.body}</section>"
        for section in sections
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p><main>{''.join(parts)}</main></body></html>\n"
    )


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), kind: str = "number") -> str:
    """The first column names, the others are numbers, or of kind `text`."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>"
        + "".join(
            f"<th>{html.escape(cell)}</th>" if not column else f"<td class={kind}>{html.escape(cell)}</td>"
            for column, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<div class=scroll><table>{f'<tr>{head}</tr>' if head else ''}{body}</table></div>"


def cards(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """A table whose rows become cards of names and values on a narrow screen, so that no column is out of sight."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>"
        + "".join(_card_cell(name, cell, first=not column) for column, (name, cell) in enumerate(pairs))
        + "</tr>"
        for pairs in (zip(header, row, strict=True) for row in rows)
    )
    return f"<div class=scroll><table class=cards><tr>{head}</tr>{body}</table></div>"


def _card_cell(name: str, cell: str, *, first: bool) -> str:
    kind, number = ("th", "") if first else ("td", " class=number")
    return f'<{kind}{number} data-name="{html.escape(name)}">{html.escape(cell)}</{kind}>'


def folded(body: str, summary: str = "show") -> str:
    """Hides something until somebody asks for it."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"


def colour_scale(low: float, high: float) -> str:
    """The colours of a map of norms, from its lowest to its highest value."""
    return f"<div class=scale><span>{low:.3g}</span><i></i><span>{high:.3g}</span></div>"


def histograms(panels: Sequence[tuple[str, Sequence[Mapping[str, float]]]], *, unit: str) -> str:
    """Histograms as SVG, one below the other on one axis. Errors as of `bars`.

    Args:
        panels: of each its name, and bins: from, to (exclusive), images.
    """
    pyplot = _pyplot()
    height = 0.55 + 1.15 * len(panels) if len(panels) > 1 else 2.4
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(4.2, height), layout="constrained", sharex=True, squeeze=False
    )
    for (name, bins), (one,) in zip(panels, axes, strict=True):
        edges = [bins[0]["from"], *(each["to"] for each in bins)]
        one.stairs([each["images"] for each in bins], edges, color=FILL, fill=True)
        if name:
            one.set_title(name, loc="left", fontsize=8)
        one.yaxis.set_major_locator(pyplot.MaxNLocator(3, integer=True))
        one.yaxis.set_major_formatter(lambda value, _: short(value))
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
    axes[-1][0].set_xlabel(unit)
    axes[-1][0].set_xlim(left=0)
    axes[-1][0].xaxis.set_major_formatter(lambda value, _: short(value))
    return _svg(pyplot, figure)


def bars(labels: Sequence[str], values: Sequence[float], *, across: bool = False, unit: str = "") -> str:
    """A bar chart as SVG: upright for a histogram, across for names.

    Raises:
        RequestError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    height = 0.3 * len(labels) + 0.75 if across else 2.4
    figure, axes = pyplot.subplots(figsize=(4.2, height), layout="constrained")
    if across:
        axes.barh(range(len(labels)), values, height=0.62, color=FILL)
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set_xlabel(unit)
    else:
        axes.bar(range(len(labels)), values, width=0.92, color=FILL)
        step = max(1, len(labels) // 6)
        axes.set_xticks(range(0, len(labels), step), labels[::step])
        axes.set_xlabel(unit)
    formatter = axes.xaxis if across else axes.yaxis
    formatter.set_major_formatter(lambda value, _: short(value))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return _svg(pyplot, figure)


def steps(edges: Sequence[float], values: Sequence[float], *, unit: str, largest: float | None = None) -> str:
    """A line in steps as SVG, its area filled: `values[n]` from `edges[n]` to `edges[n + 1]`. Errors as of `bars`."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(4.2, 2.4), layout="constrained")
    axes.stairs(values, edges, color=FILL, fill=True, alpha=0.35)
    axes.stairs(values, edges, color=FILL, linewidth=1.4)
    axes.set_ylim(0, largest)
    axes.set_xlabel(unit)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.yaxis.set_major_formatter(lambda value, _: short(value))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return _svg(pyplot, figure)


def short(value: float) -> str:
    """A number as an axis shows it."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 1000 or unit == "T":
            return f"{value:.3g}{unit}"
        value /= 1000
    raise AssertionError


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot
    except ImportError as error:
        raise RequestError(f"--html: {error}; {install_hint('report')}") from error
    colours = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: Any = pyplot.rcParams
    settings.update(dict.fromkeys(colours, INK) | {"svg.fonttype": "none", "svg.hashsalt": "visionbake"})
    return pyplot


def _svg(pyplot: Any, figure: Any) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(INK, "var(--ink)").replace(FILL, "var(--fill)")


def image_data(image: Any, kind: str = "png") -> str:
    """A PIL image as the value of a `src`: `png`, or `webp` for photos."""
    stream = io.BytesIO()
    image.save(stream, kind.upper(), **({"optimize": True} if kind == "png" else {"quality": PHOTO_QUALITY}))
    return f"data:image/{kind};base64," + base64.b64encode(stream.getvalue()).decode()
