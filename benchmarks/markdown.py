"""A table in Markdown: its lines, and one that is printed row by row as it is measured."""

from collections.abc import Sequence


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def head(header: Sequence[str]) -> str:
    return f"{line(header)}\n{line(['---'] * len(header))}"


def print_head(header: Sequence[str]) -> None:
    print(head(header), flush=True)


def print_row(cells: Sequence[str]) -> None:
    print(line(cells), flush=True)
