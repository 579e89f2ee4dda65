"""The server of the browser in a thread."""

import http.client
import json
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn

from sae.browser import Index
from sae.browser.live import LiveModel
from sae.browser.notes import Notes
from sae.browser.server import free_socket, make_app


class Served:
    """A server in a thread, as `sae browse` runs it."""

    def __init__(self, index: Index, notes: Path, live: LiveModel) -> None:
        self.bound = free_socket(18765)
        self.port = self.bound.getsockname()[1]
        config = uvicorn.Config(make_app(index, Notes(notes), live), log_level="error", lifespan="off", ws="none")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.bound]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def ask(
        self, path: str, method: str = "GET", body: Any = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, content, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        found = answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        return found

    def json(self, path: str, method: str = "GET", body: Any = None) -> Any:
        status, content, _ = self.ask(path, method, body)
        assert status == 200, content
        return json.loads(content)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
