"""Cross-layer transcoders in others' formats and back: all layers together compute the same."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from sae import Sae, SaeConfig
from sae.dictionary.cross_layer import members, reconstruct
from sae.dictionary.spec import Saved, Spec
from sae.formats import circuit_tracer, overcomplete
from sae.formats.convert import write_set
from sae.formats.find import find
from sae.formats.format import About

D, N = 6, 12
ABOUT = About(model="m")


def layers(
    count: int = 3, *, d: int = D, n: int = N, dtype: torch.dtype = torch.float32, tied: Any = False,
    scaled: bool = False, selection: str = "jumprelu", **options: Any,
) -> dict[str, Saved]:  # fmt: skip
    """All layers of one, in general position."""
    names = [f"layers.{i}.mlp" for i in range(count)]
    scale = torch.rand(count * d) + 0.5 if scaled else torch.ones(count * d)
    found = {}
    for i, name in enumerate(names):
        writes = tuple(names[i:])
        width = d if tied else d * len(writes)
        cfg = SaeConfig(num_latents=n, k=2, cross_layer=True, tie_decoders=tied, selection=selection, **options)  # type: ignore[arg-type]
        spec = Spec(
            cfg, d, width, n, options.get("rule", "jumprelu" if selection == "topk" else ""), reads=(f"{name}.input",),
            writes=writes, widths=() if tied else (d,) * len(writes),
        )  # fmt: skip
        bias = torch.cat([torch.randn(d), torch.zeros(width - d)])
        tensors = {"encoder.weight": torch.randn(n, d), "encoder.bias": torch.randn(n), "b_dec": bias,
                   "W_dec": torch.randn(n, width)}  # fmt: skip
        each = (n,) if tied == "target" else ()
        factors = torch.cat([torch.ones(1, *each), torch.randn(len(writes) - 1, *each)])
        tensors |= {"layer_scale": factors} if tied else {"scale": scale[i * d :]}
        tensors |= {"threshold": torch.rand(n)} if selection == "topk" else {"threshold": torch.rand(())}
        found[name] = Saved(spec, {key: t if key == "scale" else t.to(dtype) for key, t in tensors.items()})
        found[name].tensors.update({key: t.to(dtype) for key, t in found[name].tensors.items() if key == "scale"})
    return found


def jumping(**options: Any) -> dict[str, Saved]:
    return layers(selection="topk", **options)


def written(found: dict[str, Saved], folder: Path) -> dict[str, Saved]:
    """What is read of what was written for circuit-tracer."""
    write_set(folder, {name: lambda each=saved: each for name, saved in found.items()}, "circuit-tracer", ABOUT)
    return {name: stored.read() for name, stored in find(folder).items()}


def together(found: dict[str, Saved], xs: list[Tensor]) -> Tensor:
    saes = {name: Sae.from_saved(saved).double() for name, saved in found.items()}
    (group,) = members(saes).values()
    return reconstruct(group, xs)[1].detach()


@settings(max_examples=9, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    count=st.integers(1, 4), d=st.integers(1, 7), n=st.integers(2, 9), tied=st.sampled_from([False, True, "target"]),
    scaled=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)  # fmt: skip
def test_what_is_written_for_circuit_tracer_and_read_again_is_the_same(
    count: int, d: int, n: int, tied: Any, scaled: bool, dtype: torch.dtype
) -> None:
    found = jumping(count=count, d=d, n=n, tied=tied, scaled=scaled and not tied, dtype=dtype)
    with TemporaryDirectory() as temporary:
        again = written(found, Path(temporary) / "a")
        third = written(again, Path(temporary) / "b")
        for file in (Path(temporary) / "a").glob("*.safetensors"):
            one, other = load_file(file), load_file(Path(temporary) / "b" / file.name)
            assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert list(again) == list(found)
    for name, saved in again.items():
        assert saved.spec == third[name].spec and saved.spec.reads == (f"{name}.input",)
        assert all(torch.equal(third[name].tensors[key], t) for key, t in saved.tensors.items())
        if not tied and not scaled:
            assert saved.spec == replace(found[name].spec, cfg=saved.spec.cfg)
            assert all(torch.equal(saved.tensors[key], t) for key, t in found[name].tensors.items())
    xs = [torch.randn(5, d, dtype=torch.float64) for _ in range(count)]
    torch.testing.assert_close(together(again, xs), together(found, xs), rtol=1e-5, atol=1e-5)


def test_a_layer_tied_by_target_is_not_written_alone(tmp_path: Path) -> None:
    saved = jumping(tied="target")["layers.2.mlp"]
    with pytest.raises(ValueError, match="tied by target must be written with the layers that it shares them with"):
        Sae.from_saved(saved).save_to_disk(tmp_path, format="circuit-tracer")


def test_batchtopk_becomes_jumprelu_with_its_threshold(tmp_path: Path) -> None:
    found = layers(selection="batchtopk", n=8)
    again = written(found, tmp_path / "a")
    for name, saved in found.items():
        assert (again[name].tensors["threshold"] == saved.tensors["threshold"]).all()
    xs = [torch.randn(37, D, dtype=torch.float64) for _ in found]
    torch.testing.assert_close(together(again, xs), together(found, xs), rtol=1e-6, atol=1e-6)  # 4 k of 8 latents


def test_the_layout_is_the_published_one(tmp_path: Path) -> None:
    found = jumping()
    written(found, tmp_path / "a")
    encoder, decoders = (load_file(tmp_path / "a" / f"W_{kind}_1.safetensors") for kind in ("enc", "dec"))
    assert {name: tuple(t.shape) for name, t in encoder.items()} == {
        "W_enc_1": (N, D), "b_enc_1": (N,), "b_dec_1": (D,), "threshold_1": (N,)
    }  # fmt: skip
    assert {name: tuple(t.shape) for name, t in decoders.items()} == {"W_dec_1": (N, 2, D)}
    saved = found["layers.1.mlp"]
    assert torch.equal(decoders["W_dec_1"][:, 1], saved.tensors["W_dec"][:, D:])
    config = (tmp_path / "a" / "config.yaml").read_text()
    assert "model_kind: cross_layer_transcoder" in config and "feature_input_hook: mlp.hook_in" in config


def merges_of_merges() -> str:
    """Each line holds the one before ten times: 10^12 keys in 700 bytes."""
    lines = [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 13)]
    return "\n".join(["a0: &a0 {x: 1}", *lines])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (merges_of_merges(), "config.yaml must be YAML"),
        ("model_kind: " + ":".join(["59"] * 9999), "config.yaml: <int> is not supported"),
        ("activation: gelu", "config.yaml: activation: 'gelu' is not supported"),
        ("feature_input_hook: hook_mlp_in", "config.yaml must name feature_input_hook and feature_output_hook"),
    ],
)
def test_a_hostile_configuration_is_one_line(tmp_path: Path, config: str, told: str) -> None:
    written(jumping(), tmp_path / "a")
    (tmp_path / "a" / "config.yaml").write_text(config)
    with pytest.raises(ValueError, match=told):
        circuit_tracer.read(tmp_path / "a" / "W_enc_0.safetensors")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_a_tensor_in_which_nothing_can_be_computed_is_one_line(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {"dictionary._weights": torch.ones(N, D).to(dtype), "dictionary.multiplier": torch.zeros(())}
    torch.save(weights, tmp_path / "a-k3.overcomplete.pt")
    with pytest.raises(ValueError, match="dictionary._weights must have a floating-point type of 16 bits or more, got"):
        overcomplete.read(tmp_path / "a-k3.overcomplete.pt")


def without(found: dict[str, Saved], name: str) -> dict[str, Saved]:
    return {key: saved for key, saved in found.items() if key != name}


def with_later_bias(found: dict[str, Saved]) -> dict[str, Saved]:
    found["layers.0.mlp"].tensors["b_dec"][-1] = 1
    return found


REFUSED: dict[str, Any] = {
    "a layer by target is missing": (lambda: without(jumping(tied="target"), "layers.1.mlp"), "must be whole, got"),
    "layers by target of two sizes": (
        lambda: jumping(tied="target") | {"layers.2.mlp": jumping(tied="target", n=7)["layers.2.mlp"]},
        "of another",
    ),
    "TopK": (lambda: _topk(), "has no topk"),
    "a skip connection": (lambda: _skip(), "no skip connections of cross-layer transcoders"),
    "a layer is missing": (lambda: without(jumping(), "layers.1.mlp"), r"every layer from 0 on, got layers .0, 2."),
    "the last is missing": (lambda: without(jumping(), "layers.2.mlp"), "decoders for every later layer"),
    "a bias of a later layer": (lambda: with_later_bias(jumping()), "b_dec must be of its own layer alone"),
    "attention": (lambda: _at("norm"), "has none for layers.0.norm"),
}


def _topk() -> dict[str, Saved]:
    return {
        name: Saved(replace(saved.spec, selection="topk"), {k: t for k, t in saved.tensors.items() if k != "threshold"})
        for name, saved in jumping().items()
    }


def _skip() -> dict[str, Saved]:
    return {
        name: Saved(
            replace(saved.spec, cfg=replace(saved.spec.cfg, skip_connection=True)),
            saved.tensors | {"W_skip": torch.zeros(saved.spec.d_out, D)},
        )
        for name, saved in jumping().items()
    }


def _at(place: str) -> dict[str, Saved]:
    """The same, of another module of each block."""
    found = {}
    for name, saved in jumping().items():
        writes = tuple(each.replace("mlp", place) for each in saved.spec.writes)
        found[name.replace("mlp", place)] = Saved(replace(saved.spec, writes=writes, reads=(name,)), saved.tensors)
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_said_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        written(make(), tmp_path / "a")
    assert "\n" not in str(caught.value)
