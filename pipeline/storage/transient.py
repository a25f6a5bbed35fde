"""Transient failures: which of a remote storage's answers are worth another try, whichever client tells them.

Clients are known by what their errors look like, not by importing them: few are installed at a time.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from ..errors import is_busy

# 408 and 429: time-out, too many requests. Of the 5xx all but these three, which say that it is so for good.
BUSY_STATUS = frozenset({408, 425, 429, *range(500, 600)} - {501, 505, 507})
# S3's codes, and those of stores that speak like it. Some come with 400 or 409, some with no status at all.
BUSY_CODES = frozenset(
    {
        "BadDigest",  # the body was damaged on its way
        "BandwidthLimitExceeded",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "InternalFailure",
        "NoSuchUpload",  # somebody has ended it: it is begun again
        "OperationAborted",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServerBusy",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "TooManyRequests",
        "TooManyRequestsException",
        "XAmzContentSHA256Mismatch",
    }
)
# By name, of botocore, aiohttp, urllib3, requests, http.client, Azure's and Google's clients: connections that are
# refused, reset or time out, bodies that break off, names that cannot be resolved, credentials that cannot be fetched.
BUSY_TYPES = frozenset(
    {
        "ChunkedEncodingError",
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectionClosedError",
        "ConnectionError",
        "CredentialRetrievalError",
        "FSTimeoutError",
        "HTTPClientError",
        "IncompleteRead",
        "IncompleteReadError",
        "MetadataRetrievalError",
        "ProtocolError",
        "ResponseParserError",
        "ServiceRequestError",
        "ServiceResponseError",
        "Timeout",
        "TimeoutError",
        "TransportError",
    }
)


def is_transient(error: BaseException) -> bool:
    """Whether waiting may help against what a client has raised: by the storage's answer, else by what broke."""
    links = list(_chain(error))
    for link in links:
        code, status = _answer(link)
        if code in BUSY_CODES:
            return True
        if status is not None:
            return status in BUSY_STATUS
    if any(isinstance(link, ssl.SSLCertVerificationError) for link in links):
        return False
    return any(
        is_busy(link) or isinstance(link, socket.gaierror) or not BUSY_TYPES.isdisjoint(_names(link)) for link in links
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _answer(error: BaseException) -> tuple[str, int | None]:
    """The code and the HTTP status of an answer, as far as an error holds them."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        stated = response.get("Error", {}).get("Code", "")
        return str(stated), _number(response.get("ResponseMetadata", {}).get("HTTPStatusCode", stated))
    if (status := _number(getattr(response, "status_code", None))) is not None:  # the Hub's
        return "", status
    for name in ("status", "status_code", "code"):  # aiohttp's, Azure's, Google's
        if (status := _number(getattr(error, name, None))) is not None:
            return str(getattr(error, "error_code", "") or ""), status
    return "", None


def _number(value: object) -> int | None:
    text = str(getattr(value, "value", value))
    return int(text) if text.isdecimal() and len(text) == 3 else None


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}
