"""A forward that begins behind a block is the whole forward, to the bit, or it does not begin there."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, tiny_model, tiny_tokens
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertForMaskedLM, T5Config, T5ForConditionalGeneration

from sae import graft, lm
from sae.lm import Skips


def recorded(model: nn.Module, head: lm.Head, tokens: Tensor, names: list[str]) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def recorder(name: str) -> Any:
        return lambda x: seen.setdefault(name, x.clone())

    with torch.no_grad(), graft(model, {name: recorder(name) for name in names}):
        head.run(tokens)
    return seen


def runs_of(blocks: list[nn.Module], calls: list[int]) -> Any:
    """Note which blocks run: their first part is called."""
    handles = [
        next(block.children()).register_forward_pre_hook(lambda *_, at=at: calls.append(at))
        for at, block in enumerate(blocks)
    ]
    return handles


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_rest_of_a_forward_is_that_of_the_whole_one(family: str, dtype: torch.dtype) -> None:
    model, tokens = tiny_model(family, causal_lm=True).to(dtype), tiny_tokens(3, 11)
    head, names = lm.find_head(model), lm.block_names(model)
    skips, seen = Skips(model, head), recorded(model, lm.find_head(model), tokens, names)
    blocks = [lm.locate(model, name).module for name in names]
    mask = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    for at, name in enumerate(names):
        assert skips.behind([name]) == name
        noise = torch.randn(seen[name].shape, generator=torch.Generator().manual_seed(at)).to(dtype)
        found, calls = [], list[int]()
        for begin in (nullcontext(), skips.begin(name, seen[name])):
            calls.clear()
            handles = runs_of(blocks, calls)
            with torch.no_grad(), begin, graft(model, {name: lambda x, noise=noise: x + noise}, mask=mask):
                hidden = head.run(tokens)
                found.append((hidden.states.clone(), head.logits(tokens, hidden, slice(2, 5))))
            for handle in handles:
                handle.remove()
        assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
        assert calls == list(range(at + 1, len(names)))
    with torch.no_grad():
        assert torch.equal(recorded(model, head, tokens, names)[names[-1]], seen[names[-1]])


def test_what_is_inside_a_block_is_begun_behind_the_block_before() -> None:
    model = tiny_model("llama", causal_lm=True)
    skips = Skips(model, lm.find_head(model))
    expected = {
        "layers.0": "layers.0", "layers.0.mlp": "", "layers.1.mlp": "layers.0", "layers.2.input": "layers.1",
        "layers.2.self_attn": "layers.1", "embed_tokens": "", "norm": "",
    }  # fmt: skip
    assert {name: skips.behind([name]) for name in expected} == expected
    assert skips.behind(["layers.2", "layers.1.mlp"]) == "layers.0" and skips.behind([]) == ""


def test_a_model_whose_blocks_hand_on_more_than_states_is_run_as_a_whole() -> None:
    """The first block of T5 makes the position bias of all others."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4, "vocab_size": 99}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0)).eval()
    names = lm.block_names(model)

    class Encoder(lm.Head):
        def run(self, tokens: Tensor) -> lm.Hidden:
            return lm.Hidden(model.encoder(input_ids=tokens).last_hidden_state)

    skips = Skips(model, Encoder(model, None))
    assert [skips.behind([name]) for name in names] == [""] * len(names)


def test_a_side_channel_between_blocks_is_noticed() -> None:
    model = tiny_model("llama", causal_lm=True)
    first, last = model.model.layers[0], model.model.layers[2]
    kept: dict[str, Tensor] = {}
    first.mlp.register_forward_hook(lambda module, args, output: kept.update(value=output.clone()))
    last.mlp.register_forward_hook(lambda module, args, output: output + kept.get("value", 0)[..., :1].roll(1, 1))
    skips = Skips(model, lm.find_head(model))
    with torch.no_grad():
        model(tiny_tokens(2, 5))
    assert skips.behind(["layers.0"]) == skips.behind(["layers.1"]) == ""
    assert skips.behind(["layers.2"]) == "layers.2"  # all that uses the channel is known


def test_what_a_users_hook_changes_is_not_changed_twice() -> None:
    """It may act on positions that a trial does not have."""
    model = tiny_model("llama", causal_lm=True)
    skips = Skips(model, lm.find_head(model))
    assert skips.behind(["layers.2"]) == "layers.2"

    def steer(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :10], output[:, 10:] + 1], 1)

    handle = model.model.layers[1].register_forward_hook(steer)
    assert [skips.behind([name]) for name in ("layers.0", "layers.1", "layers.2.mlp")] == ["layers.0", "", ""]
    handle.remove()
    assert skips.behind(["layers.2.mlp"]) == "layers.1"


def test_what_transformers_records_is_no_users_hook() -> None:
    model, tokens = tiny_model("llama", causal_lm=True), tiny_tokens(3, 11)
    with torch.no_grad():
        model(tokens, output_hidden_states=True)
    skips, head = Skips(model, lm.find_head(model)), lm.find_head(model)
    assert any(block._forward_hooks for block in model.model.layers), "they stay"
    assert [skips.behind([name]) for name in ("layers.0", "layers.1", "layers.2.mlp")] == [
        "layers.0", "layers.1", "layers.1"
    ]  # fmt: skip
    states = recorded(model, head, tokens, ["layers.1"])["layers.1"]
    with torch.no_grad():
        whole = head.run(tokens).states.clone()
        with skips.begin("layers.1", states):
            assert torch.equal(head.run(tokens).states, whole)


def test_the_model_is_as_before() -> None:
    model = tiny_model("llama", causal_lm=True)
    before = [dict(vars(module)) for module in model.modules()]
    skips = Skips(model, lm.find_head(model))
    assert skips.behind(["layers.1"]) == "layers.1"
    with pytest.raises(RuntimeError), skips.begin("layers.1", torch.zeros(1, 3, 32)):
        raise RuntimeError
    assert [vars(module).keys() for module in model.modules()] == [each.keys() for each in before]
    assert "forward" not in vars(model.model.layers[0])


def test_blocks_that_run_several_times_are_not_begun_behind() -> None:
    sizes = {"hidden_size": 32, "embedding_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = AlbertForMaskedLM(AlbertConfig(**sizes, intermediate_size=48, vocab_size=99)).eval()
    skips, names = Skips(model, lm.find_head(model)), lm.block_names(model)
    assert len(names) == 3 and [skips.behind([name]) for name in names] == [""] * 3
