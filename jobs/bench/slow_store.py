"""A stand-in for S3 that answers late: as much of its interface as reading an output takes."""

from __future__ import annotations

import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bench"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        time.sleep(float(sys.argv[2]))
        url, folder = urlsplit(self.path), Path(sys.argv[1])
        name = unquote(url.path).removeprefix(f"/{BUCKET}").strip("/")
        path = folder / name
        if not name:
            prefix = parse_qs(url.query).get("prefix", [""])[0]
            files = [one for one in sorted(folder.rglob("*")) if one.is_file()]
            named = [(one.relative_to(folder).as_posix(), one.stat().st_size) for one in files]
            entries = "".join(
                f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size><ETag>x</ETag></Contents>"
                for key, size in named
                if key.startswith(prefix)
            )
            self._send(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode())
        elif not path.is_file():
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif stated := self.headers.get("Range"):
            size = path.stat().st_size
            first, last = stated.removeprefix("bytes=").split("-")
            start = int(first) if first else max(0, size - int(last))
            end = min(int(last) + 1 if first and last else size, size)
            with open(path, "rb") as stream:
                stream.seek(start)
                self._send(206, stream.read(end - start), {"Content-Range": f"bytes {start}-{end - 1}/{size}"})
        else:
            self._send(200, path.read_bytes())

    do_HEAD = do_GET

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"ETag": '"x"', "Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
