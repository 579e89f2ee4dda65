"""Files that each library's own code wrote are read here as it reads them, and written again as they were.

`python -m benchmarks.clients.check --keep` makes them, with the versions in made/versions.json.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae import Sae
from sae.__main__ import main
from sae.dictionary.cross_layer import members, reconstruct
from sae.formats.convert import write_set
from sae.formats.files import read_torch
from sae.formats.find import find, stored_in
from sae.formats.format import About

MADE = Path(__file__).parent / "made"
FORMATS = {"overcomplete": "overcomplete", "sae_lens": "saelens", "sparsify": "eleuther",
           "circuit_tracer": "circuit-tracer", "llamascopium": "llamascopium",
           "dictionary_learning": "dictionary-learning"}  # fmt: skip
OTHERS = ("others_sae_lens", "others_circuit_tracer", "others_delphi", "openai")
"""Libraries that opened files of others' formats, which their folders name."""
FOLDERS = sorted(path.parent for path in MADE.glob("*/*/expected.safetensors"))
FOLDED = ("topk-rescaled", "abstopk", "gated", "trained-gated", "llamascopium/jumprelu", "llamascopium/topk",
          "llamascopium/relu", "llamascopium/transcoder", "llamascopium/folded", "topk-layer_norm",
          "llamascopium/topk-without_norms")  # fmt: skip
"""Whose tensors change on the way here: norms, scales, signs and gates are folded, or logarithms taken."""


def format_of(folder: Path) -> str:
    """The format that a folder of files has."""
    return folder.name.partition(".")[0] if folder.parent.name in OTHERS else FORMATS[folder.parent.name]


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
    assert {folder.parent.name for folder in FOLDERS} == {*FORMATS, *OTHERS} and len(FOLDERS) > 70


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_what_a_library_wrote_computes_here_what_it_computes_there(folder: Path) -> None:
    expected = load_file(folder / "expected.safetensors")
    assert {stored.format.name for stored in find(folder).values()} == {format_of(folder)}
    found = reconstructed(folder, expected["x"]).detach()
    largest = float(expected["recon"].abs().max())
    torch.testing.assert_close(found, expected["recon"], rtol=1e-5, atol=1e-5 * largest)
    assert largest > 0.1


LAYOUTS: dict[str, tuple[str, list[str]]] = {
    "sae_lens": ("saelens", ["{}/cfg.json", "{}/sae_weights.safetensors"]),
    "gemma_2": ("gemma-scope", ["{}/params.npz"]),
    "gemma_2_transcoder": ("gemma-scope", ["{}/params.npz"]),
    "gemma_3": ("gemma-scope-2", ["{}/config.json", "{}/params.safetensors"]),
    "llama_scope": ("llama-scope", ["{}/hyperparams.json", "{}/checkpoints/final.safetensors"]),
    "llama_scope_r1_distill": ("llamascopium", ["{}/config.json", "{}/sae_weights.safetensors"]),
    "dictionary_learning_1": ("dictionary-learning", ["{}/config.json", "{}/ae.pt"]),
    "mwhanna_transcoder": ("circuit-tracer", ["config.yaml", "{}"]),
    "mntss_clt_layer_transcoder": (
        "circuit-tracer", ["config.yaml", "W_enc_{}.safetensors", "W_dec_{}.safetensors"]
    ),
    "goodfire": ("goodfire", ["{}"]),
    "deepseek_r1": ("goodfire", ["{}"]),
    "qwen_scope": ("qwen-scope", ["{}"]),
}  # fmt: skip
"""Our format, and the files, of what each loader of SAELens opens."""
NOT_READ = ("temporal", "connor_rob_hook_z")


def test_the_releases_of_saelens_catalogue_are_recognised_by_the_names_of_their_files(tmp_path: Path) -> None:
    """All but those of two loaders. The files are those that the loader asks the hub for."""
    listed = json.loads((MADE / "catalogue.json").read_text())
    assert len(listed) > 150 and sum(line[2] for line in listed) > 10_000
    for loader, repository, _, *paths in listed:
        for path in paths:
            name, files = LAYOUTS.get(loader, ("", ["{}/conf.yaml", "{}/latest_ckpt.safetensors"]))
            if loader == "gemma_3" and "clt" in path:
                files = ["{}.safetensors"]
            found = stored_in(tmp_path / repository, [file.format(path) for file in files])
            assert [stored.format.name for stored in found] == [name] * (loader not in NOT_READ), (repository, path)
    assert sum(line[2] for line in listed if line[0] in NOT_READ) <= 15


def tensors_below(folder: Path) -> dict[str, Tensor]:
    """All tensors of the files of weights, by the file's name and their own."""
    files = [path for path in folder.rglob("*") if path.name != "expected.safetensors"]
    found: dict[str, Tensor] = {}
    for path in files:
        held = load_file(path) if path.suffix == ".safetensors" else read_torch(path) if path.suffix == ".pt" else {}
        found |= {f"{path.name} {name}": t for name, t in held.items()}
    return found


WRITTEN = [folder for folder in FOLDERS if folder.parent.name in FORMATS and folder.parent.name != "overcomplete"]


@pytest.mark.parametrize("folder", WRITTEN, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_what_is_written_again_in_a_librarys_own_format_is_the_file_bit_for_bit(tmp_path: Path, folder: Path) -> None:
    """Or, where something is folded, a file that computes the same and is written bit for bit from then on."""
    name = FORMATS[folder.parent.name]
    again, third = tmp_path / "again", tmp_path / "third"
    for source, target in ((folder, again), (again, third)):
        write_set(target, {key: stored.read for key, stored in find(source).items()}, name, About(model="gpt2"))
    before, after, last = (tensors_below(path) for path in (folder, again, third))
    assert after.keys() == last.keys()
    for key in after:  # a logarithm of the exponential of one is rounded twice
        torch.testing.assert_close(last[key], after[key], rtol=3e-7 if ".log_" in key else 0, atol=0)
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


def add_to(path: Path, name: str) -> bool:
    """Put one more tensor into a file of weights; whether it had none of that name."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata()
        held: Any = load_file(path)
        save_file({name: torch.zeros(3, 3), **held}, path, metadata)
    elif path.suffix == ".npz":
        held = dict(np.load(path))
        np.savez(path, **{name: np.zeros((3, 3)), **held})
    else:
        held = {each: t.clone() if isinstance(t, Tensor) else t for each, t in read_torch(path).items()}
        torch.save({name: torch.zeros(3, 3), **held}, path)  # of tensors that are not mapped from it
    return name not in held


@pytest.mark.parametrize("name", ["W_skip", "unheard_of"])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_a_tensor_that_no_rule_of_its_kind_uses_is_refused(tmp_path: Path, folder: Path, name: str) -> None:
    """It may be of another function, which nobody would notice."""
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    kinds = (".safetensors", ".pt", ".pth", ".npz")
    files = [path for path in copy.rglob("*") if path.suffix in kinds and path.is_file() and path.stem != "expected"]
    if not add_to(files[0], name):
        pytest.skip("it has one")
    with pytest.raises(ValueError, match=name) as error:
        Sae.load_many(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_what_a_library_wrote_is_ours_or_refused_in_one_line(tmp_path: Path, folder: Path) -> None:
    """Tied weights too, of which safetensors writes no two."""
    try:
        write_set(tmp_path / "ours", {key: stored.read for key, stored in find(folder).items()}, "eleuther", About())
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) > 30
        return
    expected = load_file(folder / "expected.safetensors")
    largest = float(expected["recon"].abs().max())
    torch.testing.assert_close(
        reconstructed(tmp_path / "ours", expected["x"]).detach(), expected["recon"], rtol=1e-5, atol=1e-5 * largest
    )


def test_weights_of_dictionary_learning_need_no_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(next(MADE.glob("dictionary_learning/batchtopk/**/ae.pt")), tmp_path / "ae.pt")
    assert main(["info", str(tmp_path)]) == 0
    assert "dictionary-learning" in capsys.readouterr().out
