"""Feature absorption: latents for a first letter that stay silent on words whose own latents have taken it over.

The rule is SAEBench's (Karvonen et al. 2025, arXiv:2503.09532; Chanin et al. 2024, arXiv:2409.14507), written anew:

1. A linear probe finds the first letter of a word in the activations; its direction p stands for the letter.
2. The main latents of a letter are those of the sparse probe that a further latent does not improve by much.
3. On test words that the linear probe gets right, contributions are a_i ⟨W_dec[i], p⟩. Where the main latents' fall
   short of ⟨x, p⟩ and others fill the gap, these have absorbed the letter.

Probes are fitted to their optimum, where SAEBench stops Adam after fifty epochs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sae.data.spelling import LETTERS, Spelling
from sae.dictionary.autoencoder import Sae
from sae.evaluation.logistic import fit_l2
from sae.evaluation.moments import f1_of, mean_and_half
from sae.evaluation.probes import activations_at
from sae.evaluation.targets import Dictionaries, harvested, kind_of_no_autoencoder, rows, targets

KS = range(1, 11)
"""Numbers of latents that may be main ones."""
JUMP = 0.03
"""Rise of the F1 on test words by which a further latent becomes a main one."""
LEAST_F1 = 0.6
"""F1 of the linear probe below which the model does not know the letter."""
FEW_LETTERS = 20
"""Number of letters below which SAEBench gives no score."""
LEAST_PARAMETERS = 10**9
"""Size of a model below which it hardly spells."""
_TRAIN = 0.8
_FULL_COSINE, _PART_COSINE = 0.025, 0.1
"""Least cosine with p of a latent that absorbs alone, and of one of several."""
_LEAST_SHARE, _ABSORBERS = 0.4, 3
"""Least share of ⟨x, p⟩ that they have together, and how many they may be."""
_PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)
_L1 = 0.01
"""Weight of Σ |w| against the mean loss, with codes in units of their mean where active."""
_ROUNDS = 300


class Letter(NamedTuple):
    """Finding about one letter: SAEBench's names, and the probe's F1."""

    first_letter: str
    probe_f1: float
    mean_absorption_fraction: float
    full_absorption_rate: float
    num_full_absorption: int
    num_probe_true_positives: int
    num_split_features: int
    latents: list[int]
    """The main latents."""


METRICS = {
    "mean_absorption_fraction_score": "mean_absorption_fraction",
    "mean_full_absorption_score": "full_absorption_rate",
    "mean_num_split_features": "num_split_features",
}
"""SAEBench's name of each mean over letters, and that of the letter's own."""


class Absorbed(NamedTuple):
    """The letters of every dictionary."""

    words: int
    by_letter: dict[tuple[str, str], list[Letter]]
    """Letters that the linear probe finds, by label and hookpoint."""
    not_finite: Mapping[str, int] = MappingProxyType({})
    """Words with an activation that is not finite, by hookpoint: nothing is measured there."""
    left_out: Sequence[str] = ()
    """Dictionaries that write something else than they read, of which nothing is measured."""

    def mean(self, key: tuple[str, str], metric: str) -> tuple[float, float]:
        """The mean over letters, and half of its 95 % interval; NaN where there is none."""
        return mean_and_half(self._values(key, metric))

    def _values(self, key: tuple[str, str], metric: str) -> np.ndarray:
        return np.array([getattr(letter, METRICS[metric]) for letter in self.by_letter[key]], dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file, with SAEBench's names."""
        results: dict[str, dict[str, Any]] = {}
        for key, letters in self.by_letter.items():
            metrics: dict[str, float] = {}
            for metric in METRICS:
                metrics[metric] = self.mean(key, metric)[0]
                deviation = self._values(key, metric)
                name = metric.replace("mean_", "std_dev_", 1)
                metrics[name] = float(deviation.std(ddof=1)) if len(deviation) > 1 else math.nan
            details = [letter._asdict() for letter in letters]
            results.setdefault(key[0], {})[key[1]] = {"mean": metrics, "letters": details}
        return {"words": self.words, "results": results}


def sentences(absorbed: Absorbed, num_parameters: int) -> list[str]:
    """What to know before these numbers are believed."""
    found = [
        f"absorption is not measured at {hookpoint}, where activations of {count:,} words are not finite"
        for hookpoint, count in absorbed.not_finite.items()
    ]
    if absorbed.left_out:
        found.append(
            f"absorption needs dictionaries that write what they read, and leaves out {', '.join(absorbed.left_out)}"
        )
    if num_parameters < LEAST_PARAMETERS:
        found.append(
            f"absorption means something for models of about 1B parameters, and this one has {num_parameters:,}: take "
            "the numbers as a trial"
        )
    for (label, hookpoint), letters in absorbed.by_letter.items():
        if letters and not any(letter.latents for letter in letters):
            found.append(f"no latent stands for a letter in {label or 'the checkpoint'} at {hookpoint}: 0 says nothing")
    measured = [
        letters for (_, hookpoint), letters in absorbed.by_letter.items() if hookpoint not in absorbed.not_finite
    ]
    fewest = min(map(len, measured), default=len(LETTERS))
    if fewest < FEW_LETTERS:
        found.append(
            f"absorption is measured for {fewest} of 26 letters: the others' linear probes have an F1 below {LEAST_F1} "
            f"(SAEBench wants {FEW_LETTERS})"
        )
    return found


def autoencoders(dictionaries: Dictionaries) -> dict[str, dict[str, Sae]]:
    """The dictionaries that write what they read. Raises ValueError if there are none."""
    found = {
        label: {name: sae for name, sae in saes.items() if not kind_of_no_autoencoder(sae)}
        for label, saes in dictionaries.items()
    }
    found = {label: saes for label, saes in found.items() if saes}
    if not found:
        raise ValueError(
            "absorption compares what latents write with a probe of what they read, and needs autoencoders, got "
            "transcoders or crosscoders alone; leave --absorption out"
        )
    return found


def absorption(
    model: nn.Module,
    spelling: Spelling,
    dictionaries: Dictionaries,
    *,
    batch_size: int,
    done: Callable[[int], None] = lambda words: None,
) -> Absorbed:
    """The absorption of each autoencoder; `done` gets the number of prompts done. Raises ValueError without one."""
    kept = autoencoders(dictionaries)
    others = [(label, at) for label, saes in dictionaries.items() for at in saes if at not in kept.get(label, {})]
    found = targets(kept)
    hookpoints = harvested(found, rows(found).values())
    acts = activations_at(model, spelling.ids, hookpoints, batch_size, back=spelling.behind + 1, done=done)
    y = F.one_hot(torch.tensor(spelling.letters), len(LETTERS)).double()
    broken = {name: int((~x.isfinite().all(1)).sum()) for name, x in acts.items()}
    absorbed = Absorbed(
        len(spelling.words), {}, {name: count for name, count in broken.items() if count},
        [f"{at} of {label}" if label else at for label, at in others],
    )  # fmt: skip
    probes = {name: LinearProbes.fit(x.double(), y) for name, x in acts.items() if not broken[name]}
    for label, of_one in found.items():
        for row, target in of_one.items():
            at = target.writes
            absorbed.by_letter[label, row] = letters(target.sae, acts[at], y, probes[at]) if at in probes else []
    return absorbed


class LinearProbes(NamedTuple):
    """Balanced logistic regressions of each letter against the others, on words to train on: the first ones."""

    directions: Float[Tensor, "letters d"]
    """Unit vectors."""
    positive: Bool[Tensor, "words letters"]
    """Whether the probe takes the word for one of the letter."""
    num_train: int

    @classmethod
    def fit(cls, x: Float[Tensor, "words d"], y: Float[Tensor, "words letters"]) -> "LinearProbes":
        """The last tenth of the training words chooses the penalty, by the mean F1."""
        num_train = int(_TRAIN * len(x))
        kept = int(0.9 * num_train)
        mean, scale = x[:num_train].mean(0), x[:num_train].std(0).square().mean().sqrt().clamp_min(1e-30)
        z = (x - mean) / scale

        def quality(penalty: float) -> float:
            weights, bias = fit_balanced(z[:kept], y[:kept], penalty)
            scores = z[kept:num_train] @ weights.T + bias
            return float(f1(scores > 0, y[kept:num_train] > 0).mean())

        weights, bias = fit_balanced(z[:num_train], y[:num_train], max(_PENALTIES, key=quality))
        return cls(F.normalize(weights, dim=1), z @ weights.T + bias > 0, num_train)


def letters(
    sae: Sae, x: Float[Tensor, "words d"], y: Float[Tensor, "words letters"], probes: LinearProbes
) -> list[Letter]:
    """Findings about each letter that its linear probe finds in the test words."""
    with torch.no_grad():
        encoded = sae.encode(x.to(sae.device))
        acts, indices = encoded.top_acts.double().cpu(), encoded.top_indices.cpu()
        W_dec = sae.W_dec.double().cpu()
    test = slice(probes.num_train, None)
    truth = y[test] > 0
    probe_f1 = f1(probes.positive[test], truth)
    ranking = l1_weights(acts[: probes.num_train], indices[: probes.num_train], y[: probes.num_train], len(W_dec))
    found = []
    for letter, name in enumerate(LETTERS):
        right = truth[:, letter] & probes.positive[test][:, letter]
        if probe_f1[letter] < LEAST_F1 or not right.any():
            continue
        main = main_latents(acts, indices, y[:, letter], ranking[letter], probes.num_train)
        words = right.nonzero()[:, 0] + probes.num_train
        code = acts[words], indices[words]
        parts, full = absorbed_parts(x[words].double(), *code, W_dec, probes.directions[letter], main)
        found.append(
            Letter(
                name.lower(),
                float(probe_f1[letter]),
                float(parts.mean()),
                float(full.double().mean()),
                int(full.sum()),
                len(words),
                max(0, len(main) - 1),
                main,
            )  # fmt: skip
        )
    return found


def absorbed_parts(
    x: Float[Tensor, "words d"],
    acts: Float[Tensor, "words k"],
    indices: Int[Tensor, "words k"],
    W_dec: Float[Tensor, "latents d"],
    direction: Float[Tensor, "d"],
    main: Sequence[int],
) -> tuple[Float[Tensor, "words"], Bool[Tensor, "words"]]:
    """The part of the letter that others than the `main` latents hold, and whether one has taken over all of it.

    `direction` is p, of unit length. m is the contribution of the main latents, and o that of the three strongest
    others with a cosine of at least 0.1 with p. The part is 0 unless m < ⟨x, p⟩ and o ≥ 0.4 ⟨x, p⟩. It is then
    o' / (o' + m) for o' = min(o, ⟨x, p⟩ − m), and 1 where m ≤ 0. It is whole where no main latent fires, and the
    strongest latent has a cosine of at least 0.025 and 0.4 of ⟨x, p⟩.
    """
    along = W_dec @ direction
    cosine = (along / torch.linalg.vector_norm(W_dec, dim=1).clamp_min(1e-30))[indices]
    contributions, wanted = acts * along[indices], x @ direction
    is_main = torch.isin(indices, torch.tensor(list(main), dtype=indices.dtype))
    own = (contributions * is_main).sum(1)
    others = contributions.where(~is_main & (cosine >= _PART_COSINE) & (contributions > 0), 0.0)
    filled = others.topk(min(_ABSORBERS, others.shape[1]), dim=1).values.sum(1)
    absorbs = (own < wanted) & (filled >= _LEAST_SHARE * wanted) & (wanted > 0)
    gap = torch.minimum(filled, wanted - own)
    part = torch.where(own <= 0, 1.0, gap / (gap + own).clamp_min(1e-30)).where(absorbs, 0.0)
    strongest, at = contributions.max(1)
    silent = ~(is_main & (acts > 0)).any(1)
    aligned = cosine.gather(1, at[:, None])[:, 0] >= _FULL_COSINE
    return part, silent & aligned & (wanted > 0) & (strongest >= _LEAST_SHARE * wanted)


def main_latents(
    acts: Float[Tensor, "words k"],
    indices: Int[Tensor, "words k"],
    y: Float[Tensor, "words"],
    weights: Float[Tensor, "latents"],
    num_train: int,
) -> list[int]:
    """The first latents by their weight, as many as raise the F1 of a probe on them, each by `JUMP` or more."""
    values, order = weights.topk(min(max(KS), len(weights)))
    order = order[values > 0]
    dense = torch.stack([(acts * (indices == latent)).sum(1) for latent in order.tolist() or [-1]], 1).numpy()
    labels, balance = y.numpy(), _balance(y[:num_train, None])[:, 0].numpy()
    taken, best = 0, -math.inf
    for k in (k for k in KS if k <= len(order)):
        fitted = fit_l2(dense[:num_train, :k], labels[:num_train], 1.0, weights=balance)
        scores = torch.from_numpy(fitted.scores(dense[num_train:, :k])[0])
        reached = float(f1(scores[:, None] > 0, y[num_train:, None] > 0))
        if reached <= best + JUMP:
            break
        taken, best = k, reached
    return [int(latent) for latent in order[:taken]]


def f1(found: Bool[Tensor, "rows classes"], truth: Bool[Tensor, "rows classes"]) -> Float[Tensor, "classes"]:
    """F1 of each class."""
    return f1_of((found & truth).sum(0), found.sum(0), truth.sum(0))


# Logistic regressions of all letters at once, both classes of each with half of the weight


def _balance(y: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows classes"]:
    share = y.mean(0)
    return torch.where(y > 0, 0.5 / share.clamp_min(1e-30), 0.5 / (1 - share).clamp_min(1e-30))


def fit_balanced(
    x: Float[Tensor, "rows d"], y: Float[Tensor, "rows classes"], penalty: float
) -> tuple[Float[Tensor, "classes d"], Float[Tensor, "classes"]]:
    """Weights and intercepts that minimise, for each class, the mean balanced loss + penalty / 2 · ‖w‖², by L-BFGS."""
    balance = _balance(y)
    weights = x.new_zeros(y.shape[1], x.shape[1] + 1).requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores = x @ weights[:, :-1].T + weights[:, -1]
        per_class = F.binary_cross_entropy_with_logits(scores, y, balance, reduction="none").mean(0)
        total = per_class.sum() + 0.5 * penalty * weights[:, :-1].square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    found = weights.detach()
    return found[:, :-1], found[:, -1]


def l1_weights(
    acts: Float[Tensor, "rows k"], indices: Int[Tensor, "rows k"], y: Float[Tensor, "rows classes"], num_latents: int
) -> Float[Tensor, "classes latents"]:
    """Weights that minimise, for each class, the mean balanced loss + λ ‖w‖₁ on a code.

    The method is FISTA (Beck & Teboulle 2009).
    """
    rows, balance = len(acts), _balance(y)
    fired = acts > 0
    unit = acts[fired].mean().clamp_min(1e-30) if fired.any() else acts.new_ones(())
    row = torch.arange(rows)[:, None].expand_as(indices)[fired]
    at, values, size = torch.stack([row, indices[fired]]), acts[fired] / unit, (rows, num_latents)
    code = torch.sparse_coo_tensor(at, values, size, check_invariants=True).coalesce()
    back = code.T.coalesce()

    def curvature() -> Float[Tensor, "classes"]:
        vector = torch.ones(num_latents, y.shape[1], dtype=acts.dtype)
        for _ in range(20):  # powers of Sᵀ D S, D the weights of the rows
            vector = F.normalize(back @ (balance * (code @ vector)), dim=0)
        return torch.linalg.vector_norm(back @ (balance * (code @ vector)), dim=0)

    step = 1 / (0.26 * curvature() / rows + 0.25)  # the second term is of the intercept, whose rows weigh 1 in the mean
    w, ahead = (torch.zeros(num_latents, y.shape[1], dtype=acts.dtype) for _ in range(2))
    bias, ahead_bias, momentum = (torch.zeros(y.shape[1], dtype=acts.dtype) for _ in range(3))
    momentum += 1
    for _ in range(_ROUNDS):
        pull = balance * (torch.sigmoid(code @ ahead + ahead_bias) - y) / rows
        moved = ahead - step * (back @ pull)
        new = moved.sign() * (moved.abs() - step * _L1).clamp_min(0)
        new_bias = ahead_bias - step * pull.sum(0)
        after = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        ratio = (momentum - 1) / after
        ahead, ahead_bias = new + ratio * (new - w), new_bias + ratio * (new_bias - bias)
        w, bias, momentum = new, new_bias, after
    return w.T
