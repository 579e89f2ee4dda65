"""A language model's elementwise work in C is PyTorch's up to single roundings, and leaves the model as it was."""

import sys
from typing import Any

import pytest
import torch
from tiny_types import tiny_config
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from sae.lm import harvest
from sae.lm.fused import fused
from sae.ops import native
from sae.ops.native import transformer

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C compiler here")

SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6, "vocab_size": 99}
SIZES |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0}
FAMILIES = {"llama": 7, "mistral": 7, "gemma": 7, "gemma2": 13, "qwen2": 7, "qwen3": 13, "olmo2": 13}
"""How many RMSNorms each has."""
TOKENS = torch.arange(2 * 17).view(2, 17) + 3


def tiny(family: str, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **SIZES)).to(dtype).eval()
    for parameter in model.parameters():  # a weight of 1 does not show how it is rounded
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def plainly(model: nn.Module, name: str) -> torch.Tensor:
    """What a module returns in a forward of transformers alone."""
    seen: list[Any] = []
    with torch.no_grad(), model.get_submodule(name).register_forward_hook(lambda m, a, out: seen.append(out)):
        model(TOKENS, use_cache=False)
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_those_of_transformers_up_to_a_rounding(family: str) -> None:
    model = tiny(family)
    found = harvest(model, TOKENS, ["layers.2"])["layers.2"]
    expected = plainly(model, "layers.2")
    assert ((found - expected).float().norm() / expected.float().norm()).item() < 2**-7


@pytest.mark.parametrize("family", FAMILIES)
def test_every_norm_mlp_and_rotation_of_a_family_is_found_and_the_model_is_as_before(family: str) -> None:
    model = tiny(family)
    file = sys.modules[type(model).__module__]
    before = file.apply_rotary_pos_emb
    with fused(model), fused(model):
        ours = [type(m).__name__ for m in model.modules() if "forward" in vars(m)]
        assert sum("Norm" in name for name in ours) == FAMILIES[family]
        assert sum("MLP" in name for name in ours) == 3
        assert file.apply_rotary_pos_emb is not before
    assert not any("forward" in vars(m) for m in model.modules())
    assert file.apply_rotary_pos_emb is before


def test_a_rotation_that_is_called_in_another_way_is_left_to_transformers() -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(tiny_config("qwen4_exp_text")).to(torch.bfloat16).eval()  # of queries alone, by name
    found, expected = harvest(model, TOKENS, ["layers.1"])["layers.1"], plainly(model, "layers.1")
    assert ((found - expected).float().norm() / expected.float().norm()).item() < 2**-7


def test_a_model_in_float32_or_with_gradients_is_bit_for_bit_that_of_transformers() -> None:
    wide, model = tiny("llama", torch.float32), tiny("llama")
    assert torch.equal(harvest(wide, TOKENS, ["layers.2"])["layers.2"], plainly(wide, "layers.2"))
    expected = model(TOKENS, use_cache=False).last_hidden_state
    with fused(model):
        assert torch.equal(model(TOKENS, use_cache=False).last_hidden_state, expected)


@pytest.mark.parametrize("name", ["gate_proj", "up_proj", "down_proj", "act_fn"])
def test_a_hookpoint_inside_a_fused_mlp_has_what_its_module_returns(name: str) -> None:
    model, name = tiny("llama"), f"layers.0.mlp.{name}"
    found, expected = harvest(model, TOKENS, [name, "layers.1"])[name], plainly(model, name)
    assert ((found - expected).float().norm() / expected.float().norm()).item() < 2**-7


def bounded(mlp: nn.Module) -> nn.Module:
    """The same with bounds on gate and up, which no weight of a new model reaches."""

    class Bounded(type(mlp)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gate, up = self.gate_proj(x).clamp(max=500.0), self.up_proj(x).clamp(-500.0, 500.0)
            return self.down_proj(self.act_fn(gate) * up)

    mlp.__class__ = Bounded
    return mlp


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_what_is_known_of_one_norm_holds_for_those_with_other_weights(family: str) -> None:
    new = AutoModel.from_config(AutoConfig.for_model(family, **SIZES)).bfloat16().eval()
    with fused(new):  # whose weights are all 1, or 0
        pass
    trained = tiny(family)
    norm, x = trained.get_submodule("layers.0.input_layernorm"), 3 * torch.randn(50, 48).bfloat16()
    with torch.no_grad():
        expected = norm(x)
        with fused(trained):
            assert "forward" in vars(norm) and (norm(x) == expected).float().mean() > 0.995


def test_a_module_that_only_looks_like_a_norm_or_an_mlp_is_left_alone() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(8).bfloat16()), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / (x.abs().mean(-1, keepdim=True) + self.eps) * self.weight

    model = tiny("llama")
    with fused(model):  # what is known of others must not count for these
        mlps = [model.get_submodule(f"layers.{layer}.mlp") for layer in range(3)]
        assert all("forward" in vars(mlp) for mlp in mlps)
    mlps = [tiny("llama").get_submodule("layers.0.mlp") for _ in range(2)]
    mlps[0].act_fn = nn.ReLU()  # type: ignore[assignment]
    del mlps[1].act_fn
    mlps[1].act_fn = F.relu  # type: ignore[assignment]
    clamped = bounded(tiny("llama").get_submodule("layers.0.mlp"))
    mlps.append(clamped)
    with fused(nn.Sequential(mean := Mean(), *mlps)):
        assert not any("forward" in vars(module) for module in (mean, *mlps))


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (2, 40, 1536)])
@pytest.mark.parametrize("is_gelu", [False, True])
def test_a_gated_activation_is_its_twin_up_to_a_rounding_at_any_size(shape: tuple[int, ...], is_gelu: bool) -> None:
    gate, up = 6 * torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16()
    gate.view(-1)[0] = -300.0
    expected = (F.gelu(gate, approximate="tanh") if is_gelu else F.silu(gate)) * up
    found = transformer.gated(gate, up, is_gelu=is_gelu, out=gate)
    assert found is gate
    torch.testing.assert_close(found, expected, rtol=2**-6, atol=1e-5 if is_gelu else 1e-30)


def test_what_is_not_finite_stays_so() -> None:
    bad = torch.tensor([[float("nan"), float("inf"), 1.0, 2.0]]).bfloat16()
    one = torch.ones_like(bad)
    assert (
        transformer.gated(bad, one, is_gelu=False, out=torch.empty_like(bad)).isfinite().tolist()[0][:2] == [False] * 2
    )
    normed = transformer.rms_norm(bad, one[0], 1e-6, widely=False, plus_one=False)
    assert not normed[:, :2].isfinite().any()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_rotation_is_bitwise_that_of_transformers_for_any_number_of_threads(threads: int) -> None:
    batch, seq, heads, width = 3, 70, 5, 16
    x = torch.randn(batch, seq, heads, width).bfloat16()
    angles = torch.randn(seq, width).bfloat16()
    cos, sin = angles.cos(), angles.sin()
    low, high = x.chunk(2, -1)
    expected = x * cos[:, None] + torch.cat([-high, low], -1) * sin[:, None]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert torch.equal(transformer.rotate(x, cos, sin), expected)
    torch.set_num_threads(before)
