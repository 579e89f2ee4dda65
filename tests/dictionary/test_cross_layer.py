"""Cross-layer transcoders: every layer's dictionary writes its own module's output and those of all later ones."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import level_weights
from replaced import fvu_of, kl_of, raises_one_line
from safetensors.torch import load_file
from tiny_models import tiny_model, tiny_tokens
from tiny_trainer import Make, maker
from torch import Tensor
from whole_runs import save_after, weights_only

from sae import Sae, SaeConfig, SaeTrainer, evaluate, graft
from sae.commands.cache import cache_activations
from sae.config import CacheConfig
from sae.data import ActivationCache
from sae.dictionary.cross_layer import coders, members, reconstruct
from sae.dictionary.gradients import Gradients
from sae.dictionary.losses import VarianceSums
from sae.dictionary.spec import Saved, Spec
from sae.dictionary.wiring import Pair
from sae.evaluation.reconstruction import evaluate_reconstruction
from sae.formats.describe import describe
from sae.formats.find import find
from sae.lm import harvest
from sae.parallel.placement import placement_of
from sae.runs.log import read_records
from sae.training.joint import Joint, Single
from sae.training.learner import SaeLearner
from sae.training.memory_plan import check_fits
from sae.training.recipe import Recipe
from sae.training.run_plan import Combination, check_each_has_a_layer, plan_saes

pytestmark = pytest.mark.usefixtures("no_picture")

MLPS = ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return maker(tmp_path, SaeConfig(num_latents=96, k=6, cross_layer=True), hookpoints=["layers.*.mlp"])


def layers(
    widths: tuple[int, ...] = (32, 32, 32), d_in: int = 32, dtype: torch.dtype = torch.float32, **options: Any
) -> dict[str, Sae]:
    """A cross-layer transcoder in general position."""
    found = {}
    for index, name in enumerate(MLPS[: len(widths)]):
        cfg = SaeConfig(**{"num_latents": 60, "k": 5, "cross_layer": True} | options)
        writes, parts = tuple(MLPS[index : len(widths)]), widths[index:]
        d_out = widths[index] if cfg.tie_decoders else sum(parts)
        known = () if cfg.tie_decoders else parts
        spec = Spec(cfg, d_in, d_out, 60, reads=(f"{name}.input",), writes=writes, widths=known)
        sae = Sae(d_in, cfg, d_out=d_out, dtype=dtype, spec=spec)
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
            sae.b_dec[parts[0] :] = 0
            if sae.threshold is not None:
                sae.threshold.fill_(1.0)
            if sae.scale is not None:
                sae.scale.copy_(torch.cat([torch.full((w,), 1.5 - 0.2 * (index + i)) for i, w in enumerate(parts)]))
            if sae.layer_scale is not None:
                sae.layer_scale[0] = 1
        found[name] = sae
    return found


def times(sae: Sae) -> Tensor:
    """c of each module that is written and each latent (targets, latents)."""
    assert sae.layer_scale is not None
    scale = sae.layer_scale
    return scale if sae.cfg.tied_by_target else scale.unsqueeze(1).expand(-1, sae.num_latents)


def decoders(saes: dict[str, Sae], index: int) -> Tensor:
    """W_dec of layer `index` for each module that it writes, side by side, of untied layers too (latents, widths)."""
    every = list(saes.values())
    if (own := every[index]).layer_scale is None:
        return own.W_dec
    rows = [each.W_dec if own.cfg.tied_by_target else own.W_dec for each in every[index:]]
    return torch.cat([c.unsqueeze(1) * W_dec for c, W_dec in zip(times(own), rows, strict=True)], 1)


def untied(saes: dict[str, Sae]) -> dict[str, Sae]:
    """The same functions with a decoder for each pair of layers."""
    found = {}
    for index, (name, sae) in enumerate(saes.items()):
        assert sae.layer_scale is not None
        cfg, widths = replace(sae.cfg, tie_decoders=False), (sae.d_out,) * len(sae.layer_scale)
        spec = replace(sae.spec, cfg=cfg, d_out=sum(widths), widths=widths)
        tensors = dict(sae.state_dict())
        later = torch.zeros(sum(widths) - sae.d_out, dtype=sae.dtype)
        tensors |= {"W_dec": decoders(saes, index).detach(), "scale": later.new_ones(sum(widths))}
        tensors["b_dec"] = torch.cat([sae.b_dec.detach(), later])
        if sae.W_skip is not None:
            scale = tensors["layer_scale"] if not sae.cfg.tied_by_target else torch.arange(len(widths)).eq(0)
            tensors["W_skip"] = torch.cat([factor * sae.W_skip.detach() for factor in scale])
        del tensors["layer_scale"]
        found[name] = Sae.from_saved(Saved(spec, tensors))
    return found


# The gradient


def dense(saes: dict[str, Sae], xs: list[Tensor], y: Tensor, variances: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Tensor:
    """The weighted mean over levels of Σ_l ‖ŷ^l − y^l‖² / v_l of all layers' outputs, over dense tensors."""
    cfg = next(iter(saes.values())).cfg
    ends = cfg.levels_for(60) or [60]
    losses = []
    for end in ends:
        total = -y
        for index, (sae, x) in enumerate(zip(saes.values(), xs, strict=True)):
            code = dense_code(sae, x)
            if cfg.budgets:
                least = code.topk(end).values[:, -1:]
                code = code * (code >= least)
            elif cfg.prefixes:
                code = code * (torch.arange(60) < end)
            out, own = code @ decoders(saes, index), sae.b_dec
            if sae.W_skip is not None and cfg.tie_decoders is True and sae.layer_scale is not None:
                out = out + torch.cat([scale * (x @ sae.W_skip.T) for scale in sae.layer_scale], 1)
            elif sae.W_skip is not None:
                own = own + x @ sae.W_skip.T
            out = out + torch.nn.functional.pad(own, (0, out.shape[1] - own.shape[-1]))
            total = total + torch.nn.functional.pad(out, (y.shape[1] - out.shape[1], 0))
        if not cfg.tie_decoders:
            losses.append(total.square().sum())
            continue
        parts = zip(total.chunk(len(saes), 1), variances, strict=True)
        losses.append(torch.stack([part.square().sum() / variance for part, variance in parts]).sum())
    return torch.stack(losses) @ torch.tensor(level_weights(len(losses), budgets=bool(cfg.budgets)), dtype=y.dtype)


def dense_code(sae: Sae, x: Tensor) -> Tensor:
    """The activations of all latents, of what the selection keeps."""
    pre_acts = x @ sae.encoder.weight.T + sae.encoder.bias
    if sae.cfg.selection == "groupmax":
        groups = pre_acts.unflatten(1, (5, 12))
        kept = torch.zeros_like(groups).scatter(2, groups.argmax(2, keepdim=True), 1.0).flatten(1)
    else:
        most = 20 if sae.cfg.selection == "batchtopk" else 5
        kept = torch.zeros_like(pre_acts).scatter(1, pre_acts.topk(most).indices, 1.0)
    kept = kept if sae.threshold is None else kept * (pre_acts > sae.threshold)
    return pre_acts.relu() * kept


TIES = [True, "target"]
RULES: list[dict[str, Any]] = [
    {"selection": "topk"}, {"selection": "batchtopk"}, {"selection": "groupmax"}, {"prefixes": [10, 30]},
    {"budgets": [1, 3]}, {"selection": "batchtopk", "prefixes": [7]},
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
def test_every_gradient_of_every_layer_equals_dense_autograd(rule: dict[str, Any], skip: bool, parts: int) -> None:
    saes = layers((20, 12, 16), 24, torch.float64, **rule, skip_connection=skip)
    learners = {
        name: SaeLearner(
            sae, tokens_per_step=37, auxk_alpha=0.0, dead_feature_threshold=10**9, compute_dtype=torch.float64
        )
        for name, sae in saes.items()
    }
    xs = [torch.randn(37, 24, dtype=torch.float64) * 2 + 1 for _ in saes]
    y = torch.randn(37, 48, dtype=torch.float64)
    joint = Joint.whole(learners)
    first = next(iter(saes.values()))
    for part in torch.arange(37).tensor_split(parts):
        raw = first.unscaled(y[part]).detach()
        starts = {name: 48 - sae.d_out for name, sae in saes.items()}
        joint.accumulate({
            name: Pair(x[part], raw[:, starts[name] :]) for (name, _), x in zip(saes.items(), xs, strict=True)
        })  # fmt: skip
    dense(saes, xs, y).backward()
    for name, sae in saes.items():
        grads = learners[name]._grads
        assert isinstance(grads, Gradients)
        for parameter, found in Gradients(*grads.dense()).by_parameter().items():
            expected = sae.get_parameter(parameter).grad
            assert expected is not None
            if parameter == "b_dec":  # of later layers it is theirs
                expected[sae.spec.widths[0] :] = 0
            torch.testing.assert_close(
                found[:] * 37, expected, atol=1e-4, rtol=1e-5, msg=lambda t, n=name, p=parameter: f"{n} {p}: {t}"
            )


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("tie", TIES)
def test_every_gradient_of_tied_layers_equals_dense_autograd(
    rule: dict[str, Any], skip: bool, parts: int, tie: Any
) -> None:
    saes = layers((16, 16, 16), 24, torch.float64, **rule, skip_connection=skip, tie_decoders=tie)
    options: dict[str, Any] = {"auxk_alpha": 0.0, "dead_feature_threshold": 10**9, "compute_dtype": torch.float64}
    learners = {name: SaeLearner(sae, tokens_per_step=37, **options) for name, sae in saes.items()}
    variances = (0.5, 3.0, 2.0)
    for learner, variance in zip(learners.values(), variances, strict=True):
        learner._normaliser.variance.fill_(variance)
    xs = [torch.randn(37, 24, dtype=torch.float64) * 2 + 1 for _ in saes]
    y = torch.randn(37, 48, dtype=torch.float64)
    ys = y.chunk(3, 1)
    joint = Joint.whole(learners)
    for part in torch.arange(37).tensor_split(parts):
        joint.accumulate({name: Pair(x[part], own[part]) for name, x, own in zip(saes, xs, ys, strict=True)})
    dense(saes, xs, y, variances).backward()
    for name, sae in saes.items():
        learner = learners[name]
        assert learner._grads is not None and learner._layer_scale is not None and sae.layer_scale is not None
        grads = learner._grads.densified()
        found = {**grads.by_parameter(), "layer_scale": learner._layer_scale.grad}
        if sae.layer_scale.grad is None:  # of the last layer
            sae.layer_scale.grad = torch.zeros_like(sae.layer_scale)
        sae.layer_scale.grad[0] = 0  # its own module gets what it writes
        rows = [each.grad for each in (sae.W_dec, sae.encoder.weight, sae.encoder.bias)]
        assert rows[0] is not None and rows[1] is not None and rows[2] is not None
        by_activation = grads.radial if grads.by_activation is None else grads.by_activation
        read = (sae.encoder.weight * rows[1]).sum(1) + sae.encoder.bias * rows[2]
        for name_of, number, expected in (
            ("radial", grads.radial, (sae.W_dec * rows[0]).sum(1)),
            ("by_activation", by_activation, read),
        ):
            torch.testing.assert_close(
                number * 37, expected.detach(), atol=1e-4, rtol=1e-5, msg=lambda t, n=name_of: f"{n}: {t}"
            )
        for parameter, gradient in found.items():
            torch.testing.assert_close(
                gradient[:] * 37,
                sae.get_parameter(parameter).grad, atol=1e-4, rtol=1e-5,
                msg=lambda t, n=name, p=parameter: f"{n} {p}: {t}",
            )  # fmt: skip


@pytest.mark.parametrize("tie", TIES)
def test_a_tied_layer_s_factors_feel_tokens_of_which_its_other_weights_follow_a_share(tie: Any) -> None:
    saes = layers((16, 16, 16), 24, torch.float64, tie_decoders=tie)
    options: dict[str, Any] = {"auxk_alpha": 0.0, "dead_feature_threshold": 10**9, "compute_dtype": torch.float64}
    recipe = Recipe(token_grad_limit_variances=0.01)
    learners = {name: SaeLearner(sae, tokens_per_step=37, recipe=recipe, **options) for name, sae in saes.items()}
    xs = [torch.randn(37, 24, dtype=torch.float64) for _ in saes]
    y = torch.randn(37, 48, dtype=torch.float64)
    joint = Joint.whole(learners)
    joint.accumulate(dict(zip(saes, map(Pair, xs, y.chunk(3, 1)), strict=True)))
    dense(saes, xs, y).backward()
    learner, sae = learners[MLPS[0]], saes[MLPS[0]]
    assert learner._grads is not None and learner._layer_scale is not None and sae.layer_scale is not None
    assert sae.layer_scale.grad is not None and sae.encoder.bias.grad is not None
    torch.testing.assert_close(learner._layer_scale.grad[1:] * 37, sae.layer_scale.grad[1:])
    assert (learner._grads.b_enc * 37).norm() < 0.1 * sae.encoder.bias.grad.norm()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("tie", TIES)
def test_tied_decoders_equal_untied_ones_that_are_multiples_of_each_other(skip: bool, tie: Any) -> None:
    saes = layers((16, 16, 16), 24, torch.float64, skip_connection=skip, tie_decoders=tie)
    xs = [torch.randn(2, 7, 24, dtype=torch.float64) for _ in saes]
    (group,), (other,) = members(saes).values(), members(untied(saes)).values()
    assert [layer.own for layer in group] == [layer.own for layer in other] == [slice(i, i + 16) for i in (0, 16, 32)]
    torch.testing.assert_close(reconstruct(group, xs)[1], reconstruct(other, xs)[1])


def test_the_reconstruction_is_the_sum_of_what_the_layers_write() -> None:
    saes = layers((20, 12, 16), 24)
    xs = [torch.randn(7, 24) for _ in saes]
    (group,) = members(dict(reversed(saes.items()))).values()
    assert [layer.name for layer in group] == list(saes) and [layer.start for layer in group] == [0, 20, 32]
    codes, total = reconstruct(group, xs)
    first, second, third = (sae.decode(*code) for sae, code in zip(saes.values(), codes, strict=True))
    torch.testing.assert_close(total[:, :20], first[:, :20])
    torch.testing.assert_close(total[:, 20:32], first[:, 20:32] + second[:, :12])
    torch.testing.assert_close(total[:, 32:], first[:, 32:] + second[:, 12:] + third)


# Training


def check_what_is_reported(trainer: SaeTrainer, loaded: dict[str, Sae]) -> None:
    """What was written reconstructs about as well as was said at the end of training and on held-out tokens."""
    assert [sae.spec.writes for sae in loaded.values()] == [tuple(MLPS[index:]) for index in range(3)]
    found = harvest(tiny_model("gpt_neox"), tiny_tokens(9, 8), [*MLPS, *(f"{name}.input" for name in MLPS)])
    (group,) = members(loaded).values()
    _, total = reconstruct(group, [found[f"{name}.input"].flatten(0, 1) for name in MLPS])
    measured = trainer.held_out_quality()
    records = read_records(trainer.folder.path / "metrics.jsonl")
    for layer in group:
        y = found[layer.name].flatten(0, 1)
        fvu = (total[:, layer.own] - y).square().sum() / (y - y.mean(0)).square().sum()
        assert fvu < 0.9 and abs(fvu - measured[layer.name].fvu) < 0.15
        assert abs(records[-1][f"{layer.name}/fvu"] - measured[layer.name].fvu) < 0.15


@pytest.mark.parametrize("tie", TIES)
def test_a_run_of_tied_layers_writes_what_it_reports(make: Make, tie: Any) -> None:
    trainer = make(sae=SaeConfig(num_latents=96, k=6, cross_layer=True, tie_decoders=tie))
    loaded = Sae.load_many(trainer.fit())
    for index, sae in enumerate(loaded.values()):
        assert sae.d_out == 32 and sae.layer_scale is not None and len(sae.layer_scale) == 3 - index
        assert sae.layer_scale[0].eq(1).all()
        assert sae.layer_scale[1:].abs().gt(1e-3).sum() >= 0.5 * sae.layer_scale[1:].numel()
    check_what_is_reported(trainer, loaded)


def test_latents_of_one_number_start_alike_in_all_layers_where_decoders_are_tied_by_target(make: Make) -> None:
    by_source, by_target = (
        make(sae=SaeConfig(num_latents=96, k=6, cross_layer=True, tie_decoders=tie), run_name=f"{tie}") for tie in TIES
    )
    first, second, third = (sae.encoder.weight for sae in by_target.saes.values())
    assert first.equal(second) and first.equal(third)
    first, second, _ = (sae.encoder.weight for sae in by_source.saes.values())
    assert not first.equal(second)


def test_a_run_trains_all_layers_together_and_says_how_good_each_output_is(make: Make) -> None:
    trainer = make()
    assert list(trainer.saes) == MLPS and [sae.d_out for sae in trainer.saes.values()] == [96, 64, 32]
    folder = trainer.fit()
    loaded = Sae.load_many(folder)
    for index, sae in enumerate(loaded.values()):
        assert sae.b_dec[32:].eq(0).all() and (index == 2 or not sae.W_dec[:, 32:].eq(0).all())
    check_what_is_reported(trainer, loaded)


def test_what_is_reported_in_training_is_the_fvu_of_the_sum(make: Make) -> None:
    trainer = make(batch_size=8, steps_per_batch=1)
    trainer.initialise()
    step = trainer.source.peek()
    (group,) = members(trainer.saes).values()
    names = [f"{layer.name}.input" for layer in group]
    _, total = reconstruct(group, [step[name] for name in names])
    total = total.detach().clone()
    trainer._accumulate(step, is_last=False)
    for learner in trainer.learners.values():
        learner.update(0.0)
    metrics = trainer.metrics(tokens_per_second=1.0)
    for layer in group:
        y = step[layer.name]
        expected = (total[:, layer.own] - y).square().sum() / VarianceSums.of(y).total_variance()
        assert metrics[f"{layer.name}/fvu"] == pytest.approx(
            expected.item(), rel=0.02
        )  # its products may be in bfloat16


@pytest.mark.parametrize("tied", [False, *TIES])
def test_of_one_layer_it_is_a_transcoder_to_the_bit(make: Make, tied: Any) -> None:
    own = SaeConfig(num_latents=96, k=6, cross_layer=True, tie_decoders=tied)
    one = make(sae=own, hookpoints=["layers.1.mlp"], run_name="one").fit()
    shape = SaeConfig(num_latents=96, k=6, transcode=True)
    other = make(sae=shape, hookpoints=["layers.1.mlp"], run_name="other").fit()
    tensors = load_file(next(one.rglob("sae.safetensors")))
    assert tensors.pop("layer_scale" if tied else "scale").eq(1).all()
    expected = load_file(next(other.rglob("sae.safetensors")))
    assert set(tensors) == set(expected) and all(tensors[name].equal(each) for name, each in expected.items())


@pytest.mark.parametrize("tied", [False, *TIES])
def test_later_outputs_are_better_for_the_earlier_layers(make: Make, tied: Any) -> None:
    """A model whose later modules repeat what the first one read: only an earlier layer's code can say it."""
    shape = SaeConfig(num_latents=96, k=6, cross_layer=True, tie_decoders=tied)
    together = make(sae=shape, run_name="together")
    apart = make(sae=SaeConfig(num_latents=96, k=6, transcode=True), run_name="apart")
    together.fit()
    apart.fit()
    ours, theirs = together.held_out_quality(), apart.held_out_quality()
    assert ours[MLPS[2]].fvu < theirs[MLPS[2]].fvu


SHAPES: list[dict[str, Any]] = [
    {}, {"selection": "batchtopk"}, {"skip_connection": True}, {"tie_decoders": True}, {"budgets": [2]},
    {"tie_decoders": True, "prefixes": [24]},
    {"tie_decoders": True, "skip_connection": True, "selection": "batchtopk"},
    {"tie_decoders": "target"}, {"tie_decoders": "target", "budgets": [2]},
    {"tie_decoders": "target", "skip_connection": True, "selection": "batchtopk"},
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_resumes_to_the_bit_and_a_cache_trains_as_the_model_does(
    make: Make, tmp_path: Path, shape: dict[str, Any]
) -> None:
    few = {"save_every": 4, "max_tokens": 10 * 4 * 8}
    options: dict[str, Any] = {"sae": SaeConfig(num_latents=96, k=6, cross_layer=True, **shape), **few}
    whole = make(run_name="whole", **options).fit()
    save_after(make(run_name="stopped", **options), 7)
    assert weights_only(whole) == weights_only(make(run_name="stopped", resume=True, **options).fit())

    written = {"hookpoints": ["layers.*.mlp", "layers.*.mlp.input"], "dtype": "float32", "shuffle": False}
    cfg = CacheConfig(batch_size=4, activations=str(tmp_path / "cache"), **written)
    cached = str(cache_activations(cfg, tiny_tokens(84, 8, seed=1), tiny_model("gpt_neox")))
    assert weights_only(whole) == weights_only(make(ActivationCache(cached), None, run_name="cached", **options).fit())


@pytest.mark.parametrize("tied", [False, *TIES])
def test_how_a_step_is_split_changes_rounding_only_and_a_sweep_changes_nothing(make: Make, tied: Any) -> None:
    one = SaeConfig(num_latents=96, k=6, cross_layer=True, tie_decoders=tied)
    in_parts = make(sae=one, run_name="split", micro_acc_steps=3)
    whole = make(sae=one, run_name="whole").fit()
    in_parts.fit()
    measured = json.loads((whole.parent / "evaluation.json").read_text())
    for name, metrics in in_parts.held_out_quality().items():
        assert abs(metrics.fvu - measured[name]["fvu"]) < 0.02
    shapes = [replace(one, k=k) for k in (3, 6)]
    swept = make(sae=[*shapes, SaeConfig(num_latents=96, k=6, transcode=True)], run_name="swept").fit()
    label = next(path for path in swept.iterdir() if path.name.startswith("k6") and "True" in path.name)
    for name in MLPS:
        tensors = load_file(whole / name / "sae.safetensors")
        beside = load_file(label / name / "sae.safetensors")
        for key, tensor in tensors.items():
            assert beside[key].equal(tensor), (name, key)


# Evaluation and grafts


@pytest.mark.parametrize("tied", [False, *TIES])
@pytest.mark.parametrize("nested", [{"prefixes": [20, 40]}, {"budgets": [2]}], ids=str)
def test_fvu_by_a_part_of_every_layer_is_that_of_their_sum(tied: Any, nested: dict[str, Any]) -> None:
    model, tokens, saes = tiny_model("gpt_neox"), tiny_tokens(8, 7), layers(tie_decoders=tied, **nested)
    found = evaluate(model, tokens, saes, max_tokens=56)
    seen = harvest(model, tokens, [*MLPS, *(f"{name}.input" for name in MLPS)])
    (group,) = members(untied(saes) if tied else saes).values()
    word, (end, *_) = ("first", [20]) if "prefixes" in nested else ("top", [2])
    total = torch.zeros(*tokens.shape, 96)
    for layer in group:
        x = seen[f"{layer.name}.input"]
        acts, indices = layer.sae.encode(x)
        kept = indices < end if word == "first" else acts >= acts.topk(end).values[..., -1:]
        total[..., layer.start :] += layer.sae.decode(acts * kept, indices).detach()
    ys = {
        name: torch.cat([seen[to] for to in MLPS[index : index + 1 if tied else 3]], -1)
        for index, name in enumerate(MLPS)
    }
    batch = {name: Pair(seen[f"{name}.input"].flatten(0, 1), y.flatten(0, 1)) for name, y in ys.items()}
    measured = evaluate_reconstruction(saes, [batch])
    for layer in group:
        y = seen[layer.name].flatten(0, 1)
        expected = (total[..., layer.own].flatten(0, 1) - y).square().sum() / (y - y.mean(0)).square().sum()
        at = measured[layer.name].fvu_at
        assert at is not None and at[f"{word} {end}"] == pytest.approx(expected.item(), rel=1e-3)
        assert found[layer.name].metrics[f"fvu/{word} {end}"] == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("tied", [False, *TIES])
def test_sae_eval_measures_each_output_alone_and_all_replaced_at_once(tied: Any) -> None:
    model, tokens, saes = tiny_model("gpt_neox", causal_lm=True), tiny_tokens(8, 7), layers(tie_decoders=tied)
    found = evaluate(model, tokens, saes, max_tokens=56)
    assert [hookpoint for _, hookpoint in found.qualities] == [*MLPS, "all"]
    (group,) = members(untied(saes) if tied else saes).values()
    with torch.no_grad():
        clean = model(tokens).logits.log_softmax(-1)
        seen = harvest(model, tokens, [*MLPS, *(f"{name}.input" for name in MLPS)])
        _, total = reconstruct(group, [seen[f"{name}.input"] for name in MLPS])

        for layer in group:
            new, metrics = total[..., layer.own], found[layer.name].metrics
            assert metrics["fvu"] == pytest.approx(fvu_of(new, seen[layer.name]), rel=1e-4)
            assert metrics["kl_div_with_sae"] == pytest.approx(kl_of(model, tokens, {layer.name: new}), rel=1e-4)

        replaced: dict[str, Tensor] = {}  # layer after layer, each encoding what the replaced ones before it leave
        written = torch.zeros_like(total)
        for layer in group:
            with graft(model, {name: lambda x, name=name: replaced[name] for name in replaced}):
                caught: list[Tensor] = []
                with graft(model, {f"{layer.name}.input": lambda x, caught=caught: caught.append(x) or x}):
                    model(tokens)
            written[..., layer.start :] += layer.sae.decode(*layer.sae.encode(caught[0]), caught[0])
            replaced[layer.name] = written[..., layer.own].clone()
        expected = kl_of(model, tokens, replaced)
        assert found["all"].metrics["kl_div_with_sae"] == pytest.approx(expected, rel=1e-4)
        with graft(model, coders(saes)):
            grafted = model(tokens).logits.log_softmax(-1)
        assert float((clean.exp() * (clean - grafted)).sum(-1).mean()) == pytest.approx(expected, rel=1e-4)
        known = coders(saes)
        with graft(model, known):
            model(tokens + 1)
        with graft(model, {MLPS[1]: known[MLPS[1]]}), pytest.raises(ValueError, match="must be grafted together"):
            model(tokens)


# What does not go together, in one line


def test_what_it_cannot_be_is_one_line(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raises_one_line("leave out one of them", lambda: SaeConfig(cross_layer=True, crosscode=True))
    raises_one_line("tie_decoders must come with cross_layer", lambda: SaeConfig(tie_decoders=True))
    wide = {"sae": SaeConfig(num_latents=96, k=6, cross_layer=True, tie_decoders=True)}
    places = ["layers.0.mlp", "layers.1.mlp.dense_h_to_4h"]
    raises_one_line("tie_decoders .* equally wide, got .* of 32, .* of 48", lambda: make(**wide, hookpoints=places))
    shared = {"sae": SaeConfig(expansion_factor=2, k=6, cross_layer=True, tie_decoders="target")}
    places = ["layers.0.mlp", "layers.1.mlp.dense_4h_to_h"]
    raises_one_line(
        "target needs one number of latents, got .* of 64, .* of 96", lambda: make(**shared, hookpoints=places)
    )
    tied = SaeConfig(num_latents=96, k=6, cross_layer=True, tie_decoders="target")
    raises_one_line("shard_latents must be 1 with tie_decoders target", lambda: make(sae=tied, shard_latents=2))
    with monkeypatch.context() as patched:
        patched.setattr("sae.training.trainer.free_memory", lambda device: 50_000)
        raises_one_line("cross_layer must fit into memory.*these would fit: --num_latents", make)
    raises_one_line("name modules for cross_layer", lambda: make(hookpoints=["layers.0->layers.2", "layers.1.mlp"]))
    saes, model = layers(), tiny_model("gpt_neox", causal_lm=True)
    raises_one_line("one cross-layer transcoder, got 0", lambda: coders({}))
    twice = {f"{label}/{name}": sae for label in "ab" for name, sae in saes.items()}
    raises_one_line("one cross-layer transcoder, got 2", lambda: coders(twice))
    raises_one_line("no cross-layer transcoders", lambda: saes[MLPS[0]].save_to_disk(tmp_path / "x", format="saelens"))

    def grafted() -> None:
        with graft(model, {MLPS[0]: saes[MLPS[0]]}):
            pass

    raises_one_line("must write one hookpoint, got a layer of a cross-layer transcoder", grafted)
    some = {name: saes[name] for name in (MLPS[0], MLPS[2])}
    raises_one_line("must be whole, which needs the dictionaries of", lambda: evaluate(model, tiny_tokens(8, 7), some))


SIZES = re.compile(r"would fit: --num_latents (\d+), or (\d+) modules .*, or --tie_decoders with --num_latents (\d+)")


def test_the_sizes_that_are_named_fit_and_larger_ones_do_not() -> None:
    widths, free = {name: 10 for mlp in MLPS for name in (mlp, f"{mlp}.input")}, 10_000

    def check(num_latents: int, modules: int = 3, **options: Any) -> None:
        cfg = SaeConfig(num_latents=num_latents, k=2, cross_layer=True, **options)
        plans = plan_saes({"": Combination(cfg, None, 0)}, MLPS[:modules])
        check_fits(plans, widths, "default", free)

    with pytest.raises(ValueError, match="must fit into memory") as caught:
        check(60)
    found = SIZES.search(str(caught.value))
    assert found is not None
    latents, modules, tied = map(int, found.groups())
    check(latents)
    check(60, modules)
    check(tied, tie_decoders=True)
    for larger in ({"num_latents": latents + 1}, {"num_latents": 60, "modules": modules + 1}):
        raises_one_line("must fit", lambda larger=larger: check(**larger))
    raises_one_line("must fit", lambda: check(tied + 1, tie_decoders=True))
    by_target = tied * 2 * 10 * 3 // (2 * 10 * 3 + 3 + 2 + 1)  # whose factors take memory too
    check(by_target, tie_decoders="target")
    raises_one_line("must fit", lambda: check(by_target + 2, tie_decoders="target"))


def test_every_process_must_have_a_layer() -> None:
    plans = plan_saes({"": Combination(SaeConfig(num_latents=9, k=2, cross_layer=True), None, 0)}, MLPS)
    for processes in (2, 3):
        placement = placement_of(dict.fromkeys(plans, 1), {}, size=processes, shards=1, distribute=True)
        check_each_has_a_layer(placement, plans)
    placement = placement_of(dict.fromkeys(plans, 1), {}, size=4, shards=1, distribute=True)
    raises_one_line("3 modules for 4 processes", lambda: check_each_has_a_layer(placement, plans))


def test_a_stranger_s_layer_must_say_what_it_reads_and_writes(tmp_path: Path) -> None:
    layers()[MLPS[0]].save_to_disk(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    for change in ({"hookpoints": {"a": 1}}, {"hookpoints": None}, {"reads": None, "writes": None}, {"reads": 3}):
        (tmp_path / "cfg.json").write_text(json.dumps(cfg | change))
        raises_one_line("hookpoints|what it reads", lambda: Sae.load_from_disk(tmp_path))


@pytest.mark.parametrize("tie", TIES)
def test_a_stranger_s_tied_layer_must_fit_its_hookpoints(tmp_path: Path, tie: Any) -> None:
    sae = layers(tie_decoders=tie)[MLPS[0]]
    sae.save_to_disk(tmp_path)
    assert Sae.load_from_disk(tmp_path).spec == sae.spec
    (described,) = (describe(name, stored) for name, stored in find(tmp_path).items())
    assert ("tie_decoders target" if tie == "target" else "tie_decoders") in described.rule.split(", ")
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert cfg["hookpoints"] == dict.fromkeys(MLPS, 32) and cfg["tie_decoders"] == tie
    for change in (
        {"hookpoints": {"a": 32, "b": 16}},
        {"hookpoints": {}},
        {"cross_layer": False},
        {"tie_decoders": 1},
        {"tie_decoders": "sauce"},
    ):
        (tmp_path / "cfg.json").write_text(json.dumps(cfg | change))
        raises_one_line("hookpoints|tie_decoders|activation", lambda: Sae.load_from_disk(tmp_path))
    with torch.no_grad():
        assert sae.layer_scale is not None
        sae.layer_scale[0] = 2
    sae.save_to_disk(tmp_path)
    raises_one_line("layer_scale must begin with 1", lambda: Sae.load_from_disk(tmp_path))
    for number in (math.nan, math.inf, 1e30):
        with torch.no_grad():
            sae.layer_scale[0], sae.layer_scale[1] = 1, number
        sae.save_to_disk(tmp_path)
        raises_one_line("layer_scale must hold numbers of at most", lambda: Sae.load_from_disk(tmp_path))


def test_layers_of_different_transcoders_are_told_apart(tmp_path: Path) -> None:
    tied, untied, nested = (layers(**kind) for kind in ({"tie_decoders": True}, {}, {"prefixes": [8]}))
    mixed = {"tie_decoders must be the same": tied | {MLPS[1]: untied[MLPS[1]]}}
    by_target, wider = (layers(tie_decoders="target", **kind) for kind in ({}, {"k": 7}))
    mixed |= {"tie_decoders must be the same .*, got target in": tied | {MLPS[1]: by_target[MLPS[1]]}}
    mixed |= {"k must be the same": by_target | {MLPS[1]: wider[MLPS[1]]}}
    mixed |= {"prefixes must be the same": untied | {MLPS[1]: nested[MLPS[1]]}}
    mixed |= {f"do not leave out {MLPS[1]}": {name: sae for name, sae in untied.items() if name != MLPS[1]}}
    for message, saes in mixed.items():
        raises_one_line(message, lambda saes=saes: coders(saes))
    tied[MLPS[0]].save_to_disk(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    turned = dict(reversed(cfg["hookpoints"].items()))
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"hookpoints": turned}))
    raises_one_line("writes must be the first of its hookpoints", lambda: Sae.load_from_disk(tmp_path))


def test_only_several_layers_are_trained_together(make: Make) -> None:
    one, several = make(hookpoints=["layers.1.mlp"]), make(run_name="other")
    assert [type(group) for group in one.groups] == [Single] and [type(group) for group in several.groups] == [Joint]
