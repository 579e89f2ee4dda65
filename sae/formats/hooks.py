"""Names of places in a language model: other libraries' to module paths, and back.

TransformerLens names places alike in all models, so a module's own name follows from the model's. Where it does not
follow for certain, a name stays as it is.
"""

import re
from typing import Any

_BLOCK = re.compile(r"blocks\.(\d{1,4})\.(.+)")
_HF = re.compile(r"(?:model\.)?((?:language_model\.)?layers\.\d{1,4}.*?)(?:\.output)?")
_OURS = re.compile(r"(?:.+\.)?(?:h|layers|blocks|block)\.(\d{1,4})(?:\.(.+))?")
_LISTS = {"gpt2": "h", "gpt-neo": "h", "gptj": "h", "gpt-j": "h", "bloom": "h", "falcon": "h", "opt-": "decoder.layers"}
"""What models call their list of blocks, by a part of the model's name; others say `layers`."""
_ATTENTION = {"gpt2": ("attn", "c_proj"), "gpt-neo": ("attn", "out_proj"), "pythia": ("attention", "dense"),
              "neox": ("attention", "dense")}  # fmt: skip
_NORM_AFTER_MLP = ("gemma-2", "gemma-3", "gemma2", "gemma3")
"""Models whose MLP's output is normalised before it is added: TransformerLens's hook_mlp_out is after that."""
_BEFORE_MLP = {"gpt2": "ln_2", "gemma-2": "pre_feedforward_layernorm", "gemma-3": "pre_feedforward_layernorm",
               "gemma2": "pre_feedforward_layernorm", "gemma3": "pre_feedforward_layernorm",
               "llama": "post_attention_layernorm", "qwen": "post_attention_layernorm",
               "mistral": "post_attention_layernorm", "smollm": "post_attention_layernorm"}  # fmt: skip
"""The norm whose input is the residual stream between attention and MLP, where a model has one for certain."""
_TO_LENS = {
    None: "hook_resid_post", "input": "hook_resid_pre", "mlp": "hook_mlp_out", "mlp.input": "mlp.hook_in",
    "post_feedforward_layernorm": "hook_mlp_out", "self_attn": "hook_attn_out", "attn": "hook_attn_out",
    "attention": "hook_attn_out", "self_attn.o_proj.input": "attn.hook_z", "attn.c_proj.input": "attn.hook_z",
    "attention.dense.input": "attn.hook_z",
}  # fmt: skip


def to_module(name: object, model: object = "") -> str:
    """The module path of a place in another library's name. Other names stay as they are; no name gives none."""
    if not isinstance(name, str) or len(name) > 200 or not name.isprintable():
        return ""
    if (found := _BLOCK.fullmatch(name)) is None:
        path = _HF.fullmatch(name)
        return path[1] if path else name
    text = model.lower() if isinstance(model, str) else ""
    below = _below_block(text).get(found[2])
    return name if below is None else f"{_of(_LISTS, text, 'layers')}.{found[1]}{below}"


def _below_block(text: str) -> dict[str, str]:
    """Paths below a block by TransformerLens's names, in a model of this lower-case name. MLPs come by `mlp.` first."""
    attention, out = _of(_ATTENTION, text, ("self_attn", "o_proj"))
    mlp = ".post_feedforward_layernorm" if any(part in text for part in _NORM_AFTER_MLP) else ".mlp"
    norm = _of(_BEFORE_MLP, text, "")
    return {
        "hook_resid_post": "", "hook_resid_pre": ".input", "mlp.hook_in": ".mlp.input", "hook_mlp_in": ".mlp.input",
        "mlp.hook_out": ".mlp", "hook_mlp_out": mlp, "hook_attn_out": f".{attention}",
        "attn.hook_z": f".{attention}.{out}.input",
    } | ({"hook_resid_mid": f".{norm}.input"} if norm else {})  # fmt: skip


def in_block(hookpoint: str, model: object = "") -> str:
    """TransformerLens's name, without its block, of what `to_module` calls so; empty if it has none.

    What a norm makes before an MLP is that MLP's input.
    """
    found = _OURS.fullmatch(hookpoint)
    below = "" if found is None or found[2] is None else f".{found[2]}"
    below = ".mlp.input" if below == ".pre_feedforward_layernorm" else below
    known = _below_block(model.lower() if isinstance(model, str) else "")
    unknown = {"hook_mlp_out": ".post_feedforward_layernorm"}  # of a model whose name does not say that it has it
    return next((name for name, path in [*known.items(), *unknown.items()] if found and path == below), "")


def to_lens(hookpoint: str) -> str:
    """TransformerLens's name of a module path; a path that it has no name for as it is."""
    found = _OURS.fullmatch(hookpoint)
    return f"blocks.{found[1]}.{_TO_LENS[found[2]]}" if found and found[2] in _TO_LENS else hookpoint


def block_of(hookpoint: str) -> int | None:
    """The number of the block that a module path lies in; None if it lies in none."""
    found = _OURS.fullmatch(hookpoint)
    return int(found[1]) if found else None


def _of(table: dict[str, Any], text: str, otherwise: Any) -> Any:
    return next((value for part, value in table.items() if part in text), otherwise)
