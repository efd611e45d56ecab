"""Line charts as SVG text: nothing to install, and they stand inside the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 250
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 40, 40
#: Told apart by people who see red and green alike: https://jfly.uni-koeln.de/color/
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a", "#b8a900")
DASH = ' stroke-dasharray="5 3"'
LETTER = 7.2  # width of a wide one at this size
#: More points than this can't be told apart in the width.
POINTS_MAX = 350


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line; ``points`` are ordered by x. ``dashed`` is for the run that it is compared with."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to pixels: ``low`` is at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float
    step: float

    def at(self, value: float) -> float:
        """Return where a value is."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return the round values between the ends."""
        count = int((self.high - self.low) / self.step + 1e-9) + 1
        return [self.low + index * self.step for index in range(count)]


def chart(
    *, title: str, lines: Sequence[Line], x_title: str, from_zero: bool = True, dashed_are: str = ""
) -> str:
    """Return an SVG element; without any point it says so."""
    points = [point for line in lines for point in line.points]
    head = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#444">'
        f'<text x="{LEFT}" y="16" font-size="14" font-weight="600" fill="#111">{escape(title)}</text>'
    )
    if not points:
        return f'{head}<text x="{LEFT}" y="{HEIGHT // 2}">nothing was measured</text></svg>'
    across = scale([x for x, _ in points], LEFT, WIDTH - RIGHT, from_zero=True, exact_end=True)
    up = scale([y for _, y in points], HEIGHT - BOTTOM, TOP, from_zero=from_zero)
    drawn = [
        _grid(across, up, x_title),
        _legend(lines, dashed_are),
        *(_path(line, across, up) for line in lines),
    ]
    return head + "".join(drawn) + "</svg>"


def scale(
    values: Sequence[float], start: float, end: float, *, from_zero: bool, exact_end: bool = False
) -> Scale:
    """Return a scale with round ticks around the values; ``exact_end`` lets the last tick stand inside."""
    low, high = min(values), max(values)
    if from_zero:
        low, high = min(0.0, low), max(0.0, high)
    if high - low < 1e-9:
        high = low + 1.0
    step = _round_step((high - low) / 5)
    bottom = math.floor(low / step + 1e-9) * step
    top = high if exact_end else math.ceil(high / step - 1e-9) * step
    return Scale(bottom, top, start, end, step)


def _round_step(rough: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that is no less."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough - 1e-12)


def _grid(across: Scale, up: Scale, x_title: str) -> str:
    parts = []
    for value in up.ticks():
        y = up.at(value)
        colour = "#999" if value == up.low else "#e4e4e4"
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{colour}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in across.ticks():
        place = f'x="{across.at(value):.1f}" y="{HEIGHT - 22}"'
        parts.append(f'<text {place} text-anchor="middle">{number(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_title)}</text>')
    return "".join(parts)


def _legend(lines: Sequence[Line], dashed_are: str) -> str:
    """Return an entry for each label, whichever lines have it, and one that says what the dashed ones are."""
    entries = {line.label: (COLOURS[line.colour % len(COLOURS)], "") for line in lines if line.points}
    if any(line.dashed and line.points for line in lines):
        entries[f"dashed: {dashed_are}"] = ("#444", DASH)
    parts, x = [], float(LEFT)
    for label, (colour, dash) in entries.items():
        parts.append(f'<path d="M{x:.0f} 28h18" stroke="{colour}" stroke-width="2.5"{dash}/>')
        parts.append(f'<text x="{x + 23:.0f}" y="32">{escape(label)}</text>')
        x += 23 + LETTER * len(label) + 14
    return "".join(parts)


def _path(line: Line, across: Scale, up: Scale) -> str:
    if not line.points:
        return ""
    dash = DASH if line.dashed else ""
    colour = COLOURS[line.colour % len(COLOURS)]
    places = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in thinned(line.points))
    return (
        f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.8" '
        f'stroke-linejoin="round"{dash}/>'
    )


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most POINTS_MAX points, the highest of each stretch: a peak is what a reader looks for."""
    if len(points) <= POINTS_MAX:
        return list(points)
    size = math.ceil(len(points) / POINTS_MAX)
    return [max(points[at : at + size], key=lambda point: point[1]) for at in range(0, len(points), size)]


def number(value: float) -> str:
    """Return a number for the eye: thousands apart, no more digits than tell something."""
    if abs(value) < 1e-9:
        return "0"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
