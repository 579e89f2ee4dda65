"""k-sparse probing: how well k latents, or the raw activations, tell two classes of texts apart.

The rule is that of sae-probes 0.4.2 (Kantamneni et al. 2025, arXiv:2502.16681), written anew. The code is the last
token's. Latents are ranked by |mean₁ − mean₀| over their mean when active. Logistic regression has an L1 penalty on the
first k latents, and an L2 penalty on raw activations. The AUC on the last rows of the training set chooses C. The AUC
on the test rows is reported.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from sae import lm
from sae.data.labelled import Task
from sae.data.tokenize import encode_once
from sae.dictionary.wiring import side_by_side
from sae.evaluation.logistic import STRENGTHS, Array, Auc, Fitted, fit_l1, fit_l2
from sae.evaluation.moments import mean_and_half
from sae.evaluation.targets import Dictionaries, Target, Targets, harvested, rows, targets

KS = (1, 2, 5, 16)
"""Numbers of latents that a probe may use."""
RAW = "raw activations"
"""Beginning of the label of probes on all dimensions of what dictionaries read."""
LONGEST = 1024
"""Tokens of a text that are read, the last ones."""
TRAIN, TEST, VALIDATION = 1024, 100, 100
"""Most rows to train on, fewest to test on (a third, if that is less), and training rows that choose C."""
SEED = 42
_TINY = 1e-6
AUC = "sae_top_{}_test_auc"
"""SAEBench's name, with the area under the curve in place of its accuracy."""
RAW_AUC = "llm_test_auc"


class Probed(NamedTuple):
    """The AUC of every probe."""

    tasks: dict[str, int]
    """Texts of each task."""
    by_task: dict[tuple[str, str], dict[str, dict[str, Auc]]]
    """AUC of each task, by label (or `RAW`) and hookpoint, and by metric."""

    def mean(self, key: tuple[str, str], metric: str) -> tuple[float, float]:
        """The mean over tasks, and half of its 95 % interval: over tasks, or of the only one."""
        found = list(self.by_task[key][metric].values())
        return mean_and_half([each.value for each in found], found[0].error)

    def difference(self, key: tuple[str, str], other: tuple[str, str], metric: str) -> tuple[float, float]:
        """Mean over tasks of one's advantage over the other, and half of its 95 % interval; NaN for one task."""
        own, theirs = self.by_task[key][metric], self.by_task[other][metric]
        return mean_and_half([own[task].value - theirs[task].value for task in self.tasks])

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        results: dict[str, dict[str, Any]] = {}
        for key, metrics in self.by_task.items():
            means = {metric: self.mean(key, metric) for metric in metrics}
            results.setdefault(key[0], {})[key[1]] = {
                "metrics": {metric: mean for metric, (mean, _) in means.items()},
                "intervals": {metric: (mean - half, mean + half) for metric, (mean, half) in means.items()},
                "by_task": {
                    metric: {task: auc._asdict() for task, auc in each.items()} for metric, each in metrics.items()
                },
            }
        return {"tasks": self.tasks, "results": results}


def probe(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[Task],
    dictionaries: Dictionaries,
    *,
    batch_size: int,
    done: Callable[[int], None] = lambda texts: None,
) -> Probed:
    """Train and test all probes; `done` gets the number of texts done. Raises ValueError for a text without tokens."""
    found, count = targets(dictionaries), 0
    raws = raw_targets(found)
    probed = Probed({task.name: len(task.texts) for task in tasks}, {})
    for task in tasks:
        acts = last_tokens(model, tokenizer, task.texts, harvested(found, rows(found).values()), batch_size)
        y = np.array(task.labels, dtype=np.float64)
        train, test = split(y)
        for key, target in raws.items():
            x = _read(target, acts).double().numpy()
            _add(probed, key, RAW_AUC, task, raw_auc(x, y, train, test))
        for label, of_one in found.items():
            for row, target in of_one.items():
                acts_of, indices = (each.cpu() for each in _encode(target, acts))
                for k, auc in sparse_aucs(acts_of, indices, y, train, test, target.sae.num_latents).items():
                    _add(probed, (label, row), AUC.format(k), task, auc)
        count += len(task.texts)
        done(count)
    return probed


def raw_targets(found: Targets) -> dict[tuple[str, str], Target]:
    """Targets whose reading is probed raw, by label and row: one for each row, or for each thing that is read there."""
    by_row: dict[str, dict[tuple[str, ...], Target]] = {}
    for of_one in found.values():
        for row, target in of_one.items():
            by_row.setdefault(row, {}).setdefault(target.reads, target)
    return {
        (RAW if len(each) == 1 else f"{RAW} of {', '.join(reads)}", row): target
        for row, each in by_row.items()
        for reads, target in each.items()
    }


def _read(target: Target, acts: Mapping[str, Tensor]) -> Float[Tensor, "rows d_in"]:
    return side_by_side({name: acts[name] for name in target.reads}, target.reads)


@torch.no_grad()
def _encode(target: Target, acts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    encoded = target.sae.encode(_read(target, acts).to(target.sae.device))
    return encoded.top_acts, encoded.top_indices


def _add(probed: Probed, key: tuple[str, str], metric: str, task: Task, auc: Auc) -> None:
    probed.by_task.setdefault(key, {}).setdefault(metric, {})[task.name] = auc


# Activations


def last_tokens(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], hookpoints: Sequence[str], batch_size: int
) -> dict[str, Float[Tensor, "texts _"]]:
    """The activations of each text's last token, float32 on the CPU, by hookpoint.

    Texts of one length run together, so that nothing is padded. The last `LONGEST` tokens of a longer text are read.
    """
    limit = min(LONGEST, lm.context_limit(model) or LONGEST)
    ids = [each[-limit:] for each in encode_once(tokenizer, texts)]
    if empty := [text for text, each in zip(texts, ids, strict=True) if not each]:
        raise ValueError(f"probes must have texts with tokens, got {empty[0][:40]!r}; leave it out")
    return activations_at(model, ids, hookpoints, batch_size)


def activations_at(
    model: nn.Module,
    ids: Sequence[Sequence[int]],
    hookpoints: Sequence[str],
    batch_size: int,
    *,
    back: int = 1,
    done: Callable[[int], None] = lambda sequences: None,
) -> dict[str, Float[Tensor, "sequences _"]]:
    """The activations of one token of each sequence, the one `back` from its end, float32 on the CPU, by hookpoint.

    Sequences of one length run together, so that nothing is padded. `done` gets the number of those that are done.
    """
    found: dict[str, list[Tensor]] = {hookpoint: [] for hookpoint in hookpoints}
    order, count = sorted(range(len(ids)), key=lambda index: len(ids[index])), 0
    for group in _batches(order, ids, batch_size):
        tokens = torch.tensor([ids[index] for index in group])
        for hookpoint, acts in lm.harvest(model, tokens, list(hookpoints)).items():
            found[hookpoint].append(acts[:, -back].float().cpu())
        count += len(group)
        done(count)
    places = torch.tensor(order).argsort()
    return {hookpoint: torch.cat(parts)[places] for hookpoint, parts in found.items()}


def _batches(order: Sequence[int], ids: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    for _, alike in groupby(order, key=lambda index: len(ids[index])):
        group = list(alike)
        yield from (group[start : start + batch_size] for start in range(0, len(group), batch_size))


# Rows


def split(y: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train and to test on, both half positive, drawn with the generator and in the order of sae-probes."""
    size, random = len(y), np.random.RandomState(SEED)
    train_size = min(size - min(TEST, size // 3), TRAIN)
    positive, negative = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    drawn: list[list[NDArray[np.int64]]] = []
    for wanted in (train_size, size - train_size - 1):
        first = random.choice(positive, -(-wanted // 2), replace=False)
        second = random.choice(negative, wanted - -(-wanted // 2), replace=False)
        positive, negative = np.setdiff1d(positive, first), np.setdiff1d(negative, second)
        drawn.append([first, second])
    train, test = (random.permutation(np.concatenate(each)) for each in drawn)
    return train, test


def _folds(y: Array) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to fit and to validate on: the last ones. With fewer than 128, each row validates once, in 6 parts of both
    classes.
    """
    count = len(y)
    if count >= 128:
        last = count - min(count // 5, VALIDATION)
        return [(np.arange(last), np.arange(last, count))]
    part = np.empty(count, dtype=np.int64)
    for label in (0, 1):
        part[y == label] = np.arange((y == label).sum()) % 6
    return [(np.flatnonzero(part != each), np.flatnonzero(part == each)) for each in range(6)]


# Probes


def sparse_aucs(
    acts: Float[Tensor, "rows width"],
    indices: Tensor,
    y: Array,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    num_latents: int,
) -> dict[int, Auc]:
    """The AUC on the rows `test` of probes on the first k latents in the ranking on `train`, for each k of `KS`."""
    chosen = rank_latents(acts[train], indices[train], torch.from_numpy(y[train]), num_latents)[: max(KS)]
    column = torch.full((num_latents,), -1)
    column[chosen] = torch.arange(len(chosen))
    dense = torch.zeros(len(acts), len(chosen) + 1)
    dense.scatter_add_(1, column[indices] % (len(chosen) + 1), acts.float())  # the last column: all others
    x = dense[:, :-1].double().numpy()

    def fit(rows: NDArray[np.int64], k: int, strengths: Array) -> Fitted:
        return fit_l1(x[rows, :k], y[rows], strengths)

    found = {}
    for k in (k for k in KS if k <= num_latents):
        aucs = [
            [Auc.of(scores, y[train[out]]).value for scores in fit(train[kept], k, STRENGTHS).scores(x[train[out], :k])]
            for kept, out in _folds(y[train])
        ]
        best = STRENGTHS[[int(np.mean(aucs, 0).argmax())]]
        found[k] = Auc.of(fit(train, k, best).scores(x[test, :k])[0], y[test])
    return found


def rank_latents(
    acts: Float[Tensor, "rows width"], indices: Tensor, y: Float[Tensor, "rows"], num_latents: int
) -> Tensor:
    """Latents by |mean₁ − mean₀| / mean when active, the largest first; the means of the classes are of all rows."""
    sums = torch.zeros(3, num_latents, dtype=torch.float64)
    values, flat = acts.double(), indices.flatten()
    for place, weight in enumerate((y == 1, y == 0, torch.ones_like(y))):
        entries = values if place < 2 else (values > 0).double()
        sums[place].index_add_(0, flat, (entries * weight.double().unsqueeze(1)).flatten())
    first, second, fired = sums
    active = (first + second) / (fired + _TINY)
    difference = first / (y == 1).sum() - second / (y == 0).sum()
    return (difference / (active + _TINY)).abs().argsort(descending=True, stable=True)


def raw_auc(x: Array, y: Array, train: NDArray[np.int64], test: NDArray[np.int64]) -> Auc:
    """The AUC on the rows `test` of a probe on all columns, with an L2 penalty."""
    if x.shape[1] > len(train):  # a penalised fit lies in the span of its rows
        x = x @ np.linalg.svd(x[train], full_matrices=False)[2].T
    aucs = []
    for kept, out in _folds(y[train]):
        scores = [fitted.scores(x[train[out]])[0] for fitted in _path(x[train[kept]], y[train[kept]])]
        aucs.append([Auc.of(each, y[train[out]]).value for each in reversed(scores)])
    best = float(STRENGTHS[int(np.mean(aucs, 0).argmax())])
    return Auc.of(fit_l2(x[train], y[train], best).scores(x[test])[0], y[test])


def _path(x: Array, y: Array) -> Iterable[Fitted]:
    """A fit for each C, the smallest first, each starting from the one before."""
    fitted: Fitted | None = None
    for strength in STRENGTHS[::-1]:
        fitted = fit_l2(x, y, float(strength), fitted)
        yield fitted
