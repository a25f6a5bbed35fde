"""A stand-in for the Hugging Face Hub, on loopback: as much of its interface as pushing and reading a data set takes.

A pushed Parquet or tar file goes the way of Git LFS, everything else into the commit itself. There is one revision: by
`main` or by COMMIT it is what lies in the folder.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

REPOSITORY = "people/photos"
API = f"/api/datasets/{REPOSITORY}"
COMMIT = "c" * 40
LARGE = (".parquet", ".tar")


class HubServer(ThreadingHTTPServer):
    """Serves a folder as the data set REPOSITORY. Close it when done.

    Attributes:
        asked: the requests that came, as `GET /path`.
        refuses: a status with which to answer instead, of paths that hold this text.
        objects: what was uploaded by its sha256, and is in no commit yet.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[str] = []
        self.refuses: dict[str, int] = {}
        self.objects: dict[str, bytes] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def entry(self, path: Path) -> dict[str, object]:
        name = path.relative_to(self.folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "oid": "d" * 40, "size": 0, "path": name}
        data = path.read_bytes()
        return {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": name}


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is two writes
    wbufsize = -1

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = re.sub(f"/(tree|resolve|revision)/{COMMIT}", r"/\1/main", unquote(url.path))
        self.server.asked.append(f"GET {path}")
        if status := next((status for text, status in self.server.refuses.items() if text in path), 0):
            self._send(status, b"{}")
        elif path in (API, f"{API}/revision/main"):
            self._json({"id": REPOSITORY, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "siblings": []})
        elif path.startswith(f"{API}/tree/main"):
            folder = self.server.folder / path.removeprefix(f"{API}/tree/main").strip("/")
            pattern = "**/*" if parse_qs(url.query).get("recursive", ["false"])[0].lower() == "true" else "*"
            if folder.is_dir():
                self._json([self.server.entry(one) for one in sorted(folder.glob(pattern))])
            else:
                self._missing("EntryNotFound")
        elif path.startswith(f"/datasets/{REPOSITORY}/resolve/main/"):
            self._file(self.server.folder / path.removeprefix(f"/datasets/{REPOSITORY}/resolve/main/"))
        else:
            self._missing("RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        path = urlsplit(self.path).path
        self.server.asked.append(f"POST {path}")
        if path == "/api/repos/create":
            self._json({"url": f"{self.server.url}/datasets/{REPOSITORY}", "name": REPOSITORY})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == f"{API}/preupload/main":
            names = [one["path"] for one in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "lfs" if name.endswith(LARGE) else "regular"} for name in names]
            self._json({"files": [one | {"shouldIgnore": False} for one in modes]})
        elif path == f"/datasets/{REPOSITORY}.git/info/lfs/objects/batch":
            self._json({"transfer": "basic", "objects": [self._upload_of(one) for one in json.loads(body)["objects"]]})
        elif path == f"{API}/commit/main":
            for line in body.splitlines():
                self._commit(**json.loads(line))
            self._json({"commitUrl": f"{self.server.url}/datasets/{REPOSITORY}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            paths = [self.server.folder / name for name in asked]
            self._json([self.server.entry(path) for path in paths if path.exists()])

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(f"PUT {self.path}")
        name = hashlib.sha256(data).hexdigest()
        assert self.path == f"/lfs/{name}"
        self.server.objects[name] = data
        self._send(200, b"")

    def _upload_of(self, asked: dict[str, object]) -> dict[str, object]:
        return asked | {"actions": {"upload": {"href": f"{self.server.url}/lfs/{asked['oid']}"}}}

    def _commit(self, key: str, value: dict[str, str]) -> None:
        if key not in ("file", "lfsFile"):
            return
        path = self.server.folder / value["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(value["content"]) if key == "file" else self.server.objects[value["oid"]])

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._missing("EntryNotFound")
            return
        data, status = path.read_bytes(), 200
        if stated := self.headers.get("Range"):
            first, last = stated.removeprefix("bytes=").split("-")
            data, status = data[int(first) : int(last) + 1 if last else None], 206
        self._send(status, data, {"ETag": '"' + hashlib.sha1(path.read_bytes()).hexdigest() + '"'})

    def _json(self, tree: object) -> None:
        self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str) -> None:
        self._send(404, b"{}", {"X-Error-Code": code, "X-Error-Message": "not found"})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"X-Repo-Commit": COMMIT, "Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""
