"""Every member of the k-sparse family: its gradients equal dense autograd, and its laws hold in training."""

from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch
from oracle import level_weights
from torch import Tensor

from sae import Sae, SaeConfig, ops
from sae.config.dictionary import Rule
from sae.dictionary.gradients import Gradients, Objective, Weights, encoded, pullback, token_shares
from sae.dictionary.levels import Levels
from sae.dictionary.selection import agreement, groupmax, jumprelu, selection
from sae.dictionary.shards import Unsharded
from sae.dictionary.spec import Saved, Spec
from sae.dictionary.threshold import RunningThreshold
from sae.training.learner import SaeLearner
from sae.training.recipe import Recipe

N, D_IN, D_OUT, LATENTS, K = 37, 48, 20, 96, 6
SELECTIONS = get_args(Rule)
LEVELS = {"one": {}, "prefixes": {"prefixes": [8, 40]}, "budgets": {"budgets": [1, 3]}}
WIRINGS = {
    "autoencoder": {},
    "transcoder": {"transcode": True},
    "skip": {"transcode": True, "skip_connection": True},
    "crosscoder": {"crosscode": True},
}
KINDS = [
    (rule, levels, wiring)
    for rule, levels, wiring in product(SELECTIONS, LEVELS, WIRINGS)
    if levels != "budgets" or rule == "topk"
]


def member(rule: str, levels: str, wiring: str, *, dtype: torch.dtype = torch.float64) -> Sae:
    """A dictionary in general position: no bias is 0, encoder and decoder differ, and a threshold leaves some."""
    cfg = SaeConfig(num_latents=LATENTS, k=K, selection=rule, **LEVELS[levels], **WIRINGS[wiring])
    sae = new(cfg, dtype)
    with torch.no_grad():
        if sae.scale is not None:
            sae.scale.copy_(torch.tensor([0.7] * 20 + [1.6] * 28))
        for parameter in sae.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        if sae.threshold is not None:
            sae.threshold.fill_(2.0)
    return sae


def new(cfg: SaeConfig, dtype: torch.dtype) -> Sae:
    ends = {"writes": ("layers.0", "layers.1"), "widths": (20, 28)} if cfg.crosscode else {}
    d_out = D_OUT if cfg.transcode else D_IN
    return Sae(D_IN, cfg, d_out=d_out, dtype=dtype, spec=Spec(cfg, D_IN, d_out, LATENTS, **ends))


def activations(sae: Sae) -> tuple[Tensor, Tensor | None]:
    x = torch.randn(N, D_IN, dtype=torch.float64) * 3 + 1
    return x, torch.randn(N, D_OUT, dtype=torch.float64) if sae.cfg.transcode else None


def dense_kept(sae: Sae, pre_acts: Tensor) -> Tensor:
    """1 where a latent stays, by the definition of each rule."""
    if sae.cfg.selection == "groupmax":
        groups = pre_acts.unflatten(1, (K, LATENTS // K))
        return torch.zeros_like(groups).scatter(2, groups.argmax(2, keepdim=True), 1.0).flatten(1)
    most = 4 * K if sae.cfg.selection == "batchtopk" else K
    kept = torch.zeros_like(pre_acts).scatter(1, pre_acts.topk(most).indices, 1.0)
    return kept * (pre_acts > sae.threshold) if sae.threshold is not None else kept


def dense_loss(sae: Sae, x: Tensor, y: Tensor | None, scale: float, limit: float | None = None) -> Tensor:
    """scale · Σ share · weighted mean over levels of ‖x̂_j − y‖², over dense tensors."""
    x = x if sae.scale is None else x * sae.scale
    read = x if sae.cfg.transcode else x - sae.b_dec
    pre_acts = read @ sae.encoder.weight.T + sae.encoder.bias
    code = pre_acts.relu() * dense_kept(sae, pre_acts)
    target = x if y is None else y
    ends = sae.cfg.levels_for(LATENTS) or [LATENTS]
    rank = code.argsort(1, descending=True).argsort(1)
    place = rank if sae.cfg.budgets else torch.arange(LATENTS).expand_as(rank)
    recons = [(code * (place < end)) @ sae.W_dec + sae.b_dec for end in ends]
    if sae.W_skip is not None:
        recons = [recon + x @ sae.W_skip.T for recon in recons]
    shares = 1.0 if limit is None else token_shares(read, recons[-1] - target, limit).detach()
    weights = level_weights(len(recons), budgets=bool(sae.cfg.budgets))
    errors = [weight * (recon - target).square().sum(1) for weight, recon in zip(weights, recons, strict=True)]
    return scale * (shares * sum(errors)).sum()


def explicit(sae: Sae, x: Tensor, y: Tensor | None, objective: Objective, parts: int = 1) -> Gradients:
    weights, total = Weights.of(sae, sae.dtype), None
    select, ragged = selection(sae.cfg, threshold=sae.threshold), sae.cfg.selection == "batchtopk"
    for part in torch.arange(len(x)).tensor_split(parts):
        code = encoded(weights, x[part], select)
        grads, _ = pullback(weights, code, None if y is None else y[part], objective, ragged=ragged)
        total = grads if total is None else total.plus(grads)
    assert total is not None
    return Gradients(*total.dense())


@pytest.mark.parametrize(("rule", "levels", "wiring"), KINDS)
@pytest.mark.parametrize(("parts", "limit"), [(1, None), (3, 200.0)])
def test_every_gradient_of_every_member_equals_dense_autograd(
    rule: str, levels: str, wiring: str, parts: int, limit: float | None
) -> None:
    sae = member(rule, levels, wiring)
    x, y = activations(sae)
    grads = explicit(sae, x, y, Objective(0.7, limit, None, Levels.of(sae.cfg, LATENTS, K)), parts)
    dense_loss(sae, x, y, 0.7, limit).backward()
    for name, found in grads.by_parameter().items():
        torch.testing.assert_close(found, sae.get_parameter(name).grad, msg=lambda t, n=name: f"{n}: {t}")
    torch.testing.assert_close(grads.radial, (sae.W_dec.grad * sae.W_dec).sum(1))


@pytest.mark.parametrize(("rule", "levels", "wiring"), KINDS)
def test_training_s_code_is_inference_s_code(rule: str, levels: str, wiring: str) -> None:
    sae = member(rule, levels, wiring)
    x, y = activations(sae)
    error = sae.scaled(sae(x, y).recon - (x if y is None else y)).square().sum()
    sae.cfg.prefixes = sae.cfg.budgets = []  # the whole code alone
    torch.testing.assert_close(error.detach(), dense_loss(sae, x, y, 1.0).detach())


@pytest.mark.parametrize(("rule", "levels", "wiring"), KINDS)
def test_what_is_saved_is_what_is_loaded(rule: str, levels: str, wiring: str, tmp_path: Path) -> None:
    sae = member(rule, levels, wiring, dtype=torch.float32)
    sae.save_to_disk(tmp_path)
    loaded = Sae.load_from_disk(tmp_path)
    assert loaded.spec.selection == rule and loaded.cfg.levels_for(LATENTS) == sae.cfg.levels_for(LATENTS)
    assert (loaded.d_in, loaded.d_out, loaded.spec.centred) == (sae.d_in, sae.d_out, sae.spec.centred)
    assert loaded.spec.parts == sae.spec.parts and loaded.cfg.crosscode == (wiring == "crosscoder")
    for name, tensor in sae.state_dict().items():
        assert loaded.state_dict()[name].equal(tensor), name


def test_groupmax_keeps_the_largest_of_each_group() -> None:
    values, indices = groupmax(torch.tensor([[1.0, 3.0, -5.0, -1.0, 0.0, 2.0]]), k=3)
    assert values.tolist() == [[3.0, 0.0, 2.0]] and indices.tolist() == [[1, 3, 5]]


def test_jumprelu_is_as_wide_as_its_widest_token_and_its_gate_is_strict() -> None:
    pre_acts = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.4, 9.0]])
    values, indices = jumprelu(pre_acts, threshold=torch.tensor([1.0, 0.5, 0.5]))
    dense = torch.zeros(2, 3).scatter_add(1, indices, values)
    assert dense.tolist() == [[0.0, 2.0, 3.0], [0.0, 0.0, 9.0]] and values.shape == (2, 2)


def test_a_jumprelu_dictionary_is_its_formula() -> None:
    sae = member("topk", "one", "autoencoder")
    spec = Spec(SaeConfig(k=1), D_IN, D_IN, LATENTS, "jumprelu", centred=False)
    tensors = {**sae.state_dict(), "threshold": torch.rand(LATENTS, dtype=torch.float64) * 3}
    loaded, x = Sae.from_saved(Saved(spec, tensors)), activations(sae)[0]
    pre_acts = x @ sae.encoder.weight.T + sae.encoder.bias
    expected = pre_acts.relu() * (pre_acts > tensors["threshold"]) @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(loaded(x).recon, expected)


def test_the_running_threshold_keeps_k_latents_a_token_in_the_mean() -> None:
    running = RunningThreshold(torch.device("cpu"))
    acts = torch.randn(4000, 64).exp() * torch.rand(4000, 1) * 5
    for part in acts.split(1500):
        running.add(part)
    running.end_step()
    for k in (1, 4, 20, 60):
        assert abs((acts > running.value(k)).sum().item() / 4000 - k) < 0.01 * k
    assert running.value(65) == 0


@pytest.mark.parametrize(("rule", "levels", "wiring"), KINDS)
def test_how_a_step_is_split_changes_rounding_only_and_the_error_falls(rule: str, levels: str, wiring: str) -> None:
    def train(parts: int) -> tuple[Sae, float, float]:
        torch.manual_seed(0)
        cfg = SaeConfig(num_latents=LATENTS, k=K, selection=rule, **LEVELS[levels], **WIRINGS[wiring])
        sae = new(cfg, torch.float32)
        features, written = torch.randn(200, D_IN), torch.randn(200, D_OUT)
        recipe = Recipe.named("default", 60, 8.0)
        learner = SaeLearner(
            sae,
            tokens_per_step=256,
            auxk_alpha=1 / 32,
            dead_feature_threshold=10**7,
            compute_dtype=torch.float32,
            recipe=recipe,
        )
        fvus = []
        for step in range(60):
            code = (torch.rand(256, 200) < 0.03).float() * torch.rand(256, 200)
            x, y = code @ features, code @ written if cfg.transcode else None
            if step == 0:
                learner.initialise(x, y)
            learner.begin_step(step, 60)
            for part in torch.arange(256).tensor_split(parts):
                learner.accumulate(x[part], None if y is None else y[part])
            learner.update(3e-3)
            fvus.append(learner.read_metrics())
        return sae, fvus[1].fvu, fvus[-1].fvu  # the first step sees the tokens that it started from

    whole, first, last = train(1)
    split, _, last_split = train(3)
    assert last < 0.95 * first and abs(last_split - last) < 0.02
    if rule == "batchtopk":
        assert whole.threshold is not None and split.threshold is not None and whole.threshold > 0


def test_matryoshka_s_prefix_and_hierarchical_s_budget_reconstruct_by_themselves() -> None:
    assert Levels.of(SaeConfig(num_latents=8, k=3, prefixes=[2, 4]), 8, 3) == Levels((2, 4, 8), False)
    assert Levels.of(SaeConfig(num_latents=8, k=8, budgets=[2, 4]), 8, 8) == Levels((2, 4, 8), True)
    assert Levels.of(SaeConfig(num_latents=8, k=8, budgets=[2, 4, 8]), 8, 3) == Levels((2, 3), True)
    assert Levels.of(SaeConfig(num_latents=8, k=3), 8, 3) is None
    acts, indices = torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[0, 5, 2]])
    assert Levels((2, 4, 8), False).at(acts, indices).tolist() == [[0, 2, 1]]
    assert Levels((1, 3), True).at(acts, indices).tolist() == [[1, 0, 1]]
    assert Levels((2, 4, 8), False).weights == (1, 1, 1) and Levels((2, 4, 8), True).weights == (1, 1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefixes": [4, 4]}, "prefixes must be increasing"),
        ({"prefixes": [0, 4]}, "prefixes must be increasing"),
        ({"prefixes": [4, 300], "num_latents": 96}, "prefixes must be at most num_latents=96"),
        ({"budgets": [64], "k": 32}, "budgets must be at most k=32"),
        ({"budgets": [2], "prefixes": [2]}, "give one of --prefixes and --budgets"),
        ({"budgets": [2], "selection": "batchtopk"}, "budgets must go with the selection topk"),
        ({"selection": "groupmax", "k": 7, "num_latents": 96}, "k must divide num_latents=96"),
        ({"inference_l0": 4.5, "k": 8}, "inference_l0 must go with the selection batchtopk"),
        ({"inference_l0": 9, "k": 8, "selection": "batchtopk"}, "inference_l0 must be above 0 and at most k=8, got 9"),
        ({"inference_l0": 0, "k": 8, "selection": "batchtopk"}, "inference_l0 must be above 0 and at most k=8, got 0"),
        ({"inference_l0": True, "k": 8, "selection": "batchtopk"}, "inference_l0 must be above 0 .*, got True"),
        ({"inference_l0": 10**400, "k": 8, "selection": "batchtopk"}, "inference_l0 must be above 0 and at most k=8"),
        ({"inference_l0": float("nan"), "k": 8, "selection": "batchtopk"}, "inference_l0 must be above 0 .*, got nan"),
        ({"skip_connection": True}, "skip_connection must come with transcode"),
    ],
)
def test_a_shape_that_cannot_be_is_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        SaeConfig(**options)
    assert "\n" not in str(caught.value)


def test_bags_hold_what_fired_by_token_and_level() -> None:
    acts = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [3.0, 4.0, 5.0]])
    indices = torch.tensor([[7, 1, 2], [0, 1, 2], [5, 1, 2]])
    level = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 0, 1]])
    bags = ops.Bags.of(acts, indices, level, 2)
    assert bags.indices.tolist() == [2, 1, 7, 5, 2] and bags.bag.tolist() == [0, 2, 3, 5, 5]
    assert bags.starts.tolist() == [0, 1, 1, 2, 3, 3] and bags.token.tolist() == [0, 2, 0, 2, 2]
    W = torch.randn(8, 4)
    rows = torch.randn(6, 4)
    expected = torch.stack([2 * W[2], torch.zeros(4), 4 * W[1], W[7], torch.zeros(4), 3 * W[5] + 5 * W[2]])
    torch.testing.assert_close(ops.decode_bags(bags, W), expected)
    torch.testing.assert_close(ops.gather_dot_bags(rows, bags, W), (rows[bags.bag] * W[bags.indices]).sum(1))
    low = ops.gather_dot_bags(rows.bfloat16(), bags, W)
    torch.testing.assert_close(low.float(), (rows[bags.bag] * W[bags.indices]).sum(1), atol=0.05, rtol=0.05)


class Shard(Unsharded):
    """One of several parts, in one process: `others` says what the parts give, all of which it is told beforehand."""

    def __init__(self, part: int, everybody: list[Tensor]) -> None:
        self.part, self.parts, self.everybody = part, len(everybody), everybody

    def gathered(self, own: Tensor) -> list[Tensor]:
        assert torch.equal(own, self.everybody[self.part])
        return self.everybody


def in_parts(cfg: SaeConfig, pre_acts: Tensor, parts: int) -> list[tuple[Shard, Tensor, Tensor]]:
    """What each of so many parts keeps, its values and its indices."""
    threshold = torch.tensor(0.1, dtype=pre_acts.dtype) if cfg.selection == "batchtopk" else None
    places = [Shard(part, [torch.empty(0)] * parts) for part in range(parts)]
    found = [
        selection(cfg, threshold=threshold, shards=place)(each)
        for place, each in zip(places, pre_acts.chunk(parts, 1), strict=True)
    ]
    shards = [Shard(part, [values for values, _ in found]) for part in range(parts)]
    kept = [agreement(cfg, shard)(*each) for shard, each in zip(shards, found, strict=True)]
    return [(shard, *each) for shard, each in zip(shards, kept, strict=True)]


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
@pytest.mark.parametrize(("rule", "k"), [*((rule, K) for rule in SELECTIONS), ("batchtopk", 12)])
def test_parts_keep_together_what_one_process_keeps(rule: str, k: int, parts: int) -> None:
    """Also where the borders of groups lie within parts: 96 latents in 6 groups, and 4 parts of 24; and where a part
    has fewer latents than batchtopk keeps of a token."""
    cfg = SaeConfig(num_latents=LATENTS, k=k, selection=rule)  # type: ignore[arg-type]
    pre_acts = torch.randn(N, LATENTS, dtype=torch.float64)
    threshold = torch.tensor(0.1, dtype=torch.float64) if rule == "batchtopk" else None
    values, indices = selection(cfg, threshold=threshold)(pre_acts)
    expected = torch.zeros_like(pre_acts).scatter_add(1, indices, values)
    dense = []
    for shard, acts, at in in_parts(cfg, pre_acts, parts):
        dense.append(torch.zeros(N, LATENTS // parts, dtype=torch.float64).scatter_add(1, at, acts))
        assert shard.parts == parts
    torch.testing.assert_close(torch.cat(dense, 1), expected, rtol=0, atol=0)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("levels", [Levels((8, 40, 96), by_rank=False), Levels((1, 3, 6), by_rank=True)], ids=str)
def test_the_levels_of_latents_in_parts_are_those_of_all(levels: Levels, parts: int) -> None:
    cfg = SaeConfig(num_latents=LATENTS, k=K)
    pre_acts = torch.randn(N, LATENTS, dtype=torch.float64)

    def levelled(acts: Tensor, indices: Tensor, shard: Shard, latents: int) -> Tensor:
        level = levels.at(acts, indices, shard) + 1
        return torch.zeros(N, latents, dtype=torch.int64).scatter_add(1, indices, level * (acts > 0))

    ((whole, acts, indices),) = in_parts(cfg, pre_acts, 1)
    expected = levelled(acts, indices, whole, LATENTS)
    found = in_parts(cfg, pre_acts, parts)
    padded = [torch.nn.functional.pad(each, (0, K - each.shape[1])) for _, each, _ in found]
    dense = [levelled(acts, indices, Shard(shard.part, padded), LATENTS // parts) for shard, acts, indices in found]
    assert torch.equal(torch.cat(dense, 1), expected) and expected.max() == 3
