"""Planted mistakes: each line of the tables beside this file is changed, one at a time, and its tests must fail.

`make mutants`, or `make mutants OF="output tower"`. Each mistake is planted in a copy of the checkout; the tests that
are named for it run there, and nothing else. Before any is planted, all the named tests must pass.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
COPIED = ("pipeline", "jobs", "tests", "configs", "docs", "pyproject.toml", "README.md", "Makefile")
SECONDS = 240.0  # a mistake that makes its tests hang is seen as well
PASSED, FAILED = 0, 1  # what pytest ends with


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


class Workshop:
    """A copy of the checkout in which mistakes are planted."""

    def __init__(self, folder: Path) -> None:
        self._root = folder
        for name in COPIED:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder / name)

    def test(self, tests: Sequence[str]) -> int | None:
        """What pytest ends with; None where it does not end."""
        words = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:randomly", *tests]
        # Bytecode of the line before, of the same size and second, would be taken for the new one's.
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(self._root)}
        try:
            done = subprocess.run(
                words, cwd=self._root, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return None
        self.said = done.stdout + done.stderr
        return done.returncode

    def plant(self, mutant: Mutant) -> bool:
        """Whether the mistake is seen. Raises RuntimeError: its tests did not run."""
        file = self._root / mutant.file
        text = file.read_text(encoding="utf-8")
        try:
            file.write_text(text.replace(mutant.line, mutant.planted), encoding="utf-8")
            code = self.test(mutant.tests)
        finally:
            file.write_text(text, encoding="utf-8")
        if code not in (PASSED, FAILED, None):
            raise RuntimeError(f"{mutant}: its tests did not run:\n{self.said[-2000:]}")
        return code != PASSED


def plant_all(mutants: Sequence[Mutant], workers: int) -> Iterator[tuple[Mutant, bool | Exception]]:
    """Plants them, so many at a time, each in a copy of its own; yields whether each was seen."""
    waiting: queue.SimpleQueue[Mutant | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Mutant, bool | Exception]] = queue.SimpleQueue()
    for mutant in [*mutants, *[None] * workers]:
        waiting.put(mutant)

    def work(workshop: Workshop) -> None:
        while (mutant := waiting.get()) is not None:
            try:
                done.put((mutant, workshop.plant(mutant)))
            except Exception as error:  # noqa: BLE001 - told where it is taken
                done.put((mutant, error))

    with tempfile.TemporaryDirectory(prefix="visionbake-mutants-") as folder:
        for number in range(workers):
            workshop = Workshop(Path(folder) / str(number))
            threading.Thread(target=work, args=(workshop,), daemon=True).start()
        for _ in mutants:
            yield done.get()


def check_tests_pass(mutants: Sequence[Mutant]) -> None:
    """Raises SystemExit where a named test fails with no mistake planted."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    with tempfile.TemporaryDirectory(prefix="visionbake-mutants-") as folder:
        workshop = Workshop(Path(folder) / "0")
        if workshop.test(tests) != PASSED:
            sys.exit(f"the tests fail with no mistake planted:\n{workshop.said[-4000:]}")


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
    check_tests_pass(mutants)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for mutant, seen in plant_all(mutants, arguments.workers):
        if isinstance(seen, Exception):
            kind, note = "broken", str(seen)
        elif seen:
            kind, note = ("seen", "") if not mutant.survives else ("stale", f"{mutant}: is seen after all")
        else:
            kind, note = ("survives", "") if mutant.survives else ("missed", f"{mutant}: was not seen")
        counts[kind] += 1
        wrong += [note] if note else []
        print(f"{kind:9} {mutant}", flush=True)
    print(f"\n{len(mutants)} planted in {time.monotonic() - began:.0f} s: {counts['seen']} seen")
    for mutant in mutants:
        if mutant.survives:
            print(f"survives: {mutant}: {mutant.survives}")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
