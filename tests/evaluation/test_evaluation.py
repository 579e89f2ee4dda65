"""`sae.evaluate` against plain formulas over whole tensors of logits, and what it must not do."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from oracle import make_sae
from tiny_models import FAMILIES, VOCAB_SIZE, tiny_model, tiny_tokens
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Gemma2Config

import sae
from sae import Sae, graft, lm
from sae.dictionary.losses import EVERYTHING, Ordinary
from sae.evaluation.evaluate import Evaluation, evaluate, evaluate_many
from sae.evaluation.measure import ALL, Measurable, Measured, Reference, means, measure
from sae.evaluation.metrics import RARE, density_histogram, qualities
from sae.evaluation.moments import Moments, tensors_of
from sae.evaluation.sums import ActivationSums, position_bin, position_names
from sae.lm import harvest, resolve_hookpoints, widths
from sae.runs.log import Progress

CTX = 11


def dictionaries_for(model: nn.Module, hookpoints: list[str]) -> dict[str, Sae]:
    return {name: make_sae(d_in, 96, 5, torch.float32) for name, d_in in widths(model, hookpoints).items()}


def share(zero: Tensor, grafted: Tensor, clean: Tensor) -> float:
    """(zero − grafted) / (zero − clean) of losses summed by sequence; NaN if zero − clean is within noise."""
    added = zero - clean
    noise = 1.959964 * math.sqrt(len(added)) * added.std().item()
    return ((zero - grafted).sum() / added.sum()).item() if abs(added.sum()) > noise else math.nan


def by_hand(model: nn.Module, tokens: Tensor, saes: dict[str, Sae], kept: Tensor, hookpoint: str) -> dict[str, float]:
    """The formulas of docs/evaluation.md, one line each, over all logits at once."""
    names = list(saes) if hookpoint == ALL else [hookpoint]
    acts = {name: harvest(model, tokens, names)[name] for name in names}
    mean = {name: x[kept].mean(0) for name, x in acts.items()}

    def logits(replacements: dict[str, Any]) -> Tensor:
        with torch.no_grad(), graft(model, replacements, mask=kept):
            return model(input_ids=tokens).logits.double()

    def kl(changed: Tensor) -> float:
        p, q = clean.log_softmax(-1), changed.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1)[kept].mean().item()

    def losses(changed: Tensor) -> Tensor:
        found = nn.functional.cross_entropy(changed[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
        return (found * kept[:, :-1]).sum(1)

    def ce(changed: Tensor) -> float:
        return (losses(changed).sum() / kept[:, :-1].sum()).item()

    clean, grafted = logits({}), logits({name: saes[name] for name in names})
    zero = logits(dict.fromkeys(names, torch.zeros_like))
    average = logits({name: lambda x, name=name: mean[name].expand_as(x) for name in names})
    metrics = {
        "kl_div_with_sae": kl(grafted),
        "kl_div_with_ablation": kl(zero),
        "kl_div_with_mean_ablation": kl(average),
        "kl_div_score": 1 - kl(grafted) / kl(zero),
        "top1_agreement": (clean.argmax(-1) == grafted.argmax(-1))[kept].double().mean().item(),
    }
    if lm.find_head(model).is_causal:
        metrics |= {
            "ce_loss_without_sae": ce(clean),
            "ce_loss_with_sae": ce(grafted),
            "ce_loss_with_ablation": ce(zero),
            "ce_loss_with_mean_ablation": ce(average),
            "ce_loss_score": share(losses(zero), losses(grafted), losses(clean)),
            "ce_loss_score_mean": share(losses(average), losses(grafted), losses(clean)),
        }
    if hookpoint == ALL:
        return metrics
    with torch.no_grad():
        out, x = saes[hookpoint](acts[hookpoint]), acts[hookpoint][kept]
    recon, fired = out.recon[kept], out.top_acts[kept] > 0
    density = torch.zeros(96).index_add_(0, out.top_indices[kept].flatten(), fired.flatten().float()) / len(x)
    fvu = ((x - recon).square().sum() / (x - x.mean(0)).square().sum()).item()
    return metrics | {
        "fvu": fvu,
        "fvu_with_massive": fvu,
        "massive_fraction": 0.0,
        "explained_variance": 1 - fvu,
        "cossim": nn.functional.cosine_similarity(x, recon).mean().item(),
        "l2_ratio": (recon.norm(dim=-1) / x.norm(dim=-1)).mean().item(),
        "relative_reconstruction_bias": (recon.square().sum() / (recon * x).sum()).item(),
        "l0": fired.float().sum(-1).mean().item(),
        "frac_alive": (density > 0).float().mean().item(),
        "unused_fraction": (density == 0).float().mean().item(),
        "firings_per_latent": fired.sum().item() / 96,
        "rare_fraction": ((density > 0) & (density < RARE)).float().mean().item(),
        "freq_over_1_percent": (density > 0.01).float().mean().item(),
        "freq_over_10_percent": (density > 0.1).float().mean().item(),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_metric_is_its_formula_over_all_tokens(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.lm.num_positions_per_chunk", lambda *sizes: 3)
    model, tokens = tiny_model(family, causal_lm=True), tiny_tokens(7, CTX)
    blocks = resolve_hookpoints(model)
    saes = dictionaries_for(model, [blocks[0], f"{blocks[2]}.input"])
    kept = (torch.arange(CTX) != 0) & (tokens != tokens[2, 5])
    excluded = {"exclude_positions": [0], "exclude_tokens": [int(tokens[2, 5])]}
    found = evaluate(model, tokens, saes, batch_size=3, **excluded)
    assert (found.sequences, found.tokens, found.ctx_len) == (7, kept.sum(), CTX)
    assert found.causal == (family != "bert")
    for hookpoint in (*saes, ALL):
        expected = by_hand(model, tokens, saes, kept, hookpoint)
        assert found[hookpoint].metrics == pytest.approx(expected, rel=1e-4, abs=1e-6, nan_ok=True), hookpoint


def test_a_model_that_caps_its_logits_is_measured_with_the_cap() -> None:
    config = Gemma2Config(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, final_logit_softcapping=0.05,
    )  # fmt: skip
    model, tokens = AutoModelForCausalLM.from_config(config).eval(), tiny_tokens(2, CTX)
    head = lm.find_head(model)
    whole = model(input_ids=tokens).logits
    assert head.halves
    torch.testing.assert_close(head.logits(tokens, head.run(tokens), slice(3, 8)), whole[:, 3:8])
    assert whole.abs().max() <= 0.05
    assert "forward" not in vars(lm.base_model(model))


def test_grafting_a_perfect_autoencoder_loses_nothing() -> None:
    model, tokens = tiny_model("llama", causal_lm=True), tiny_tokens(3, CTX)

    class Perfect(Sae):
        def decode(self, top_acts: Tensor, top_indices: Tensor) -> Tensor:
            return self.x

        def encode(self, x: Tensor) -> Any:
            self.x = x
            return super().encode(x)

    one = Perfect(32, sae.SaeConfig(num_latents=48, k=3))
    quality = evaluate(model, tokens, {"layers.1": one})["layers.1"]
    assert quality.metrics["kl_div_with_sae"] == 0 and quality.metrics["fvu"] == 0
    assert quality.metrics["ce_loss_with_sae"] == quality.metrics["ce_loss_without_sae"]
    assert quality.metrics["top1_agreement"] == quality.metrics["ce_loss_score"] == 1
    assert quality.metrics["kl_div_score"] == quality.metrics["explained_variance"] == 1


def test_a_model_without_a_head_has_its_reconstruction_measured() -> None:
    model, tokens = tiny_model("gpt2"), tiny_tokens(4, CTX)
    saes = dictionaries_for(model, ["h.0", "h.1"])
    found = evaluate(model, tokens, saes)
    assert not found.has_head and set(found.qualities) == {("", "h.0"), ("", "h.1")}
    expected = evaluate(tiny_model("gpt2", causal_lm=True), tokens, saes)
    assert found["h.1"].metrics["fvu"] == expected["h.1"].metrics["fvu"]
    assert "kl_div_with_sae" not in found["h.1"].metrics


@pytest.mark.parametrize("family", FAMILIES)
def test_forwards_that_begin_behind_a_hookpoint_give_the_same_numbers(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = tiny_model(family, causal_lm=True), tiny_tokens(6, CTX)
    saes = dictionaries_for(model, resolve_hookpoints(model, layers=[0, 2]))
    found = evaluate(model, tokens, saes, batch_size=4, exclude_positions=[0])
    monkeypatch.setattr(lm.Skips, "behind", lambda skips, hookpoints: "")
    whole = evaluate(model, tokens, saes, batch_size=4, exclude_positions=[0])
    assert repr(found.to_json()) == repr(whole.to_json())


# Sums


def all_ordinary(mean: Tensor) -> Reference:
    return Reference(mean, mean, EVERYTHING)


def measured(
    model: nn.Module, batches: list[Tensor], saes: dict[str, Sae], references: dict[str, Reference]
) -> Measured:
    total = Measured({}, {}, {})
    for tokens in batches:
        batch = tokens, torch.ones_like(tokens, dtype=torch.bool)
        total = total.add(measure([Measurable(model, lm.find_head(model))], batch, {"a": saes}, references))
    return total


@pytest.mark.parametrize("split", [[8], [3, 5], [1, 1, 6]])
def test_sums_merge_exactly_however_the_sequences_are_split(split: list[int]) -> None:
    model, tokens = tiny_model("llama", causal_lm=True), tiny_tokens(8, CTX)
    saes = dictionaries_for(model, ["layers.0", "layers.2"])
    kept = torch.ones_like(tokens, dtype=torch.bool)
    found = means(model, list(saes), iter([(tokens, kept)]), dict.fromkeys(saes, EVERYTHING))
    references = {name: all_ordinary(sums.everything.mean()) for name, sums in found.items()}
    whole = measured(model, [tokens], saes, references)
    parts = measured(model, list(tokens.split(split)), saes, references)
    for one, other in zip(whole, parts, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            for a, b in zip(tensors_of(one[key]), tensors_of(other[key]), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for key, quality in qualities(whole, CTX, causal=True).items():
        assert qualities(parts, CTX, causal=True)[key].metrics == pytest.approx(
            quality.metrics, rel=1e-4, nan_ok=True
        ), key


def test_means_are_of_the_tokens_that_count() -> None:
    model, tokens = tiny_model("gpt_neox"), tiny_tokens(4, CTX)
    kept = torch.rand(4, CTX) < 0.5
    x = harvest(model, tokens, ["layers.1"])["layers.1"][kept].double()
    near = Ordinary(x.mean(0), (x - x.mean(0)).norm(dim=1).median())
    batches = ((t, k) for t, k in zip(tokens.split(1), kept.split(1), strict=True))
    sums = means(model, ["layers.1"], batches, {"layers.1": near})["layers.1"]
    torch.testing.assert_close(sums.everything.mean(), x.mean(0))
    torch.testing.assert_close(sums.ordinary.mean(), x[near.counts(x) > 0].mean(0))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Ratios over sequences of dependent tokens: of 400 samples, 95 % hold the ratio that all were drawn from."""
    generator = torch.Generator().manual_seed(1)
    above, below, covered = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0
    for _ in range(400):
        lengths = torch.randint(20, 60, (50,), generator=generator).double()
        topic = torch.rand(50, generator=generator).double() + 0.5  # shared by a sequence's tokens; mean 1
        _, low, high = Moments.of(torch.stack([topic * lengths, lengths], -1)).ratio(above, below)
        covered += low < 1 < high
    assert 0.92 <= covered / 400 <= 0.975


def test_an_interval_is_that_of_the_jackknife() -> None:
    rows = torch.rand(40, 2, dtype=torch.float64) + 1
    value, low, high = Moments.of(rows).ratio(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    totals = rows.sum(0) - rows
    left_out = totals[:, 0] / totals[:, 1]
    jackknife = (39 / 40 * (left_out - left_out.mean()).square().sum()).sqrt().item()
    assert value == pytest.approx((rows[:, 0].sum() / rows[:, 1].sum()).item())
    assert (high - low) / 2 == pytest.approx(1.96 * jackknife, rel=0.02)


@pytest.mark.parametrize("effect", [0.0, 0.01, -0.01, 3.0, -3.0])
def test_a_share_of_a_difference_within_noise_is_not_a_number(effect: float) -> None:
    """Losses (clean, grafted, zero) that differ by noise of 0.1 a sequence, and by what the ablation adds."""
    noise = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = 200 + 0.1 * (noise - noise.mean(0)) + torch.tensor([0, effect / 4, effect])
    above, below = torch.tensor([0.0, -1.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    found = Moments.of(rows).ratio(above, below)
    if abs(effect) < 1:
        assert all(map(math.isnan, found))
    else:
        assert found.low < 0.75 < found.high and found.high - found.low < 0.1
    assert not math.isnan(Moments.of(rows).ratio(above, -above.clamp(max=0)).value)  # a loss is no difference


def test_one_sequence_has_no_interval() -> None:
    estimate = Moments.of(torch.ones(1, 2)).ratio(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert estimate.value == 1 and math.isnan(estimate.low) and math.isnan(estimate.high)


def test_shares_of_the_variance_find_the_outliers() -> None:
    x = torch.randn(1000, 64)
    x[:5] *= 100
    x[:, 7] *= 30
    x = x - x.mean(0)
    sums = ActivationSums.of(x[:400])
    sums = ActivationSums(*(a + b for a, b in zip(sums, ActivationSums.of(x[400:]), strict=True)))
    energy = x.double().square().sum(-1).sort(descending=True).values
    assert sums.top_tokens_share(0.01) == pytest.approx((energy[:10].sum() / energy.sum()).item(), rel=0.01)
    assert sums.top_tokens_share(1.0) == pytest.approx(1)
    by_dimension = x.double().square().sum(0)
    assert sums.top_dimensions_share(0.01) == pytest.approx((by_dimension.max() / by_dimension.sum()).item())


def test_densities_are_counted_in_quarters_of_a_decade() -> None:
    fired = torch.tensor([0, 1, 100, 5000, 10_000])
    histogram = density_histogram(fired, 10_000)
    assert sum(histogram) == 4 and len(histogram) == 28
    assert [index for index, count in enumerate(histogram) if count] == [12, 20, 26, 27]


@pytest.mark.parametrize(("seq", "names"), [(1, ["0"]), (2, ["0", "1"]), (6, ["0", "1", "2-3", "4-5"])])
def test_positions_are_grouped_by_octaves(seq: int, names: list[str]) -> None:
    assert position_names(seq) == names
    for position in range(seq):
        low, *high = names[position_bin(position)].split("-")
        assert int(low) <= position <= int(high[0] if high else low)


def test_values_by_position_are_those_of_these_positions_alone() -> None:
    model, tokens = tiny_model("llama", causal_lm=True), tiny_tokens(5, CTX)
    saes = dictionaries_for(model, ["layers.1"])
    quality = evaluate(model, tokens, saes)["layers.1"]
    with torch.no_grad(), graft(model, saes):
        changed = model(input_ids=tokens).logits.log_softmax(-1)
    clean = model(input_ids=tokens).logits.log_softmax(-1)
    kl = (clean.exp() * (clean - changed)).sum(-1)
    assert list(quality.by_position) == ["0", "1", "2-3", "4-7", "8-10"]
    assert quality.by_position["4-7"]["kl_div_with_sae"] == pytest.approx(kl[:, 4:8].mean().item(), rel=1e-4)
    last = -clean[:, 8:10].gather(-1, tokens[:, 9:11, None]).mean().item()
    assert quality.by_position["8-10"]["ce_loss_without_sae"] == pytest.approx(last, rel=1e-4)


# Several checkpoints


def test_several_checkpoints_are_each_what_they_are_alone() -> None:
    model, tokens = tiny_model("gpt2", causal_lm=True), tiny_tokens(4, CTX)
    many = {
        "one": dictionaries_for(model, ["h.0", "h.1"]),
        "two": dictionaries_for(model, ["h.0", "h.1"]),
        "zero": dictionaries_for(model, ["h.2"]),
    }
    together = evaluate_many(model, tokens.split(2), many)
    assert together.labels == ["one", "two", "zero"] and ("zero", ALL) not in together.qualities
    for label, saes in many.items():
        alone = evaluate_many(model, tokens.split(2), {label: saes})
        for key, quality in alone.qualities.items():
            assert together[key].metrics == pytest.approx(quality.metrics, rel=1e-4, nan_ok=True), key
    with pytest.raises(KeyError, match="one"):
        together["h.0"]
    assert list(together) == list(together.qualities) and len(together) == len(together.qualities)
    alone = evaluate_many(model, tokens.split(2), {"": many["one"]})
    assert list(alone) == ["h.0", "h.1", ALL] and "h.0" in alone and "h.2" not in alone
    assert dict(alone) == {hookpoint: alone[hookpoint] for hookpoint in alone}
    with pytest.raises(KeyError, match="got 0"):
        alone[0]


# Bounds


class Largest(TorchDispatchMode):
    """The most elements that a tensor (batch, seq, vocabulary) had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, Tensor) and each.shape[2:] == (VOCAB_SIZE,):
                self.elements = max(self.elements, each.numel())
        return out


def test_no_tensor_of_the_vocabularys_size_is_larger_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sae.lm.num_positions_per_chunk", "sae.lm.logits.num_positions_per_chunk"):
        monkeypatch.setattr(name, lambda *sizes: 2)
    model, tokens = tiny_model("llama", causal_lm=True), tiny_tokens(6, 32)
    saes = dictionaries_for(model, ["layers.0", "layers.1"])
    with Largest() as largest:
        evaluate(model, tokens, saes, batch_size=3)
    assert largest.elements == 3 * 2 * VOCAB_SIZE


def test_what_is_kept_between_batches_does_not_grow_with_the_tokens() -> None:
    model = tiny_model("llama", causal_lm=True)
    saes = dictionaries_for(model, ["layers.0", "layers.1"])
    references = {name: all_ordinary(torch.zeros(32)) for name in saes}
    tokens = tiny_tokens(12, CTX)

    def size(batches: list[Tensor]) -> int:
        sums = measured(model, batches, saes, references)
        return sum(tensor.nbytes for part in sums for each in part.values() for tensor in tensors_of(each))

    assert size(list(tokens[:2].split(2))) == size(list(tokens.split(2)))


def test_batches_are_read_twice_and_never_collected() -> None:
    model, reads = tiny_model("llama", causal_lm=True), []

    class Batches:
        def __iter__(self) -> Iterator[Tensor]:
            for batch in tiny_tokens(6, CTX).split(2):
                reads.append(len(batch))
                yield batch

    evaluate_many(model, Batches(), {"": dictionaries_for(model, ["layers.1"])})
    assert reads == [2] * 9  # once more for which tokens are massive: these are fewer than that asks for


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_fvu_of_the_ordinary_tokens_is_told_from_that_of_all(batch_size: int) -> None:
    model, tokens = tiny_model("gpt_neox", causal_lm=True), tiny_tokens(8, CTX)
    model.base_model.embed_in.weight.data[int(tokens[0, 3])] *= 1e4
    (name, sae), *_ = dictionaries_for(model, ["layers.0"]).items()
    massive = tokens == tokens[0, 3]
    x = harvest(model, tokens, ["layers.0"])["layers.0"]
    tensors = dict(sae.state_dict()) | {"threshold": sae.encode(x).top_acts.quantile(0.4)}
    saes = {name: Sae.of_tensors(replace(sae.cfg, selection="batchtopk"), tensors)}
    error, ordinary = (x - saes["layers.0"](x).recon).square().sum(-1), x[~massive]
    found = evaluate(model, tokens, saes, batch_size=batch_size)["layers.0"].metrics
    assert found["massive_fraction"] == pytest.approx(massive.float().mean().item())
    variance = (ordinary - ordinary.mean(0)).square().sum()
    assert found["fvu"] == pytest.approx((error[~massive].sum() / variance).item(), rel=1e-4)
    everything = (x.flatten(0, 1) - x.flatten(0, 1).mean(0)).square().sum()
    assert found["fvu_with_massive"] == pytest.approx((error.sum() / everything).item(), rel=1e-4)
    assert found["explained_variance"] == pytest.approx(1 - found["fvu_with_massive"], rel=1e-4, abs=1e-6)
    fired = (saes["layers.0"].encode(x).top_acts > 0).sum(-1).float()
    assert found["l0"] == pytest.approx(fired[~massive].mean().item()) != pytest.approx(fired.mean().item())


def test_the_bar_tells_which_part_of_the_models_runs_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    model, runs, bars = tiny_model("llama", causal_lm=True), [], []
    run = lm.Head.run
    monkeypatch.setattr("sae.lm.Head.run", lambda *arguments: runs.append(1) or run(*arguments))

    class Seen(Progress):
        def __init__(self, what: str, total: int) -> None:
            super().__init__(total=total, hidden=True)
            self.what, self.total, self.heard = what, total, []
            bars.append(self)

        def reach(self, tokens: float) -> None:
            # one run showed how the model makes logits, three for each block that one can begin behind it
            self.heard.append((tokens / self.total, len(runs) - 7))

    many = {"a": dictionaries_for(model, ["layers.0", "layers.1"]), "b": dictionaries_for(model, ["layers.1"])}
    evaluate_many(model, tiny_tokens(6, CTX).split(2), many, bar=partial(Seen, total=6 * CTX))
    means_, measuring = bars
    assert [part for part, _ in means_.heard] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [part for part, _ in measuring.heard] == pytest.approx([done / 33 for _, done in measuring.heard])
    assert measuring.total == 6 * CTX and len(runs) == 7 + 3 * 11 and measuring.heard[-1] == (1, 33)


# What it is told


def test_a_sample_is_drawn_by_its_seed() -> None:
    model, tokens = tiny_model("gpt2"), tiny_tokens(20, CTX)
    saes = dictionaries_for(model, ["h.1"])

    def fvu(**options: int) -> float:
        return evaluate(model, tokens, saes, **options)["h.1"].metrics["fvu"]

    assert evaluate(model, tokens, saes, max_tokens=5 * CTX + 3).sequences == 5
    assert fvu(max_tokens=5 * CTX, seed=1) == fvu(max_tokens=5 * CTX, seed=1) != fvu(max_tokens=5 * CTX, seed=2)
    assert fvu(batch_size=3) == pytest.approx(fvu(batch_size=20), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"saes": {"h.1": make_sae(48)}}, "autoencoder of h.1 must be 32 wide, as the model is, got 48"),
        ({"saes": {"h.7": make_sae(32)}}, "h.7"),
        ({"exclude_positions": range(CTX)}, "must have a token to measure on beside those excluded"),
        ({"max_tokens": 5}, "at least one sequence of ctx_len=11 tokens, got 5"),
        ({"dataset": torch.full((2, CTX), VOCAB_SIZE)}, f"below the vocabulary size {VOCAB_SIZE}"),
    ],
)
def test_what_does_not_fit_is_a_sentence(change: dict[str, Any], message: str) -> None:
    options = {"dataset": tiny_tokens(2, CTX), "saes": {"h.1": make_sae(32, dtype=torch.float32)}} | change
    with pytest.raises(ValueError, match=message):
        evaluate(tiny_model("gpt2", causal_lm=True), **options)


def test_an_evaluation_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny_model("gpt2", causal_lm=True).train(), tiny_tokens(3, CTX)
    saes = dictionaries_for(model, ["h.0", "h.1"])
    before = [p.clone() for p in (*model.parameters(), *saes["h.0"].parameters())]
    state = torch.get_rng_state()
    evaluate(model, tokens, saes)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    after = [*model.parameters(), *saes["h.0"].parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(parameter.grad is None for parameter in after)


def test_json_has_null_where_a_number_is_not_defined() -> None:
    model = tiny_model("llama", causal_lm=True)
    document = evaluate(model, tiny_tokens(1, CTX), dictionaries_for(model, ["layers.1"])).to_json()
    quality = document["results"][""]["layers.1"]
    assert quality["intervals"]["fvu"] == [None, None] and quality["metrics"]["fvu"] > 0
    assert document["data"] == {"tokens": CTX, "sequences": 1, "ctx_len": CTX}


def test_the_public_name_is_the_function() -> None:
    assert sae.evaluate is evaluate and sae.Evaluation is Evaluation
    assert isinstance(sae.evaluate, Callable)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dictionaries_in_half_precision_are_measured_in_float32(dtype: torch.dtype) -> None:
    model, tokens = tiny_model("llama", causal_lm=True), tiny_tokens(4, CTX)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(300)  # ‖x‖² is beyond float16
    saes = {name: one.to(dtype) for name, one in dictionaries_for(model, ["layers.1"]).items()}
    x = harvest(model, tokens, ["layers.1"])["layers.1"].flatten(0, 1)
    found = evaluate(model, tokens, saes)["layers.1"]
    shares = {"ce_loss_score", "ce_loss_score_mean"}  # of an effect within noise, maybe
    assert all(math.isfinite(value) for name, value in found.metrics.items() if name not in shares)
    assert found.metrics["fvu"] == pytest.approx(saes["layers.1"](x).fvu.item(), rel=1e-4)
    assert found.metrics["l0"] == pytest.approx((saes["layers.1"].encode(x).top_acts > 0).sum().item() / len(x))


def test_a_nan_that_a_ratio_does_not_use_does_not_touch_it() -> None:
    rows = torch.tensor([[1.0, 2.0, math.nan], [1.0, 4.0, 5.0], [1.0, 6.0, math.inf]])
    moments = Moments.of(rows)
    alone = Moments.of(rows[:, :2])
    below, above = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    assert moments.ratio(above, below) == alone.ratio(above[:2], below[:2])
    assert math.isnan(moments.ratio(torch.tensor([0.0, 0.0, 1.0]), below).value)
