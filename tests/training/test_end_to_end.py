"""--loss_fn ce|kl: the gradient is that of the dense model, and runs keep their promises; --eval_every."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import dense_code, level_weights, make_sae
from tiny_models import tiny_model, tiny_tokens
from torch import Tensor, nn
from twelve_steps import assert_same_end, final_state, make_trainer, records
from whole_runs import stop_after

from sae import Sae, SaeConfig, SaeTrainer, TrainConfig, graft, lm
from sae.dictionary.cross_layer import coders, members, reconstruct
from sae.dictionary.gradients import Gradients
from sae.dictionary.spec import Saved, Spec
from sae.training.end_to_end import EndToEnd
from sae.training.learner import SaeLearner
from sae.training.recipe import firings, peak_lr, schedule

pytestmark = pytest.mark.usefixtures("no_picture")

CTX, NAMES = 9, ("layers.0", "layers.1.mlp.input")
MLPS = ("layers.0.mlp", "layers.1.mlp")
KINDS: dict[str, dict[str, Any]] = {
    "topk": {},
    "batchtopk": {"selection": "batchtopk"},
    "groupmax": {"selection": "groupmax"},
    "prefixes": {"prefixes": [8, 40]},
    "prefixes, batchtopk": {"prefixes": [8, 40], "selection": "batchtopk"},
    "budgets": {"budgets": [1, 3]},
    "transcoder": {"transcode": True},
    "skip transcoder": {"transcode": True, "skip_connection": True, "prefixes": [24]},
    "cross-layer": {"cross_layer": True, "skip_connection": True, "prefixes": [24]},
    "cross-layer, tied by source": {"cross_layer": True, "tie_decoders": True, "skip_connection": True},
    "cross-layer, tied by target": {"cross_layer": True, "tie_decoders": "target", "selection": "batchtopk"},
}
"""Fields of `SaeConfig`."""


def setting(
    loss_fn: str, monkeypatch: pytest.MonkeyPatch, kind: str = "topk"
) -> tuple[nn.Module, dict[str, SaeLearner], EndToEnd]:
    """Two learners in float64 on a tiny model, with position 0 and token 7 excluded, 2 positions' logits at a time."""
    monkeypatch.setattr("sae.lm.num_positions_per_chunk", lambda *sizes: 2)
    model = tiny_model("llama", causal_lm=True).double().requires_grad_(False)
    learners = {
        name: SaeLearner(
            sae_of(kind, name), tokens_per_step=100, auxk_alpha=0.0, dead_feature_threshold=10**6,
            compute_dtype=torch.float64,
        )
        for name in (MLPS if at_mlps(kind) else NAMES)
    }  # fmt: skip
    for learner in learners.values():
        learner._normaliser.variance.fill_(2.0)
    end_to_end = EndToEnd(model, {"": learners}, counted, loss_fn=loss_fn, tokens_per_step=100)  # type: ignore[arg-type]
    return model, learners, end_to_end


def at_mlps(kind: str) -> bool:
    """Whether dictionaries of this kind are transcoders."""
    return "transcode" in KINDS[kind] or "cross_layer" in KINDS[kind]


def sae_of(kind: str, name: str) -> Sae:
    """Weights as of `make_sae`, of another kind."""
    one = make_sae(32, 64, 4)
    cfg, tensors = replace(one.cfg, **KINDS[kind]), dict(one.state_dict())
    if cfg.cross_layer:
        return layer_of(cfg, tensors, MLPS[MLPS.index(name) :])
    if cfg.selection == "batchtopk":
        tensors["threshold"] = torch.zeros(())
    if cfg.skip_connection:
        tensors["W_skip"] = 0.1 * torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return Sae.of_tensors(cfg, tensors)


def layer_of(cfg: SaeConfig, tensors: dict[str, Tensor], writes: tuple[str, ...]) -> Sae:
    """A layer of a cross-layer transcoder that writes these modules."""
    draw = partial(torch.randn, dtype=torch.float64, generator=torch.Generator().manual_seed(len(writes)))
    widths = () if cfg.tie_decoders else (32,) * len(writes)
    spec = Spec(cfg, 32, sum(widths) or 32, 64, writes=writes, widths=widths)
    for key, shape in spec.shapes().items():
        tensors[key] = tensors[key] if key in tensors and tensors[key].shape == shape else 0.2 * draw(shape)
    if "scale" in tensors:
        tensors["scale"] = torch.tensor([1.5, 1.0][-len(writes) :], dtype=torch.float64).repeat_interleave(32)
    tensors["b_dec"][32:] = 0
    if "layer_scale" in tensors:
        tensors["layer_scale"][0] = 1
    if "threshold" in tensors:
        tensors["threshold"] = torch.zeros(())
    return Sae.from_saved(Saved(spec, tensors))


def counted(tokens: Tensor) -> Tensor:
    return (torch.arange(tokens.shape[1]) > 0) & (tokens != 7)


class Dense:
    """A dictionary with dense tensors, of which a level of nested reconstructions is decoded."""

    decodes_with_input = True

    def __init__(self, one: Sae, end: int, threshold: Tensor | None) -> None:
        """`threshold`: of batchtopk, among the 4 k largest."""
        self.one, self.end, self.threshold = one, end, threshold
        self.reads_input, self.num_latents = one.reads_input, one.num_latents

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one, groups = self.one, (self.one.cfg.k, self.num_latents // self.one.cfg.k)
        weights = one.encoder.weight, one.encoder.bias, one.b_dec[: one.d_in] * bool(one.spec.centred)
        if one.cfg.selection == "groupmax":
            code = dense_code(x, *weights, self.num_latents).unflatten(-1, groups)
            code = torch.zeros_like(code).scatter(-1, at := code.argmax(-1, keepdim=True), code.gather(-1, at))
            return code.flatten(-2), at
        code = dense_code(x, *weights, one.cfg.k * (1 if self.threshold is None else 4))
        return code if self.threshold is None else code * (code > self.threshold), code

    def decode(self, code: Tensor, _: Tensor, x: Tensor) -> Tensor:
        rank = code.argsort(-1, descending=True).argsort(-1)
        place = rank if self.one.cfg.budgets else torch.arange(self.num_latents).expand_as(rank)
        out = (code * (place < self.end)) @ self.one.W_dec + self.one.b_dec
        return out if self.one.W_skip is None else out + x @ self.one.W_skip.T


class DenseLayer(Dense):
    """Likewise a layer of a cross-layer transcoder; `written` holds what earlier ones wrote for each, by index."""

    def __init__(self, saes: list[Sae], index: int, written: list[list[Tensor]], *of_level: Any) -> None:
        super().__init__(saes[index], *of_level)
        self.later, self.index, self.written = saes[index:], index, written

    def decode(self, code: Tensor, _: Tensor, x: Tensor) -> Tensor:
        one, own = self.one, self.one.b_dec[:32]
        code = code * (torch.arange(self.num_latents) < self.end)
        skip = torch.zeros(()) if one.W_skip is None else x @ one.W_skip.T
        if one.layer_scale is None:
            assert one.scale is not None
            first, *rest = ((code @ one.W_dec + skip) / one.scale).split(32, -1)
            first = first + own / one.scale[:32]
        elif one.cfg.tied_by_target:
            first = code @ one.W_dec + own
            rest = [(code * c) @ sae.W_dec for c, sae in zip(one.layer_scale[1:], self.later[1:], strict=True)]
        else:
            first = code @ one.W_dec + skip + own
            rest = [c * (first - own) for c in one.layer_scale[1:]]
        for further, part in enumerate(rest, self.index + 1):
            self.written[further].append(part)
        return torch.stack([first, *self.written[self.index]]).sum(0)


def dense_grafts(saes: dict[str, Sae], end: int, thresholds: dict[str, Tensor]) -> dict[str, Dense]:
    """What reconstructs in one forward by the latents before `end`."""
    if not next(iter(saes.values())).cfg.cross_layer:
        return {name: Dense(one, end, thresholds.get(name)) for name, one in saes.items()}
    written: list[list[Tensor]] = [[] for _ in saes]
    layers = list(saes.values())
    return {name: DenseLayer(layers, index, written, end, thresholds.get(name)) for index, name in enumerate(saes)}


def dense_loss(
    model: nn.Module, saes: dict[str, Sae], tokens: Tensor, loss_fn: str, thresholds: dict[str, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The loss over all logits at once, with dense dictionaries, and that of the whole code."""
    cfg = next(iter(saes.values())).cfg
    ends = cfg.levels_for(64) or [64]
    weights = level_weights(len(ends), budgets=bool(cfg.budgets))
    grafts = [dense_grafts(saes, end, thresholds or {}) for end in ends]
    losses = [dense_loss_of(model, each, tokens, loss_fn) for each in grafts]
    return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum(), losses[-1]


def dense_loss_of(model: nn.Module, saes: dict[str, Dense], tokens: Tensor, loss_fn: str) -> Tensor:
    kept = counted(tokens)
    clean = model(input_ids=tokens).logits.log_softmax(-1)
    with graft(model, saes, mask=kept):
        changed = model(input_ids=tokens).logits.log_softmax(-1)
    if loss_fn == "kl":
        return (clean.exp() * (clean - changed)).sum(-1)[kept].sum() / 100
    losses = -changed[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return losses[kept[:, :-1]].sum() / 100


@pytest.mark.parametrize("split", [[6], [1, 5], [2, 2, 2]])
@pytest.mark.parametrize(
    ("loss_fn", "kind"), [("ce", "topk"), ("ce", "skip transcoder"), *(("kl", kind) for kind in KINDS)]
)
def test_gradients_are_those_of_the_dense_model_however_the_sequences_are_split(
    loss_fn: str, kind: str, split: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, learners, end_to_end = setting(loss_fn, monkeypatch, kind)
    tokens, thresholds = tiny_tokens(6, CTX), {}
    tokens[2, 3:5] = 7
    if KINDS[kind].get("selection") == "batchtopk":
        for name, learner in learners.items():
            read = f"{name}.input" if learner.sae.reads_input else name
            learner._read_weights(lm.harvest(model, tokens, [read])[read].flatten(0, 1), lambda sums: None)
            assert learner._thresholds is not None
            thresholds[name] = learner._thresholds.of_steps.clone()
            assert thresholds[name] > 0
    for part in tokens.split(split):
        end_to_end.accumulate(part)
    saes = {name: learner.sae for name, learner in learners.items()}
    loss, whole = dense_loss(model, saes, tokens, loss_fn, thresholds or None)
    for name, learner in learners.items():
        one = learner.sae
        expected = dict(
            zip(
                dict(one.named_parameters()),
                torch.autograd.grad(loss, list(one.parameters()), retain_graph=True, materialize_grads=True),
                strict=True,
            )
        )
        found = learner._grads
        assert isinstance(found, Gradients)
        by_parameter = {key: rows[:] for key, rows in found.by_parameter().items()}
        if learner._layer_scale is not None:
            by_parameter["layer_scale"] = learner._layer_scale.grad
            expected["layer_scale"][0] = 0
        for key, mine in by_parameter.items():
            theirs = expected[key]
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-8)  # logits are float32
            assert theirs.abs().max() > 1e-5 or len(theirs) == 1, name
        torch.testing.assert_close(found.radial, (found.W_dec[:] * one.W_dec).sum(-1))
    end_to_end.count_step()
    number = counted(tokens).sum() if loss_fn == "kl" else counted(tokens)[:, :-1].sum()
    assert end_to_end.read_loss() == pytest.approx(100 * whole.item() / number.item(), rel=1e-5)


def test_auxk_of_a_layer_is_to_make_up_for_the_errors_at_all_modules_that_it_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens, dead = tiny_tokens(4, CTX), torch.tensor([3, 20, 41])
    found: dict[float, list[Gradients]] = {}
    for alpha in (0.0, 0.5):
        torch.manual_seed(0)
        model, learners, end_to_end = setting("kl", monkeypatch, "cross-layer")
        for learner in learners.values():
            since = torch.zeros(64, dtype=torch.int64)
            since[dead] = 10**7
            learner.dead.load_state_dict({"tokens_since_fired": since})
            learner._auxk_alpha = alpha
        end_to_end.accumulate(tokens)
        found[alpha] = [learner._grads for learner in learners.values()]  # type: ignore[misc]
    saes, kept = {name: learner.sae for name, learner in learners.items()}, counted(tokens)
    first, second = MLPS
    before = lm.harvest(model, tokens, [f"{first}.input", first])
    with graft(model, {first: coders(saes)[first]}, mask=kept):
        after = lm.harvest(model, tokens, [f"{second}.input", second])
    xs = [before[f"{first}.input"], after[f"{second}.input"]]
    (layers,) = members(saes).values()
    residual = (reconstruct(layers, xs)[1] - torch.cat([before[first], after[second]], -1))[kept].detach()
    for index, (one, x) in enumerate(zip(saes.values(), xs, strict=True)):
        error = -one.scaled(residual[:, 32 * index :])
        acts = (x[kept] @ one.encoder.weight[dead].T + one.encoder.bias[dead]).relu()
        loss = 0.5 * 3 / (one.d_out // 2) * (acts @ one.W_dec[dead] - error).square().sum() / (100 * 2.0)
        expected = torch.autograd.grad(loss, [one.encoder.weight, one.encoder.bias, one.W_dec])
        for name, theirs in zip(("W_enc", "b_enc", "W_dec"), expected, strict=True):
            mine = getattr(found[0.5][index], name)[:] - getattr(found[0.0][index], name)[:]
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-8)
            assert theirs.abs().max() > 1e-5


def test_a_vocabulary_that_is_padded_with_minus_infinity_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    class Padded(nn.Module):
        """Three more tokens than there are, which are never predicted."""

        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.head = head

        def forward(self, hidden: Tensor) -> Tensor:
            return nn.functional.pad(self.head(hidden), (0, 3), value=-torch.inf)

    found = []
    for padded in (False, True):
        torch.manual_seed(0)
        model, learners, end_to_end = setting("kl", monkeypatch)
        if padded:
            model.lm_head = Padded(model.lm_head)  # type: ignore[arg-type]
        end_to_end.accumulate(tiny_tokens(4, CTX))
        gradients = [learner._grads for learner in learners.values()]
        assert all(isinstance(each, Gradients) for each in gradients)
        end_to_end.count_step()
        found.append([end_to_end.read_loss(), *(each.dense() for each in gradients)])  # type: ignore[union-attr]
    assert found[0][0] == pytest.approx(found[1][0]) and found[0][0] > 0
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        for mine, theirs in zip(one[:4], other[:4], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kind", ["topk", "skip transcoder"])
def test_the_meters_see_what_passed_each_dictionary(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, learners, end_to_end = setting("kl", monkeypatch, kind)
    tokens, (first, second) = tiny_tokens(4, CTX), learners
    kept = counted(tokens)
    end_to_end.accumulate(tokens)
    for name, grafts in ((first, {}), (second, {first: learners[first].sae})):
        one = learners[name]
        ends = [f"{name}.input", name] if one.sae.reads_input else [name, name]
        with graft(model, grafts, mask=kept):
            x, y = (lm.harvest(model, tokens, [end])[end] for end in ends)
        one.update(0.0)
        metrics, out = one.read_metrics(), one.sae(x)
        error = (y - out.recon)[kept].square().sum()
        variance = (y[kept] - y[kept].mean(0)).square().sum()
        assert metrics.fvu == pytest.approx((error / variance).item())
        assert metrics.l0 == pytest.approx((out.top_acts[kept] > 0).sum().item() / kept.sum().item())


def test_a_step_that_does_not_end_is_not_in_the_reported_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, end_to_end = setting("kl", monkeypatch)
    end_to_end.accumulate(tiny_tokens(4, CTX))
    assert end_to_end.state_dict() == {"sums": [0.0, 0.0]} and end_to_end.read_loss() is None


def trainer(save_dir: Path, loss_fn: str, **changes: Any) -> SaeTrainer:
    """As test_resume's, on a model with its head."""
    sizes = {"sae": SaeConfig(num_latents=64, k=4), "batch_size": 4, "log_to_wandb": False, "lr": 1e-2,
             "reconstruct_first": 0.0}  # fmt: skip
    cfg = TrainConfig(save_dir=str(save_dir), loss_fn=loss_fn, run_name="run", **sizes | changes)  # type: ignore[arg-type]
    return SaeTrainer(cfg, tiny_tokens(100, CTX), tiny_model("llama", causal_lm=True))


def test_training_lowers_the_divergence_that_it_minimises(tmp_path: Path) -> None:
    cfg = TrainConfig(SaeConfig(num_latents=64, k=4), batch_size=4, log_to_wandb=False, lr=1e-2, loss_fn="kl",
                      save_dir=str(tmp_path), run_name="run", layer_stride=2, exclude_positions=[0],
                      dead_feature_threshold=300, eval_every=20, reconstruct_first=0.0)  # fmt: skip
    one = SaeTrainer(cfg, tiny_tokens(100, CTX), tiny_model("gpt2", causal_lm=True))
    before = one.evaluate_grafted()
    one.fit()
    after = one.evaluate_grafted()
    assert after["all/eval_kl_div_with_sae"] < 0.97 * before["all/eval_kl_div_with_sae"]
    logged = records(tmp_path)
    assert sum(record["loss"] for record in logged[-6:]) < sum(record["loss"] for record in logged[:6])
    assert len(logged) == 24
    assert logged[19]["all/eval_kl_div_with_sae"] > 0 and "all/eval_kl_div_with_sae" not in logged[20]
    for dictionary in Sae.load_many(tmp_path / "run").values():
        torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(64))


def end_to_end_trainer(save_dir: Path, **changes: Any) -> SaeTrainer:
    original = tiny_model("gpt_neox", causal_lm=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twelve_steps.tiny_model", lambda family: original)
        return make_trainer(save_dir, loss_fn="kl", log_every=5, **changes)


@pytest.mark.parametrize(
    "kind",
    ["topk", "batchtopk", "prefixes, batchtopk", "skip transcoder", "cross-layer", "cross-layer, tied by target"],
)
@pytest.mark.parametrize("first", [0.0, 0.25, 0.58], ids="{} first".format)  # 0, 3 and 7 of 12 steps
def test_stopping_and_resuming_equals_not_stopping(tmp_path: Path, kind: str, first: float) -> None:
    make = partial(end_to_end_trainer, **of_kind(kind), reconstruct_first=first)
    make(tmp_path / "straight").fit()
    stop_after(make(tmp_path / "stopped"), 3)
    stop_after(make(tmp_path / "stopped", resume=True), 7)
    make(tmp_path / "stopped", resume=True).fit()
    assert_same_end(tmp_path / "stopped", tmp_path / "straight")


def test_new_dictionaries_learn_to_reconstruct_first(tmp_path: Path) -> None:
    options: dict[str, Any] = {"layers": [1], "reconstruct_first": 0.75}
    one, other = (end_to_end_trainer(tmp_path / name, **options) for name in ("one", "other"))
    assert one.plan.stages == ((0, 9, "fvu", 0), (9, 12, "kl", 0))
    one.initialise()
    other.initialise()
    learner, plan = other.learners["layers.1"], other.plan
    for step in range(9):  # what a run by the reconstruction's error does with the same tokens
        rate = peak_lr(64, 9, firings(plan.steps.tokens, 4, 64)) * schedule(step, 9, 0)
        learner.begin_step(step, 9)
        for _ in range(2):  # passes of a step
            activations = lm.harvest(other.store.model, next(other.source), ["layers.1"])  # type: ignore[union-attr]
            learner.accumulate(activations["layers.1"].flatten(0, 1))
        learner.update(rate)
        assert one.learning_rate("layers.1") == pytest.approx(rate) and one.train_step()
    state, expected = one.learners["layers.1"].state_dict(), learner.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    for name, tensor in other.saes["layers.1"].state_dict().items():
        assert torch.equal(one.saes["layers.1"].state_dict()[name], tensor)
    assert "loss" not in one.metrics(tokens_per_second=1.0)
    assert one.train_step() and one.metrics(tokens_per_second=1.0)["loss"] > 0
    assert one.learners["layers.1"].state_dict()["adam.step"] == 1


def test_the_rate_that_is_given_is_that_of_the_steps_end_to_end(tmp_path: Path) -> None:
    one = end_to_end_trainer(tmp_path, lr=3e-3)
    derived, given = one.learning_rate("layers.0"), 3e-3
    assert one.plan.stages == ((0, 11, "fvu", 0), (11, 12, "kl", 0))
    one.step = 11
    assert one.learning_rate("layers.0") == given != derived
    for changes in ({"recipe": "gao2024"}, {"reconstruct_first": 0.0}):
        assert end_to_end_trainer(tmp_path / str(changes), **changes).plan.stages == ((0, 12, "kl", 0),)


def of_kind(kind: str) -> dict[str, Any]:
    """The options of a run of this kind, at MLPs where they are what is transcoded."""
    return KINDS[kind] | ({"hookpoints": ["layers.*.mlp"]} if at_mlps(kind) else {})


def test_with_batchtopk_the_threshold_keeps_k_latents_of_a_token_at_the_end(tmp_path: Path) -> None:
    one = end_to_end_trainer(tmp_path, selection="batchtopk")
    saes = Sae.load_many(one.fit())
    measured = one.held_out_quality()
    assert all(one.l0 == pytest.approx(4, rel=0.05) for one in measured.values())
    assert all(each.threshold is not None and each.threshold > 0 for each in saes.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_same_however_it_is_split(tmp_path: Path, kind: str) -> None:
    splits = {"whole": (4, 1, 1), "micro": (4, 1, 2), "accumulated": (2, 2, 1)}
    found = {}
    for name, (batch_size, grad_acc_steps, micro_acc_steps) in splits.items():
        options = {"batch_size": batch_size, "grad_acc_steps": grad_acc_steps, "micro_acc_steps": micro_acc_steps}
        one = end_to_end_trainer(tmp_path / name, **of_kind(kind), **options, reconstruct_first=0.0)
        for learner in one.learners.values():
            x = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
            learner.initialise(x, x.roll(1, 1).repeat(1, learner.sae.d_out // 32) if learner.sae.reads_input else None)
        one.train_step()
        found[name] = next(iter(one.saes.values())).W_dec.detach()
    for name in ("micro", "accumulated"):
        torch.testing.assert_close(found[name], found["whole"], rtol=1e-3, atol=1e-4)


def test_measuring_during_training_changes_not_one_bit(tmp_path: Path) -> None:
    original = tiny_model("gpt_neox", causal_lm=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twelve_steps.tiny_model", lambda family: original)
        make_trainer(tmp_path / "without").fit()
        make_trainer(tmp_path / "with", eval_every=3).fit()
    without, measured = final_state(tmp_path / "without"), final_state(tmp_path / "with")
    assert all(torch.equal(tensor, measured[name]) for name, tensor in without.items())
    plain, watched = records(tmp_path / "without"), records(tmp_path / "with")
    assert [{k: v for k, v in record.items() if "/eval_" not in k} for record in watched] == plain
    has_eval = [any("/eval_" in key for key in record) for record in watched]
    assert has_eval == [step % 3 == 0 for step in range(1, 13)]
    assert {"layers.0/eval_fvu", "layers.2/eval_ce_loss_score", "all/eval_top1_agreement"} <= watched[2].keys()


@pytest.mark.parametrize(
    ("loss_fn", "family", "head", "message"),
    [
        (
            "kl",
            "llama",
            False,
            "kl needs a model with a .*head, and LlamaModel has no .* load it with AutoModelForCausalLM",
        ),
        (
            "ce",
            "bert",
            True,
            "ce needs a model with a causal .*head, and in BertLMHeadModel a token sees those after it",
        ),
    ],
)
def test_a_model_without_the_head_that_a_loss_needs_is_refused(
    tmp_path: Path, loss_fn: str, family: str, head: bool, message: str
) -> None:
    cfg = TrainConfig(SaeConfig(k=4), loss_fn=loss_fn, save_dir=str(tmp_path), log_to_wandb=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"loss_fn {message}"):
        SaeTrainer(cfg, tiny_tokens(100, CTX), tiny_model(family, causal_lm=head))


def test_a_transcoder_that_writes_before_it_reads_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    one = end_to_end_trainer(tmp_path / "runs", hookpoints=["layers.1->layers.0"], transcode=True)
    with pytest.raises(ValueError, match=r"layers.0 must read what comes before, got layers.1, which comes after"):
        one.fit()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", ["topk", "prefixes, batchtopk", "cross-layer"])
def test_the_rehearsal_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, learners, end_to_end = setting("kl", monkeypatch, kind)
    before = [{name: t.clone() for name, t in learner.state_dict().items()} for learner in learners.values()]
    end_to_end.rehearse(tiny_tokens(4, CTX))
    for learner, state in zip(learners.values(), before, strict=True):
        assert all(torch.equal(t, state[name]) for name, t in learner.state_dict().items())
        assert learner._grads is None
    assert end_to_end.state_dict() == {"sums": [0.0, 0.0]}


def test_a_run_rehearses_what_its_largest_step_will_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = end_to_end_trainer(tmp_path, micro_acc_steps=2, reconstruct_first=0.5)
    passes: list[tuple[torch.Size, int]] = []
    of_loss = EndToEnd._gradients

    def watched(self: EndToEnd, *args: Any, **options: Any) -> Any:
        loss, found = of_loss(self, *args, **options)
        passes.append((args[2].shape, sum(each.numel() for each in found)))
        return loss, found

    monkeypatch.setattr(EndToEnd, "_gradients", watched)
    one.initialise()
    rehearsed = list(passes)
    one.fit()
    assert len(rehearsed) == 1 < len(passes) and set(passes) == set(rehearsed)


def test_a_loss_that_is_not_finite_stops_the_run_and_changes_no_weight(tmp_path: Path) -> None:
    one = trainer(tmp_path, "kl", layers=[1])
    one.initialise()
    with torch.no_grad():
        one.store.model.lm_head.weight[3] = torch.nan  # type: ignore[union-attr, index, operator]
    before = one.saes["layers.1"].W_dec.detach().clone()
    one.train_step()
    torch.testing.assert_close(one.saes["layers.1"].W_dec.detach(), before)
    with pytest.raises(FloatingPointError, match="layers.1: the loss is not finite at step 1; try a lower --lr"):
        one.metrics(tokens_per_second=1.0)
