"""What passes a hookpoint and is not one vector for each token is read as the model's own hidden states show it."""

from typing import Any, NamedTuple

import pytest
import torch
from hooked_models import num_hooks
from tiny_types import tiny_config
from torch import Tensor, nn
from transformers import AutoModel

from sae.lm import graft, harvest, resolve_hookpoints, widths
from sae.lm.shown import layouts_shown

TOKENS = torch.randint(4, 90, (2, 8), generator=torch.Generator().manual_seed(0))


def model_of(model_type: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = tiny_config(model_type)
    for name, value in changes.items():
        setattr(config, name, value)
    return AutoModel.from_config(config).eval()


@torch.no_grad()
def run(model: nn.Module, tokens: Tensor = TOKENS) -> Any:
    return model(tokens, output_hidden_states=True)


def constant(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, x.shape[-1]).expand_as(x)


def test_a_look_at_a_model_that_shows_its_hidden_states_leaves_one_for_each_block() -> None:
    looked_at, model = (model_of("llama", output_hidden_states=True) for _ in range(2))
    for _ in range(2):
        assert widths(looked_at, resolve_hookpoints(looked_at)) == {"layers.0": 32, "layers.1": 32}
        assert layouts_shown(looked_at, ["layers.0"])
        assert num_hooks(looked_at) == 0
    for one, other in zip(run(looked_at).hidden_states, run(model).hidden_states, strict=True):
        assert torch.equal(one, other)
    recorded = num_hooks(looked_at)
    widths(looked_at, ["layers.0.mlp"])
    assert num_hooks(looked_at) == recorded, "what was there stays"


def test_a_prompt_before_the_tokens_is_left_out_and_left_alone() -> None:
    model = model_of("cpmant")
    names = resolve_hookpoints(model)
    assert widths(model, names) == dict.fromkeys(names, 32)
    found, before = harvest(model, TOKENS, names), run(model)
    assert torch.equal(found[names[0]], before.hidden_states[1])
    last = model.encoder.output_layernorm(found[names[-1]])  # type: ignore[union-attr, operator]
    assert torch.allclose(last, before.last_hidden_state, atol=1e-6)

    prompts = []
    model.encoder.layers[1].register_forward_pre_hook(  # type: ignore[union-attr, index]
        lambda module, args: prompts.append(args[0][:, : model.prompt_length])
    )
    with torch.no_grad():
        model(TOKENS)
        with graft(model, {names[0]: constant}):
            model(TOKENS)
        with graft(model, {names[0]: lambda x: x.clone()}):
            assert torch.equal(model(TOKENS).last_hidden_state, before.last_hidden_state)
    assert torch.equal(prompts[0], prompts[1])


def test_two_streams_that_are_one_state_stand_side_by_side() -> None:
    model = model_of("reformer")
    names = resolve_hookpoints(model)
    assert widths(model, names) == dict.fromkeys(names, 64)
    found, before = harvest(model, TOKENS, names), run(model)
    state, attention = found[names[-1]].chunk(2, -1)
    last = model.encoder.layer_norm(torch.cat([attention, state], -1))  # type: ignore[union-attr, operator]
    assert torch.allclose(last, before.last_hidden_state, atol=1e-6)
    for name, shown in zip(names, before.hidden_states[1:], strict=True):
        assert torch.equal(found[name][..., :32], shown)
    with torch.no_grad(), graft(model, {names[0]: constant, names[1]: lambda x: x.clone()}):
        same = model(torch.full_like(TOKENS, 5)).last_hidden_state
        assert torch.equal(model(TOKENS).last_hidden_state, same)  # nothing of the tokens is left


def test_a_router_as_wide_as_the_residual_stream_is_not_taken_for_a_part_of_it() -> None:
    model = model_of("zaya", router_hidden_size=32)
    names = resolve_hookpoints(model)
    found = harvest(model, TOKENS, names)
    assert torch.equal(found[names[0]], run(model).hidden_states[1])
    assert found[names[1]].shape == (2, 8, 32)


class Output(NamedTuple):
    one: Tensor
    other: Tensor


class Block(nn.Module):
    def forward(self, x: Tensor) -> Output:
        return Output(x + 1, x - 1)


def test_two_streams_of_which_nothing_is_shown_are_refused() -> None:
    model = nn.Module()
    model.config, model.embedding = tiny_config("gpt2"), nn.Embedding(99, 32)
    model.blocks = nn.ModuleList([Block(), Block()])

    def forward(tokens: Tensor, output_hidden_states: bool = False) -> dict[str, Tensor]:
        return {"last_hidden_state": model.blocks[1](model.blocks[0](model.embedding(tokens)).one).other}

    model.forward = forward
    model.get_input_embeddings = lambda: model.embedding
    with pytest.raises(ValueError, match=r"blocks.0 must return one vector per token, and returns 2 of shape"):
        harvest(model, TOKENS, ["blocks.0"])


def test_positions_of_a_window_are_told_apart_from_a_prompt_and_refused() -> None:
    model = model_of("pegasus_x", block_size=16)
    with pytest.raises(ValueError, match=r"16 positions for 3 tokens; if the model pads, a --ctx_len of 16 fits it"):
        widths(model, resolve_hookpoints(model))
    # with as many global tokens beside the others as there are tokens
    assert set(widths(model, resolve_hookpoints(model), model.config.num_global_tokens).values()) == {32}
