"""The table of docs/modules.md, run: every row on every layer, so that it cannot lie."""

import re
import warnings
from pathlib import Path

import pytest

from projunn import OffManifoldWarning
from tests.journeys import JOURNEYS, LAYERS

PAGE = Path(__file__).parents[1] / "docs" / "modules.md"
# What an error of ours looks like: the argument, what it was, what was wanted.
WORDS = re.compile(r"^(params|dtype|name): .*(wanted|build|unconstrain)", re.DOTALL)


def table():
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    header, body = rows[0], [row for row in rows[1:] if not set(row[0]) <= set("-|")]
    return header[1:], {row[0].strip("| "): row[1:] for row in body}


def test_the_table_has_a_row_for_every_journey_and_a_column_for_every_layer():
    columns, rows = table()
    assert columns == list(LAYERS)
    assert list(rows) == list(JOURNEYS)
    assert {cell for cells in rows.values() for cell in cells} == {"works", "refused"}


def cells():
    columns, rows = table()
    for row, values in rows.items():
        for column, value in zip(columns, values, strict=True):
            yield pytest.param(row, column, value, id=f"{JOURNEYS[row].__name__}-{column}")


@pytest.mark.parametrize(("row", "column", "value"), [*cells()])
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
def test_what_users_do_to_modules(row, column, value):
    if value == "works":
        with warnings.catch_warnings():
            warnings.simplefilter("error", OffManifoldWarning)  # said only where a journey expects it
            JOURNEYS[row](LAYERS[column])
        return
    with pytest.raises((TypeError, ValueError)) as refused:
        JOURNEYS[row](LAYERS[column])
    assert WORDS.match(str(refused.value)), refused.value
