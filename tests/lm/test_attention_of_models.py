"""transformers' attention is computed in C where that can be, and transformers is then as before."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as FUNCTIONS

import sae.lm.attention
from sae.lm import harvest
from sae.lm.attention import attention_in_c
from sae.ops.native.attention import attend, has_attention

pytestmark = pytest.mark.skipif(not has_attention(), reason="no C compiler here, or a processor without AVX512-BF16")

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
SIZES |= {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "pad_token_id": 0}
TOKENS = torch.arange(2 * 40).view(2, 40) % 96 + 3


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The options of each call of ours."""
    seen: list[dict[str, Any]] = []

    def counted(*heads: Tensor, **options: Any) -> Tensor:
        seen.append(options)
        return attend(*heads, **options)

    with attention_in_c():  # what a trial calls is not counted
        pass
    monkeypatch.setattr(sae.lm.attention, "attend", counted)
    yield seen
    assert FUNCTIONS["sdpa"] is sdpa_attention_forward and not FUNCTIONS._local_mapping


def tiny(family: str, **sizes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES | sizes)
    return AutoModel.from_config(config).bfloat16().eval().requires_grad_(False)


def plainly(model: nn.Module) -> Tensor:
    seen: list[Tensor] = []
    with torch.no_grad(), model.get_submodule("layers.1").register_forward_hook(lambda m, a, out: seen.append(out)):
        model(TOKENS, use_cache=False)
    return seen[0]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "qwen2", "qwen3", "olmo2", "granite", "cohere"])
def test_a_harvest_is_that_of_transformers_up_to_roundings(family: str, calls: list[dict[str, Any]]) -> None:
    model = tiny(family)
    expected, found = plainly(model), harvest(model, TOKENS, ["layers.1"])["layers.1"]
    assert not torch.isnan(found).any() and len(calls) == 2 and all(call["causal"] for call in calls)
    assert ((found - expected).float().norm() / expected.float().norm()).item() < 2**-6
    assert torch.equal(plainly(model), expected)


def test_what_hears_both_ways_does_so_in_c(calls: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", **{name: SIZES[name] for name in SIZES if not name.startswith("num_key")})
    model = AutoModel.from_config(config).bfloat16().eval()
    with torch.no_grad():
        expected = model(TOKENS).last_hidden_state
        with attention_in_c():
            found = model(TOKENS).last_hidden_state
    assert [call["causal"] for call in calls] == [False, False]
    assert ((found - expected).float().norm() / expected.float().norm()).item() < 2**-6


def test_masks_gradients_windows_and_other_types_are_left_to_transformers(calls: list[dict[str, Any]]) -> None:
    model = tiny("llama")
    padded = torch.ones_like(TOKENS)
    padded[0, :7] = 0
    states = torch.randn(2, 40, 64).bfloat16().requires_grad_()
    with attention_in_c():
        with torch.no_grad():
            model(TOKENS, attention_mask=padded)
            tiny("mistral", sliding_window=8)(TOKENS, use_cache=False)
            tiny("llama").float()(TOKENS)
        model(inputs_embeds=states).last_hidden_state.sum().backward()
    assert not calls and states.grad is not None
    eager = AutoModel.from_config(model.config, attn_implementation="eager").bfloat16().eval()
    harvest(eager, TOKENS, ["layers.1"])
    assert not calls


def test_a_cache_of_keys_is_left_to_transformers_where_it_holds_more(calls: list[dict[str, Any]]) -> None:
    model = tiny("llama")
    with torch.no_grad(), attention_in_c():
        whole = model(TOKENS).last_hidden_state
        calls.clear()
        begun = model(TOKENS[:, :30], use_cache=True)
        assert len(calls) == 2
        rest = model(TOKENS[:, 30:], past_key_values=begun.past_key_values).last_hidden_state
    assert len(calls) == 2 and (rest - whole[:, 30:]).abs().max() < 0.1


def test_what_somebody_registered_in_its_place_stays(calls: list[dict[str, Any]]) -> None:
    seen: list[Tensor] = []

    def own(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(query)
        return sdpa_attention_forward(module, query, *args, **kwargs)

    model = tiny("llama")
    FUNCTIONS["sdpa"] = own
    try:
        harvest(model, TOKENS, ["layers.1"])
        assert FUNCTIONS["sdpa"] is own and len(seen) == 2 and not calls
    finally:
        del FUNCTIONS["sdpa"]
    with attention_in_c():
        FUNCTIONS["sdpa"] = own  # meanwhile
    try:
        assert FUNCTIONS["sdpa"] is own
    finally:
        del FUNCTIONS["sdpa"]


def test_several_at_once_and_one_inside_another_leave_transformers_as_it_was(calls: list[dict[str, Any]]) -> None:
    first, second = attention_in_c(), attention_in_c()
    with first:
        second.__enter__()
    assert FUNCTIONS["sdpa"] is not sdpa_attention_forward
    second.__exit__(None, None, None)
    assert FUNCTIONS["sdpa"] is sdpa_attention_forward
    with pytest.raises(KeyError), attention_in_c():
        raise KeyError


def test_an_option_that_transformers_heeds_is_left_to_it(calls: list[dict[str, Any]]) -> None:
    q, k, v = torch.randn(1, 4, 9, 16).bfloat16(), *torch.randn(2, 1, 2, 9, 16).bfloat16()
    module = nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    bias = torch.randn(1, 4, 9, 9).bfloat16()
    with torch.no_grad(), attention_in_c():
        ours = FUNCTIONS["sdpa"]
        expected, _ = sdpa_attention_forward(module, q, k, v, None, position_bias=bias)
        assert torch.equal(ours(module, q, k, v, None, position_bias=bias)[0], expected) and not calls
        with pytest.raises(ValueError, match="softcap"):
            ours(module, q, k, v, None, softcap=30.0)
        ours(module, q, k, v, None, position_bias=None, sliding_window=None, position_ids=torch.arange(9)[None])
    assert len(calls) == 1


def test_another_thread_has_attention_as_it_always_is(calls: list[dict[str, Any]]) -> None:
    model = tiny("llama")
    expected = plainly(model)
    with attention_in_c(), ThreadPoolExecutor(1) as pool:
        found = pool.submit(plainly, model).result()
        assert torch.equal(found, expected) and not calls
        plainly(model)
    assert len(calls) == 2


def test_what_is_registered_for_all_meanwhile_is_not_hidden_afterwards(calls: list[dict[str, Any]]) -> None:
    def own(*args: Any, **kwargs: Any) -> Any:
        return sdpa_attention_forward(*args, **kwargs)

    try:
        with attention_in_c():
            AttentionInterface.register("sdpa", own)
        assert FUNCTIONS["sdpa"] is own
    finally:
        AttentionInterface.register("sdpa", sdpa_attention_forward)


@pytest.mark.parametrize("default", ["meta", "cpu"])
def test_the_first_time_may_be_under_any_default(default: str, calls: list[dict[str, Any]]) -> None:
    sae.lm.attention._is_attention.cache_clear()
    with torch.device(default), attention_in_c():
        assert FUNCTIONS["sdpa"] is not sdpa_attention_forward
