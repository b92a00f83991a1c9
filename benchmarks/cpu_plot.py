"""A picture of what ``benchmarks.cpu_peers`` found: one group of bars for each kind of work.

    python -m benchmarks.cpu_plot RESULT.json --out docs/performance.svg

Several results are drawn as one, later ones before earlier. SVG written by hand, so that it needs
no library and a change of it can be read.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.cpu_peers import WORK

WIDTH, LEFT, RIGHT = 860, 190, 150
BAR, GAP, TITLE = 15, 4, 34
OURS, PEERS, BOUND = "#c2255c", "#8aa0b4", "#333"
FONT = "font-family='Helvetica, Arial, sans-serif'"
LESS_IS_BETTER = ("mixed", "start", "memory")


def draw(rows: list[dict[str, Any]], title: str) -> str:
    """The whole picture."""
    y, parts = 40, [_text(12, 24, title, 16, weight="bold")]
    for work, what in WORK.items():
        group = [row for row in rows if row["work"] == work]
        if group:
            parts += _group(what, group, y)
            y += TITLE + len(group) * (BAR + GAP)
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {y + 12}' {FONT}>"
    back = f"<rect width='{WIDTH}' height='{y + 12}' fill='white'/>"
    return "\n".join([head, back, *parts, "</svg>\n"])


def _group(what: str, rows: list[dict[str, Any]], y: int) -> Iterator[str]:
    """Title and bars, the best first; a tick is what the machine allows at most."""
    less = rows[0]["work"] in LESS_IS_BETTER
    better = "less is better" if less else "more is better"
    yield _text(12, y + 20, f"{what}, {rows[0]['unit']} ({better})", 13, weight="bold")
    longest = max(max(row["median"], row["bound"] or 0) for row in rows)
    y += TITLE - 4
    for row in sorted(rows, key=lambda row: row["median"], reverse=not less):
        yield from _bar(row, y, (WIDTH - LEFT - RIGHT) / longest)
        y += BAR + GAP


def _bar(row: dict[str, Any], y: int, scale: float) -> Iterator[str]:
    width = row["median"] * scale
    colour = OURS if row["name"].startswith("rosellm") else PEERS
    yield _text(LEFT - 8, y + 12, row["name"], 12, anchor="end")
    yield f"<rect x='{LEFT}' y='{y}' width='{width:.1f}' height='{BAR}' fill='{colour}'/>"
    end = width
    if row["bound"]:
        end = max(width, row["bound"] * scale)
        at = LEFT + row["bound"] * scale
        yield f"<path d='M{at:.1f} {y - 1}v{BAR + 2}' stroke='{BOUND}' stroke-width='2'/>"
    yield _text(LEFT + end + 6, y + 12, _value(row), 12)


def _value(row: dict[str, Any]) -> str:
    size = f"  ({row['weight_bits']:.1f} bits a weight)" if row["weight_bits"] else ""
    return f"{row['median']:,.4g}{size}"


def _text(
    x: float, y: float, what: str, size: int, *, weight: str = "normal", anchor: str = "start"
) -> str:
    style = f"font-size='{size}' font-weight='{weight}' text-anchor='{anchor}'"
    return f"<text x='{x:.1f}' y='{y}' {style}>{escape(what)}</text>"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    args = parser.parse_args()
    found = [json.loads(file.read_text()) for file in args.results]
    rows = {(row["work"], row["name"]): row for each in found for row in each["rows"]}
    cpu, threads = found[-1]["machine"]["cpu"], found[-1]["threads"]
    title = f"{found[-1]['model']}, random weights, {threads} threads of {cpu}"
    args.out.write_text(draw(list(rows.values()), title))


if __name__ == "__main__":
    main()
