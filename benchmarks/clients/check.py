"""Whether other libraries read what is written here, and compute the same: `python -m benchmarks.clients.check`.

Each library runs its own code in an environment of its own, which `benchmarks.peers.environments` makes with pinned
versions. Results with versions go to results.json beside this file. Not a part of the tests: it installs gigabytes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.peers import environments
from sae import Sae, SaeConfig
from sae.dictionary.spec import Saved
from sae.formats.convert import write_set
from sae.formats.find import find
from sae.formats.format import About

HERE = Path(__file__).parent
D, M, K, TOKENS = 48, 192, 8, 257
TOLERANCE = 1e-5
KINDS = {
    "topk": {},
    "batchtopk": {"selection": "batchtopk"},
    "matryoshka": {"selection": "batchtopk", "prefixes": [32, 96]},
    "jumprelu": {},
    "transcoder": {"transcode": True},
    "skip_transcoder": {"transcode": True, "skip_connection": True},
}
CLIENTS = {
    "sae_lens": ("saelens", ("topk", "batchtopk", "jumprelu", "transcoder", "skip_transcoder")),
    "sparsify": ("eleuther", ("topk", "plain transcoder", "plain skip_transcoder")),
    "dictionary_learning": ("dictionary-learning", ("topk", "batchtopk", "matryoshka", "jumprelu")),
    "circuit_tracer": ("circuit-tracer", ("transcoder", "skip_transcoder")),
}
"""Each library, the format that is written for it, and the kinds that it has."""
PACKAGES = {"sae_lens": "sae-lens", "sparsify": "eai-sparsify", "dictionary_learning": "dictionary-learning",
            "circuit_tracer": "circuit-tracer"}  # fmt: skip


def dictionary(kind: str) -> Saved:
    """A dictionary in general position. A transcoder has thresholds, but for one that is `plain`, which is TopK."""
    sae = Sae(D, SaeConfig(num_latents=M, k=K, **KINDS[kind.removeprefix("plain ")]))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) if name != "W_dec" or sae.cfg.transcode else 0.0)
    saved = sae.saved()
    if kind in ("jumprelu", "transcoder", "skip_transcoder"):
        spec = replace(saved.spec, selection="jumprelu", centred=False)
        return Saved(spec, saved.tensors | {"threshold": 1 + torch.rand(M)})
    if sae.threshold is not None:
        saved.tensors["threshold"].fill_(5.0)  # no token has more than 4 k above it, where ours stops
    return saved


def check(library: str, kind: str, folder: Path) -> dict[str, float]:
    """Largest difference of the library's reconstruction of what was written for it from ours, and its share of it."""
    format_name, _ = CLIENTS[library]
    saved, hookpoint = dictionary(kind), "layers.0.mlp" if "transcoder" in kind else "layers.0"
    write_set(folder, {hookpoint: lambda: saved}, format_name, About(model="gpt2"))
    (stored,) = find(folder).values()
    x = torch.randn(TOKENS, D) * 2
    save_file({"x": x}, folder / "x.safetensors")
    command = [str(environments.python_of(library)), str(HERE / f"read_{library}.py"), str(stored.path), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1",
                          "WANDB_MODE": "offline", "HOME": str(folder), "OMP_NUM_THREADS": "1"})  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{library} {kind}: {' '.join(done.stderr.strip().splitlines()[-2:])}")
    theirs = load_file(folder / "recon.safetensors")["recon"]
    ours = Sae.from_saved(saved)(x).recon.detach()
    largest = float((theirs - ours).abs().max())
    return {"largest difference": largest, "relative": largest / float(ours.abs().max())}


def main(libraries: list[str]) -> int:
    """Check these libraries, or all; the exit status."""
    torch.manual_seed(0)
    path, failed = HERE / "results.json", 0
    results = json.loads(path.read_text()) if path.exists() else {}
    for library in libraries or CLIENTS:
        found = {}
        for kind in CLIENTS[library][1]:
            with tempfile.TemporaryDirectory() as folder:
                found[kind] = check(library, kind, Path(folder))
            good = found[kind]["relative"] <= TOLERANCE
            failed += not good
            print(f"{library:20} {kind:24} {found[kind]['relative']:.1e} {'' if good else 'FAILED'}", flush=True)
        versions = environments.versions(environments.python_of(library), (PACKAGES[library], "torch", "transformers"))
        results[library] = {"date": str(date.today()), "versions": versions, "kinds": found}
        path.write_text(json.dumps(results, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=f"of {', '.join(CLIENTS)}; by default all")
    sys.exit(main(parser.parse_args().libraries))
