"""A hub of a few files on a loopback port: as much of the protocol as `datasets` uses to read a data set."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

Repos = dict[str, dict[str, dict[str, bytes]]]  # repository -> revision -> path -> content


@contextmanager
def fake_hub(repos: Repos, gated: str) -> Iterator[str]:
    """Serve `repos`, and refuse `gated`; yields the value for HF_ENDPOINT."""
    handler = type("Handler", (_Handler,), {"repos": repos, "gated": gated})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def _sha(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def _children(entries: list[dict[str, object]], folder: str) -> list[dict[str, object]]:
    """The files directly in a folder, and its folders."""
    names = {str(entry["path"]).removeprefix(folder).split("/")[0]: entry for entry in entries}
    return [
        entry if entry["path"] == folder + name else {"type": "directory", "path": folder + name, "oid": _sha(name)}
        for name, entry in names.items()
    ]


class _Handler(BaseHTTPRequestHandler):
    repos: Repos
    gated: str
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path).path.removeprefix("/api").strip("/").split("/")
        repo = "/".join(parts[1:3])
        if repo == self.gated:
            return self._send(401, error="GatedRepo")
        if parts[0] != "datasets" or repo not in self.repos:
            return self._send(404, error="RepoNotFound")
        verb = parts[3] if len(parts) > 3 else "revision"
        revision, files = self._revision(repo, unquote(parts[4]) if len(parts) > 4 else "main")
        if files is None:
            return self._send(404, error="RevisionNotFound")
        path = unquote("/".join(parts[5:]))
        sha = _sha(repo + revision)
        if verb == "resolve":
            return self._send_file(sha, files.get(path))
        if verb == "revision":
            return self._send_json({"id": repo, "sha": sha, "siblings": [{"rfilename": name} for name in files]})
        entries = [{"type": "file", "path": p, "size": len(f), "oid": _sha(p)} for p, f in sorted(files.items())]
        if verb == "tree":
            folder = f"{path}/" if path else ""
            below = [entry for entry in entries if entry["path"].startswith(folder)]
            return self._send_json(below if "recursive=true" in self.path.lower() else _children(below, folder))
        wanted = json.loads(body)["paths"]  # verb paths-info
        return self._send_json([entry for entry in entries if entry["path"] in wanted])

    do_HEAD = do_POST = do_GET

    def _revision(self, repo: str, name: str) -> tuple[str, dict[str, bytes] | None]:
        revisions = self.repos[repo]
        name = next((revision for revision in revisions if _sha(repo + revision) == name), name)
        return name, revisions.get(name)

    def _send_file(self, sha: str, content: bytes | None) -> None:
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content or b"").hexdigest()}"'}
        if content is None:
            return self._send(404, error="EntryNotFound", headers=headers)
        if byte_range := self.headers.get("Range"):
            start, _, end = byte_range.removeprefix("bytes=").partition("-")
            content = content[int(start) : int(end) + 1 if end else None]
        self._send(206 if byte_range else 200, content, headers=headers)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def _send(
        self, status: int, content: bytes = b"", *, error: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        headers = (headers or {}) | ({"X-Error-Code": error} if error else {})
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
