"""The tables of planted mistakes move with the code. `make mutants` plants them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutants.nursery import FAILED, PASSED, REPOSITORY
from mutants.plant import HERE, read_tables


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


TRY = """
import json, sys
from mutants.nursery import Change, Trial, run_trials
change, tests, hangs = json.loads(sys.argv[1])
trials = [
    Trial(tests=tuple(tests), change=Change(**change)),
    Trial(tests=tuple(tests)),
    Trial(tests=(hangs,), seconds=4),
]
print(json.dumps([outcome.code for _, outcome in run_trials(trials, 1, ("torch", "pytest"))]))
"""


@pytest.mark.slow
def test_a_mistake_is_planted_seen_and_taken_out_again_and_what_hangs_is_ended(tmp_path: Path) -> None:
    """In a process of its own, since what is forked must have none of the checkout's modules."""
    mutant = next(one for one in read_tables() if one.tests[0].startswith("tests/run/test_sizing.py"))
    hangs = tmp_path / "test_hangs.py"
    hangs.write_text(
        "import subprocess, time\n"
        "def test_hangs():\n"
        "    left = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"    open({str(tmp_path / 'left')!r}, 'w').write(str(left.pid))\n"
        "    time.sleep(600)\n"
    )
    change = {"file": mutant.file, "line": mutant.line, "planted": mutant.planted}
    words = [sys.executable, "-c", TRY, json.dumps([change, mutant.tests, str(hangs)])]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests"), "TMPDIR": str(tmp_path)}
    said = subprocess.run(words, capture_output=True, text=True, env=environment, check=True, timeout=120).stdout
    assert json.loads(said) == [FAILED, PASSED, None]
    assert not Path("/proc", (tmp_path / "left").read_text()).exists()
    assert not list(tmp_path.glob("visionbake-*"))
