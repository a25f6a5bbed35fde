"""Done parts: which parts have all of their units committed, found without opening a file a part.

    ledger/_units.json      how many units each part has that a ledger was written of

A part is done if as many samples shards of it are there. What the file does not know of, its ledger tells. Like a
ledger it can be lost: the next run then opens more files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor

from ..errors import OutputError, RequestError
from ..storage.files import AnyPath, requests_at_once
from ..storage.publish import publish_over, write_text
from ..storage.scratch import Scratch
from .info import read_dataset
from .ledger import CommittedUnits
from .ledger_file import open_ledger

COUNTS = "_units.json"


def read_counts(output: AnyPath) -> dict[int, int]:
    """Units by part, of parts that were done once; {} where that cannot be read, or is of another run."""
    path = output / "ledger" / COUNTS
    try:
        if not path.exists():
            return {}
        tree = dict(json.loads(path.read_text(encoding="utf-8")))
        if tree["fingerprint"] != read_dataset(output).fingerprint:
            return {}
        return dict(zip(map(int, tree["parts"]), map(int, tree["units"]), strict=True))
    except (OSError, KeyError, TypeError, ValueError, RequestError):
        return {}


def write_counts(output: AnyPath, counts: Mapping[int, int], scratch: Scratch) -> None:
    """Writes what is known, over what stands there. Raises OutputError: nothing is lost by that."""
    parts = sorted(counts)
    tree = {
        "fingerprint": read_dataset(output).fingerprint,
        "parts": parts,
        "units": [counts[part] for part in parts],
    }
    path = scratch.path(COUNTS)
    write_text(path, json.dumps(tree, separators=(",", ":")) + "\n")
    publish_over(path, output / "ledger" / COUNTS)


def done_parts(output: AnyPath, committed: CommittedUnits, folded: Set[int], counts: Mapping[int, int]) -> set[int]:
    """The parts whose units are all committed, of those that have a ledger.

    Args:
        counts: as `read_counts` has them.
    """
    done = {part for part in folded if part in counts and counts[part] == committed.count_of(part)}
    unknown = [part for part in folded if part not in counts and committed.count_of(part)]
    return done | set(_by_their_ledgers(output, committed, unknown))


def _by_their_ledgers(output: AnyPath, committed: CommittedUnits, parts: list[int]) -> Iterable[int]:
    if not parts:
        return []
    fingerprint = read_dataset(output).fingerprint

    def is_done(part: int) -> bool:
        try:
            ledger = open_ledger(output, part, ())
        except OutputError:
            return False
        return ledger.fingerprint == fingerprint and ledger.numbers == committed.numbers(part)

    with ThreadPoolExecutor(requests_at_once(output)) as pool:
        return [part for part, done in zip(parts, pool.map(is_done, parts), strict=True) if done]
