"""Graft: the model runs with what is put in the place of its activations, and with nothing else changed."""

from collections.abc import Callable

import pytest
import torch
from hooked_models import INSIDE, InPlace, num_hooks
from oracle import dense_code, make_sae
from tiny_models import FAMILIES, tiny_model, tiny_tokens
from torch import Tensor, nn

import sae
from sae import Latents, Sae, graft
from sae.lm import harvest, resolve_hookpoints, widths


def output(model: nn.Module, tokens: Tensor) -> Tensor:
    """Logits where there is a head, else the last hidden state."""
    return model(input_ids=tokens)[0]


def sae_for(model: nn.Module, hookpoint: str, dtype: torch.dtype = torch.float32) -> Sae:
    return make_sae(widths(model, [hookpoint])[hookpoint], 96, 5, dtype)


def dense(dictionary: Sae, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The reconstruction by plain tensor operations, with `change` applied to the dense code (…, latents)."""
    weights = dictionary.encoder.weight, dictionary.encoder.bias, dictionary.b_dec

    def reconstruct(x: Tensor) -> Tensor:
        return change(dense_code(x, *weights, dictionary.cfg.k)) @ dictionary.W_dec + dictionary.b_dec

    return reconstruct


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_grafting_the_identity_changes_no_logit_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    model, tokens = tiny_model(family, causal_lm=True).to(dtype), tiny_tokens()
    hookpoints = resolve_hookpoints(model) + resolve_hookpoints(model, hookpoints=INSIDE[family])
    clean = output(model, tokens)
    with graft(model, dict.fromkeys(hookpoints, lambda x: x)):
        assert torch.equal(output(model, tokens), clean)
    dictionaries = {name: sae_for(model, name) for name in hookpoints}
    with graft(model, dictionaries, keep_error=True):
        assert torch.equal(output(model, tokens), clean)
    with graft(model, dictionaries, keep_error=True, edit=lambda latents: None):
        assert torch.equal(output(model, tokens), clean)
    with graft(model, dictionaries, mask=torch.zeros_like(tokens, dtype=torch.bool)):
        assert torch.equal(output(model, tokens), clean)
    with graft(model, dictionaries):
        assert not torch.equal(output(model, tokens), clean)
    assert torch.equal(output(model, tokens), clean) and num_hooks(model) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_grafted_is_what_the_next_module_receives(family: str) -> None:
    model, tokens = tiny_model(family), tiny_tokens()
    first, second = resolve_hookpoints(model)[:2]
    dictionary = sae_for(model, first)
    expected = dictionary(harvest(model, tokens, [first])[first]).recon
    with graft(model, {first: dictionary}):
        assert torch.equal(harvest(model, tokens, [f"{second}.input"])[f"{second}.input"], expected)
        by_output = output(model, tokens)
    with graft(model, {f"{second}.input": dictionary}):
        assert torch.equal(output(model, tokens), by_output)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_module_that_can_be_read_can_be_replaced(family: str) -> None:
    model, tokens = tiny_model(family), tiny_tokens()
    for name in resolve_hookpoints(model, hookpoints=INSIDE[family]):
        seen = harvest(model, tokens, [name])[name]
        with graft(model, {name: lambda x: x + 1}):
            assert torch.equal(harvest(model, tokens, [name])[name], seen + 1), name
            changed = output(model, tokens)
        assert not torch.equal(changed, output(model, tokens)), name


def test_where_the_mask_is_false_the_activation_stays() -> None:
    model, tokens = tiny_model("llama"), tiny_tokens(3, 9)
    dictionary, mask = sae_for(model, "layers.1"), torch.rand(3, 9) < 0.5
    before = harvest(model, tokens, ["layers.1"])["layers.1"]
    with graft(model, {"layers.1": dictionary}, mask=mask):
        after = harvest(model, tokens, ["layers.1"])["layers.1"]
    assert torch.equal(after[~mask], before[~mask])
    assert torch.equal(after[mask], dictionary(before).recon[mask])


EDITS: dict[str, tuple[Callable[[Latents], None], Callable[[Tensor, int], Tensor]]] = {
    "ablate": (lambda z: z.__setitem__(LATENT, 0), lambda code, i: torch.zeros_like(code[..., i])),
    "set": (lambda z: z.__setitem__(LATENT, 2.5), lambda code, i: torch.full_like(code[..., i], 2.5)),
    "add": (lambda z: z.__setitem__(LATENT, z[LATENT] + 3), lambda code, i: code[..., i] + 3),
    "scale": (lambda z: z.__setitem__(LATENT, z[LATENT] * -2), lambda code, i: code[..., i] * -2),
}
LATENT = 11


@pytest.mark.parametrize("keep_error", [False, True])
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of_one_latent_is_that_of_the_dense_code(name: str, keep_error: bool) -> None:
    model, tokens = tiny_model("gpt2").double(), tiny_tokens(4, 16)
    dictionary = sae_for(model, "h.1", torch.float64)
    with torch.no_grad():
        dictionary.encoder.bias[LATENT] += 2  # so that it fires on some tokens
    edit, change = EDITS[name]

    def changed(code: Tensor) -> Tensor:
        column = change(code, LATENT).unsqueeze(-1)
        return torch.cat([code[..., :LATENT], column, code[..., LATENT + 1 :]], -1)

    def by_hand(x: Tensor) -> Tensor:
        error = x - dense(dictionary, lambda code: code)(x) if keep_error else 0
        return dense(dictionary, changed)(x) + error

    with graft(model, {"h.1": dictionary}, keep_error=keep_error, edit=edit):
        found = output(model, tokens)
    with graft(model, {"h.1": by_hand}):
        torch.testing.assert_close(found, output(model, tokens))
    with graft(model, {"h.1": dictionary}, keep_error=keep_error):
        assert not torch.allclose(found, output(model, tokens))


def test_an_edited_latent_is_read_back_and_leaves_others_alone() -> None:
    z = Latents("h", 96, torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[4, 7]]]))
    z[7] *= 3
    z[9] += 5
    z[4] = torch.tensor([[0.5]])
    assert [z[latent].item() for latent in (4, 7, 9, 10)] == [0.5, 6, 5, 0]


def test_gradients_through_the_graft_are_those_of_the_dense_autoencoder() -> None:
    model, tokens = tiny_model("llama", causal_lm=True).double().requires_grad_(False), tiny_tokens()
    one, two = (sae_for(model, name, torch.float64) for name in ("layers.0", "layers.1.mlp.input"))
    parameters = [*one.parameters(), *two.parameters()]

    def gradients(grafted: dict[str, Callable[[Tensor], Tensor]]) -> tuple[Tensor, ...]:
        with graft(model, grafted):
            loss = nn.functional.cross_entropy(output(model, tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        return torch.autograd.grad(loss, parameters)

    fast = gradients({"layers.0": one, "layers.1.mlp.input": two})
    slow = gradients({"layers.0": dense(one, lambda z: z), "layers.1.mlp.input": dense(two, lambda z: z)})
    for found, expected in zip(fast, slow, strict=True):
        torch.testing.assert_close(found, expected)
        assert found.abs().max() > 0


def test_with_the_error_kept_gradients_still_reach_the_latents() -> None:
    """What attribution needs: the error is a constant, so the loss's gradient runs through the latents."""
    model, tokens = tiny_model("gpt_neox", causal_lm=True).double().requires_grad_(False), tiny_tokens()
    dictionary = sae_for(model, "layers.1", torch.float64)
    x = harvest(model, tokens, ["layers.1"])["layers.1"]
    error, seen = (x - dictionary(x).recon).detach(), []

    def loss(x: Tensor) -> Tensor:
        with graft(model, {"layers.1": lambda _: x}):
            return output(model, tokens).square().mean()

    def keep(latents: Latents) -> None:
        seen.append(latents.top_acts)

    with graft(model, {"layers.1": dictionary}, keep_error=True, edit=keep):
        (found,) = torch.autograd.grad(output(model, tokens).square().mean(), seen)
    acts = seen[0].detach().requires_grad_()
    recon = dictionary.decode(acts, dictionary.encode(x).top_indices)
    (expected,) = torch.autograd.grad(loss(recon + error), acts)
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0


def test_a_module_that_runs_twice_is_replaced_the_first_time_of_each_forward() -> None:
    model, tokens, calls = InPlace(), torch.tensor([[1, 2, 3]]), []

    def count(x: Tensor) -> Tensor:
        calls.append(x.clone())
        return x

    with torch.no_grad(), graft(model, {"blocks.0": count}):
        model(tokens)
        model(tokens)
    assert len(calls) == 2
    assert torch.equal(calls[0], harvest(model, tokens, ["blocks.0"])["blocks.0"])


def test_generation_runs_with_the_graft() -> None:
    model, tokens = tiny_model("llama", causal_lm=True), tiny_tokens(1, 5)
    options = {"max_new_tokens": 4, "do_sample": False}
    plain = model.generate(tokens, **options)
    with graft(model, {"layers.1": lambda x: x}):
        assert torch.equal(model.generate(tokens, **options), plain)
    with graft(model, {"layers.1": lambda x: -x}):
        assert not torch.equal(model.generate(tokens, **options), plain)


def test_hooks_are_gone_after_an_error_and_the_error_names_the_place() -> None:
    model, tokens = tiny_model("llama"), tiny_tokens()
    wrong: list[tuple[dict[str, object], str]] = [
        ({"saes": {"layers.7": lambda x: x}}, "layers.7"),
        ({"saes": {"layers.1": lambda x: x[..., :5]}}, r"layers.1 must return activations of shape \(2, 7, 32\)"),
        ({"saes": {"layers.1": lambda x: None}}, "layers.1 must return activations .* got NoneType"),
        ({"saes": {"layers.1": make_sae()}}, "d_in=48"),
        ({"saes": {"layers.1": lambda x: x}, "edit": print}, "edit needs latents .* layers.1 is function"),
        ({"saes": {"layers.1": sae_for(model, "layers.1")}, "mask": torch.ones(2, 6, dtype=torch.bool)}, "mask must"),
        ({"saes": {"layers.1": sae_for(model, "layers.1")}, "edit": lambda z: z[96]}, "between 0 and 95, got 96"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message), graft(model, **options):  # type: ignore[arg-type]
            model(tokens)
        assert num_hooks(model) == 0


def test_the_public_name_is_the_function() -> None:
    assert sae.graft is graft


@pytest.mark.parametrize("asked", [False, True], ids=["never asked", "asked before"])
def test_hidden_states_are_what_the_grafted_model_runs_with(asked: bool) -> None:
    model, tokens = tiny_model("llama"), tiny_tokens()
    doubled: list[Tensor] = []

    def double(module: nn.Module, args: object, output: Tensor) -> Tensor:
        doubled.append(2 * output)
        return doubled[-1]

    if asked:
        model(tokens, output_hidden_states=True)
    with model.layers[0].register_forward_hook(double):
        clean = model(tokens, output_hidden_states=True).hidden_states
        order = list(model.layers[0]._forward_hooks)
        with graft(model, {"layers.0": lambda x: x + 1}):
            states = model(tokens, output_hidden_states=True).hidden_states
        assert torch.equal(states[1], doubled[-1] + 1), "hooks that were there come before the graft"
        assert list(model.layers[0]._forward_hooks) == order
        again = model(tokens, output_hidden_states=True).hidden_states
    assert all(torch.equal(one, other) for one, other in zip(again, clean, strict=True))


def test_a_model_that_writes_into_its_residual_stream_leaves_what_was_grafted_as_it_was() -> None:
    model, tokens = InPlace(), torch.arange(6).reshape(2, 3)
    constant, whole = torch.arange(4.0), torch.randn(2, 3, 4)
    before = constant.clone(), whole.clone()
    with torch.no_grad():
        with graft(model, {"embed": lambda x: constant.expand_as(x)}):
            model(tokens)
        with graft(model, {"embed": lambda x: whole}):
            first, second = model(tokens), model(tokens)
    assert torch.equal(first, second)
    assert torch.equal(constant, before[0]) and torch.equal(whole, before[1])
