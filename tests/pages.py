"""Runs what stands in a page of the documentation: shell lines, Python and YAML blocks, in the current folder."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import parse_config

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEREDOC = re.compile(r"<<'(\w+)'")
SHELL_SIGNS = {"|", "<", ";", "&&", "||", ">>"}
# A page's fragment is a whole configuration with these.
REST = {"source": {"uri": "photos"}, "model": {"path": "random:tiny"}, "output": {"uri": "out"}}


@dataclass(frozen=True, kw_only=True)
class Step:
    """A line of a shell block, or a whole block of another language."""

    language: str
    line: int
    text: str

    @property
    def name(self) -> str:
        """What the list of those that are not run calls it: its first line, without the comment behind it."""
        first = self.text.splitlines()[0]
        return re.sub(r"\s+#\s.*", "", first) if self.language == "sh" else first


def steps_of(page: str) -> Iterator[Step]:
    """Yields the steps of a page in order."""
    for block in FENCE.finditer(page):
        language, text = block.groups()
        start = page.count("\n", 0, block.start()) + 2
        if language == "sh":
            yield from _lines(text, start)
        else:
            yield Step(language=language, line=start, text=text)


def _lines(text: str, start: int) -> Iterator[Step]:
    """Yields the commands of a shell block: lines, with what a backslash or a here-document joins to them."""
    lines = iter(enumerate(text.splitlines(), start))
    for number, line in lines:
        whole = [line]
        if end := HEREDOC.search(line):
            whole += _until(lines, lambda last, end=end: last == end[1])
        elif line.endswith("\\"):
            whole += _until(lines, lambda last: not last.endswith("\\"))
        if line.strip() and not line.startswith("#"):
            yield Step(language="sh", line=number, text="\n".join(whole))


def _until(lines: Iterator[tuple[int, str]], is_last: Callable[[str], bool]) -> Iterator[str]:
    for _, line in lines:
        yield line
        if is_last(line):
            return


class Runner:
    """Runs the steps of one page; Python blocks share their names.

    Args:
        page: its name, for messages.
        main: the command, `visionbake.cli.main`.
        stand_ins: what is written in place of a page's words.
    """

    def __init__(self, page: str, main: Callable[[list[str]], int], stand_ins: Mapping[str, str]) -> None:
        self._page, self._main, self._stand_ins = page, main, stand_ins
        self._names: dict[str, Any] = {"__name__": "__page__"}

    def run(self, step: Step) -> str:
        """Runs a step and returns what it said. Raises AssertionError: a command failed; of Python what it raises."""
        text = step.text
        for words, stand_in in self._stand_ins.items():
            text = text.replace(words, stand_in)
        return {"sh": self._shell, "python": self._python, "yaml": self._yaml}[step.language](text, step.line)

    def _shell(self, text: str, line: int) -> str:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
        if words[0] != "visionbake" or SHELL_SIGNS.intersection(words):
            done = subprocess.run(["bash", "-ec", text], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, f"{self._page}:{line}: {text}\n{done.stdout}{done.stderr}"
            return done.stdout
        words, file = (words[: words.index(">")], words[-1]) if ">" in words else (words, None)
        # Ray is left out: its start is ten seconds, and tests/test_wheel.py types README's lines with it.
        words += ["--set", "cluster.engine=inline"] if words[1] == "run" else []
        said, complaints = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaints):
            try:
                code = self._main(words[1:])
            except SystemExit as error:  # what argparse refuses
                code = error.code
        assert code == 0, f"{self._page}:{line}: {text}\n{said.getvalue()}{complaints.getvalue()}"
        if file:
            Path(file).write_text(said.getvalue())
        return said.getvalue()

    def _python(self, text: str, line: int) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(compile(text, f"{self._page}, from line {line}", "exec"), self._names)
        return said.getvalue()

    def _yaml(self, text: str, line: int) -> str:
        """Checks a configuration, whole or a fragment; one that begins with `# NAME.yaml` is kept under that name."""
        tree = yaml.safe_load(text)
        where = f"{self._page}:{line}"
        parse_config({name: REST.get(name, {}) | tree.get(name, {}) for name in REST | tree}, where)
        if named := re.match(r"# (\S+\.yaml)\n", text):
            Path(named[1]).write_text(text)
        return ""
