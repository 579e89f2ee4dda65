"""k-sparse probes against dense computations: the activations, the ranking, the split, the scores."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from sae import Sae, SaeConfig, lm
from sae.data.labelled import Task, probing_tasks
from sae.evaluation.logistic import Auc
from sae.evaluation.moments import Z
from sae.evaluation.probes import KS, RAW, last_tokens, probe, rank_latents, raw_auc, sparse_aucs, split
from sae.report.probes import mean_rows, parts


def code(rows: int, latents: int, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A code (acts, indices) and the same dense; some entries did not fire."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randperm(latents, generator=generator)[:k] for _ in range(rows)])
    acts = torch.rand(rows, k, generator=generator).clamp_min(0.2).sub(0.2)
    return acts, indices, torch.zeros(rows, latents).scatter(1, indices, acts)


# Activations


def test_the_activations_are_those_of_each_texts_last_token_run_by_itself() -> None:
    model, tokenizer = tiny_model("gpt_neox"), tiny_tokenizer()
    texts = ["the dog", "over the lazy dog", "quick", "jumps over the fox", "the fox", "brown fox jumps"]
    found = last_tokens(model, tokenizer, texts, ["layers.0", "layers.2"], batch_size=2)
    for row, text in enumerate(texts):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        for hookpoint, acts in lm.harvest(model, ids, ["layers.0", "layers.2"]).items():
            torch.testing.assert_close(found[hookpoint][row], acts[0, -1].float(), atol=1e-5, rtol=1e-5)


def test_of_a_long_text_the_last_tokens_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.evaluation.probes.LONGEST", 3)
    model, tokenizer = tiny_model("gpt_neox"), tiny_tokenizer()
    (long,) = last_tokens(model, tokenizer, ["the quick brown fox jumps over"], ["layers.2"], 4)["layers.2"]
    ids = tokenizer("the quick brown fox jumps over")["input_ids"][-3:]
    expected = lm.harvest(model, torch.tensor([ids]), ["layers.2"])["layers.2"][0, -1]
    torch.testing.assert_close(long, expected.float(), atol=1e-5, rtol=1e-5)


# Rows and ranking


@pytest.mark.parametrize("size", [40, 128, 728, 1494, 5000])
def test_rows_to_train_and_to_test_on_are_apart_and_half_positive(size: int) -> None:
    y = np.array([0.0, 1.0] * (size // 2))
    train, test = split(y)
    assert not set(train) & set(test) and len(train) + len(test) == size - 1
    assert len(train) == min(size - min(100, size // 3), 1024) and y[train].sum() == -(-len(train) // 2)
    assert abs(y[test].sum() - len(test) / 2) <= 0.5


def test_latents_are_ranked_by_the_difference_of_means_over_the_mean_when_active() -> None:
    acts, indices, dense = code(90, 30, 6)
    dense[:, 3] = 0
    acts = torch.where(indices == 3, 0.0, acts)
    y = (torch.arange(90) % 3 == 0).double()
    active = torch.stack([column[column > 0].mean() if column.any() else torch.ones(()) for column in dense.T])
    expected = ((dense[y == 1].mean(0) - dense[y == 0].mean(0)) / active).abs()
    found = rank_latents(acts, indices, y, 30)
    assert found.tolist() == expected.argsort(descending=True, stable=True).tolist() and found[-1] == 3


# Probes


def test_one_latent_is_scored_by_itself_and_a_perfect_one_is_found() -> None:
    acts, indices, dense = code(600, 40, 5)
    y = np.array([0.0, 1.0] * 300)
    train, test = split(y)
    found = sparse_aucs(acts, indices, y, train, test, 40)
    assert list(found) == list(KS)
    best = rank_latents(acts[train], indices[train], torch.from_numpy(y[train]), 40)[0]
    alone = Auc.of(dense[test, best].double().numpy(), y[test])
    assert found[1].value in (pytest.approx(alone.value), pytest.approx(1 - alone.value), 0.5)
    told = torch.where((torch.from_numpy(y) == 1)[:, None], torch.tensor([0.9]), torch.tensor([0.0]))
    perfect = sparse_aucs(
        torch.cat([acts, told], 1), torch.cat([indices, torch.full((600, 1), 40)], 1), y, train, test, 41
    )
    assert all(auc.value > 0.999 for auc in perfect.values())


def test_raw_activations_of_any_width_are_probed_and_wider_ones_in_the_span_of_their_rows() -> None:
    rng = np.random.default_rng(0)
    y = np.array([0.0, 1.0] * 80)
    x = rng.normal(size=(160, 12)) + 0.7 * y[:, None] * (np.arange(12) < 3)
    train, test = split(y)
    narrow = raw_auc(x, y, train, test)
    assert 0.6 < narrow.value < 1
    turned = np.concatenate([x, np.zeros((160, 300))], 1) @ np.linalg.qr(rng.normal(size=(312, 312)))[0]
    assert raw_auc(turned, y, train, test).value == pytest.approx(narrow.value, abs=1e-6)


def test_means_intervals_and_differences_are_over_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.evaluation.probes.KS", (1, 2))
    model, tokenizer = tiny_model("gpt_neox"), tiny_tokenizer()
    texts = [f"the {'quick fox' if i % 2 else 'lazy dog'} {i % 7}" for i in range(80)]
    tasks = [
        Task(name, texts, [bool(i // size % 2) for i in range(80)]) for name, size in (("a", 1), ("b", 2), ("c", 4))
    ]
    saes = {label: {"layers.1": Sae(32, SaeConfig(num_latents=64, k=8))} for label in ("one", "two")}
    told: list[int] = []
    found = probe(model, tokenizer, tasks, saes, batch_size=8, done=told.append)
    assert told == [80, 160, 240] and found.tasks == {"a": 80, "b": 80, "c": 80}
    values = [auc.value for auc in found.by_task["one", "layers.1"]["sae_top_2_test_auc"].values()]
    mean, half = found.mean(("one", "layers.1"), "sae_top_2_test_auc")
    assert mean == pytest.approx(np.mean(values)) and half == pytest.approx(Z * np.std(values, ddof=1) / 3**0.5)
    others = [auc.value for auc in found.by_task["two", "layers.1"]["sae_top_2_test_auc"].values()]
    difference, _ = found.difference(("one", "layers.1"), ("two", "layers.1"), "sae_top_2_test_auc")
    assert difference == pytest.approx(np.mean(values) - np.mean(others))
    assert json.dumps(found.to_json())


def test_raw_activations_are_those_that_each_dictionary_reads_where_they_read_different_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sae.evaluation.probes.KS", (1,))
    model, tokenizer = tiny_model("gpt_neox"), tiny_tokenizer()
    texts = [f"the {'quick fox' if i % 2 else 'lazy dog'} {i % 7}" for i in range(32)]
    task = Task("a", texts, [bool(i // 4 % 2) for i in range(32)])
    plain = {"layers.1.mlp": Sae(32, SaeConfig(num_latents=64, k=8))}
    reading_input = {"layers.1.mlp": Sae(32, SaeConfig(num_latents=64, k=8, transcode=True), d_out=32)}
    alone = [probe(model, tokenizer, [task], {"one": saes}, batch_size=8) for saes in (plain, reading_input)]
    both = probe(model, tokenizer, [task], {"one": plain, "two": reading_input}, batch_size=8)
    assert {label for label, _ in both.by_task} == {
        "one", "two", "raw activations of layers.1.mlp", "raw activations of layers.1.mlp.input",
    }  # fmt: skip
    for one, reads in zip(alone, ("layers.1.mlp", "layers.1.mlp.input"), strict=True):
        expected = one.by_task[RAW, "layers.1.mlp"]
        assert both.by_task[f"{RAW} of {reads}", "layers.1.mlp"] == expected
    assert alone[0].by_task[RAW, "layers.1.mlp"] != alone[1].by_task[RAW, "layers.1.mlp"]
    assert [row[1] for row in mean_rows(both, {})][:2] == ["one", "two"] and "against" in "".join(parts(both, {}))


# Data sets


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pyarrow.output_stream(str(path), compression="zstd") as stream:
        stream.write(text.encode())


def test_the_packages_data_sets_are_read_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "sae_probes" / "data"
    kinds = [("1_a", "Binary Classification"), ("2_b", "Continuous Data"), ("3_c", "Binary Classification")]
    listed = "".join(f"cleaned_data/{name}.csv,{kind}\n" for name, kind in kinds)
    write(data / "probing_datasets_MASTER.csv.zst", f"Dataset save name,Data type\n{listed}")
    for name in ("1_a", "3_c"):
        rows = "".join(f'"text, {i}",{"yes" if i < 30 else "no"}\n' for i in range(70))
        write(data / "cleaned_data" / f"{name}.csv.zst", f"prompt,target\n{rows}")
    (tmp_path / "sae_probes" / "__init__.py").write_text("raise ImportError('heavy')")
    monkeypatch.syspath_prepend(tmp_path)
    assert not isinstance(sys.modules.get("sae_probes"), ModuleType)
    tasks = probing_tasks([])
    assert [task.name for task in tasks] == ["1_a", "3_c"]
    assert len(tasks[0].texts) == 60 and sum(tasks[0].labels) == 30 and tasks[0].texts[0] == "text, 0"
    assert tasks[0].labels[0] and not tasks[0].labels[-1]
    assert [task.name for task in probing_tasks(["3_c"])] == ["3_c"]
    few = probing_tasks(["1_a"], 40)[0]
    assert len(few.texts) == 40 and few.texts[20] == "text, 30"
    with pytest.raises(ValueError, match="got 9_z; there are 1_a, 3_c"):
        probing_tasks(["9_z"])
