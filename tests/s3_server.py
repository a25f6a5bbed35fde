"""An S3-compatible server in a thread: moto's, behind a layer that counts requests and makes faults."""

from __future__ import annotations

import io
import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "bucket"
ANSWERS = {
    "412": ("412 Precondition Failed", "PreconditionFailed"),
    "403": ("403 Forbidden", "AccessDenied"),
    "500": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Service Unavailable", "SlowDown"),
    "409": ("409 Conflict", "ConditionalRequestConflict"),
    "501": ("501 Not Implemented", "NotImplemented"),
}


@dataclass(frozen=True, kw_only=True)
class Request:
    method: str
    key: str
    query: dict[str, list[str]]
    first: bool  # whether this is the first of this method, key and part
    number: int  # how many like it came before
    conditional: bool  # whether it may only make a new object, or replace one of an ETag
    payer: str  # who pays, where it says so

    @property
    def completes(self) -> bool:
        return self.method == "POST" and "uploadId" in self.query


@dataclass
class Counts:
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes_sent: Counter[str] = field(default_factory=Counter)
    faults: int = 0
    unheeded: int = 0  # conditions of a GET


class S3Server:
    """`fault`, where set, says what happens to a request: "403", "500", "503", "cut" (the connection ends before the
    request is looked at), "lost" (it is done, and its answer never arrives), or None. `heeds_if_match`: whether a GET
    may name the object's ETag."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._app = DomainDispatcherApplication(create_backend_app)
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self._lock, self._completing = threading.Lock(), threading.Lock()
        self.fault: Callable[[Request], str | None] = lambda request: None
        self.heeds_if_match = True
        self.counts = Counts()
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self._server = make_server("127.0.0.1", port, self, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{port}"

    def reset(self) -> None:
        """No faults, nothing counted."""
        self.fault = lambda request: None
        self.heeds_if_match = True
        self._seen.clear()
        self.counts = Counts()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        key = path.removeprefix(f"/{BUCKET}").lstrip("/")
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        with self._lock:
            identity = (method, key, environ.get("QUERY_STRING", "") + environ.get("HTTP_RANGE", ""))
            number = self._seen[identity]
            self._seen[identity] += 1
            self.counts.requests[method, key] += 1
        asked = Request(
            method=method,
            key=key,
            query=query,
            first=number == 0,
            number=number,
            conditional="HTTP_IF_NONE_MATCH" in environ or (method != "GET" and "HTTP_IF_MATCH" in environ),
            payer=environ.get("HTTP_X_AMZ_REQUEST_PAYER", ""),
        )
        fault = None if path.startswith("/moto-api") else self.fault(asked)
        if fault:
            with self._lock:
                self.counts.faults += 1
        if asked.completes and "HTTP_IF_MATCH" in environ and not fault:
            with self._completing:  # moto looks at this condition of a PUT alone
                if environ["HTTP_IF_MATCH"] == self._etag(environ):
                    return list(self._app(environ, start_response))
            fault = "412"
        if fault in ANSWERS:
            status, code = ANSWERS[str(fault)]
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made by the test</Message></Error>"
            start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [] if method == "HEAD" else [body.encode()]
        if fault == "cut":
            return self._cut(environ)
        if not self.heeds_if_match and environ.pop("HTTP_IF_MATCH", None):
            with self._lock:
                self.counts.unheeded += 1
        answer = list(self._app(environ, start_response if fault != "lost" else lambda *_: lambda data: None))
        if fault == "lost":
            return self._cut(environ)
        with self._lock:
            self.counts.bytes_sent[key] += sum(map(len, answer)) if method == "GET" else 0
        return answer

    def _etag(self, environ: dict[str, Any]) -> str:
        """An object's ETag, asked of moto itself."""
        found: list[str] = []
        asking = {name: value for name, value in environ.items() if not name.startswith("HTTP_IF")}
        asking |= {"REQUEST_METHOD": "HEAD", "QUERY_STRING": "", "CONTENT_LENGTH": "0", "wsgi.input": io.BytesIO()}
        list(self._app(asking, lambda status, headers, *_: found.extend(v for n, v in headers if n.lower() == "etag")))
        return found[0] if found else ""

    def _cut(self, environ: dict[str, Any]) -> Iterable[bytes]:
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError("made by the test")
