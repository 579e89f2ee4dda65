"""Files that each library's own code wrote are read here as it reads them, and written again as they were.

`python -m benchmarks.clients.check --keep` makes them, with the versions in made/versions.json.
"""

import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae import Sae
from sae.dictionary.cross_layer import members, reconstruct
from sae.formats.convert import write_set
from sae.formats.files import read_torch
from sae.formats.find import find
from sae.formats.format import About

MADE = Path(__file__).parent / "made"
FORMATS = {"overcomplete": "overcomplete", "sae_lens": "saelens", "sparsify": "eleuther",
           "circuit_tracer": "circuit-tracer", "llamascopium": "llamascopium",
           "dictionary_learning": "dictionary-learning"}  # fmt: skip
FOLDERS = sorted(path.parent for path in MADE.glob("*/*/expected.safetensors"))
FOLDED = ("topk-rescaled", "abstopk", "gated", "trained-gated", "llamascopium/jumprelu", "llamascopium/topk",
          "llamascopium/relu", "llamascopium/transcoder", "llamascopium/folded", "topk-layer_norm",
          "llamascopium/topk-without_norms")  # fmt: skip
"""Whose tensors change on the way here: norms, scales, signs and gates are folded, or logarithms taken."""


def reconstructed(folder: Path, x: Tensor) -> Tensor:
    """Of one dictionary, or of each layer of a set, or of all layers of a cross-layer transcoder together."""
    saes = Sae.load_many(folder)
    if x.dim() == 2:
        (sae,) = saes.values()
        return sae(x).recon
    if groups := members(saes):
        (group,) = groups.values()
        return torch.stack(reconstruct(group, list(x))[1].chunk(len(x), -1))
    return torch.stack([sae(part).recon for sae, part in zip(saes.values(), x, strict=True)])


def test_there_are_files_of_every_library() -> None:
    assert {folder.parent.name for folder in FOLDERS} == set(FORMATS) and len(FOLDERS) > 40


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_what_a_library_wrote_computes_here_what_it_computes_there(folder: Path) -> None:
    expected = load_file(folder / "expected.safetensors")
    assert {stored.format.name for stored in find(folder).values()} == {FORMATS[folder.parent.name]}
    found = reconstructed(folder, expected["x"]).detach()
    largest = float(expected["recon"].abs().max())
    torch.testing.assert_close(found, expected["recon"], rtol=1e-5, atol=1e-5 * largest)
    assert largest > 0.1


def tensors_below(folder: Path) -> dict[str, Tensor]:
    """All tensors of the files of weights, by the file's name and their own."""
    files = [path for path in folder.rglob("*") if path.name != "expected.safetensors"]
    found: dict[str, Tensor] = {}
    for path in files:
        held = load_file(path) if path.suffix == ".safetensors" else read_torch(path) if path.suffix == ".pt" else {}
        found |= {f"{path.name} {name}": t for name, t in held.items()}
    return found


WRITTEN = [folder for folder in FOLDERS if folder.parent.name != "overcomplete"]


@pytest.mark.parametrize("folder", WRITTEN, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_what_is_written_again_in_a_librarys_own_format_is_the_file_bit_for_bit(tmp_path: Path, folder: Path) -> None:
    """Or, where something is folded, a file that computes the same and is written bit for bit from then on."""
    name = FORMATS[folder.parent.name]
    again, third = tmp_path / "again", tmp_path / "third"
    for source, target in ((folder, again), (again, third)):
        write_set(target, {key: stored.read for key, stored in find(source).items()}, name, About(model="gpt2"))
    before, after, last = (tensors_below(path) for path in (folder, again, third))
    assert after.keys() == last.keys() and all(torch.equal(after[key], last[key]) for key in after)
    # AutoEncoderTopK holds a threshold beside k that nothing uses unless it is asked to.
    lost = {"ae.pt threshold"} if folder.parent.name == "dictionary_learning" and folder.name == "topk" else set()
    if not any(f"{folder.parent.name}/{folder.name}".endswith(kind) for kind in FOLDED):
        for key in before.keys() & after.keys() - lost:
            assert torch.equal(before[key], after[key]), key
        assert len(before.keys() & after.keys()) >= 4
    expected = load_file(folder / "expected.safetensors")
    largest = float(expected["recon"].abs().max())
    torch.testing.assert_close(
        reconstructed(again, expected["x"]).detach(), expected["recon"], rtol=1e-5, atol=1e-5 * largest
    )


@pytest.mark.parametrize("name", ["W_skip", "unheard_of"])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_a_tensor_that_no_rule_of_its_kind_uses_is_refused(tmp_path: Path, folder: Path, name: str) -> None:
    """It may be of another function, which nobody would notice."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    tensors = [path for path in copy.rglob("*") if path.suffix in (".safetensors", ".pt") and path.stem != "expected"]
    with safe_open(tensors[0], "pt") if tensors[0].suffix == ".safetensors" else nullcontext() as opened:
        metadata = opened.metadata() if opened is not None else None
    held = load_file(tensors[0]) if opened is not None else read_torch(tensors[0])
    if name in held:
        pytest.skip("it has one")
    more = {each: t.clone() if isinstance(t, Tensor) else t for each, t in held.items()}  # not mapped into memory
    more |= {name: torch.zeros(3, 3)}
    if opened is not None:
        save_file(more, tensors[0], metadata)
    else:
        torch.save(more, tensors[0])
    with pytest.raises(ValueError, match=name) as error:
        Sae.load_many(copy)
    assert "\n" not in str(error.value)
