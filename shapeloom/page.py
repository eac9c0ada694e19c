"""Pieces of one self-contained HTML page: escaped text, embedded pictures, tables, curves as SVG.

Everything that comes from data (captions, file names, reasons) goes through `text`; nothing is loaded from
anywhere, which the page's content security policy also tells the browser.
"""

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src data: blob:"
)
STYLE = """
:root { --ink: #1c2430; --soft: #667085; --line: #e4e7ec; --accent: #2f6fde; }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; }
main { max-width: 1120px; margin: 0 auto; padding: 16px; }
h1 { font-size: 26px; margin: 8px 0 0; } h2 { font-size: 19px; margin: 36px 0 8px; }
p { margin: 6px 0; max-width: 75ch; } .soft { color: var(--soft); } .small { font-size: 13px; }
.wide { overflow-x: auto; margin-bottom: 18px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
table.words th { text-align: left; } td.words { text-align: left; white-space: normal; }
@media (max-width: 600px) { td:first-child { white-space: normal; min-width: 110px; } }
th { font-weight: 600; font-size: 13px; color: var(--soft); } td.main { font-weight: 650; }
.cards { display: flex; flex-wrap: wrap; gap: 10px; margin: 14px 0; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; flex: 1 1 150px; }
.card b { display: block; font-size: 24px; line-height: 1.2; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 10px; }
.tiles.medium { grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); }
.tiles.large { grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); }
table:has(figure) { table-layout: fixed; width: 100%; }
td:has(figure) { white-space: normal; text-align: left; vertical-align: top; }
figure { margin: 0; } .pixels { image-rendering: pixelated; }
figure img { width: 100%; display: block; border: 1px solid var(--line); border-radius: 6px; }
figcaption { font-size: 12px; line-height: 1.3; color: var(--soft); overflow-wrap: anywhere; }
.good { color: #16803c; } .bad { color: #b42318; }
svg { width: 100%; height: auto; display: block; border: 1px solid var(--line); border-radius: 6px; }
#viewer { position: relative; height: min(70vw, 440px); border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden; margin-bottom: 10px; background: #f7f8fa; }
#viewer canvas { display: block; }
#viewer-note { position: absolute; left: 10px; bottom: 8px; color: var(--soft); pointer-events: none; }
figure.model { cursor: pointer; } figure.model.chosen img { outline: 3px solid var(--accent); }
"""


def text(value: Any) -> str:
    """Returns anything as text that is safe in an element or a quoted attribute."""
    return html.escape(str(value), quote=True)


def data_uri(data: bytes, kind: str) -> str:
    """Returns bytes as a data: address; kind is such as "image/png"."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture_uri(picture: UInt8[ndarray, "height width 3"]) -> str:
    """Returns a picture as a data: address of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png")


def file_uri(path: Path) -> str:
    """Returns a PNG or GIF file as a data: address."""
    return data_uri(path.read_bytes(), f"image/{path.suffix.removeprefix('.')}")


def figure(uri: str, caption: str, *, alt: str, attributes: str = "", pixels: bool = False) -> str:
    """Returns a picture with a caption; `caption` and `attributes` (of the figure's tag) are HTML."""
    kind = ' class="pixels"' if pixels else ""
    image = f'<img src="{uri}" alt="{text(alt)}" loading="lazy"{kind}>'
    return f"<figure{attributes}>{image}<figcaption>{caption}</figcaption></figure>"


def tiles(figures: Iterable[str], size: Literal["small", "medium", "large"] = "small") -> str:
    """Returns figures as a grid that fits its columns to the screen."""
    return f'<div class="tiles {size}">{"".join(figures)}</div>'


def number(value: Any, digits: int = 3) -> str:
    """Returns a number with so many decimals, text as it is, and a dash for what is missing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else text(value)


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, main: int | None = None, words: bool = False
) -> str:
    """Returns a table; its cells are HTML. main: the column that is set in bold. words: cells hold text."""
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    for row in rows:
        plain = '<td class="words">' if words else "<td>"
        cells = [f'<td class="main">{c}</td>' if i == main else f"{plain}{c}</td>" for i, c in enumerate(row)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    opening = '<table class="words">' if words else "<table>"
    return f'<div class="wide">{opening}{"".join(lines)}</table></div>'


def interval(ends: Sequence[float] | None) -> str:
    """Returns "0.1 to 0.2"; a dash for None."""
    return " to ".join(number(end) for end in ends) if ends else "–"


def card(label: str, value: str, note: str) -> str:
    """Returns one large number with what it is and what to compare it with."""
    note = f'<span class="soft small">{text(note)}</span>'
    return f'<div class="card">{text(label)}<b>{text(value)}</b>{note}</div>'


def document(title: str, sections: Iterable[str], scripts: Sequence[str] = ()) -> str:
    """Returns the whole page."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body><main>"
        + "\n".join(sections)
        + "</main>\n"
        + "\n".join(scripts)
        + "</body></html>\n"
    )


# ---------------------------------------------------------------- curves

_WIDTH, _HEIGHT, _PAD, _MAX_POINTS = 320, 130, 8, 200
_LOG_RATIO = 20.0


def curve(name: str, steps: Sequence[float | int], values: Sequence[float | int]) -> str:
    """Returns one scalar over steps as an SVG line with its first, last, least and largest value.

    Logarithmic where all values are positive and span a factor of 20. Values that aren't finite are left out.
    """
    points = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    if len(points) < 2:
        return ""
    points = points[: -1 : math.ceil(len(points) / _MAX_POINTS)] + points[-1:]
    x, y = np.array(points, dtype=np.float64).T
    logarithmic = bool(y.min() > 0 and y.max() / y.min() > _LOG_RATIO)
    height = np.log(y) if logarithmic else y
    span_x, span_y = max(x.max() - x.min(), 1e-12), max(float(np.ptp(height)), 1e-12)
    across = _PAD + (x - x.min()) / span_x * (_WIDTH - 2 * _PAD)
    top, bottom = 26.0, _HEIGHT - 20.0
    down = bottom - (height - height.min()) / span_y * (bottom - top)
    line = " ".join(f"{a:.1f},{d:.1f}" for a, d in zip(across, down, strict=True))
    label = f"{name}{' (log)' if logarithmic else ''}"
    foot = f"min {y.min():.4g} · max {y.max():.4g} · {int(x.max())} steps"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(label)}">'
        f'<text x="{_PAD}" y="16" font-size="12" fill="#1c2430">{text(label)}</text>'
        f'<text x="{_WIDTH - _PAD}" y="16" font-size="12" fill="#2f6fde" text-anchor="end">{y[-1]:.4g}</text>'
        f'<polyline points="{line}" fill="none" stroke="#2f6fde" stroke-width="1.5"/>'
        f'<text x="{_PAD}" y="{_HEIGHT - 6}" font-size="10" fill="#667085">{text(foot)}</text></svg>'
    )


def curves(lines: Sequence[Mapping[str, float | int]]) -> list[str]:
    """Returns one curve a scalar of a stage's metrics.jsonl, in the order in which they appear first."""
    names = list(dict.fromkeys(name for line in lines for name in line if name != "step"))
    drawn = []
    for name in names:
        having = [line for line in lines if name in line]
        drawn.append(curve(name, [line["step"] for line in having], [float(line[name]) for line in having]))
    return [svg for svg in drawn if svg]


def histogram(name: str, values: Sequence[float | int], *, bins: int = 24, logarithmic: bool = False) -> str:
    """Returns how often values occur as SVG bars, with the least, middle and largest value.

    logarithmic: bins of equal ratio, for positive values. Values that aren't finite are left out.
    """
    data = np.asarray([v for v in values if math.isfinite(v) and (v > 0 or not logarithmic)], float)
    if not len(data):
        return ""
    scale = np.log(data) if logarithmic else data
    counts, _ = np.histogram(scale, bins=bins)
    top, bottom, width = 26.0, _HEIGHT - 20.0, (_WIDTH - 2 * _PAD) / bins
    heights = counts / counts.max() * (bottom - top)
    bars = "".join(
        f'<rect x="{_PAD + i * width:.1f}" y="{bottom - h:.1f}" width="{width - 1:.1f}" height="{h:.1f}"/>'
        for i, h in enumerate(heights)
        if h > 0
    )
    foot = f"min {data.min():.4g} · median {np.median(data):.4g} · max {data.max():.4g}"
    label = f"{name}{' (log)' if logarithmic else ''}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(label)}">'
        f'<text x="{_PAD}" y="16" font-size="12" fill="#1c2430">{text(label)}</text>'
        f'<g fill="#2f6fde">{bars}</g>'
        f'<text x="{_PAD}" y="{_HEIGHT - 6}" font-size="10" fill="#667085">{text(foot)}</text></svg>'
    )
