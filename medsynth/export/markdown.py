"""Tables and numbers of the release's Markdown pages. What is quoted can neither leave its cell nor speak in the page's voice."""

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line(str(cell)).replace("|", "\\|") for cell in row) + " |" for row in lines)


def line(text: str) -> str:
    """Text of one line that cannot leave its cell, quote or item."""
    return " ".join(text.split()).replace("<", "&lt;")


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def interval(ends: Sequence[float] | None) -> str:
    return "–" if ends is None else f"{number(ends[0])} to {number(ends[1])}"
