"""Do our k-sparse probes give the AUC of sae-probes' own code? Two steps, as that package wants other versions of much.

    python -m benchmarks.quality.probes_agreement write STEP/HOOKPOINT FOLDER [TASK …]  # here, with sae-probes' files
    python -m benchmarks.quality.probes_agreement compare FOLDER                          # where sae-probes 0.4.2 runs

The first writes raw activations and codes of every task and our AUCs; the second takes the same arrays through that
package's split, ranking and regressions, and ends with 1 if a mean over tasks differs by more than 0.002.
"""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

TEXTS = 1000
SHORT = (
    "119_us_state_TX", "124_world_country_United_States", "115_nyc_borough_Brooklyn", "129_arith_mc_A", "96_spam_is",
    "92_glue_sst2", "75_cell-lines", "47_reasoning_tf",
)  # fmt: skip
"""Tasks of short texts."""
LIMIT = 0.002


def write(checkpoint: Path, folder: Path, names: list[str]) -> None:
    """Arrays and our AUCs of some tasks, one file each."""
    import torch

    from sae import Sae, lm
    from sae.data.labelled import probing_tasks
    from sae.evaluation.probes import last_tokens, raw_auc, sparse_aucs, split
    from sae.runs.folder import RunRecord

    sae, hookpoint, record = Sae.load_from_disk(checkpoint), checkpoint.name, RunRecord.of(checkpoint)
    assert record is not None, "the checkpoint must be of a run"
    name = record.options["model"]
    tokenizer = lm.load_tokenizer(name)
    model = lm.load_model(name, device="cpu", dtype=lm.compute_dtype(torch.device("cpu")))
    folder.mkdir(parents=True, exist_ok=True)
    for task in probing_tasks(names or SHORT, TEXTS):
        x = last_tokens(model, tokenizer, task.texts, [hookpoint], 16)[hookpoint]
        with torch.no_grad():
            acts, indices = sae.encode(x)
        y = np.array(task.labels, dtype=np.float64)
        train, test = split(y)
        ours = {k: auc.value for k, auc in sparse_aucs(acts, indices, y, train, test, sae.num_latents).items()}
        ours = {str(k): value for k, value in ours.items()} | {"raw": raw_auc(x.double().numpy(), y, train, test).value}
        dense = torch.zeros(len(x), sae.num_latents).scatter_add_(1, indices, acts)
        np.savez(folder / f"{task.name}.npz", x=x.numpy(), code=dense.numpy(), y=y, ours=json.dumps(ours))
        print(task.name, {k: round(value, 4) for k, value in ours.items()}, flush=True)


def compare(folder: Path) -> int:
    """Print the AUCs of both, task by task."""
    sys.path = [path for path in sys.path if not (Path(path or ".") / "sae" / "config").exists()]
    import torch
    from sae_probes.run_sae_evals import get_sorted_indices, mean_act_normalization
    from sae_probes.utils_data import get_train_test_indices
    from sae_probes.utils_training import find_best_reg

    differences: dict[str, list[float]] = {}
    for path in sorted(folder.glob("*.npz")):
        found: Any = SimpleNamespace(**np.load(path))
        ours = json.loads(str(found.ours))
        size = len(found.y)
        count = min(size - 100, 1024)
        train, test = get_train_test_indices(found.y, count, size - count - 1)
        y = torch.from_numpy(found.y).long()
        code = torch.from_numpy(found.code)
        order = get_sorted_indices(code[train], y[train], mean_act_normalization)
        for name, value in ours.items():
            if name == "raw":
                x, options = torch.from_numpy(found.x), {"penalty": "l2"}
            else:
                x, options = code[:, order[: int(name)]], {"penalty": "l1"}
            theirs = find_best_reg(x[train], y[train], x[test], y[test], seed=42, **options).metrics.test_auc
            differences.setdefault(name, []).append(value - theirs)
            print(f"{path.stem:<36} {name:>4} ours {value:.4f} theirs {theirs:.4f} {value - theirs:+.4f}", flush=True)
    means = {name: float(np.mean(each)) for name, each in differences.items()}
    print("mean difference", {name: f"{mean:+.4f}" for name, mean in means.items()})
    print("largest", {name: f"{max(map(abs, each)):.4f}" for name, each in differences.items()})
    return int(max(map(abs, means.values())) > LIMIT)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="what", required=True)
    writing = steps.add_parser("write")
    writing.add_argument("checkpoint", type=Path, metavar="STEP/HOOKPOINT")
    for step in (writing, steps.add_parser("compare")):
        step.add_argument("folder", type=Path)
    writing.add_argument("tasks", nargs="*", metavar="TASK")
    chosen = parser.parse_args()
    if chosen.what == "compare":
        sys.exit(compare(chosen.folder))
    write(chosen.checkpoint, chosen.folder, chosen.tasks)
