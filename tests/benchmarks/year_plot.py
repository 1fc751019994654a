"""A plot of the simulated year as SVG: a panel a figure, a point a night."""

from collections.abc import Sequence
from html import escape
from typing import Any

WIDE, HIGH, LEFT, GAP = 900, 120, 90, 34


def plot(nights: list[dict[str, Any]], names: Sequence[str]) -> str:
    """Nights that were stopped have a hollow point, those with a vacuum a tick at the bottom."""
    panels = [_panel(nights, name, 20 + i * (HIGH + GAP)) for i, name in enumerate(names)]
    high = 20 + len(names) * (HIGH + GAP)
    style = "<style>text{font:12px sans-serif}circle{fill:#26c}.stopped{fill:#fff;stroke:#c33}line{stroke:#999}</style>"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDE}" height="{high}" viewBox="0 0 {WIDE} {high}">'
    return "\n".join([head, style, '<rect width="100%" height="100%" fill="#fff"/>', *panels, "</svg>\n"])


def _panel(nights: list[dict[str, Any]], name: str, top: int) -> str:
    most = max((n[name] for n in nights), default=1) or 1
    step = (WIDE - LEFT - 20) / max(1, len(nights) - 1)
    bottom = top + HIGH
    parts = [f'<text x="{LEFT}" y="{top - 5}">{escape(name.replace("_", " "))}</text>']
    parts += [
        f'<text x="{LEFT - 6}" y="{at}" text-anchor="end">{v:,g}</text>' for v, at in ((most, top + 10), (0, bottom))
    ]
    parts += [f'<line x1="{LEFT}" x2="{WIDE - 20}" y1="{bottom}" y2="{bottom}"/>']
    for i, row in enumerate(nights):
        x, y = LEFT + i * step, bottom - HIGH * row[name] / most
        kind = "stopped" if row["crash"] else "night"
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="2"/>')
        if "vacuum_seconds" in row:
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
    return "\n".join(parts)
