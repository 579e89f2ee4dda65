"""The real client of Weights & Biases against a server that begins well and then is silent, or gone."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

ENTITY = {"id": "e", "name": "me"}
BUCKET = {"id": "r", "name": "run", "displayName": "run", "config": "{}", "historyLineCount": 0,
          "project": {"id": "p", "name": "sae", "entity": ENTITY}}  # fmt: skip
ANSWERS = {
    "viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}, "email": "a@b.c"},
    "serverInfo": {"cliVersionInfo": {"max_cli_version": "0.99.0"}, "latestLocalVersionInfo": None, "features": []},
    "QueryType": {"fields": []}, "MutationType": {"fields": []}, "ServerInfoType": {"fields": []},
    "model": None, "project": None, "entity": ENTITY, "upsertBucket": {"bucket": BUCKET, "inserted": True},
}  # fmt: skip
"""What a run needs to be opened."""

SCRIPT = """
import sys, time
from functools import partial
from pathlib import Path
import sae.runs.log as log
log.PATIENCE = 3
folder = Path(sys.argv[1])
make = partial(log.WandbSink, name="a", config={}, folder=folder)
sink = log.Detached(make, what="Weights & Biases", instead=folder / "metrics.jsonl")
for step in range(30):
    sink.write({"step": step, "fvu": 0.1})
    time.sleep(0.1)
sink.close()
print("trained on")
"""


@contextmanager
def server(how: str) -> Iterator[int]:
    """A server that opens a run, and on its first metrics is silent for good, or closes its port."""
    uploading, over = Event(), Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if "file_stream" in self.path:
                uploading.set()
            if uploading.is_set():
                over.wait(60)
                return
            body = json.dumps({"data": ANSWERS}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_GET

    there = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    there.daemon_threads = True
    Thread(target=there.serve_forever, daemon=True).start()
    if how == "gone":
        Thread(target=lambda: uploading.wait() and (there.shutdown(), there.socket.shutdown(socket.SHUT_RDWR),
               there.server_close(), over.set()), daemon=True).start()  # fmt: skip
    yield there.server_address[1]
    uploading.set()
    over.set()


@pytest.mark.parametrize("how", ["silent", "gone"])
def test_a_server_that_vanishes_while_metrics_are_sent_costs_a_line_and_bounded_time(how: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is an extra")
    with server(how) as port:
        environment = os.environ | {
            "WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online",
            "HOME": str(tmp_path),
        }  # fmt: skip
        start = time.monotonic()
        command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "trained on\n", done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("no longer logging to Weights & Biases (")]
    assert len(said) == 1 and said[0].endswith("metrics.jsonl"), done.stderr
    assert "Traceback" not in done.stderr and time.monotonic() - start < 60
