"""The table of spellings is full: each framework writes each row, or says in words why it cannot."""

import pytest

from spellings import FRAMEWORKS, Cell, column, guided, row
from spellings.arithmetic import ARITHMETIC
from spellings.capped import CAPPED
from spellings.forms import FORMS
from spellings.relus import RELUS

TABLES = {"relus": RELUS, "capped": CAPPED, "arithmetic": ARITHMETIC, "forms": FORMS}


def unwritten(cells):
    """Return the frameworks without a cell and without a reason."""
    return [name for name, cell in cells.items() if not isinstance(cell, Cell) and not (cell and " " in cell)]


@pytest.mark.parametrize("table", TABLES)
def test_no_cell_is_missing(table):
    for name, cells in TABLES[table].items():
        assert tuple(cells) == FRAMEWORKS, name
        assert not unwritten(cells), name
        assert any(isinstance(cell, Cell) for cell in cells.values()), name


def test_planted_fault_a_missing_cell_is_seen():
    assert unwritten(row(torch=guided(abs), jax="it has no such function")) == ["tensorflow", "keras"]


def test_a_column_is_of_one_framework_and_one_verdict():
    assert column({"one": row("has none", torch=guided(abs))}, "torch", "guided") == {"one": abs}
    assert column({"one": row("has none", torch=guided(abs))}, "torch", "refused") == {}
    assert column({"one": row("has none", torch=guided(abs))}, "jax") == {}
