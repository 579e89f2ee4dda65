"""Writes requirements/<library>.txt, each package of a peer's environment with its version.

`python -m benchmarks.peers.lock [LIBRARY ...]` asks PyPI for the newest versions that go together, by `uv`, which must
be installed. torch is not in a list: an environment has the version of this one.
"""

import argparse
import shutil
import subprocess
import sys
from importlib import metadata

from benchmarks.peers.environments import PEERS, pins

_LEFT_OUT = ("torch==", "torchvision==", "nvidia-", "triton==")
"""Of torch, which brings its own, or must match its build; xgboost declares a library for many GPUs too."""


def lock(library: str) -> str:
    """The pinned packages of one peer, one a line. Raises RuntimeError with uv's own words."""
    peer = PEERS[library]
    python = ".".join(map(str, sys.version_info[:2]))
    done = subprocess.run(
        ["uv", "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate", "--python-version", python],
        input="\n".join([*peer.requirements, f"torch=={metadata.version('torch').split('+')[0]}"]),
        text=True, capture_output=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{library}: {' '.join(done.stderr.split())[:300]}")
    found = [line for line in done.stdout.splitlines() if not line.startswith(_LEFT_OUT)]
    return "\n".join(sorted([*found, *peer.without_dependencies])) + "\n"


def main(libraries: list[str]) -> int:
    """Write the lists of these libraries, or of all; the exit status."""
    if shutil.which("uv") is None:
        raise SystemExit("uv must be installed to resolve versions; pip install uv")
    for library in libraries or PEERS:
        pins(library).parent.mkdir(exist_ok=True)
        pins(library).write_text(lock(library), encoding="utf-8")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=f"of {', '.join(PEERS)}; by default all")
    sys.exit(main(parser.parse_args().libraries))
