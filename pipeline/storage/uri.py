"""URIs of remote storage and of local files, judged by their looks alone."""

from __future__ import annotations

import os
import posixpath
import urllib.parse

import fsspec

WEB = ("http", "https", "ftp")
HOSTS = (*WEB, "git", "github", "data", "reference", "generic", "dir", "zip", "tar")
# Where an object appears only when all of it is there. Elsewhere it is written beside, then renamed.
WHOLE_OBJECTS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss")
LONGEST_PATH = 300  # of a URL that is shown
S3 = ("s3", "s3a")
GCS = ("gs", "gcs")


def scheme_of(uri: str) -> str:
    return uri.partition("://")[0]


def problem_with(uri: str) -> str:
    """Says what is wrong with a URI by its looks alone; never repeats what may be a secret."""
    scheme, _, rest = uri.partition("://")
    bucket = rest.partition("/")[0]
    if "::" in scheme:
        return "a URI with a chain of protocols: name the files themselves"
    if scheme in HOSTS:
        host = bucket.rpartition("@")[2]
        # A query may be a signature; before an @ stands a password, in which a slash may be.
        path = rest.partition("?")[0].partition("#")[0].partition("/")[2]
        path = "…" if "@" in path or len(path) > LONGEST_PATH else path
        return (
            f"{scheme}://{host}/{path} is a URL: visionbake fetches nothing from hosts; download it first (img2dataset "
            "fetches whole lists)"
        )
    # A secret key may hold slashes: whatever has a colon or an @ where a bucket is, or before an @ further on.
    if (scheme in S3 + GCS and (":" in bucket or "@" in bucket)) or (":" in bucket and "@" in rest):
        return (
            f"{scheme}://… is a URI with credentials; they belong into the environment or a profile, as the storage's "
            "own tools read them"
        )
    if not bucket or "//" in rest or ".." in rest.split("/"):
        return f"{uri}: an empty name or .. in a path cannot be told from another object's"
    if scheme not in fsspec.available_protocols():
        return f"{uri}: no storage is known as {scheme}://"
    return ""


def is_file_uri(text: str) -> bool:
    """Whether this is a URI of a file on this machine, such as file:///data/a.tar."""
    return text[:6].lower() == "file:/"


def local_path(text: str) -> str:
    """The path that a local location names; a file URI is percent-decoded.

    Source: RFC 8089, 2 (`file:/path`, `file:///path`, `file://localhost/path`).

    Raises:
        ValueError: it is a file URI that names another machine, or no path.
    """
    if not is_file_uri(text):
        return text
    rest = text[5:]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise ValueError(
                f"{text}: names a file on the machine {host!r}; only files of this one can be opened: write "
                f"file:///{path} for /{path}, or a path"
            )
        rest = slash + path
    decoded = urllib.parse.unquote_to_bytes(rest)
    if not rest or b"\0" in decoded:
        raise ValueError(f"{text}: is a file URI without a path; write file:///folder, or a path")
    return os.fsdecode(decoded)


def beside(uri: str, name: str) -> str:
    """The URI that a relative name means in a file at this URI: `..` is no folder in an object store."""
    scheme, _, path = uri.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(path), name))}"  # problem_with sees a ..
