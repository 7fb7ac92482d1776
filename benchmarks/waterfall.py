"""A picture of what comes after what, and how long each takes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

ROW, LABEL, CHART, VALUE = 24, 190, 520, 70
"""Heights and widths, in pixels."""

STYLE = "font-family:sans-serif;font-size:13px;fill:#333"


def waterfall(title: str, legs: Sequence[tuple[str, float]]) -> str:
    """SVG: a row for each (name, milliseconds), whose bar begins where the one before ends."""
    whole = sum(duration for _, duration in legs)
    scale = CHART / whole
    width, height = LABEL + CHART + VALUE, ROW * (len(legs) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="8" y="{ROW - 7}" style="{STYLE};font-weight:bold">{escape(title)}</text>',
    ]
    begin = 0.0
    for number, (name, duration) in enumerate(legs, 1):
        top, left = ROW * number, LABEL + begin * scale
        parts += [
            f'<text x="8" y="{top + 17}" style="{STYLE}">{escape(name)}</text>',
            f'<rect x="{left:.1f}" y="{top + 4}" width="{max(1.0, duration * scale):.1f}" height="{ROW - 8}"'
            ' fill="#4c78a8"/>',
            f'<text x="{left + duration * scale + 6:.1f}" y="{top + 17}" style="{STYLE}">{duration:.1f}</text>',
        ]
        begin += duration
    foot = f"{whole:.1f} ms together"
    parts.append(f'<text x="{LABEL}" y="{ROW * (len(legs) + 2) - 7}" style="{STYLE}">{foot}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
