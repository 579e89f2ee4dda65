"""The text of the quality benchmark: archives by version and hash, and which of their files count."""

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

LONG = "All of this is text that somebody wrote. " * 30
FILES = {
    "p-1/docs/b.rst": LONG + "b",
    "p-1/docs/a/a.txt": LONG + "a",
    "p-1/docs/stub.rst": "short",
    "p-1/docs/again.md": LONG + "a",
    "p-1/src/p.py": LONG + "code",
    "p-1/src/tests/test_p.py": LONG + "test",
}


@pytest.fixture
def archive() -> bytes:
    """A source archive with these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, text in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


@pytest.fixture
def index(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package index on loopback that has it."""

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = json.dumps({"files": [{"filename": "a_p-1.tar.gz", "url": "../files/a_p-1.tar.gz"}]}).encode()
            body = {"/a-p/": page, "/files/a_p-1.tar.gz": archive}.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("index")
def test_an_archive_is_fetched_once_and_refused_if_it_is_not_what_was_published(tmp_path: Path, archive: bytes) -> None:
    from benchmarks.quality import texts

    right = texts.Archive("a_p-1.tar.gz", hashlib.sha256(archive).hexdigest())
    path = right.fetched(tmp_path)
    assert path.read_bytes() == archive and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"a_p-1.tar.gz: sha256 must be 0000.*, got .*; delete the file"):
        texts.Archive("a_p-1.tar.gz", "0" * 64).fetched(tmp_path)
    with pytest.raises(ValueError, match=r"/a-p/ has no a_p-2.tar.gz"):
        texts.Archive("a_p-2.tar.gz", "0" * 64).fetched(tmp_path)


def test_documents_and_code_are_each_once_in_the_order_of_their_names(
    tmp_path: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.quality import texts

    (tmp_path / "p-1.tar.gz").write_bytes(archive)
    monkeypatch.setattr(texts, "ARCHIVES", (texts.Archive("p-1.tar.gz", hashlib.sha256(archive).hexdigest()),))
    assert [text[-1] for text in texts.english(tmp_path)] == ["a", "b"]
    assert list(texts.python(tmp_path)) == [LONG + "code"]
