"""Planted mistakes: each line of the tables beside this file is changed, one at a time, and its tests must fail.

`make mutants`, or `make mutants OF="output tower"`. Each mistake is planted in a copy of the checkout; the tests that
are named for it run there, and nothing else (nursery.py). Before any is planted, all the named tests must pass.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from mutants.nursery import FAILED, PASSED, REPOSITORY, Change, Outcome, Trial, run_trials

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A mistake.

    Attributes:
        table: the name of its table, a wing.
        promise: what it breaks.
        file: in the checkout.
        line: the text as it is, which stands in the file once.
        planted: the text as it might be.
        tests: pytest's names of those that must see it.
        survives: why none does; "" where one must.
    """

    table: str
    promise: str
    file: str
    line: str
    planted: str
    tests: tuple[str, ...]
    survives: str = ""

    def problem(self, root: Path = REPOSITORY) -> str:
        """Says what of the table is no longer true of the code; "" where all is."""
        source = root / self.file
        count = source.read_text(encoding="utf-8").count(self.line) if source.is_file() else 0
        if count != 1:
            return f"{self}: its line stands there {count} times: {self.line!r}"
        if self.line == self.planted:
            return f"{self}: nothing is planted"
        for test in self.tests:
            file, _, function = test.partition("::")
            text = (root / file).read_text(encoding="utf-8") if (root / file).is_file() else ""
            if f"def {function.partition('[')[0]}(" not in text:
                return f"{self}: there is no test {test}"
        return ""

    def __str__(self) -> str:
        return f"{self.table}: {self.file}: {self.promise}"


def read_tables(names: Sequence[str] = ()) -> list[Mutant]:
    """The mistakes of the named tables, or of all. Raises ValueError: there is no such table."""
    known = {path.stem: path for path in sorted(HERE.glob("*.yaml"))}
    if unknown := set(names) - set(known):
        raise ValueError(f"no table is called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [
        Mutant(table=name, **{**row, "tests": tuple(row["tests"].split())})
        for name in names or known
        for row in yaml.safe_load(known[name].read_text(encoding="utf-8"))
    ]


def check_tests_pass(mutants: Sequence[Mutant], workers: int) -> None:
    """Raises SystemExit where a named test fails with no mistake planted."""
    files: dict[str, set[str]] = {}
    for test in {test for mutant in mutants for test in mutant.tests}:
        files.setdefault(test.partition("::")[0], set()).add(test)
    trials = [Trial(tests=tuple(sorted(tests)), seconds=600) for tests in files.values()]
    for trial, outcome in run_trials(trials, workers):
        if outcome.code != PASSED:
            sys.exit(f"with no mistake planted, of {' '.join(trial.tests)}:\n{outcome.said[-4000:]}")


def judge(mutant: Mutant, outcome: Outcome) -> tuple[str, str]:
    """The kind of what came of it, and a note where that is wrong."""
    if outcome.code not in (PASSED, FAILED, None):
        return "broken", f"{mutant}: its tests did not run:\n{outcome.said[-2000:]}"
    if outcome.code == PASSED:
        return ("survives", "") if mutant.survives else ("missed", f"{mutant}: was not seen")
    return ("stale", f"{mutant}: is seen after all") if mutant.survives else ("seen", "")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("tables", nargs="*", help="the wings whose tables are taken; all of them if none is named")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="those that have this in their file or promise")
    arguments = parser.parse_args()
    mutants = [one for one in read_tables(arguments.tables) if arguments.only in str(one)]
    if problems := [problem for one in mutants if (problem := one.problem())]:
        sys.exit("\n".join(problems))
    began = time.monotonic()
    check_tests_pass(mutants, arguments.workers)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    trials = {
        Trial(tests=one.tests, change=Change(file=one.file, line=one.line, planted=one.planted)): one for one in mutants
    }
    for trial, outcome in run_trials(trials, arguments.workers):
        kind, note = judge(trials[trial], outcome)
        counts[kind] += 1
        wrong += [note] if note else []
        print(f"{kind:9} {outcome.seconds:5.1f} s {trials[trial]}", flush=True)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = f"{time.monotonic() - began:.0f} s, {spent.ru_utime + spent.ru_stime:.0f} s of CPU"
    print(f"\n{len(mutants)} planted in {seconds}: {counts['seen']} seen")
    for mutant in mutants:
        if mutant.survives:
            print(f"survives: {mutant}: {mutant.survives}")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
