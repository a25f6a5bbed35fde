"""Keys: unique over a file, whatever its parts.

A part tells its own repeats while it is indexed. What stood in an earlier part of the same file it cannot know: parts
are indexed by several processes, in any order. So the keys of a file that has several parts and a key column are read
while it is planned, and each part is given the digests of those that stood before it: units stay a pure function of
the source. A file of one part, and keys that are made of the row's number, cost nothing.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

DIGEST_BYTES = 16  # of n keys two have the same digest with a probability of n² / 2^129
BUCKETS = 64  # of digests, by their first byte: one at a time is in memory
SPOOLED_BYTES = 1 << 20  # of a bucket; beyond that it is in an unnamed temporary file
KEYS_AT_ONCE = 16_384
_ENTRY = np.dtype([("high", ">u8"), ("low", ">u8"), ("part", "<i4")])

Entries = npt.NDArray[np.void]


def key_digest(key: str) -> bytes:
    """A key in DIGEST_BYTES bytes."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def digests_in(repeated: bytes) -> frozenset[bytes]:
    """The digests that `repeats_by_part` has joined."""
    return frozenset(repeated[start : start + DIGEST_BYTES] for start in range(0, len(repeated), DIGEST_BYTES))


def repeats_by_part(keys_of_parts: Iterable[Iterable[str]]) -> list[bytes]:
    """Finds the keys of one file that stand in several of its parts.

    Memory: a 64th of the file's keys at 20 bytes each, and the repeats.

    Args:
        keys_of_parts: the keys of each part of the file, in the file's order.

    Returns:
        For each part the digests of those of its keys that an earlier part has, joined, in order.
    """
    with ExitStack() as stack:
        buckets = [stack.enter_context(tempfile.SpooledTemporaryFile(max_size=SPOOLED_BYTES)) for _ in range(BUCKETS)]
        parts = 0
        for part, keys in enumerate(keys_of_parts):
            parts = part + 1
            for entries in _entries(part, keys):
                numbers = (entries["high"] >> np.uint64(58)).astype(np.int64)
                for number in np.unique(numbers):
                    buckets[number].write(entries[numbers == number].tobytes())
        found: list[list[bytes]] = [[] for _ in range(parts)]
        for bucket in buckets:
            bucket.seek(0)
            for part, digests in _repeats(np.frombuffer(bucket.read(), _ENTRY)):
                found[part].append(digests)
    return [b"".join(digests) for digests in found]


def _entries(part: int, keys: Iterable[str]) -> Iterator[Entries]:
    digests: list[bytes] = []

    def entries() -> Entries:
        result = np.empty(len(digests), _ENTRY)
        halves = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2)
        result["high"], result["low"], result["part"] = halves[:, 0], halves[:, 1], part
        return result

    for key in keys:
        digests.append(key_digest(key))
        if len(digests) == KEYS_AT_ONCE:
            yield entries()
            digests.clear()
    if digests:
        yield entries()


def _repeats(entries: Entries) -> Iterator[tuple[int, bytes]]:
    """Each part that repeats keys of an earlier one, and their digests, sorted."""
    order = np.lexsort((entries["part"], entries["low"], entries["high"]))
    entries = entries[order]
    same = np.zeros(len(entries), np.bool_)
    same[1:] = (entries["high"][1:] == entries["high"][:-1]) & (entries["low"][1:] == entries["low"][:-1])
    # The first part of each run of one digest; a part that has the key twice tells the second one itself.
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(entries))))
    later = entries[entries["part"] != entries["part"][first]]
    for part in np.unique(later["part"]):
        of_part = later[later["part"] == part]
        digests = np.stack([of_part["high"], of_part["low"]], axis=1).astype(">u8")
        yield int(part), np.unique(digests, axis=0).astype(">u8").tobytes()
