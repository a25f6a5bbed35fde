"""Reject reasons: properties of an image's bytes, recorded as rows. Stable names, part of the public contract."""

from __future__ import annotations

from typing import Final

UNIDENTIFIED: Final = "unidentified"
TRUNCATED: Final = "truncated"
CORRUPT: Final = "corrupt"
TOO_MANY_PIXELS: Final = "too_many_pixels"
ASPECT_RATIO: Final = "aspect_ratio"
UNSUPPORTED_MODE: Final = "unsupported_mode"
DUPLICATE_KEY: Final = "duplicate_key"
MISSING_IMAGE: Final = "missing_image"
CHECKSUM: Final = "checksum"
NON_FINITE: Final = "non_finite"
CRASH: Final = "crash"

OK: Final = "ok"
# A row or line that names no image, such as the text-only ones of a mixed data set: a sample, but no reject.
NO_IMAGE: Final = "no_image"

REASONS: Final = (
    UNIDENTIFIED,
    TRUNCATED,
    CORRUPT,
    TOO_MANY_PIXELS,
    ASPECT_RATIO,
    UNSUPPORTED_MODE,
    DUPLICATE_KEY,
    MISSING_IMAGE,
    CHECKSUM,
    NON_FINITE,
    CRASH,
)
STATUSES: Final = (OK, *REASONS, NO_IMAGE)

# Of the moment, where the index says ok: another process may come to another end with the same bytes, or find them. All
# other reasons are functions of the bytes and of what the fingerprint holds.
OF_THE_MOMENT: Final = (CHECKSUM, MISSING_IMAGE, NON_FINITE, CRASH)


class Reject(Exception):
    """Raised where the bytes of one image turn out unusable; caught where its row is made.

    Args:
        reason: one of `REASONS`.
        message: what is wrong, in words, for the `error` column.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
