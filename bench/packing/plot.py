"""The frontier of power and capacity as a picture: every policy a point, lower right is better."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, MARGIN = 720, 440, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A policy: share of the GPUs asked for that it grants at 100 % load, and its power over the bound up to 80 %."""

    name: str
    granted: float
    power: float
    ours: bool


def frontier(points: Sequence[Point]) -> str:
    """An SVG document."""
    left, right = min(p.granted for p in points) - 0.005, max(p.granted for p in points) + 0.02
    low, high = 1.0, max(p.power for p in points) + 0.01

    def x(granted: float) -> float:
        return MARGIN + (granted - left) / (right - left) * (WIDTH - 2 * MARGIN)

    def y(power: float) -> float:
        return HEIGHT - MARGIN - (power - low) / (high - low) * (HEIGHT - 2 * MARGIN)

    marks: list[str] = []
    for step in range(int(left * 100) + 1, int(right * 100) + 1):
        marks.append(_text(x(step / 100), HEIGHT - MARGIN + 18, f".{step}", "middle"))
        marks.append(_line(x(step / 100), y(low), x(step / 100), y(high)))
    for step in range(0, int((high - low) * 100) + 1, 5):
        marks.append(_text(MARGIN - 8, y(low + step / 100) + 4, f"{low + step / 100:.2f}", "end"))
        marks.append(_line(x(left), y(low + step / 100), x(right), y(low + step / 100)))
    for point in points:
        colour = "#c2410c" if point.ours else "#475569"
        marks.append(f'<circle cx="{x(point.granted):.1f}" cy="{y(point.power):.1f}" r="4" fill="{colour}"/>')
        marks.append(_text(x(point.granted) + 7, y(point.power) - 6, point.name, "start", colour))
    marks.append(_text(WIDTH / 2, HEIGHT - 14, "granted at 100 % load", "middle"))
    marks.append(_text(MARGIN, 24, "power over the bound, mean of 20, 40, 60 and 80 % load", "start"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n' + "\n".join(marks) + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#334155") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#e2e8f0"/>'
