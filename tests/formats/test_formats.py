"""Every library's files compute what it publishes, and what is written and read again is the same."""

import json
import os
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from strangers import STRANGERS, D, M, gemma_scope, json_file, qwen_scope
from torch import Tensor

from sae import Sae, SaeConfig
from sae.dictionary.spec import Saved, Spec, with_centre
from sae.formats import FORMATS
from sae.formats.convert import write_one, write_set
from sae.formats.describe import describe
from sae.formats.find import find, stored_at
from sae.formats.format import About
from sae.formats.record import thresholds


@pytest.mark.parametrize("name", STRANGERS)
def test_files_of_each_library_are_recognised_and_compute_the_published_formula(tmp_path: Path, name: str) -> None:
    stranger = STRANGERS[name]
    folder = tmp_path / "repo-L0_3" / "layer_3"
    formula = stranger.write(folder)
    stored = stored_at(folder / stranger.file)
    assert stored.format is FORMATS[stranger.format]
    sae = Sae.from_saved(stored.read())
    x = torch.randn(37, D) * 2 + 0.5
    expected = formula(x)
    torch.testing.assert_close(sae(x).recon, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    (key,) = Sae.load_many(folder)
    assert key == stranger.hookpoint
    assert sae.spec.writes[:1] == (() if stranger.format in ("eleuther", "overcomplete") else (stranger.hookpoint,))


WRITERS = [each.name for each in FORMATS.values() if each.write is not None]
KINDS = [("topk", False, False), ("jumprelu", False, False), ("batchtopk", False, False), ("groupmax", False, False),
         ("topk", True, False), ("jumprelu", True, False), ("jumprelu", True, True)]  # fmt: skip


SHAPES = st.tuples(st.integers(2, 9), st.integers(1, 9), st.integers(1, 4), st.integers(2, 7))
TYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
CHOICES = st.tuples(*[st.booleans()] * 5)


def dictionary(
    kind: tuple[str, bool, bool], shape: tuple[int, ...], dtype: torch.dtype, choices: tuple[bool, ...]
) -> Saved:
    """A dictionary of any shape, type and convention, in general position."""
    (selection, transcode, skip), (d, d_out, k, per_k) = kind, shape
    unit, spread, nested, centred, norm = choices
    n, d_out = k * per_k, d_out if transcode else d

    def rand(*size: int) -> Tensor:
        return torch.randn(*size).to(dtype)

    W_dec = rand(n, d_out)
    W_dec = torch.nn.functional.normalize(W_dec.float(), dim=1).to(dtype) if unit else W_dec
    tensors = {"encoder.weight": rand(n, d), "encoder.bias": rand(n), "W_dec": W_dec, "b_dec": rand(d_out)}
    tensors |= {"W_skip": rand(d_out, d)} if skip else {}
    tensors |= {"threshold": rand(n).abs() * spread} if selection == "jumprelu" else {}
    tensors |= {"threshold": rand(1).abs()[0]} if selection == "batchtopk" else {}
    cfg = SaeConfig(num_latents=n, k=k, selection="topk" if selection == "jumprelu" else selection, transcode=transcode,
                    skip_connection=skip, prefixes=[k] if nested and selection == "batchtopk" else [])  # fmt: skip
    spec = Spec(cfg, d, d_out, n, selection, centred=centred and not transcode, layer_norm=norm and not transcode)
    return Saved(spec, tensors)


def reconstruction(saved: Saved, x: Tensor) -> Tensor:
    """The dense formula, in float64."""
    t = {name: value.double() for name, value in saved.tensors.items()}
    spec, mean, std, normed = saved.spec, 0.0, 1.0, x
    if spec.layer_norm:
        mean = x.mean(-1, keepdim=True)
        std = (x - mean).std(-1, keepdim=True)
        normed = (x - mean) / (std + 1e-5)
    pre = (normed - t["b_dec"] if spec.centred else normed) @ t["encoder.weight"].T + t["encoder.bias"]
    if spec.selection == "topk":
        acts = torch.zeros_like(pre).scatter(-1, pre.topk(spec.k).indices, 1.0) * pre.relu()
    else:
        acts = pre.relu() * (pre > t["threshold"])
    skip = x @ t["W_skip"].T if "W_skip" in t else 0.0
    return (acts @ t["W_dec"] + t["b_dec"]) * std + mean + skip


REFUSED: dict[str, Any] = {
    "eleuther": lambda s: s.spec.layer_norm,
    "saelens": lambda s: False,
    "dictionary-learning": lambda s: s.spec.layer_norm or s.spec.cfg.transcode,
    "circuit-tracer": lambda s: s.spec.layer_norm or not s.spec.cfg.transcode or s.spec.d_in != s.spec.d_out,
    "gemma-scope-2": lambda s: s.spec.layer_norm or s.spec.selection == "topk",
    "llamascopium": lambda s: s.spec.layer_norm or s.spec.cfg.skip_connection or s.spec.d_in != s.spec.d_out,
}
"""What a format has no word for, beside groupmax and transcoders that keep the k largest."""


def is_refused(name: str, saved: Saved) -> bool:
    spec = saved.spec
    not_said = spec.selection == "groupmax" or (
        spec.cfg.transcode and spec.selection == "topk" and name != "llamascopium"
    )
    return REFUSED[name](saved) or (not_said and name != "eleuther")


@pytest.mark.parametrize(("name", "kind"), list(product(WRITERS, KINDS)))
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(shape=SHAPES, dtype=TYPES, choices=CHOICES)
def test_what_is_written_and_read_again_is_the_same_or_is_refused(
    name: str, kind: tuple[str, bool, bool], shape: tuple[int, ...], dtype: torch.dtype, choices: tuple[bool, ...]
) -> None:
    saved = dictionary(kind, shape, dtype, choices)
    about = About(hookpoint="layers.0.mlp" if kind[1] else "layers.0", model="m")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "layers.0"
        if is_refused(name, saved):
            with pytest.raises(ValueError) as caught:
                write_one(folder, saved, name, about)
            assert "\n" not in str(caught.value)
            return
        write_one(folder, saved, name, about)
        (stored,) = find(folder).values()
        again = stored.read()
        assert stored.format.name == name
        if is_refused(name, again):  # its own kind is said
            raise AssertionError("what a format says it must be able to say again")
        write_one(folder / "again", again, name, about)
        third = next(iter(find(folder / "again").values())).read()
    assert set(third.tensors) == set(again.tensors) and third.spec == again.spec
    assert all(torch.equal(third.tensors[n], t) for n, t in again.tensors.items() if n != "threshold")
    check_same(name, saved, again)


def check_same(name: str, saved: Saved, again: Saved) -> None:
    """Bit for bit in float32 where the format says the dictionary as it is, else the same function."""
    # the files of llamascopium hold logarithms, and torch loads what is in half precision into float32
    exact = {
        n
        for n in saved.tensors
        if n != "threshold" and (n != "encoder.bias" or again.spec.centred == saved.spec.centred)
    }
    for tensor in exact:
        assert torch.equal(again.tensors[tensor].float(), saved.tensors[tensor].float()), tensor
    ours, theirs = thresholds(saved), thresholds(again)  # llamascopium's files hold their logarithms
    if ours is not None:
        assert theirs is not None
        torch.testing.assert_close(theirs.float(), ours.float(), rtol=2e-2 if name == "llamascopium" else 4e-3, atol=0)
        if name != "llamascopium" and saved.spec.selection == "jumprelu":
            assert torch.equal(theirs.float(), ours.float())
    if again.spec.selection == saved.spec.selection == "topk":
        assert again.spec.k == saved.spec.k
    if saved.tensors["W_dec"].dtype == torch.float32 and saved.spec.selection in ("topk", "jumprelu"):
        x = torch.randn(5, saved.spec.d_in, dtype=torch.float64)
        torch.testing.assert_close(reconstruction(again, x), reconstruction(saved, x), rtol=1e-4, atol=1e-4)


def test_a_shifted_centre_is_the_same_function_there_and_back() -> None:
    saved = Saved(
        Spec(SaeConfig(num_latents=M, k=3), D, D, M),
        {"encoder.weight": torch.randn(M, D), "encoder.bias": torch.randn(M), "W_dec": torch.randn(M, D),
         "b_dec": torch.randn(D)},
    )  # fmt: skip
    moved = with_centre(saved, False)
    x = torch.randn(37, D, dtype=torch.float64)
    torch.testing.assert_close(reconstruction(moved, x), reconstruction(saved, x), rtol=1e-5, atol=1e-5)
    assert not torch.equal(moved.tensors["encoder.bias"], saved.tensors["encoder.bias"])
    assert with_centre(moved, False) is moved


def test_a_set_for_circuit_tracer_needs_every_layer_from_0_on(tmp_path: Path) -> None:
    sae = Sae(D, SaeConfig(num_latents=M, k=3, transcode=True))
    saved = sae.saved()
    jumping = Saved(replace(saved.spec, selection="jumprelu"), saved.tensors | {"threshold": torch.rand(M)})
    three = {f"layers.{i}.mlp": lambda: jumping for i in range(3)}
    write_set(tmp_path / "set", three, "circuit-tracer", About(model="Qwen/Qwen3-0.6B"))
    assert list(find(tmp_path / "set")) == list(three)
    del three["layers.1.mlp"]
    with pytest.raises(ValueError, match="every layer from 0 on, got layers .0, 2."):
        write_set(tmp_path / "gap", three, "circuit-tracer", About())


def test_several_widths_at_a_hookpoint_are_named_by_their_folders(tmp_path: Path) -> None:
    for width in ("16k", "65k"):
        gemma_scope(tmp_path / f"layer_3/width_{width}/average_l0_20")
    gemma_scope(tmp_path / "layer_12/width_16k/average_l0_20")
    assert list(find(tmp_path)) == [
        "layer_3/width_16k/average_l0_20/layers.3",
        "layer_3/width_65k/average_l0_20/layers.3",
        "layers.12",
    ]
    assert list(Sae.load_many(tmp_path, ["layer_3/width_65k/average_l0_20", "layers.12"])) == [
        "layer_3/width_65k/average_l0_20",
        "layers.12",
    ]
    with pytest.raises(ValueError, match="one autoencoder of layers.3, but holds layer_3/width_16k"):
        Sae.load_many(tmp_path, ["layers.3"])


ONCE = {
    "autoencoders": (("topk", False, False), ["layers.0", "layers.1"], ["saelens", "dictionary-learning"]),
    "a sweep": (("batchtopk", False, False), ["k2/layers.0", "k4/layers.0"], ["saelens", "llamascopium"]),
    "under another format": (("jumprelu", False, False), ["layers.0", "layers.1"], ["gemma-scope-2"]),
    "transcoders": (("jumprelu", True, False), ["layers.0.mlp", "layers.1.mlp"], ["circuit-tracer", "gemma-scope-2"]),
}


@pytest.mark.parametrize("name", ONCE)
def test_what_is_pushed_in_several_formats_is_loaded_once_and_the_others_by_their_paths(
    tmp_path: Path, name: str
) -> None:
    kind, hookpoints, others = ONCE[name]
    dictionaries = {at: dictionary(kind, (8, 8, 3, 5), torch.float32, (True,) + (False,) * 4) for at in hookpoints}
    readers = {at: partial(lambda saved: saved, saved) for at, saved in dictionaries.items()}
    top = "saelens" if name == "under another format" else "eleuther"
    write_set(tmp_path, readers, top, About(model="m"))
    alone = list(find(tmp_path))
    for other in others:
        write_set(tmp_path / other, readers, other, About(model="m"))
    found = find(tmp_path)
    assert list(found) == alone and len(alone) == 2
    for stored in found.values():
        assert stored.format.name == top and stored.also == tuple(sorted(others))
        assert describe("", stored).format == ", ".join([top, *sorted(others)])
    for other in others:
        below = find(tmp_path / other)
        paths = [f"{other}/{stored.relative}" for stored in below.values()]
        assert [stored.path for stored in find(tmp_path, paths).values()] == [one.path for one in below.values()]
        assert {*find(tmp_path, [f"{other}/*"])} == {*find(tmp_path, pattern=f"{other}/*")} == {*paths}


def test_a_file_that_does_not_say_its_hookpoint_is_of_the_one_that_is_named(tmp_path: Path) -> None:
    for name, says in (("overcomplete tied", False), ("OpenAI TopK", True)):
        stranger = STRANGERS[name]
        file = tmp_path / name / stranger.file
        stranger.write(file.parent)
        if says:
            with pytest.raises(ValueError, match="must hold .*layers.3"):
                find(file, ["layers.3"])
            continue
        assert [stored.path for stored in find(file, ["layers.3"]).values()] == [file]
        assert list(find(file, ["layers.3"])) == ["layers.3"] and list(find(file)) == [file.stem]
        with pytest.raises(ValueError, match="must hold .*layers.4"):
            find(file, ["layers.3", "layers.4"])


def test_another_dictionary_in_a_folder_that_is_called_as_its_format_is_not_passed_over(tmp_path: Path) -> None:
    Sae(D, SaeConfig(num_latents=M, k=3)).save_to_disk(tmp_path / "mine" / "layers.3")
    STRANGERS["saelens topk"].write(tmp_path / "saelens" / "other")
    STRANGERS["saelens jumprelu"].write(tmp_path / "saelens" / "layers.3")
    assert len(find(tmp_path)) == 3 and not any(stored.is_copy for stored in find(tmp_path).values())


def test_a_glob_names_every_dictionary_that_it_matches_with_its_group_or_without(tmp_path: Path) -> None:
    for at in ("k2/layers.0", "k2/layers.1", "k4/layers.0"):
        Sae(D, SaeConfig(num_latents=M, k=2)).save_to_disk(tmp_path / at)
    assert list(find(tmp_path, ["layers.?"])) == ["k2/layers.0", "k2/layers.1", "k4/layers.0"]
    assert list(find(tmp_path, ["k2/*", "k4/layers.0"])) == ["k2/layers.0", "k2/layers.1", "k4/layers.0"]
    with pytest.raises(ValueError, match=r"must hold \['layers.7\*'\], but holds \['k2/layers.0'"):
        find(tmp_path, ["k2/*", "layers.7*"])


@pytest.mark.parametrize("below", ["layers.1", "older/layers.0"])
def test_a_dictionary_is_found_though_others_lie_in_folders_beside_it(tmp_path: Path, below: str) -> None:
    folder, cfg = tmp_path / "dicts", SaeConfig(num_latents=M, k=3)
    root, other = (Sae(D, cfg, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    root.save_to_disk(folder / "layers.0")
    for file in (folder / "layers.0").iterdir():
        file.rename(folder / file.name)
    (folder / "layers.0").rmdir()
    other.save_to_disk(folder / below)
    assert sorted(stored.relative for stored in find(folder).values()) == sorted([".", below])
    loaded = list(Sae.load_many(folder).values())
    assert {one.W_dec.sum().item() for one in loaded} == {root.W_dec.sum().item(), other.W_dec.sum().item()}
    assert Sae.load_from_disk(folder).W_dec.equal(root.W_dec)


def test_a_folder_of_two_formats_is_told(tmp_path: Path) -> None:
    STRANGERS["saelens topk"].write(tmp_path / "a")
    Sae(D, SaeConfig(num_latents=M, k=3)).save_to_disk(tmp_path / "a")
    with pytest.raises(ValueError, match="must hold one format, but has cfg.json with sae.* and .*SAELens"):
        Sae.load_from_disk(tmp_path / "a")


def test_qwen_scope_without_its_repositorys_name_says_what_is_missing(tmp_path: Path) -> None:
    qwen_scope(tmp_path / "somewhere")
    with pytest.raises(ValueError, match="whose name ends with L0_<k>"):
        Sae.load_from_disk(tmp_path / "somewhere" / "layer3.sae.pt")


BAD = {
    "saelens k": ("saelens topk", "cfg.json", {"k": "many"}, "k must be int, got 'many'"),
    "saelens architecture": ("saelens topk", "cfg.json", {"architecture": "temporal"}, "architecture must be one of"),
    "saelens norm": ("saelens topk", "cfg.json", {"normalize_activations": "constant_norm_rescale"}, "by their length"),
    "saelens d_dec": ("saelens topk", "cfg.json", {"apply_b_dec_to_input": "yes"}, "must be true or false"),
    "saelens transcoder as an autoencoder": ("saelens transcoder", "cfg.json", {"architecture": "standard"},
                                             "an autoencoder must write what it reads, got widths 8 and 6"),
    "another class": ("TopK", "config.json", {"trainer": {"dict_class": "CrossCoder"}}, "dict_class must be one of"),
    "TopK without its class": ("TopK", "config.json", {"trainer": {}}, "does not say whether"),
    "llama norm": ("Llama Scope", "hyperparams.json", {"dataset_average_activation_norm": {}}, "positive number"),
    "batchtopk": ("llamascopium topk", "config.json", {"act_fn": "batchtopk"}, "act_fn must be relu, jumprelu or topk"),
    "glu": ("llamascopium topk", "config.json", {"use_glu_encoder": True}, "use_glu_encoder is not supported"),
    "clt": ("llamascopium topk", "config.json", {"sae_type": "clt"}, "sae_type='clt' is not supported"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_said_here_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    stranger, file, change, message = BAD[name]
    STRANGERS[stranger].write(tmp_path / "x")
    path = tmp_path / "x" / file
    json_file(path, json.loads(path.read_text()) | change)
    with pytest.raises(ValueError, match=message) as caught:
        Sae.load_from_disk(tmp_path / "x")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


CALLS: dict[str, Any] = {
    "of a module that torch blocks": os.system,
    "of a library": Path.touch,
    "of Python": eval,
    "of torch": torch.compile,
}


@pytest.mark.parametrize("call", CALLS)
def test_a_file_that_holds_code_is_refused_and_the_code_not_run(tmp_path: Path, call: str) -> None:
    class Code:
        def __reduce__(self) -> Any:
            argument = tmp_path / "ran"
            return CALLS[call], (argument if call == "of a library" else f"touch {argument}",)

    folder = tmp_path / "x"
    STRANGERS["TopK"].write(folder)
    torch.save({"encoder.weight": Code()}, folder / "ae.pt")
    with pytest.raises(ValueError, match="holds tensors and no code, but it holds .*; nothing in it was run"):
        Sae.load_from_disk(folder)
    assert not (tmp_path / "ran").exists()


def test_a_tensor_that_claims_more_than_its_file_holds_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    STRANGERS["AutoEncoder"].write(folder)
    torch.save({"encoder.weight": torch.zeros(1).expand(2**20, 2**20)}, folder / "ae.pt")
    with pytest.raises(ValueError, match="must be a plain tensor of the file"):
        Sae.load_from_disk(folder)


@pytest.mark.parametrize("name", [name for name, stranger in STRANGERS.items()])
def test_no_link_leads_out_of_a_folder(tmp_path: Path, name: str) -> None:
    stranger = STRANGERS[name]
    folder = tmp_path / "repo-L0_3" / "layer_3"
    stranger.write(folder)
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        outside = tmp_path / "outside"
        file.rename(outside)
        file.symlink_to(outside)
        if file.name not in ("config.json",) or stranger.format in ("llamascopium",):
            with pytest.raises(ValueError, match="leads out of its folder"):
                Sae.load_from_disk(folder / stranger.file)
        file.unlink()
        outside.rename(file)
    assert Sae.load_from_disk(folder / stranger.file).d_in == D


def test_training_continues_from_another_librarys_dictionary_as_the_same_function(tmp_path: Path) -> None:
    for name in ("saelens topk, b_dec not subtracted", "TopK"):
        STRANGERS[name].write(tmp_path / name)
        sae = Sae.load_from_disk(tmp_path / name)
        x = torch.randn(37, D)
        before = sae(x).recon
        start = sae.to_continue()
        torch.testing.assert_close(start(x).recon, before, rtol=1e-4, atol=1e-4)
        assert start.spec.centred
    for name, kind in (("saelens jumprelu", "thresholds of its own"), ("saelens topk, layer norm", "a layer norm")):
        STRANGERS[name].write(tmp_path / name)
        with pytest.raises(ValueError, match=f"must be one that is trained here, got one with {kind}"):
            Sae.load_from_disk(tmp_path / name).to_continue()


def test_a_folder_of_saelens_without_its_weights_names_the_file_that_it_lacks(tmp_path: Path) -> None:
    cfg = {
        "architecture": "topk",
        "k": 4,
        "d_in": 8,
        "d_sae": 16,
        "metadata": {"hook_name": "blocks.0.hook_resid_post"},
    }
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(
        ValueError, match=r"sae_weights\.safetensors must hold the weights, but there is no such file; is"
    ):
        Sae.load_many(tmp_path)


def test_what_is_no_number_in_others_files_is_refused(tmp_path: Path) -> None:
    cfg = {"architecture": "jumprelu", "d_in": 4, "d_sae": 6, "metadata": {"hook_name": "blocks.0.hook_resid_post"}}
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    tensors = {"W_enc": torch.randn(4, 6), "b_enc": torch.randn(6), "W_dec": torch.randn(6, 4), "b_dec": torch.zeros(4)}
    save_file(tensors | {"threshold": torch.full((6,), float("nan"))}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(ValueError, match="threshold must hold numbers, got NaN; is the file of a run that diverged"):
        Sae.load_many(tmp_path)
