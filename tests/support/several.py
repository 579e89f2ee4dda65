"""Start several processes of one run on this machine, forked from one that has imported everything already."""

import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

SERVER = """
import sys
sys.path[:0] = [{tests!r}]
import torch
torch.set_num_threads(1)
import rank_jobs, several
rank_jobs.warm_up()
several.serve()
"""


class Outcome(NamedTuple):
    """How the processes ended, by rank."""

    codes: list[int]
    """Exit codes; minus the signal for one that was killed."""
    errors: list[str]
    """What each wrote to stderr."""
    seconds: list[float]
    """When each ended, after the start."""


class Launcher:
    """Runs functions of `rank_jobs` in several processes that torchrun could have started."""

    def __init__(self, folder: Path, server: subprocess.Popen[str]) -> None:
        self._folder, self._server = folder, server

    def run(self, job: str, ranks: int, *, timeout: float = 60, environment: Any = None, **arguments: Any) -> Outcome:
        """Run `rank_jobs.<job>(**arguments)` on so many ranks; what takes longer than `timeout` seconds is killed."""
        order = {"job": job, "ranks": ranks, "timeout": timeout, "folder": str(self._folder), "arguments": arguments}
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(order | {"environment": environment or {}}) + "\n")
        self._server.stdin.flush()
        while not (line := self._server.stdout.readline()).startswith("{"):  # jobs print, too
            assert line, "the server has died"
        errors = [(self._folder / f"stderr_{rank}").read_text() for rank in range(ranks)]
        return Outcome(**json.loads(line), errors=errors)

    def succeed(self, job: str, ranks: int, **arguments: Any) -> None:
        """`run`, which has to go well on every rank."""
        outcome = self.run(job, ranks, **arguments)
        assert outcome.codes == [0] * ranks, "\n".join(error[-3000:] for error in outcome.errors)


@contextmanager
def launcher(folder: Path) -> Iterator[Launcher]:
    """A launcher that keeps what the processes say in `folder`."""
    code = SERVER.format(tests=str(Path(__file__).parent))
    server = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Launcher(folder, server)
    finally:
        server.kill()
        server.communicate()


def serve() -> None:
    """Read orders from stdin, one a line; answer each with one line when its processes have ended."""
    for line in sys.stdin:
        order = json.loads(line)
        started, port = time.monotonic(), free_port()
        running = {_fork(rank, port, order): rank for rank in range(order["ranks"])}
        codes, seconds = [0] * len(running), [0.0] * len(running)
        while running:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child:
                rank = running.pop(child)
                codes[rank], seconds[rank] = os.waitstatus_to_exitcode(status), time.monotonic() - started
            elif time.monotonic() - started > order["timeout"]:
                for late in running:
                    os.kill(late, signal.SIGKILL)
            time.sleep(0 if child else 0.01)
        print(json.dumps({"codes": codes, "seconds": seconds}), flush=True)


def fork_for_each_line(work: Callable[[], object]) -> None:
    """Do some work in a fork of this process for each line of stdin; prints the child's id, and later how it ended."""
    for _ in sys.stdin:
        child = fork()
        if child == 0:
            faulthandler.dump_traceback_later(60, exit=True)
            try:
                work()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def fork() -> int:
    """`os.fork`, whose child may be killed at any moment.

    A progress bar's lock is shared by all processes of one parent, and one that is killed while it draws never gives
    it back: every later one would wait for it for ever. So each child has a lock of its own.
    """
    child = os.fork()
    if child == 0:
        tqdm.set_lock(threading.RLock())
    return child


def _fork(rank: int, port: int, order: dict[str, Any]) -> int:
    child = fork()
    if child:
        return child
    import rank_jobs

    os.dup2(os.open(f"{order['folder']}/stderr_{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    size = str(order["ranks"])
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": size, "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": size}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **order["environment"]}
    try:
        getattr(rank_jobs, order["job"])(**order["arguments"])
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
