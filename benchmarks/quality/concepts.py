"""Are the latents concepts? k-sparse probes and stability of what `benchmarks.quality.members` has trained and saved.

    python -m benchmarks.quality.concepts benchmarks/results/X-members.json --layers 9 20 --probe_texts 200

Probes are those of `sae eval --probes` (sae-probes' 113 tasks), of every member's best dictionary, of random rows and
of PCA. Everybody is measured at an L0 of k. One pass of the language model over the texts serves all dictionaries; its
last tokens' activations stay under benchmarks/.cache/. Stability is the PW-MCC of the dictionaries of two seeds. Found
numbers go into the same file, beside the rows; what it has is not measured again.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import CACHE
from benchmarks.harness import inputs, machine
from benchmarks.harness.language_models import load
from benchmarks.harness.shapes import Cell
from benchmarks.quality.data import LAYERS, Source
from benchmarks.quality.grid import Rows
from benchmarks.quality.members import Row, best_of, cells_of, folder_of, key_of, with_l0
from sae import Sae
from sae.data.labelled import Task, probing_tasks
from sae.evaluation.baselines import baselines
from sae.evaluation.matching import match
from sae.evaluation.moments import mean_and_half
from sae.evaluation.probes import KS, last_tokens, raw_auc, sparse_aucs, split
from sae.lm import compute_dtype, load_tokenizer

OURS = "sae "
"""How the names of our members begin."""
RAW = "raw activations"
FIT_ON = 16_384
"""Test tokens that the baselines are fitted to."""
Aucs = dict[str, dict[str, float]]
"""AUC by the number of latents, or `RAW`, and by task."""


class LastTokens:
    """The last tokens' activations of the tasks' texts at the chosen blocks, kept on disk."""

    def __init__(self, layers: Sequence[int], texts: int) -> None:
        self._layers, self._folder = layers, CACHE / "quality" / "english" / f"last-tokens-{texts}"
        self._model: tuple[Any, Any] | None = None

    def of(self, task: Task) -> dict[int, Tensor]:
        """By block, (texts, d_in) in float32."""
        paths = {layer: self._folder / f"{task.name}-layers.{layer}.npy" for layer in self._layers}
        if not all(path.exists() for path in paths.values()):
            self._folder.mkdir(parents=True, exist_ok=True)
            model, tokenizer = self._loaded()
            found = last_tokens(model, tokenizer, task.texts, [f"layers.{layer}" for layer in paths], 16)
            for layer, path in paths.items():
                np.save(path, found[f"layers.{layer}"].numpy())
        return {layer: torch.from_numpy(np.load(path)) for layer, path in paths.items()}

    def _loaded(self) -> tuple[Any, Any]:
        if self._model is None:
            device = torch.device("cpu")
            model = load(str(inputs.model_folder()), device, compute_dtype(device))
            self._model = model, load_tokenizer(str(inputs.gguf()))
        return self._model


def dictionaries(rows: Sequence[Row], cell: Cell) -> dict[str, Sae]:
    """The best dictionary of each member at an L0 of k, and two that nobody trained."""
    source = Source(cell.text, cell.layer)
    found = {name: _at_k(row, source.validation(), cell) for name, row in best_of(rows, cell).items()}
    first = next(iter(found.values()))
    place = f"layers.{cell.layer}"
    made = baselines(["random", "pca"], {place: first}, {place: source.test()[:FIT_ON]})
    return found | {name: saes[place] for name, saes in made.items()}


def _at_k(row: Row, validation: Tensor, cell: Cell) -> Sae:
    return with_l0(Sae.load_from_disk(folder_of(row)), validation, cell.k)


def short_tasks(texts: int, most: int) -> list[Task]:
    """The tasks of sae-probes whose texts have at most so many characters in the mean."""
    return [task for task in probing_tasks([], texts) if sum(map(len, task.texts)) <= most * len(task.texts)]


def probe(rows: Rows, cells: Sequence[Cell], texts: int, most: int) -> None:
    """Probe each dictionary that has not been probed, and keep the numbers as they come."""
    tasks = short_tasks(texts, most)
    kept = LastTokens(sorted({cell.layer for cell in cells}), texts)
    for cell in cells:
        known = probes_of(rows, cell, texts)
        found: dict[str, Sae | None] = dictionaries(rows.content["rows"], cell) | {RAW: None}
        for name, sae in found.items():
            label = stamp(rows, cell, name)
            if label not in known:
                started, aucs = time.perf_counter(), probed(sae, cell.layer, tasks, kept)
                rows.merge("probes", [{"cell": _name(cell), "texts": texts, "label": label, "aucs": aucs}])
                print(f"block {cell.layer}, {label}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


@torch.no_grad()
def probed(sae: Sae | None, layer: int, tasks: Sequence[Task], kept: LastTokens) -> Aucs:
    """AUC on the test texts of each task: on the first k latents, or without a dictionary on all dimensions."""
    aucs: Aucs = {}
    for task in tasks:
        x, y = kept.of(task)[layer], np.array(task.labels, dtype=np.float64)
        if sae is None:
            aucs.setdefault(RAW, {})[task.name] = round(raw_auc(x.double().numpy(), y, *split(y)).value, 4)
            continue
        for k, auc in sparse_aucs(*sae.encode(x), y, *split(y), sae.num_latents).items():
            aucs.setdefault(str(k), {})[task.name] = round(auc.value, 4)
    return aucs


def _name(cell: Cell) -> str:
    return "-".join(str(value) for value in vars(cell).values())


def stamp(rows: Rows, cell: Cell, name: str) -> str:
    """A label that says at which rate it was trained, as another may become the best."""
    row = best_of(rows.content["rows"], cell).get(name)
    return name if row is None else f"{name} × {row['multiple']:g}"


def probes_of(rows: Rows, cell: Cell, texts: int) -> dict[str, Aucs]:
    """What is known of a cell, by label."""
    kept = rows.content.get("probes", [])
    return {each["label"]: each["aucs"] for each in kept if (each["cell"], each["texts"]) == (_name(cell), texts)}


def stability(rows: Rows, cells: Sequence[Cell]) -> None:
    """PW-MCC of each member's dictionaries of the first two seeds."""
    known = {(each["cell"], each["label"]) for each in rows.content.get("stability", [])}
    for cell in cells:
        for name, row in best_of(rows.content["rows"], cell).items():
            label = stamp(rows, cell, name)
            others = [each for each in rows.content["rows"] if _differ_in_seed(each, row)]
            if others and (_name(cell), label) not in known:
                first, second = (Sae.load_from_disk(folder_of(each)).W_dec for each in (row, others[0]))
                cosines = match(first, second).cosines
                shared = float((cosines >= 0.7).mean())
                found = {"pw_mcc": round(float(cosines.mean()), 4), "at_least_0.7": round(shared, 4)}
                rows.merge("stability", [{"cell": _name(cell), "label": label} | found])


def _differ_in_seed(one: Row, other: Row) -> bool:
    same = key_of(one)[:-1] == key_of(other)[:-1] and one["multiple"] == other["multiple"]
    return same and one["seed"] != other["seed"] and "at_k" in one


def difference(first: dict[str, float], second: dict[str, float]) -> tuple[float, float]:
    """The mean over tasks of one's advantage in AUC, and half of its 95 % interval."""
    return mean_and_half([first[task] - second[task] for task in first])


def table(rows: Rows, cell: Cell, texts: int) -> Iterator[str]:
    """Mean AUC of every dictionary, and the advantage of ours over the best peer at each k, task by task."""
    known = probes_of(rows, cell, texts)
    if not known:
        return
    tasks = len(next(iter(known.values()))[str(KS[0])])
    yield f"| block {cell.layer}, {tasks} tasks | " + " | ".join(f"k = {k}" for k in KS) + " | PW-MCC | ≥ 0.7 |"
    yield "|---|" + "---:|" * (len(KS) + 2)
    stable = {each["label"]: each for each in rows.content.get("stability", []) if each["cell"] == _name(cell)}
    labels = [stamp(rows, cell, name) for name in best_of(rows.content["rows"], cell)]
    shown = [label for label in (*labels, *(each for each in known if "×" not in each)) if label in known]
    for label in shown:
        aucs, of = known[label], stable.get(label)
        if label == RAW:
            mean = float(np.mean(list(aucs[RAW].values())))
            yield f"| {RAW}, all dimensions | " + " | " * (len(KS) - 1) + f"{mean:.4f} | | |"
            continue
        means = " | ".join(f"{np.mean(list(aucs[str(k)].values())):.4f}" for k in KS)
        both = f"{of['pw_mcc']:.3f} | {of['at_least_0.7']:.1%}" if of else " | "
        yield f"| {label} | {means} | {both} |"
    peers = [label for label in shown if "×" in label and not label.startswith(OURS)]
    for label in (label for label in shown if label.startswith(OURS)) if peers else ():
        columns = []
        for k in map(str, KS):
            against = max(peers, key=lambda each: float(np.mean(list(known[each][k].values()))))
            mean, half = difference(known[label][k], known[against][k])
            columns.append(f"{mean:+.4f} ± {half:.4f}")
        yield f"| {label} − the best peer at that k | " + " | ".join(columns) + " | | |"


def main() -> None:
    """Probe, compare seeds, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="what benchmarks.quality.members has written")
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS, choices=LAYERS)
    parser.add_argument("--probe_texts", type=int, default=200)
    parser.add_argument("--longest", type=int, default=10**9, help="leave out tasks of longer texts, in characters")
    parser.add_argument("--only_texts", action="store_true", help="the pass of the language model, and nothing else")
    parser.add_argument("--show", action="store_true", help="print the tables of the file, and measure nothing")
    parser.add_argument("--threads", type=int, default=machine.available_cores())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.only_texts:
        kept = LastTokens(chosen.layers, chosen.probe_texts)
        for task in short_tasks(chosen.probe_texts, chosen.longest):
            kept.of(task)
        return
    rows = Rows(chosen.file)
    cells = [cell for cell in cells_of(rows.content["rows"]) if cell.layer in chosen.layers]
    if not chosen.show:
        stability(rows, cells)
        probe(rows, cells, chosen.probe_texts, chosen.longest)
    for cell in cells:
        print("\n".join([*table(rows, cell, chosen.probe_texts), ""]))


if __name__ == "__main__":
    main()
