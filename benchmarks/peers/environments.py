"""The peers' environments: one virtual environment each, made on first use under benchmarks/.peers/."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks import HERE

FOLDER = HERE / ".peers"


@dataclass(frozen=True)
class Peer:
    """What pip installs for one peer, beside the torch that this library runs on."""

    package: str
    requirements: tuple[str, ...]
    without_dependencies: tuple[str, ...] = ()
    """Installed with --no-deps: packages whose declared dependencies would bring other things than the peer needs."""
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
    # Its evaluation `core` needs sae-lens; the rest that it declares is for its other evaluations.
    "sae_bench": Peer(
        "sae-bench", ("sae-lens==6.54.12", "scikit-learn", "tabulate", "collectibles", "beartype"),
        without_dependencies=("sae-bench==0.6.0",),
    ),
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
        "overcomplete", ("einops", "numpy", "scipy", "scikit-learn", "safetensors"),
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


def _environment(name: str, peer: Peer) -> Path:
    folder = FOLDER / name
    python = folder / "bin" / "python"
    torch, *here = (f"{name}=={metadata.version(name).split('+')[0]}" for name in ("torch", *peer.as_here))
    stamp = hashlib.sha256(repr((peer, torch, here, sys.version_info[:2])).encode()).hexdigest()
    marker = folder / "made"
    if marker.exists() and marker.read_text() == stamp:
        return python
    print(f"making the environment of {peer.package} in {folder.relative_to(FOLDER.parent)} …", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    _run(sys.executable, "-m", "venv", str(folder))
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    # torch is pinned in every command, so that no dependency can replace it (and bring gigabytes of CUDA libraries).
    _run(*pip, torch, *here, *peer.requirements)
    if peer.without_dependencies:
        _run(*pip, "--no-deps", torch, *peer.without_dependencies)
    marker.write_text(stamp)
    return python


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
