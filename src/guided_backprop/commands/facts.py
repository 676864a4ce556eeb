"""What is known of one photo, as rows that people read."""

from collections.abc import Sequence

from rich.table import Table


def facts_grid(facts: Sequence[tuple[str, str]]) -> Table:
    """Return facts, each behind its name, as a table without lines."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", min_width=11, no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts:
        table.add_row(name, fact)
    return table
