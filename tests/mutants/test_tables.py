"""The tables of planted mistakes move with the code. `make mutants` plants them."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants.plant import HERE, Workshop, read_tables


def test_every_line_and_test_of_the_tables_is_there() -> None:
    mutants = read_tables()
    assert not [problem for one in mutants if (problem := one.problem())]
    assert len({(one.file, one.line, one.planted) for one in mutants}) == len(mutants)
    assert all(one.promise and one.tests for one in mutants)


def test_few_survive_and_each_for_a_reason() -> None:
    mutants = read_tables()
    assert sum(bool(one.survives) for one in mutants) <= 0.05 * len(mutants)


def test_a_table_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=f"no table is called nosuch; there are .*{next(HERE.glob('*.yaml')).stem}"):
        read_tables(["nosuch"])


@pytest.mark.slow
def test_a_mistake_is_planted_seen_and_taken_out_again(tmp_path: Path) -> None:
    mutant = next(one for one in read_tables() if one.tests[0].startswith("tests/run/test_sizing.py"))
    workshop = Workshop(tmp_path / "copy")
    before = (tmp_path / "copy" / mutant.file).read_text()
    assert workshop.plant(mutant)
    assert (tmp_path / "copy" / mutant.file).read_text() == before
