"""The peers' environments: one virtual environment each, made on first use under benchmarks/.peers/.

`requirements/<library>.txt` pins every package of one, so that pip resolves nothing, and the next one made is the same.
`python -m benchmarks.peers.lock` writes these lists.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks import HERE

FOLDER = HERE / ".peers"


@dataclass(frozen=True)
class Peer:
    """What is asked for for one peer, beside the torch that this library runs on."""

    package: str
    requirements: tuple[str, ...]
    without_dependencies: tuple[str, ...] = ()
    """Packages whose declared dependencies would bring other things than the peer needs."""
    as_here: tuple[str, ...] = ()
    """Packages whose version is to be that of this environment: what runs the language model."""


PEERS = {
    "sparsify": Peer("eai-sparsify", ("eai-sparsify==1.3.3",), as_here=("transformers",)),
    "sae_lens": Peer("sae-lens", ("sae-lens==6.54.12",)),
    # Its nnsight 0.3.7 declares diffusers and torchvision, its circuitsvis and umap-learn are for plots only.
    "dictionary_learning": Peer(
        "dictionary-learning",
        ("einops", "datasets", "transformers", "accelerate", "wandb", "tqdm", "zstandard", "pandas", "protobuf",
         "python-socketio[client]", "tokenizers", "sentencepiece", "plotly", "pydantic", "pillow", "setuptools"),
        without_dependencies=("dictionary-learning==0.1.0", "nnsight==0.3.7"),
    ),
    "circuit_tracer": Peer("circuit-tracer", ("circuit-tracer==0.5.0",)),
    "sae_bench": Peer("sae-bench", ("sae-bench==0.6.0", "sae-lens==6.54.12")),
    # vllm and bitsandbytes, which it declares, run the models that explain latents; the latent cache needs neither.
    "delphi": Peer(
        "eai-delphi",
        ("eai-sparsify==1.3.3", "datasets", "transformers", "orjson", "safetensors", "simple_parsing", "jaxtyping",
         "blobfile", "sentence_transformers", "faiss-cpu", "asyncer", "anyio", "aiofiles", "beartype"),
        without_dependencies=("eai-delphi==0.1.3",),
    ),
    # It uses HookedTransformer, which transformer-lens 4 has no more.
    "llamascopium": Peer("llamascopium", ("llamascopium==2.0.0b34", "transformer-lens<4")),
    # The rest that it declares is for models of vision.
    "overcomplete": Peer(
        "overcomplete", ("einops", "matplotlib", "numpy", "pillow", "safetensors", "scikit-learn", "scipy", "tqdm"),
        without_dependencies=("overcomplete==0.3.0",),
    ),
}  # fmt: skip


class PeerError(RuntimeError):
    """A peer's environment could not be made."""


def python_of(library: str) -> Path:
    """The Python that runs `library`: this one for ours, else that of the peer's environment, made if need be.

    Raises PeerError with pip's own words if the environment cannot be made.
    """
    if library not in PEERS:
        return Path(sys.executable)
    return _environment(library, PEERS[library])


def pins(library: str) -> Path:
    """The list of all packages of a peer's environment but torch, each with its version."""
    return Path(__file__).parent / "requirements" / f"{library}.txt"


def _environment(name: str, peer: Peer) -> Path:
    folder = FOLDER / name
    python = folder / "bin" / "python"
    torch, *here = (f"{name}=={metadata.version(name).split('+')[0]}" for name in ("torch", *peer.as_here))
    every = pins(name).read_text(encoding="utf-8")
    stamp = hashlib.sha256(repr((every, torch, here, sys.version_info[:2])).encode()).hexdigest()
    marker = folder / "made"
    if marker.exists() and marker.read_text() == stamp:
        return python
    print(f"making the environment of {peer.package} in {folder.relative_to(FOLDER.parent)} …", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    start = time.monotonic()
    _run(sys.executable, "-m", "venv", str(folder))
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-compile"]
    # torch alone brings what it needs: its libraries for a GPU differ between machines.
    _run(*pip, "--constraint", str(pins(name)), torch)
    _run(*pip, "--no-deps", "--requirement", str(pins(name)))
    if here:
        _run(*pip, "--no-deps", *here)
    (folder / "seconds").write_text(f"{time.monotonic() - start:.0f}")
    marker.write_text(stamp)
    return python


def seconds_to_make(library: str) -> int:
    """How long it took to make a peer's environment, which is there."""
    return int((FOLDER / library / "seconds").read_text())


def discard(library: str) -> None:
    """Delete a peer's environment."""
    shutil.rmtree(FOLDER / library, ignore_errors=True)


def _run(*command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.startswith("ERROR")] or done.stdout.splitlines()[-1:]
        raise PeerError(f"{' '.join(command[1:4])} failed: {' '.join(lines)[:200]}")


def versions(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """The versions of `packages` that are installed for `python`."""
    code = (
        "import json, sys\nfrom importlib import metadata\n"
        "found = {d.metadata['Name'].lower().replace('_', '-'): d.version for d in metadata.distributions()}\n"
        "print(json.dumps({name: found[name] for name in sys.argv[1:] if name in found}))"
    )
    done = subprocess.run([str(python), "-c", code, *packages], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
