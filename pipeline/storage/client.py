"""Client: fsspec's client for a URI, and one type of error for whatever it raises.

Credentials, endpoints, regions, retries and timeouts are the clients' own: for S3 the AWS variables and profiles.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from ..errors import StorageBusy
from ..process import install_hint
from .hub import HUB, client_of_process
from .transient import is_transient
from .uri import S3, WHOLE_OBJECTS, scheme_of

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
REFUSED = errno.EPROTO  # of a failure that has no errno of its own, and that waiting does not help
CONNECTIONS = 64  # that one process may have to S3; botocore's own 10 would be the bound of every pool of threads
_clients: dict[tuple[int, str, str, str], Any] = {}


def client_of(uri: str) -> tuple[Any, str]:
    """fsspec's client for a URI (one for each process), and the path that it knows the URI by. Raises OSError."""
    scheme = scheme_of(uri)
    try:
        if scheme == HUB:
            client = client_of_process()
            return client, client._strip_protocol(uri)
        options = fsspec.get_filesystem_class(scheme)._get_kwargs_from_urls(uri)
        if scheme in WHOLE_OBJECTS:  # others hand on what they do not know to a connection that does not either
            options["use_listings_cache"] = False
        if scheme in S3:
            stated = fsspec.config.conf.get(scheme, {}).get("config_kwargs", {})
            options["config_kwargs"] = {"max_pool_connections": CONNECTIONS} | stated
        client = _client_of_process(scheme, options) if scheme in S3 else fsspec.filesystem(scheme, **options)
        return client, client._strip_protocol(uri)
    except ImportError as error:
        extra = f": {install_hint(EXTRAS[scheme])}" if scheme in EXTRAS else ""
        raise OSError(errno.ENOPKG, f"{error}{extra}", uri) from error
    except Exception as error:
        raise failure_of(error, uri) from error


def _client_of_process(scheme: str, options: dict[str, Any]) -> Any:
    """One client for all threads: fsspec makes one for each, at a tenth of a second and connections of its own."""
    key = (os.getpid(), scheme, repr(options), repr(fsspec.config.conf.get(scheme)))
    known = _clients.get(key)
    if known is None or known._fs_token_ not in type(known)._cache:  # fsspec's own cache was emptied
        known = _clients[key] = fsspec.filesystem(scheme, **options)
    return known


def request_options(client: Any) -> dict[str, str]:
    """Returns what each of an S3 client's requests must say: who pays. Before s3fs 2026 only its own methods do."""
    return dict(getattr(client, "req_kw", {}))


@contextmanager
def named(uri: str) -> Iterator[None]:
    """Gives every failure of a client one type: what waiting may help is StorageBusy, all else another OSError.

    The one place where clients' errors are judged.
    """
    try:
        yield
    except StorageBusy:
        raise
    except FileNotFoundError as error:
        if "NoSuchUpload" in repr(error.__cause__):
            raise StorageBusy(errno.EAGAIN, f"its upload was ended ({error})", uri) from error
        if "NoSuchBucket" in repr(error.__cause__):  # a wrong endpoint or account: nothing is said about the object
            raise OSError(REFUSED, f"there is no such bucket ({error})", uri) from error
        raise FileNotFoundError(errno.ENOENT, f"not found ({error})" if str(error) else "not found", uri) from error
    except PermissionError as error:
        raise PermissionError(errno.EACCES, f"access denied ({error})", uri) from error
    except (FileExistsError, TypeError, AttributeError, AssertionError):  # the first is an answer, the others are bugs
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ESTALE:  # an answer too: `remote_read.Changed`
            raise
        raise failure_of(error, uri) from error


def failure_of(error: Exception, uri: str) -> OSError:
    """Returns the OSError that a client's failure is: StorageBusy where waiting may help."""
    text = f"{type(error).__name__}: {error}"
    return StorageBusy(errno.EAGAIN, text, uri) if is_transient(error) else OSError(REFUSED, text, uri)
