"""Whether other libraries read what is written here, and we what they write: `python -m benchmarks.clients.check`.

Both compute the same, to 1e-5. `--keep` puts what they wrote among the tests' files. `--discard` needs less disk: an
environment is about 1.5 GB. OpenAI's library is not on PyPI: its row needs SAE_OPENAI_CHECKOUT, the folder of a clone.
Each library runs its own code in an environment of its own, which `benchmarks.peers.environments` makes with pinned
versions. Results with versions go to results.json beside this file. Not a part of the tests: it installs gigabytes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.peers import environments
from sae import Sae, SaeConfig
from sae.dictionary.cross_layer import members, reconstruct
from sae.dictionary.spec import Saved, Spec
from sae.formats import FORMATS
from sae.formats.convert import write_set
from sae.formats.find import find
from sae.formats.format import About

HERE = Path(__file__).parent
MADE = HERE.parent.parent / "tests/formats/made"
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
    "sae_lens": (
        "saelens",
        ("topk", "batchtopk", "jumprelu", "transcoder", "skip_transcoder", "gemma-scope-2 jumprelu",
         "gemma-scope-2 transcoder", "gemma-scope-2 skip_transcoder"),
    ),
    "sparsify": ("eleuther", ("topk", "plain transcoder", "plain skip_transcoder")),
    "dictionary_learning": ("dictionary-learning", ("topk", "batchtopk", "matryoshka", "jumprelu")),
    "circuit_tracer": (
        "circuit-tracer",
        ("transcoder", "skip_transcoder", "cross_layer_transcoder", "replacement transcoder",
         "replacement cross_layer_transcoder"),
    ),
    "llamascopium": ("llamascopium", ("topk", "jumprelu", "transcoder")),
    "delphi": ("eleuther", ("topk", "plain transcoder")),
    "sae_bench": ("saelens", ("topk", "jumprelu")),
}  # fmt: skip
"""Each library, the format that is written for it, and the kinds that it has, or another format's that it opens."""
MAKERS = ("sae_lens", "sparsify", "dictionary_learning", "circuit_tracer", "llamascopium", "overcomplete", "openai")
"""Each library whose own files are read here."""
OPENERS = ("sae_lens", "circuit_tracer", "delphi")
"""Each library that opens others' published files, as we do."""
LIBRARIES = tuple(dict.fromkeys([*CLIENTS, *MAKERS]))
OPENAI = "SAE_OPENAI_CHECKOUT"
"""Name of the variable with the folder of a clone of openai/sparse_autoencoder, which is not on PyPI."""


def dictionary(kind: str) -> Saved:
    """A dictionary in general position. A transcoder has thresholds, but for one that is `plain`, which is TopK."""
    plain, kind = kind.startswith("plain "), kind.rpartition(" ")[2]
    sae = Sae(D, SaeConfig(num_latents=M, k=K, **KINDS[kind]))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) if name != "W_dec" or sae.cfg.transcode else 0.0)
    saved = sae.saved()
    if sae.cfg.transcode and not plain or kind == "jumprelu":
        spec = replace(saved.spec, selection="jumprelu", centred=False)
        return Saved(spec, saved.tensors | {"threshold": 1 + torch.rand(M)})
    if sae.threshold is not None:
        saved.tensors["threshold"].fill_(5.0)  # no token has more than 4 k above it, where ours stops
    return saved


def layers_of_two() -> dict[str, Saved]:
    """Both layers of a cross-layer transcoder, tied in neither scale nor decoder."""
    names, found = ("h.0.mlp", "h.1.mlp"), {}
    for layer, name in enumerate(names):
        writes = names[layer:]
        cfg, width = SaeConfig(num_latents=M, k=K, cross_layer=True), D * len(writes)
        spec = Spec(cfg, D, width, M, "jumprelu", reads=(f"{name}.input",), writes=writes, widths=(D,) * len(writes))
        tensors = {"encoder.weight": torch.randn(M, D) / D**0.5, "encoder.bias": 0.1 * torch.randn(M),
                   "W_dec": torch.randn(M, width) / D**0.5, "threshold": 1 + torch.rand(M), "scale": torch.ones(width),
                   "b_dec": torch.cat([torch.randn(D), torch.zeros(width - D)])}  # fmt: skip
        found[name] = Saved(spec, tensors)
    return found


def dictionaries(library: str, kind: str) -> dict[str, Saved]:
    """What is written, by hookpoint."""
    if "cross_layer" in kind:
        return layers_of_two()
    if library in ("circuit_tracer", "delphi"):  # which run them in a model of two blocks
        hookpoints = [f"h.{layer}.mlp" if "transcoder" in kind else f"h.{layer}" for layer in range(2)]
        return {hookpoint: dictionary(kind) for hookpoint in hookpoints}
    return {"layers.0.mlp" if "transcoder" in kind else "layers.0": dictionary(kind)}


def run(library: str, script: str, *arguments: str, home: Path) -> None:
    """Run a script of this folder with the library's Python. Raises RuntimeError with its last words."""
    command = [str(environments.python_of(library)), str(HERE / f"{script}_{library}.py"), *arguments]
    own = {"PYTHONPATH": os.environ[OPENAI]} if library == "openai" else {}
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1",
                          "WANDB_MODE": "offline", "HOME": str(home), "OMP_NUM_THREADS": "1", **own})  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{library} {' '.join(arguments)}: {' '.join(done.stderr.strip().splitlines()[-2:])}")


def check(library: str, kind: str, folder: Path) -> dict[str, float]:
    """Largest difference of what the library makes of what was written for it from what we do, and its share of it.

    The script gets the folder, x (tokens, d_in) for each dictionary, and what is to be made. It answers with `recon`,
    or with the dense `latents` of the activations `x` that it saw.
    """
    found = dictionaries(library, kind)
    writers = {hookpoint: lambda each=saved: each for hookpoint, saved in found.items()}
    first = kind.partition(" ")[0]
    written = first if first in FORMATS else CLIENTS[library][0]
    write_set(folder / "written" / "set", writers, written, About(model="gpt2"))
    xs = {str(index): torch.randn(TOKENS, D) * 2 for index in range(len(found))}
    save_file(xs, folder / "x.safetensors")
    places = [str(stored.path) for stored in find(folder / "written" / "set").values()]
    run(library, "read", str(folder), kind, *places, home=folder)
    answer = load_file(folder / "answer.safetensors")
    ours = _ours(found, answer if "x.0" in answer else {f"x.{name}": x for name, x in xs.items()}, answer)
    largest = max(float((answer[name] - value).abs().max()) for name, value in ours.items())
    return {"largest difference": largest, "relative": largest / max(float(v.abs().max()) for v in ours.values())}


@torch.no_grad()
def _ours(found: dict[str, Saved], read: dict[str, Tensor], answer: dict[str, Tensor]) -> dict[str, Tensor]:
    """What we make of the activations x.<index>, by the names of the answer."""
    saes = [Sae.from_saved(saved) for saved in found.values()]
    made: dict[str, Tensor] = {}
    if groups := members(dict(zip(found, saes, strict=True))):
        (group,) = groups.values()
        whole = reconstruct(group, [read[f"x.{index}"] for index in range(len(saes))])[1]
        made |= {f"recon.{index}": part for index, part in enumerate(whole.chunk(len(saes), -1))}
    for index, sae in enumerate(saes):
        code = sae.encode(x := read[f"x.{index}"])
        made.setdefault(f"recon.{index}", sae.decode(*code, x))
        made[f"latents.{index}"] = torch.zeros(len(x), M).scatter(1, code.top_indices, code.top_acts)
        made[f"l0.{index}"] = (code.top_acts > 0).sum(-1).float().mean()
    return {name: value for name, value in made.items() if name in answer}


def check_made(library: str, folder: Path, script: str = "make") -> dict[str, dict[str, float]]:
    """The same, of what the library wrote itself and we read, by the names of its folders.

    The script `others` writes files of others, which the library opens too.
    """
    run(library, script, str(folder), home=folder.parent)
    found = {}
    for made in sorted(path.parent for path in folder.glob("*/expected.safetensors")):
        expected = load_file(made / "expected.safetensors")
        saved = {name: stored.read() for name, stored in find(made).items()}
        parts = expected["x"] if expected["x"].dim() == 3 else expected["x"][None]
        wanted = expected["recon"] if expected["x"].dim() == 3 else expected["recon"][None]
        names = {f"recon.{index}": recon for index, recon in enumerate(wanted)}
        ours = _ours(saved, {f"x.{index}": x for index, x in enumerate(parts)}, names)
        largest = max(float((names[name] - value).abs().max()) for name, value in ours.items())
        found[made.name] = {"largest difference": largest, "relative": largest / float(wanted.abs().max())}
    return found


def keep(library: str, folder: Path, versions: dict[str, str], name: str = "") -> None:
    """Put what the library wrote among the tests' files, as `name`, with its version."""
    target = MADE / (name or library)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    path = MADE / "versions.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(dict(sorted((known | {library: versions}).items())), indent=1) + "\n")


def versions_of(library: str) -> dict[str, str]:
    """Versions of the library and of what it runs on; its environment is made."""
    python = environments.python_of(library)
    if library == "openai":
        return {"openai/sparse_autoencoder": "commit 764586a"} | environments.versions(python, ("torch",))
    return environments.versions(python, (environments.PEERS[library].package, "torch", "transformers"))


def checked(library: str, *, keeps: bool) -> dict[str, Any]:
    """What one library makes of files of ours, of its own and of others, with versions; its environment is made."""
    entry: dict[str, Any] = {"date": str(date.today()), "versions": versions_of(library)}
    versions = entry["versions"]
    if library in environments.PEERS:
        entry["seconds to install"] = environments.seconds_to_make(library)
    for direction, script, libraries, name in (("read here", "make", MAKERS, library),
                                               ("opened by both", "others", OPENERS, f"others_{library}")):  # fmt: skip
        if library in libraries:
            with tempfile.TemporaryDirectory() as folder:
                entry[direction] = check_made(library, Path(folder) / "made", script)
                if keeps:
                    keep(library, Path(folder) / "made", versions, name)
    if keeps and library == "sae_lens":
        run(library, "catalogue", str(MADE / "catalogue.json"), home=MADE)
    for kind in CLIENTS.get(library, ("", ()))[1]:
        with tempfile.TemporaryDirectory() as folder:
            entry.setdefault("kinds", {})[kind] = check(library, kind, Path(folder))
    return entry


def main(libraries: list[str], *, keeps: bool, discards: bool) -> int:
    """Check these libraries, or all; the exit status."""
    path, failed, start = HERE / "results.json", 0, time.monotonic()
    results = json.loads(path.read_text()) if path.exists() else {}
    for library in libraries or [library for library in LIBRARIES if library != "openai" or OPENAI in os.environ]:
        torch.manual_seed(0)
        try:
            results[library] = checked(library, keeps=keeps)
        except (RuntimeError, ValueError) as error:
            failed += 1
            print(f"{library}: FAILED: {error}", flush=True)
            continue
        for direction, arrow in (("read here", "<-"), ("opened by both", "=="), ("kinds", "->")):
            for kind, found in results[library].get(direction, {}).items():
                good = found["relative"] <= TOLERANCE
                failed += not good
                print(f"{arrow} {library:20} {kind:32} {found['relative']:.1e} {'' if good else 'FAILED'}", flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        if discards:
            environments.discard(library)
    print(f"{time.monotonic() - start:.0f} s; {failed or 'none'} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=f"of {', '.join(LIBRARIES)}; by default all")
    parser.add_argument("--keep", action="store_true", help="put what the libraries wrote among the tests' files")
    parser.add_argument("--discard", action="store_true", help="delete each environment when it is checked")
    options = parser.parse_args()
    sys.exit(main(options.libraries, keeps=options.keep, discards=options.discard))
