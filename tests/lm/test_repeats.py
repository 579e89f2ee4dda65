"""Models that run one block several times in a forward: each run is a layer, with a name of its own."""

from collections.abc import Callable

import pytest
import torch
from tiny_types import tiny_config
from torch import Tensor, nn
from transformers import AutoModel

from sae.lm import canonical, graft, harvest, locate, resolve_hookpoints

BLOCK = "encoder.albert_layer_groups.0"
ALBERT = [BLOCK, f"{BLOCK}.call1"]
HRM = [
    *(f"{stack}.layers.{layer}{f'.call{run}' if run else ''}" for stack, run in
      (("L_module", 0), ("L_module", 1), ("L_module", 2), ("H_module", 0),
       ("L_module", 3), ("L_module", 4), ("L_module", 5), ("H_module", 1)) for layer in (0, 1)),
]  # fmt: skip
"""Two cycles of the high stack, of three of the low one before each."""
LAYERS = {"albert": ALBERT, "hrm_text": HRM}
TOKENS = torch.randint(4, 90, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=LAYERS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return AutoModel.from_config(tiny_config(request.param)).eval()


def layers(model: nn.Module) -> list[str]:
    return LAYERS[model.config.model_type]  # type: ignore[union-attr, index]


@torch.no_grad()
def states(model: nn.Module) -> tuple[Tensor, ...]:
    return model(TOKENS, output_hidden_states=True).hidden_states[1:]


def test_the_layers_are_the_runs_in_order_with_weights_and_without(model: nn.Module) -> None:
    with torch.device("meta"):
        skeleton = AutoModel.from_config(model.config)
    assert resolve_hookpoints(model) == resolve_hookpoints(skeleton) == layers(model)
    assert resolve_hookpoints(skeleton, layers=[1]) == layers(model)[1:2]
    with pytest.raises(ValueError, match=r"--layers must be between 0 and \d+ .*, got 16"):
        resolve_hookpoints(skeleton, layers=[16])


def test_each_run_puts_out_its_own_hidden_state(model: nn.Module) -> None:
    expected = states(model)
    for names in (layers(model), layers(model)[::-1]):  # the order of the names decides nothing
        found = harvest(model, TOKENS, names)
        for name, state in zip(layers(model)[:-1], expected, strict=False):  # the last one may be normed
            assert torch.equal(found[name], state), name


@pytest.mark.parametrize("depth, groups, inner", [(2, 1, 2), (4, 1, 4), (4, 2, 2), (2, 2, 2), (6, 2, 3), (3, 1, 1)])
def test_the_list_that_is_taken_is_the_one_whose_runs_make_the_residual_stream(
    depth: int, groups: int, inner: int
) -> None:
    """A block of ALBERT holds a list of sublayers, which may be as many as the model has layers."""
    config = tiny_config("albert")
    config.num_hidden_layers, config.num_hidden_groups, config.inner_group_num = depth, groups, inner
    torch.manual_seed(0)
    albert = AutoModel.from_config(config).eval()
    names = resolve_hookpoints(albert)
    found = harvest(albert, TOKENS, names)
    assert len(names) == depth  # transformers shows what each sublayer puts out
    for name, state in zip(names, states(albert)[inner - 1 :: inner], strict=True):
        assert torch.equal(found[name], state), name
    with torch.device("meta"):
        assert resolve_hookpoints(AutoModel.from_config(config)) == names


def test_a_list_of_sublayers_as_long_as_the_model_is_refused_if_the_runs_cannot_be_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config("albert")
    config.num_hidden_layers, config.num_hidden_groups, config.inner_group_num = 2, 1, 2
    albert = AutoModel.from_config(config)
    monkeypatch.setattr(albert.encoder, "forward", lambda: None)  # which takes no hidden states
    with pytest.raises(ValueError, match=r"entries of encoder\.albert_layer_groups\.0\.albert_layers do not run once"):
        resolve_hookpoints(albert)


def test_what_a_run_receives_is_what_the_one_before_put_out() -> None:
    albert = AutoModel.from_config(tiny_config("albert")).eval()
    found = harvest(albert, TOKENS, [f"{BLOCK}.call1.input", BLOCK])
    assert torch.equal(found[f"{BLOCK}.call1.input"], found[BLOCK])


def constant(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, x.shape[-1]).expand_as(x)


@pytest.mark.parametrize("side", ["", ".input"])
@pytest.mark.parametrize("changed", [{0}, {1}, {0, 1}])
def test_a_graft_replaces_the_run_that_it_names_in_every_forward(changed: set[int], side: str) -> None:
    torch.manual_seed(0)
    albert = AutoModel.from_config(tiny_config("albert")).eval()
    block = albert.get_submodule(BLOCK)

    def by_hand(replace: Callable[[Tensor], Tensor]) -> Tensor:
        x = albert.encoder.embedding_hidden_mapping_in(albert.embeddings(TOKENS))  # type: ignore[union-attr, operator]
        for run in (0, 1):
            x = replace(x) if side and run in changed else x
            x = block(x, None)
            x = replace(x) if not side and run in changed else x
        return x

    with torch.no_grad():
        expected = by_hand(constant)
        with graft(albert, {ALBERT[run] + side: constant for run in changed}):
            found = [albert(TOKENS).last_hidden_state for _ in range(2)]
    assert torch.equal(found[0], found[1])
    assert torch.allclose(found[0], expected, atol=1e-6)


def test_names_of_runs_are_canonical_and_stand_in_patterns() -> None:
    albert = AutoModel.from_config(tiny_config("albert"))
    assert canonical(albert, f"albert.{BLOCK}.call0") == canonical(albert, f"{BLOCK}.call0.output") == BLOCK
    assert canonical(albert, f"albert.{BLOCK}.call1.input") == f"{BLOCK}.call1.input"
    assert resolve_hookpoints(albert, hookpoints=["encoder.albert_layer_groups.*.call1", BLOCK]) == ALBERT
    assert locate(albert, f"{BLOCK}.call1") == (albert.get_submodule(BLOCK), "output", 1)
    assert canonical(albert, "layer_1") == f"{BLOCK}.call1.input"  # of the first version, which counts hidden states


def test_a_run_that_does_not_happen_is_refused() -> None:
    albert = AutoModel.from_config(tiny_config("albert"))
    with pytest.raises(ValueError, match=r"call2 was not reached"):
        harvest(albert, TOKENS, [f"{BLOCK}.call2"])
