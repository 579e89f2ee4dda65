"""Files of other libraries, written by hand from their published layouts, and the formulas that they stand for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

D, OUT, M, K = 8, 6, 24, 3
Formula = Callable[[Tensor], Tensor]


class Stranger(NamedTuple):
    """A dictionary of another library."""

    write: Callable[[Path], Formula]
    """Write its files into a folder; the reconstruction as the library publishes it."""
    format: str
    hookpoint: str
    file: str = ""
    """The dictionary, where it is a file."""


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape)


def json_file(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def topk_of(pre: Tensor, k: int = K) -> Tensor:
    return torch.zeros_like(pre).scatter(-1, pre.topk(k).indices, 1.0) * pre.relu()


def abstopk_of(pre: Tensor, k: int = K) -> Tensor:
    return torch.zeros_like(pre).scatter(-1, pre.abs().topk(k).indices, 1.0) * pre


def jump(pre: Tensor, threshold: Tensor | float) -> Tensor:
    return pre.relu() * (pre > threshold)


def saelens(architecture: str, **options: Any) -> Callable[[Path], Formula]:
    """SAELens's folder of each architecture."""

    def write(folder: Path) -> Formula:
        out = OUT if "transcoder" in architecture else D
        t = {"W_enc": rand(D, M), "W_dec": rand(M, out), "b_dec": rand(out)}
        if architecture == "gated":
            t |= {"b_gate": rand(M), "b_mag": rand(M), "r_mag": 0.3 * rand(M)}
        else:
            t |= {"b_enc": rand(M)}
        t |= {"threshold": rand(M).abs()} if "jumprelu" in architecture else {}
        t |= {"W_skip": rand(out, D)} if "skip" in architecture else {}
        cfg = {"architecture": architecture, "d_in": D, "d_sae": M, "dtype": "float32", "device": "cpu",
               "apply_b_dec_to_input": "transcoder" not in architecture, "normalize_activations": "none",
               "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.3.hook_resid_post",
                            "model_name": "gpt2"}} | options  # fmt: skip
        cfg |= {"k": K} if "topk" in architecture else {}
        json_file(folder / "cfg.json", cfg)
        save_file(t, folder / "sae_weights.safetensors")

        def formula(x: Tensor) -> Tensor:
            normed, mean, std = x, 0.0, 1.0
            if cfg["normalize_activations"] == "layer_norm":
                mean = x.mean(-1, keepdim=True)
                std = (x - mean).std(-1, keepdim=True)
                normed = (x - mean) / (std + 1e-5)
            read = normed - t["b_dec"] if cfg["apply_b_dec_to_input"] else normed
            if architecture == "gated":
                gate = read @ t["W_enc"] + t["b_gate"] > 0
                acts = gate * (read @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"]).relu()
            else:
                pre = read @ t["W_enc"] + t["b_enc"]
                norms = t["W_dec"].norm(dim=-1) if cfg.get("rescale_acts_by_decoder_norm") else 1.0
                kind = architecture.split("_")[0]
                selected = {"topk": topk_of, "abstopk": abstopk_of}.get(kind)
                acts = selected(pre * norms) / norms if selected else jump(pre, t.get("threshold", 0.0))
            skip = x @ t["W_skip"].T if "W_skip" in t else 0.0
            return (acts @ t["W_dec"] + t["b_dec"]) * std + mean + skip

        return formula

    return write


def saelens_5(folder: Path) -> Formula:
    t = {"W_enc": rand(D, M), "W_dec": rand(M, D), "b_dec": rand(D), "b_enc": rand(M), "scaling_factor": torch.ones(M)}
    json_file(folder / "cfg.json", {
        "architecture": "standard", "d_in": D, "d_sae": M, "activation_fn_str": "topk", "dtype": "torch.float32",
        "activation_fn_kwargs": {"k": K}, "hook_name": "blocks.3.hook_resid_post", "model_name": "gpt2",
        "normalize_activations": "none", "apply_b_dec_to_input": True,
    })  # fmt: skip
    save_file(t, folder / "sae_weights.safetensors")
    return lambda x: topk_of((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) @ t["W_dec"] + t["b_dec"]


def dictionary_learning(kind: str, *, backup: bool = False, called: str = "") -> Callable[[Path], Formula]:
    """Each class of dictionary_learning."""

    def write(folder: Path) -> Formula:
        W_enc, W_dec, b_enc, b_dec = rand(M, D), rand(M, D), rand(M), rand(D)
        linear = {"encoder.weight": W_enc, "encoder.bias": b_enc, "decoder.weight": W_dec.T.contiguous()}
        plain = {"W_enc": W_enc.T.contiguous(), "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        scalar = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.7)}
        gate = {"r_mag": 0.3 * rand(M), "gate_bias": rand(M), "mag_bias": rand(M)}
        each = rand(M).abs()
        tensors = {
            "AutoEncoderTopK": linear | scalar | {"b_dec": b_dec},
            "BatchTopKSAE": linear | scalar | {"b_dec": b_dec},
            "MatryoshkaBatchTopKSAE": plain | scalar | {"group_sizes": torch.tensor([4, 8, 12])},
            "JumpReluAutoEncoder": plain | {"threshold": each},
            "AutoEncoder": linear | {"bias": b_dec},
            "AutoEncoderNew": linear | {"decoder.bias": b_dec},
            "GatedAutoEncoder": {"encoder.weight": W_enc, "decoder.weight": linear["decoder.weight"],
                                 "decoder_bias": b_dec} | gate,
        }[kind]  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"step": 5, "ae": tensors, "norm_factor": 2.0} if backup else tensors, folder / "ae.pt")
        json_file(folder / "config.json", {
            "trainer": {"dict_class": called or kind, "activation_dim": D, "dict_size": M, "layer": 3, "k": K,
                        "lm_name": "pythia", "submodule_name": "resid_post_layer_3"}, "buffer": {}})  # fmt: skip

        def formula(x: Tensor) -> Tensor:
            s = 2.0 if backup else 1.0
            centred = kind in ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE", "AutoEncoder",
                               "GatedAutoEncoder")  # fmt: skip
            read = x - s * b_dec if centred else x
            pre = read @ W_enc.T + s * b_enc
            acts = {
                "AutoEncoderTopK": lambda: topk_of(pre),
                "BatchTopKSAE": lambda: jump(pre, s * 0.7),
                "MatryoshkaBatchTopKSAE": lambda: jump(pre, s * 0.7),
                "JumpReluAutoEncoder": lambda: jump(pre, s * each),
                "GatedAutoEncoder": lambda: (
                    (read @ W_enc.T + gate["gate_bias"] > 0)
                    * (gate["r_mag"].exp() * (read @ W_enc.T) + gate["mag_bias"]).relu()
                ),
            }.get(kind, lambda: pre.relu())()
            return acts @ W_dec + s * b_dec

        return formula

    return write


def gemma_scope(folder: Path) -> Formula:
    t = {"W_enc": rand(D, M), "W_dec": rand(M, D), "b_enc": rand(M), "b_dec": rand(D), "threshold": rand(M).abs()}
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: value.numpy() for name, value in t.items()})
    return lambda x: jump(x @ t["W_enc"] + t["b_enc"], t["threshold"]) @ t["W_dec"] + t["b_dec"]


def gemma_scope_2(transcoder: bool) -> Callable[[Path], Formula]:
    def write(folder: Path) -> Formula:
        out = OUT if transcoder else D
        t = {"w_enc": rand(D, M), "w_dec": rand(M, out), "b_enc": rand(M), "b_dec": rand(out),
             "threshold": rand(M).abs()}  # fmt: skip
        config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt",
                  "hf_hook_point_in": "model.layers.3.output"}  # fmt: skip
        if transcoder:
            t["affine_skip_connection"] = rand(D, out)
            config |= {"hf_hook_point_in": "model.layers.3.pre_feedforward_layernorm.output",
                       "hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output",
                       "affine_connection": True}  # fmt: skip
        json_file(folder / "config.json", config)
        save_file(t, folder / "params.safetensors")

        def formula(x: Tensor) -> Tensor:
            skip = x @ t["affine_skip_connection"] if transcoder else 0.0
            return jump(x @ t["w_enc"] + t["b_enc"], t["threshold"]) @ t["w_dec"] + t["b_dec"] + skip

        return formula

    return write


def llama_scope(folder: Path) -> Formula:
    W_enc, W_dec, b_enc, b_dec = rand(M, D), rand(D, M), rand(M), rand(D)
    json_file(folder / "hyperparams.json", {
        "d_model": D, "d_sae": M, "jump_relu_threshold": 0.6, "hook_point_in": "blocks.3.hook_resid_post",
        "hook_point_out": "blocks.3.hook_resid_post", "dataset_average_activation_norm": {"in": 5.0, "out": 5.0},
    })  # fmt: skip
    (folder / "checkpoints").mkdir()
    tensors = {"encoder.weight": W_enc, "encoder.bias": b_enc, "decoder.weight": W_dec, "decoder.bias": b_dec}
    save_file(tensors, folder / "checkpoints/final.safetensors")
    s = D**0.5 / 5.0
    return lambda x: (jump(s * x @ W_enc.T + b_enc, 0.6 * s) @ W_dec.T + b_dec) / s


def llamascopium(rule: str, *, transcoder: bool = False) -> Callable[[Path], Formula]:
    def write(folder: Path) -> Formula:
        t = {"W_E": rand(D, M), "b_E": rand(M), "W_D": rand(M, D), "b_D": rand(D)}
        reads, writes = "blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out"
        reads = reads if transcoder else writes
        norms = {reads: 5.0, writes: 4.0 if transcoder else 5.0}
        extra = {f"dataset_average_activation_norm.{name}": torch.tensor(norm) for name, norm in norms.items()}
        extra |= {"activation_function.log_jumprelu_threshold": rand(M)} if rule == "jumprelu" else {}
        json_file(folder / "config.json", {
            "sae_type": "sae", "d_model": D, "expansion_factor": M / D, "act_fn": rule, "top_k": K,
            "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True, "hook_point_in": reads,
            "hook_point_out": writes, "use_glu_encoder": False,
        })  # fmt: skip
        save_file(t | extra, folder / "sae_weights.safetensors")

        def formula(x: Tensor) -> Tensor:
            s, s_out = D**0.5 / norms[reads], D**0.5 / norms[writes]
            pre, norm = s * x @ t["W_E"] + t["b_E"], t["W_D"].norm(dim=1)
            gated = pre * norm
            if rule == "jumprelu":
                kept = jump(gated, extra["activation_function.log_jumprelu_threshold"].exp())
            else:
                kept = topk_of(gated) if rule == "topk" else gated.relu()
            return (kept / norm @ t["W_D"] + t["b_D"]) / s_out

        return formula

    return write


def qwen_scope(folder: Path) -> Formula:
    t = {"W_enc": rand(M, D), "W_dec": rand(D, M), "b_enc": rand(M), "b_dec": rand(D)}
    folder.mkdir(parents=True)
    torch.save(t, folder / "layer3.sae.pt")
    return lambda x: topk_of(x @ t["W_enc"].T + t["b_enc"]) @ t["W_dec"].T + t["b_dec"]


def openai(rule: str) -> Callable[[Path], Formula]:
    def write(folder: Path) -> Formula:
        t = {"pre_bias": rand(D), "encoder.weight": rand(M, D), "latent_bias": rand(M), "decoder.weight": rand(D, M)}
        more = {"stats_last_nonzero": torch.zeros(M).long(), "activation": rule}
        more |= {"activation_state_dict": {"k": K, "postact_fn": "ReLU"}} if rule == "TopK" else {}
        (folder / "autoencoders").mkdir(parents=True)
        torch.save(t | more, folder / "autoencoders/3.pt")

        def formula(x: Tensor) -> Tensor:
            mean, std, normed = 0.0, 1.0, x
            if rule == "TopK":
                mean = x.mean(-1, keepdim=True)
                std = (x - mean).std(-1, keepdim=True)
                normed = (x - mean) / (std + 1e-5)
            pre = (normed - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"]
            acts = topk_of(pre) if rule == "TopK" else pre.relu()
            return (acts @ t["decoder.weight"].T + t["pre_bias"]) * std + mean

        return formula

    return write


def goodfire(folder: Path) -> Formula:
    t = {"encoder_linear.weight": rand(M, D), "encoder_linear.bias": rand(M), "decoder_linear.weight": rand(D, M),
         "decoder_linear.bias": rand(D)}  # fmt: skip
    folder.mkdir(parents=True)
    torch.save(t, folder / "Llama-3.1-8B-Instruct-SAE-l3.pth")

    def formula(x: Tensor) -> Tensor:
        acts = (x @ t["encoder_linear.weight"].T + t["encoder_linear.bias"]).relu()
        return acts @ t["decoder_linear.weight"].T + t["decoder_linear.bias"]

    return formula


def circuit_tracer(*, threshold: bool) -> Callable[[Path], Formula]:
    def write(folder: Path) -> Formula:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(
            "model_name: Qwen/Qwen3-0.6B\nmodel_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\n"
            "feature_output_hook: mlp.hook_out\nscan: x\n"
        )
        t = {"W_enc": rand(M, D), "W_dec": rand(M, D), "b_enc": rand(M), "b_dec": rand(D), "W_skip": rand(D, D)}
        t |= {"activation_function.threshold": rand(M).abs()} if threshold else {}
        save_file(t, folder / "layer_3.safetensors")

        def formula(x: Tensor) -> Tensor:
            acts = jump(x @ t["W_enc"].T + t["b_enc"], t.get("activation_function.threshold", 0.0))
            return acts @ t["W_dec"] + t["b_dec"] + x @ t["W_skip"].T

        return formula

    return write


def circuit_tracer_clt(*, threshold: bool) -> Callable[[Path], Formula]:
    """Layer 1 of three of a cross-layer transcoder: it writes layers 1 and 2, side by side."""

    def write(folder: Path) -> Formula:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(
            "model_name: google/gemma-2-2b\nmodel_kind: cross_layer_transcoder\nfeature_input_hook: hook_resid_mid\n"
            "feature_output_hook: hook_mlp_out\nscan: x\n"
        )
        t = {"W_enc_1": rand(M, D), "b_enc_1": rand(M), "b_dec_1": rand(D)}
        t |= {"threshold_1": rand(M).abs()} if threshold else {}
        W_dec = rand(M, 2, D)
        save_file(t, folder / "W_enc_1.safetensors")
        save_file({"W_dec_1": W_dec}, folder / "W_dec_1.safetensors")

        def formula(x: Tensor) -> Tensor:
            acts = jump(x @ t["W_enc_1"].T + t["b_enc_1"], t.get("threshold_1", 0.0))
            return acts @ W_dec.flatten(1) + torch.cat([t["b_dec_1"], torch.zeros(D)])

        return formula

    return write


def gemma_scope_2_clt(folder: Path) -> Formula:
    """Layer 1 of three, with a skip connection within the layer."""
    t = {"w_enc": rand(D, M), "w_dec": rand(M, 3, D), "b_enc": rand(M), "b_dec": rand(D), "threshold": rand(M).abs(),
         "affine_skip_connection": rand(D, D)}  # fmt: skip
    folder.mkdir(parents=True)
    save_file(t, folder / "params_layer_1.safetensors")

    def formula(x: Tensor) -> Tensor:
        acts = jump(x @ t["w_enc"] + t["b_enc"], t["threshold"])
        own = acts @ t["w_dec"][:, 1] + t["b_dec"] + x @ t["affine_skip_connection"]
        return torch.cat([own, acts @ t["w_dec"][:, 2]], -1)

    return formula


def overcomplete(kind: str) -> Callable[[Path], Formula]:
    """State of an SAE of overcomplete: TopKSAE with its default encoder, or with a batch norm; SAE tied; JumpSAE."""

    def write(folder: Path) -> Formula:
        folder.mkdir(parents=True)
        t = {"dictionary._weights": rand(M, D), "dictionary.multiplier": torch.tensor(0.3)}
        if kind == "tied":
            t |= {f"encoder.tied_to.{name.partition('.')[2]}": tensor for name, tensor in t.items()}
        else:
            t |= {"encoder.final_block.0.weight": rand(M, D), "encoder.final_block.0.bias": rand(M)}
        if kind == "batch norm":
            norm = {"weight": rand(M), "bias": rand(M), "running_mean": rand(M), "running_var": rand(M).square() + 0.1}
            t |= {f"encoder.final_block.1.{name}": tensor for name, tensor in norm.items()}
            t["encoder.final_block.1.num_batches_tracked"] = torch.tensor(3)
        t |= {"thresholds": rand(M) - 1} if kind == "jump" else {}
        torch.save(t, folder / OVERCOMPLETE_FILES[kind])

        def formula(x: Tensor) -> Tensor:
            W = t["dictionary._weights"] / (t["dictionary._weights"].norm(dim=1, keepdim=True) + 1e-8) * t[
                "dictionary.multiplier"].exp()  # fmt: skip
            if kind == "tied":
                return (x @ W.T).relu() @ W
            pre = x @ t["encoder.final_block.0.weight"].T + t["encoder.final_block.0.bias"]
            if kind == "batch norm":
                mean, var, gain, bias = (t[f"encoder.final_block.1.{n}"] for n in ("running_mean", "running_var",
                                         "weight", "bias"))  # fmt: skip
                pre = (pre - mean) / (var + 1e-5).sqrt() * gain + bias
            return (jump(pre, t["thresholds"].exp()) if kind == "jump" else topk_of(pre)) @ W

        return formula

    return write


OVERCOMPLETE_FILES = {"topk": "a-k3.overcomplete.pt", "batch norm": "b-k3.overcomplete.pt",
                      "tied": "c-relu.overcomplete.pt", "jump": "d.overcomplete.pt"}  # fmt: skip


def eleuther(*, signed: bool = False, skip: bool = False) -> Callable[[Path], Formula]:
    """EleutherAI's of 2024: autoencoders that keep the k largest in magnitude; transcoders that subtract b_dec."""

    def write(folder: Path) -> Formula:
        folder = folder / "layers.3"
        t = {"encoder.weight": rand(M, D), "encoder.bias": rand(M), "W_dec": rand(M, D), "b_dec": rand(D)}
        t |= {"W_skip": rand(D, D)} if skip else {}
        cfg = {"expansion_factor": 3, "normalize_decoder": not skip, "num_latents": 0, "k": K, "d_in": D}
        cfg |= {"signed": True} if signed else {"skip_connection": True} if skip else {}
        json_file(folder / "cfg.json", cfg)
        if not signed and not skip:  # the run says what the dictionary does not
            json_file(folder.parent / "config.json", {"transcode": True, "hookpoints": ["layers.3"]})
        save_file(t, folder / "sae.safetensors")

        def formula(x: Tensor) -> Tensor:
            pre = (x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]
            acts = abstopk_of(pre) if signed else topk_of(pre)
            return acts @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if skip else 0.0)

        return formula

    return write


DL = "dictionary-learning"
STRANGERS = {
    "EleutherAI signed": Stranger(eleuther(signed=True), "eleuther", "layers.3", "layers.3"),
    "EleutherAI transcoder of 2024": Stranger(eleuther(), "eleuther", "layers.3", "layers.3"),
    "EleutherAI skip transcoder of 2024": Stranger(eleuther(skip=True), "eleuther", "layers.3", "layers.3"),
    "saelens abstopk": Stranger(saelens("abstopk"), "saelens", "h.3"),
    "saelens abstopk, rescaled": Stranger(saelens("abstopk", rescale_acts_by_decoder_norm=True), "saelens", "h.3"),
    "Gemma Scope 2, layer of a CLT": Stranger(
        gemma_scope_2_clt, "gemma-scope-2", "layers.1.post_feedforward_layernorm", "params_layer_1.safetensors"
    ),
    "circuit-tracer CLT": Stranger(
        circuit_tracer_clt(threshold=False),
        "circuit-tracer",
        "layers.1.post_feedforward_layernorm",
        "W_enc_1.safetensors",
    ),
    "circuit-tracer CLT, JumpReLU": Stranger(
        circuit_tracer_clt(threshold=True),
        "circuit-tracer",
        "layers.1.post_feedforward_layernorm",
        "W_enc_1.safetensors",
    ),
    **{
        f"overcomplete {kind}": Stranger(overcomplete(kind), "overcomplete", Path(file).stem, file)
        for kind, file in OVERCOMPLETE_FILES.items()
    },
    "saelens topk": Stranger(saelens("topk"), "saelens", "h.3"),
    "saelens topk, rescaled": Stranger(saelens("topk", rescale_acts_by_decoder_norm=True), "saelens", "h.3"),
    "saelens topk, layer norm": Stranger(saelens("topk", normalize_activations="layer_norm"), "saelens", "h.3"),
    "saelens topk, b_dec not subtracted": Stranger(saelens("topk", apply_b_dec_to_input=False), "saelens", "h.3"),
    "saelens standard": Stranger(saelens("standard"), "saelens", "h.3"),
    "saelens jumprelu": Stranger(saelens("jumprelu"), "saelens", "h.3"),
    "saelens gated": Stranger(saelens("gated"), "saelens", "h.3"),
    "saelens transcoder": Stranger(saelens("transcoder"), "saelens", "h.3"),
    "saelens skip_transcoder": Stranger(saelens("skip_transcoder"), "saelens", "h.3"),
    "saelens jumprelu_transcoder": Stranger(saelens("jumprelu_transcoder"), "saelens", "h.3"),
    "saelens jumprelu_skip_transcoder": Stranger(saelens("jumprelu_skip_transcoder"), "saelens", "h.3"),
    "saelens 5": Stranger(saelens_5, "saelens", "h.3"),
    "TopK": Stranger(dictionary_learning("AutoEncoderTopK"), DL, "layers.3"),
    "TopK, interrupted": Stranger(dictionary_learning("AutoEncoderTopK", backup=True), DL, "layers.3"),
    "BatchTopK": Stranger(dictionary_learning("BatchTopKSAE"), DL, "layers.3"),
    "BatchTopK, interrupted": Stranger(dictionary_learning("BatchTopKSAE", backup=True), DL, "layers.3"),
    "Matryoshka": Stranger(dictionary_learning("MatryoshkaBatchTopKSAE"), DL, "layers.3"),
    "JumpReLU": Stranger(dictionary_learning("JumpReluAutoEncoder"), DL, "layers.3"),
    "Gated": Stranger(dictionary_learning("GatedAutoEncoder"), DL, "layers.3"),
    "AutoEncoder": Stranger(dictionary_learning("AutoEncoder"), DL, "layers.3"),
    "AutoEncoderNew, called AutoEncoder": Stranger(
        dictionary_learning("AutoEncoderNew", called="AutoEncoder"), DL, "layers.3"
    ),
    "AutoEncoderNew": Stranger(dictionary_learning("AutoEncoderNew"), DL, "layers.3"),
    "Gemma Scope": Stranger(gemma_scope, "gemma-scope", "layers.3"),
    "Gemma Scope 2": Stranger(gemma_scope_2(False), "gemma-scope-2", "layers.3"),
    "Gemma Scope 2, skip transcoder": Stranger(
        gemma_scope_2(True), "gemma-scope-2", "layers.3.post_feedforward_layernorm"
    ),
    "Llama Scope": Stranger(llama_scope, "llama-scope", "layers.3"),
    "llamascopium jumprelu": Stranger(llamascopium("jumprelu"), "llamascopium", "layers.3.mlp"),
    "llamascopium topk": Stranger(llamascopium("topk"), "llamascopium", "layers.3.mlp"),
    "llamascopium relu": Stranger(llamascopium("relu"), "llamascopium", "layers.3.mlp"),
    "llamascopium transcoder": Stranger(llamascopium("jumprelu", transcoder=True), "llamascopium", "layers.3.mlp"),
    "Qwen Scope": Stranger(qwen_scope, "qwen-scope", "layers.3", "layer3.sae.pt"),
    "OpenAI TopK": Stranger(openai("TopK"), "openai", "h.3", "autoencoders/3.pt"),
    "OpenAI ReLU": Stranger(openai("ReLU"), "openai", "h.3", "autoencoders/3.pt"),
    "Goodfire": Stranger(goodfire, "goodfire", "layers.3", "Llama-3.1-8B-Instruct-SAE-l3.pth"),
    "circuit-tracer": Stranger(circuit_tracer(threshold=True), "circuit-tracer", "layers.3.mlp", "layer_3.safetensors"),
    "circuit-tracer, ReLU": Stranger(
        circuit_tracer(threshold=False), "circuit-tracer", "layers.3.mlp", "layer_3.safetensors"
    ),
}
