"""EleutherAI's layout: files written by others load and mean what the published formula says; bad ones say why."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import make_sae
from safetensors.torch import load_file, save_file

from sae import Sae, SaeConfig
from sae.formats import eleuther
from sae.formats.describe import describe
from sae.formats.find import find
from sae.formats.record import with_threshold

D, M, K = 8, 24, 3
CFG_2024 = {"expansion_factor": 3, "normalize_decoder": True, "k": K, "d_in": D}
CFG_133 = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": M, "k": K,
           "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D}  # fmt: skip


def write(folder: Path, cfg: Any = CFG_133, **changed: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A checkpoint written by hand, without this library's writer."""
    tensors = {"encoder.weight": torch.randn(M, D), "encoder.bias": torch.randn(M), "W_dec": torch.randn(M, D),
               "b_dec": torch.randn(D)} | changed  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(cfg if isinstance(cfg, str) else json.dumps(cfg))
    save_file({name: t for name, t in tensors.items() if t is not None}, folder / "sae.safetensors")
    return tensors


@pytest.mark.parametrize(
    "cfg",
    [
        CFG_2024,
        CFG_133,
        CFG_133 | {"num_latents": 0, "expansion_factor": 3},
        CFG_2024 | {"signed": False, "from_the_future": [1]},
    ],
)
def test_a_checkpoint_written_by_hand_loads_and_computes_the_published_formula(tmp_path: Path, cfg: Any) -> None:
    t = write(tmp_path, cfg)
    sae = Sae.load_from_disk(tmp_path)
    x = torch.randn(5, D)
    pre_acts = ((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
    top = pre_acts.topk(K)
    recon = torch.stack([a @ t["W_dec"][i] for a, i in zip(*top, strict=True)]) + t["b_dec"]
    torch.testing.assert_close(sae(x).recon, recon)
    assert (sae.d_in, sae.num_latents, sae.cfg.k) == (D, M, K)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_type_is_read_from_the_file(tmp_path: Path, dtype: torch.dtype) -> None:
    write(tmp_path, **{n: t.to(dtype) for n, t in write(tmp_path).items()})
    assert Sae.load_from_disk(tmp_path).dtype == dtype


def test_save_and_load_changes_nothing(tmp_path: Path) -> None:
    sae = make_sae(dtype=torch.float32)
    sae.save_to_disk(tmp_path / "layers.3")
    loaded = Sae.load_from_disk(tmp_path / "layers.3")
    assert all(torch.equal(loaded.state_dict()[name], t) for name, t in sae.state_dict().items())
    assert (loaded.cfg.k, loaded.num_latents, loaded.d_in) == (5, 96, 48)
    x = torch.randn(37, 48)
    assert torch.equal(loaded(x).recon, sae(x).recon)


def test_what_is_written_has_the_published_names_shapes_and_keys(tmp_path: Path) -> None:
    make_sae(dtype=torch.float32).save_to_disk(tmp_path)
    tensors = load_file(tmp_path / "sae.safetensors")
    shapes = {"encoder.weight": (96, 48), "encoder.bias": (96,), "W_dec": (96, 48), "b_dec": (48,)}
    assert {name: tuple(t.shape) for name, t in tensors.items()} == shapes
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert set(cfg) == set(CFG_133) and (cfg["k"], cfg["num_latents"], cfg["d_in"]) == (5, 96, 48)


def test_load_many_finds_hookpoints_in_natural_order_and_the_newest_step(tmp_path: Path) -> None:
    for step in ("step_9", "step_10"):
        for name in ("layers.10", "layers.2", "layers.2.mlp"):
            write(tmp_path / step / name, b_dec=torch.full((D,), float(step[5:])))
    saes = Sae.load_many(tmp_path)
    assert list(saes) == ["layers.2", "layers.2.mlp", "layers.10"]
    assert saes["layers.2"].b_dec[0] == 10
    assert list(Sae.load_many(tmp_path, ["layers.10"])) == ["layers.10"]
    assert list(Sae.load_many(tmp_path / "step_9", pattern="*.mlp")) == ["layers.2.mlp"]


def test_a_hookpoint_is_found_under_the_name_that_another_class_of_the_model_gives_it(tmp_path: Path) -> None:
    for number, name in enumerate(("language_model.layers.1", "language_model.layers.1.mlp", "h.2", "visual.layers.9")):
        write(tmp_path / name, b_dec=torch.full((D,), float(number)))
    found = Sae.load_many(tmp_path, ["layers.1", "layers.1.mlp", "model.h.2"])
    assert {name: sae.b_dec[0].item() for name, sae in found.items()} == {
        "layers.1": 0, "layers.1.mlp": 1, "model.h.2": 2
    }  # fmt: skip
    for other in ("mlp", "1", "layers.2", "text.layers.1"):
        with pytest.raises(ValueError, match="must hold"):
            Sae.load_many(tmp_path, [other])


def test_the_seeds_layout_of_layer_folders_loads(tmp_path: Path) -> None:
    write(tmp_path / "layer_11.pt", CFG_2024)
    assert list(Sae.load_many(tmp_path)) == ["layer_11.pt"]


SEEDS = {"seed0/layers.0": "layers.0/seed0", "seed0/layers.1.mlp": "layers.1.mlp/seed0",
         "seed1/layers.0": "layers.0/seed1", "seed1/layers.1.mlp": "layers.1.mlp/seed1"}  # fmt: skip


def write_each(folder: Path, places: Iterable[str]) -> None:
    for number, place in enumerate(places):
        write(folder / place, b_dec=torch.full((D,), float(number)))


def test_several_seeds_of_eai_sparsify_are_told_apart_and_each_loads_as_a_whole(tmp_path: Path) -> None:
    write_each(tmp_path, SEEDS.values())
    saes = Sae.load_many(tmp_path)
    assert list(saes) == list(SEEDS)
    assert [int(sae.b_dec[0]) for sae in saes.values()] == [0, 1, 2, 3]
    one = Sae.load_many(tmp_path / "seed1")
    assert {name: int(sae.b_dec[0]) for name, sae in one.items()} == {"layers.0": 2, "layers.1.mlp": 3}
    assert list(Sae.load_many(tmp_path, ["layers.0/seed1", "seed0/layers.0"])) == ["layers.0/seed1", "seed0/layers.0"]
    with pytest.raises(
        ValueError, match=f"one autoencoder of layers.0, but holds .*; name one group, such as {tmp_path}/seed0"
    ):
        Sae.load_many(tmp_path, ["layers.0"])
    with pytest.raises(ValueError, match="seed7 must hold autoencoders, but holds none"):
        Sae.load_many(tmp_path / "seed7")


@pytest.mark.parametrize("places", [["layers.0", "layers.1.mlp"], list(SEEDS.values())], ids=["one", "seeds"])
def test_the_best_of_eai_sparsify_is_a_checkpoint_of_its_own_beside_the_newest(
    tmp_path: Path, places: list[str]
) -> None:
    write_each(tmp_path / "run", places)
    names = list(Sae.load_many(tmp_path / "run"))
    write_each(tmp_path / "run" / "best", reversed([f"{place}/{place}" for place in places]))
    last = len(places) - 1
    for folder, numbers in (("run", range(last + 1)), ("run/best", range(last, -1, -1))):
        saes = Sae.load_many(tmp_path / folder)
        assert list(saes) == names
        by_place = {eleuther.canonical(place): number for place, number in zip(places, numbers, strict=True)}
        assert {name: int(sae.b_dec[0]) for name, sae in saes.items()} == by_place
    shutil.move(tmp_path / "run" / "best", tmp_path / "best-alone" / "best")
    assert list(Sae.load_many(tmp_path / "best-alone")) == names


def test_the_first_version_counted_hidden_states_so_its_layer_is_what_that_block_receives(tmp_path: Path) -> None:
    write_each(tmp_path, ["layer_0.pt", "layer_5.pt", "layer_10.pt"])
    assert list(Sae.load_many(tmp_path)) == ["layer_0.pt", "layer_5.pt", "layer_10.pt"]
    (sae,) = Sae.load_many(tmp_path, ["h.5.input"]).values()
    assert sae.b_dec[0] == 1
    with pytest.raises(ValueError, match=r"must hold \['layers.5'\], but holds \['layer_0.pt', 'layer_5.pt'"):
        Sae.load_many(tmp_path, ["layers.5"])


def test_the_folder_of_one_autoencoder_is_loaded_by_its_name(tmp_path: Path) -> None:
    write(tmp_path / "step_3" / "layers.3")
    for folder in (tmp_path / "step_3" / "layers.3", tmp_path / "step_3", tmp_path):
        assert list(Sae.load_many(folder)) == ["layers.3"]
    assert list(Sae.load_many(tmp_path / "step_3" / "layers.3", ["layers.3"])) == ["layers.3"]
    write(tmp_path / "layers.0" / "seed1")
    assert list(Sae.load_many(tmp_path / "layers.0" / "seed1")) == ["layers.0"]
    with pytest.raises(ValueError, match=r"must hold \['layers.4'\], but holds \['layers.3'\]"):
        Sae.load_many(tmp_path / "step_3" / "layers.3", ["layers.4"])
    snapshot = tmp_path / "models--owner--one-sae" / "snapshots" / "0123abc"
    write(snapshot)
    assert list(Sae.load_many(snapshot)) == ["one-sae"]


def test_a_folder_of_no_known_format_lists_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    for load in (Sae.load_from_disk, Sae.load_many):
        with pytest.raises(
            ValueError, match="no cfg.json with sae.safetensors .*, no ae.pt with config.json"
        ) as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


BAD = {
    "no cfg": (lambda f: (f / "cfg.json").unlink(), "no cfg.json"),
    "no weights": (lambda f: (f / "sae.safetensors").unlink(), "no such file"),
    "cut weights": (lambda f: cut(f / "sae.safetensors"), "damaged"),
    "garbage weights": (lambda f: (f / "sae.safetensors").write_bytes(b"\xff" * 64), "damaged"),
    "not json": (lambda f: write(f, "{"), "must be JSON"),
    "deep json": (lambda f: write(f, "[" * 100_000), "must be JSON"),
    "a list": (lambda f: write(f, "[]"), "JSON object"),
    "no k": (lambda f: write(f, {name: value for name, value in CFG_133.items() if name != "k"}), "k must be int"),
    "skip without flag": (lambda f: write(f, W_skip=torch.zeros(D, D)), "and nothing else, but holds .*W_skip"),
    "no d_in": (lambda f: write(f, {"k": 3}), "d_in must be int"),
    "k as text": (lambda f: write(f, CFG_133 | {"k": "3"}), "k must be int, got '3'"),
    "k true": (lambda f: write(f, CFG_133 | {"k": True}), "k must be int"),
    "k 0": (lambda f: write(f, CFG_133 | {"k": 0}), "k must be greater than 0"),
    "k too large": (lambda f: write(f, CFG_133 | {"k": 25}), "k must be between 1 and num_latents=24"),
    "huge": (lambda f: write(f, CFG_133 | {"num_latents": 2**40}), "2\\*\\*31"),
    "shape": (lambda f: write(f, W_dec=torch.zeros(D, M)), r"W_dec must have shape \[24, 8\] .*, got \[8, 24\]"),
    "missing tensor": (lambda f: write(f, b_dec=None), "must hold the tensor b_dec"),
    "integers": (lambda f: write(f, **{n: t.int() for n, t in write(f).items()}), "floating-point"),
    "8 bits": (lambda f: write(f, **{n: t.to(torch.float8_e4m3fn) for n, t in write(f).items()}), "of 16 bits or more"),
    "mixed types": (lambda f: write(f, b_dec=torch.zeros(D).half()), "one floating-point type"),
    "activation": (lambda f: write(f, CFG_133 | {"activation": "relu"}), "activation='relu' is not supported"),
    "activation of a kind": (lambda f: write(f, CFG_133 | {"activation": [1]}), "activation=.1. is not supported"),
    "groupmax": (lambda f: write(f, CFG_133 | {"activation": "groupmax", "k": 7}), "k must divide num_latents"),
    "prefixes": (lambda f: write(f, CFG_133 | {"prefixes": ["a"]}), "prefixes must be list"),
    "batchtopk without threshold": (lambda f: write(f, CFG_133 | {"activation": "batchtopk"}), "the tensor threshold"),
    "inference_l0": (lambda f: write(f, CFG_133 | {"inference_l0": "2"}), "inference_l0 must be float"),
    "inference_l0 of topk": (lambda f: write(f, CFG_133 | {"inference_l0": 2.0}), "go with the selection batchtopk"),
    "signed": (lambda f: write(f, CFG_133 | {"signed": "yes"}), "signed must be true or false"),
    "signed groupmax": (lambda f: write(f, CFG_133 | {"signed": True, "activation": "groupmax"}), "go with topk"),
    "skip without transcode": (lambda f: write(f, CFG_133 | {"skip_connection": True}), "must come with transcode"),
    "d_out": (lambda f: write(f, CFG_133 | {"d_out": "wide"}), "d_in, d_out and num_latents must be between"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_checkpoint_says_what_is_wrong_in_one_line(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    break_it, message = BAD[name]
    break_it(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        Sae.load_from_disk(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_what_inference_keeps_is_in_the_file_of_batchtopk_alone(tmp_path: Path) -> None:
    cfg = SaeConfig(num_latents=M, k=4, selection="batchtopk", inference_l0=2)
    sae = Sae(D, cfg)
    sae.save_to_disk(tmp_path / "batchtopk")
    assert Sae.load_from_disk(tmp_path / "batchtopk").cfg.inference_l0 == 2
    sae.cfg.inference_l0 = 3  # an int, as nobody checks a field that is set
    sae.save_to_disk(tmp_path / "batchtopk")
    path = tmp_path / "batchtopk" / "cfg.json"
    assert '"inference_l0": 3.0' in path.read_text()
    path.write_text(path.read_text().replace("3.0", "3"))  # as other writers of JSON have it
    assert Sae.load_from_disk(tmp_path / "batchtopk").cfg.inference_l0 == 3
    (found,) = find(tmp_path / "batchtopk").items()
    assert describe(*found).rule == "batchtopk, k 4, inference_l0 3"
    jumping = Sae.from_saved(with_threshold(sae.saved(), torch.full((M,), 0.5)))
    jumping.save_to_disk(tmp_path / "jumprelu")
    loaded = Sae.load_from_disk(tmp_path / "jumprelu")
    x = torch.randn(5, D)
    assert loaded.spec.selection == "jumprelu" and torch.equal(loaded(x).recon, jumping(x).recon)


def test_a_missing_hookpoint_lists_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "layers.1")
    with pytest.raises(ValueError, match=r"must hold \['layers.2'\], but holds \['layers.1'\]"):
        Sae.load_many(tmp_path, ["layers.2"])
    write(tmp_path / "mine")
    with pytest.raises(
        ValueError, match=r"must hold \['layers.1'\], but holds \['mine'\]; .* named after its hookpoint"
    ):
        Sae.load_many(tmp_path / "mine", ["layers.1"])


def test_a_hub_repository_that_cannot_be_reached_says_so_in_one_line() -> None:
    with pytest.raises(ValueError, match="nobody/nothing must be a folder or a repository on the hub") as caught:
        Sae.load_from_hub("nobody/nothing", "layers.1")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="hookpoint must be a module path"):
        Sae.load_from_hub("nobody/nothing", "../../etc")
