"""The results as data, as the table in docs/performance.md, and as a picture."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path

from .measuring import Result

_BEGIN = "<!-- the table: made by `python -m tests.benchmarks` -->"
_END = "<!-- the end of the table -->"
_LEFT, _WIDTH, _LINE, _TOP = 430, 560, 20, 44


class Report:
    """Results, kept in a folder: those of the rows that were run again replace the old ones."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "performance.json"
        self._page = folder / "performance.md"
        self._picture = folder / "performance.svg"

    def read(self) -> dict[str, Result]:
        """The results so far, by the row's name."""
        if not self._data.exists():
            return {}
        stored = json.loads(self._data.read_text("utf-8"))
        return {name: Result.from_json(result) for name, result in stored.items()}

    def keep(self, new: Mapping[str, Result], order: list[str]) -> None:
        """Add results, and write everything again in an order of rows.

        A result whose baselines are not installed here does not replace one that has them.
        """
        known = self.read()
        for name, result in new.items():
            if result.ratios or name not in known or not known[name].ratios:
                known[name] = result
        results = {name: known[name] for name in order if name in known}
        lines = (f"{json.dumps(name)}: {_json(result)}" for name, result in results.items())
        self._data.parent.mkdir(parents=True, exist_ok=True)
        self._data.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
        self._picture.write_text(draw(results), "utf-8")
        page = self._page.read_text("utf-8") if self._page.exists() else f"{_BEGIN}\n{_END}\n"
        before, after = page.partition(_BEGIN)[0], page.rpartition(_END)[2]
        table = format_table(results)
        self._page.write_text(f"{before}{_BEGIN}\n\n{table}\n\n{_END}{after}", "utf-8")


def _json(result: Result) -> str:
    return json.dumps(result.to_json(), ensure_ascii=False)


def format_table(results: Mapping[str, Result]) -> str:
    """The table as Markdown."""
    head = "| row | what | median (range) | ratio (range) | goal | | load |\n" + 7 * "|---" + "|"
    return "\n".join([head, *(_format_row(name, result) for name, result in results.items())])


def _format_row(name: str, result: Result) -> str:
    unit = result.unit if result.unit.startswith("/") else f" {result.unit}"
    figures = "<br>".join(
        f"{who}: {format_range(figures, unit)}" for who, figures in result.figures.items()
    )
    ratio = format_range(result.ratios, "\N{MULTIPLICATION SIGN}") if result.ratios else ""
    mark = "" if result.goal is None else "yes" if result.goal.reached(result.judged) else "no"
    goal = "shown" if result.goal is None else str(result.goal)
    return (
        f"| `{name}` | {result.title} | {figures} | {ratio} | {goal} | {mark} | {result.load:g} |"
    )


def format_range(figures: list[float], unit: str = "") -> str:
    """The median, and the smallest and the largest."""
    low, middle, high = (
        _short(x) for x in (min(figures), statistics.median(figures), max(figures))
    )
    return f"{middle}{unit} ({low} to {high})"


def _short(figure: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(abs(figure)))) if figure else 0
    return f"{figure:,.{digits}f}"


def draw(results: Mapping[str, Result]) -> str:
    """A line for each row with a goal: how far it is from it, on a logarithmic scale."""
    shown = {result.title: _distances(result) for result in results.values() if result.goal}
    height = _TOP + _LINE * len(shown) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 20}" '
        f'height="{height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_x(1)}" y="14" text-anchor="middle">the goal</text>',
        f'<text x="{_LEFT}" y="30" fill="#555">better</text>',
        f'<text x="{_LEFT + _WIDTH}" y="30" fill="#555" text-anchor="end">worse</text>',
        f'<line x1="{_x(1)}" x2="{_x(1)}" y1="20" y2="{height}" stroke="#999"/>',
    ]
    for number, (title, distances) in enumerate(shown.items()):
        parts += _draw_line(title.replace("`", ""), distances, _TOP + _LINE * number)
    return "\n".join([*parts, "</svg>", ""])


def _distances(result: Result) -> list[float]:
    """Each round as a multiple of the goal, more than 1 being worse."""
    assert result.goal is not None
    figures = result.ratios or next(iter(result.figures.values()))
    bound = result.goal.bound
    return [bound / x if result.goal.at_least else x / bound for x in figures]


def _draw_line(title: str, distances: list[float], y: int) -> list[str]:
    low, middle, high = (
        _x(d) for d in (min(distances), statistics.median(distances), max(distances))
    )
    color = "#2a7" if middle <= _x(1) else "#c43"
    return [
        f'<text x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{title}</text>',
        f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="3"/>',
        f'<circle cx="{middle}" cy="{y}" r="5" fill="{color}"/>',
    ]


def _x(distance: float) -> float:
    """The place of a multiple of the goal between a tenth and ten times."""
    place = (math.log10(min(max(distance, 0.1), 10)) + 1) / 2
    return round(_LEFT + _WIDTH * place, 1)
