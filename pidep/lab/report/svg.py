"""A matplotlib figure as SVG inside an HTML page: the page's colours, unique ids, no downloads."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

__all__ = ["GRID", "INK", "MUTED", "PAPER", "SERIES", "SURFACE", "draw"]

INK = "#010101"
MUTED = "#020202"
GRID = "#030303"
PAPER = "#040404"
SURFACE = "#050505"
SERIES = tuple(f"#0a0a0{number}" for number in range(1, 7))
"""Placeholders. `draw` replaces them by variables of the page, so that one figure suits light,
dark and paper."""

SMALLEST = 0.7
"""Least share of its natural size that a figure is shown in: letters of 8 pixels."""
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--paper",
    SURFACE: "--surface",
} | {color: f"--series-{number}" for number, color in enumerate(SERIES, 1)}
_STYLE: Any = {
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": False,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.prop_cycle": "cycler('color', " + repr(list(SERIES)) + ")",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.facecolor": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "image.interpolation": "nearest",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a label may hold dollars
    "xtick.color": GRID,
    "xtick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.color": GRID,
    "ytick.labelcolor": MUTED,
    "ytick.labelsize": 8.5,
}
_NAMESPACE = re.compile(r"\{[^}]*\}")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
_FONT = re.compile(r"font: (?:(\d+) )?([\d.]+px) [^;]*")
_FAMILY = re.compile(r"font-family: [^;]*;? ?")  # the page's own


def draw(
    name: str, title: str, paint: Callable[[Any], None], *, width: float, height: float
) -> str:
    """The `<svg>` of a new figure that `paint` draws on.

    Args:
        name: makes ids unique in the page.
        title: read out by screen readers.
        width, height: inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the text with its own fonts, so matplotlib's need no such glyph.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        figure.savefig(buffer, format="svg", metadata=nothing, dpi=144)
    return _inline(ElementTree.fromstring(buffer.getvalue()), name, title)


def _inline(svg: ElementTree.Element, name: str, title: str) -> str:
    for parent in list(svg.iter()):
        for child in list(parent):
            if _NAMESPACE.sub("", child.tag) in ("metadata", "style"):
                parent.remove(child)
    used = set(
        re.findall(r"(?:url\(#|href=\"#)([^)\"]*)", ElementTree.tostring(svg, encoding="unicode"))
    )
    for element in svg.iter():
        element.tag = _NAMESPACE.sub("", element.tag)
        named = {_NAMESPACE.sub("", key): value for key, value in element.attrib.items()}
        if named.get("id") not in used:
            named.pop("id", None)
        element.attrib.clear()
        element.attrib.update({key: _attribute(key, value, name) for key, value in named.items()})
    width = svg.attrib.pop("width").removesuffix("pt")
    svg.attrib.pop("height")
    svg.attrib.pop("version", None)
    svg.attrib |= {"role": "img", "aria-label": title, "style": _sized(float(width) * 4 / 3)}
    head = ElementTree.Element("title")
    head.text = title
    svg.insert(0, head)
    return ElementTree.tostring(svg, encoding="unicode")


def _sized(width_px: float) -> str:
    """A style with bounds: a figure is never enlarged, and a narrow screen scrolls."""
    return f"max-width:{width_px:.0f}px;min-width:{SMALLEST * width_px:.0f}px"


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    value = _REFERENCE.sub(rf"url(#{name}-\1)", value)
    if key == "style":
        value = _FAMILY.sub(
            "",
            _FONT.sub(
                lambda found: (
                    f"font-size: {found[2]}" + (f"; font-weight: {found[1]}" if found[1] else "")
                ),
                value,
            ),
        )
        for color, variable in _VARIABLES.items():
            value = value.replace(color, f"var({variable})")
    return value
