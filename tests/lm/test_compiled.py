"""Compiled blocks: the same activations, one compilation for all blocks, hooks that still see what passes."""

import pytest
import torch
from tiny_models import FAMILIES, tiny_model, tiny_tokens
from torch._dynamo.testing import CompileCounter

from sae.lm import block_list, compile_blocks, graft, harvest

pytestmark = pytest.mark.usefixtures("compiler_starts_anew")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_compiler_runs_once_for_all_blocks(family: str) -> None:
    model, tokens = tiny_model(family), tiny_tokens()
    path, count = block_list(model)
    hookpoints = [f"{path}.{block}" for block in range(count)]
    expected = harvest(model, tokens, hookpoints)
    compiler = CompileCounter()
    assert compile_blocks(model, hookpoints, backend=compiler) == count
    assert compiler.frame_count == 0
    for _ in range(2):
        found = harvest(model, tokens, hookpoints)
        assert all(found[name].equal(expected[name]) for name in hookpoints)
    assert compiler.frame_count == 1


def test_a_block_with_a_hookpoint_inside_is_left_as_it_is() -> None:
    model, tokens = tiny_model("llama"), tiny_tokens()
    path, count = block_list(model)
    hookpoints = [f"{path}.0.input", f"{path}.1.mlp", f"{path}.2"]
    expected = harvest(model, tokens, hookpoints)
    assert compile_blocks(model, hookpoints, backend=CompileCounter()) == count - 1
    found = harvest(model, tokens, hookpoints)
    assert all(found[name].equal(expected[name]) for name in hookpoints)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, in dynamo
def test_grafting_and_gradients_pass_through_compiled_blocks() -> None:
    model, tokens = tiny_model("llama"), tiny_tokens()
    path, _ = block_list(model)
    first, last = f"{path}.0", f"{path}.2"

    def gradient() -> torch.Tensor:
        shift = torch.zeros(model.config.hidden_size, requires_grad=True)
        with graft(model, {first: lambda acts: acts + shift}):
            model(tokens).last_hidden_state.square().sum().backward()
        assert shift.grad is not None
        return shift.grad

    expected = gradient()
    compile_blocks(model, [first, last], backend="aot_eager")
    torch.testing.assert_close(gradient(), expected)


@torch.no_grad()
def test_a_compiler_that_fails_is_one_line() -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no compiler\nand more lines")

    model = tiny_model("llama").requires_grad_(False)
    compile_blocks(model, backend=fail)
    with pytest.raises(ValueError, match=r"--compile_lm must find .*no compiler.*leave out --compile_lm") as raised:
        model(tiny_tokens())
    assert "\n" not in str(raised.value)


def test_a_model_without_a_list_of_blocks_is_refused_by_the_options_name() -> None:
    with pytest.raises(ValueError, match=r"--compile_lm must find .*, and Sequential has none; leave out --compile_lm"):
        compile_blocks(torch.nn.Sequential(torch.nn.Linear(2, 2)))
