"""What `sae eval` will measure, decided before anything is loaded: which autoencoders, which data, which tokens."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sae.config import EvalConfig, TextConfig
from sae.formats.find import find, local, meant_by, named
from sae.formats.format import StoredDictionary
from sae.formats.hub import fetch
from sae.runs.folder import RunRecord, fingerprints_in
from sae.storage.files import absolute, check_writable, is_new_or_empty, last_taken_and_next_free, without_dots

SAMPLE_TOKENS = 65_536
"""Tokens to measure on when there is no held-out set."""

_OF_THE_MACHINE = (
    "revision", "hf_token", "load_in_8bit", "attn_implementation", "data_preprocessing_num_proc", "device", "dtype",
)  # fmt: skip
_OF_THE_DATA = ("split", "text_column", "streaming", "ctx_len")


class EvalPlan(NamedTuple):
    """A choice that is complete."""

    folders: dict[str, dict[str, Path]]
    """Folders of the autoencoders, by the label of the checkpoint and the hookpoint."""
    text: TextConfig
    record: RunRecord | None
    """Record of the run whose held-out tokens are measured; None for a sample."""
    records: dict[str, RunRecord | None]
    """Records of the checkpoints, by the names that were given."""
    exclude_tokens: list[int]
    exclude_positions: list[int]
    seed: int
    max_tokens: int
    out: Path
    baselines: dict[str, Sequence[str]]
    """Kinds of baselines, by label, that are measured beside the dictionaries of the first checkpoint."""
    baselines_asked: bool
    """Whether baselines were asked for; with probes and absorption they come where they can."""

    @property
    def hookpoints(self) -> list[str]:
        """All hookpoints at which something is measured, each once."""
        return list(dict.fromkeys(hookpoint for folders in self.folders.values() for hookpoint in folders))


def plan_evaluation(cfg: EvalConfig, *, context_limit: Any) -> EvalPlan:
    """Find the checkpoints and complete the options by what the run recorded.

    `context_limit` maps a model's name to the length that it can read, or None. Raises ValueError in one line.
    """
    names = list(dict.fromkeys([cfg.checkpoint, *cfg.compare]))
    found = {name: _folder_and_dictionaries(name, cfg.hookpoints) for name in names}
    folders: dict[str, dict[str, Path]] = {}
    for name, (_, dictionaries) in found.items():
        folders |= _folders_by_label(name, dictionaries, cfg.hookpoints)
    # probes and absorption mean little alone
    beside = ["random", "pca"] * (cfg.probes is not None or cfg.absorption)
    kinds: Sequence[str] = list(dict.fromkeys(cfg.baselines)) or beside
    first = _folders_by_label(cfg.checkpoint, found[cfg.checkpoint][1], cfg.hookpoints) if kinds else {}
    records = {name: RunRecord.of(path) for name, (path, _) in found.items()}
    record = records[cfg.checkpoint]
    text = _text(cfg, record, context_limit)
    held_out = record if record is not None and _is_the_runs_data(text, record) else None
    options = record.options if record is not None else {}
    return EvalPlan(
        folders=folders,
        text=text,
        record=held_out,
        records=records,
        exclude_tokens=_given_or(cfg.exclude_tokens, options.get("exclude_tokens", [])),
        exclude_positions=_given_or(cfg.exclude_positions, options.get("exclude_positions", [])),
        seed=held_out.seed if held_out is not None else 42,
        max_tokens=_max_tokens(cfg, held_out, text.ctx_len),
        out=_free_folder(cfg, record),
        baselines=dict.fromkeys(first, kinds),
        baselines_asked=bool(cfg.baselines),
    )


class StabilityPlan(NamedTuple):
    """Dictionaries whose latents are to be compared."""

    folders: dict[str, dict[str, Path]]
    """Folders of the autoencoders, by the label of the checkpoint and the hookpoint."""
    first: set[str]
    """The labels of the checkpoint that was named first."""
    out: Path


def plan_stability(cfg: EvalConfig) -> StabilityPlan:
    """Find the checkpoints. Raises ValueError in one line."""
    path, dictionaries = _folder_and_dictionaries(cfg.checkpoint, cfg.hookpoints)
    first = _folders_by_label(cfg.checkpoint, dictionaries, cfg.hookpoints)
    found = dict(first)
    for name in cfg.stability:
        found |= _folders_by_label(name, _folder_and_dictionaries(name, cfg.hookpoints)[1], cfg.hookpoints)
    return StabilityPlan(found, set(first), _free_folder(cfg, RunRecord.of(path)))


def _folders_by_label(
    name: str, dictionaries: dict[str, StoredDictionary], hookpoints: Sequence[str]
) -> dict[str, dict[str, Path]]:
    """Folders of the dictionaries of the checkpoint `name` at `hookpoints`, by label and hookpoint.

    There is one label for each configuration that a run trained. Raises ValueError if no hookpoint is meant.
    """
    grouped: dict[str, dict[str, Path]] = {}
    meant, itself = meant_by(hookpoints, dictionaries) if hookpoints else set(dictionaries), local(name)
    for full, stored in dictionaries.items():
        group, _, hookpoint = full.rpartition("/")
        is_named = stored.relative == "." or (stored.path == itself and not stored.format.says_hookpoint)
        if is_named and len(hookpoints) == 1 and not _is_pattern(hookpoints[0]):
            hookpoint = hookpoints[0]  # the user says which hookpoint a dictionary has that was named itself
        elif full not in meant:
            continue
        grouped.setdefault(f"{name.rstrip('/')}/{group}".rstrip("/"), {})[hookpoint] = stored.path
    if not grouped:
        raise ValueError(
            f"hookpoints must name autoencoders of {name}, got {' '.join(hookpoints)}; "
            f"it has {', '.join(sorted(dictionaries)[:20])}"
        )
    return grouped


def _folder_and_dictionaries(name: str, hookpoints: Sequence[str]) -> tuple[Path, dict[str, StoredDictionary]]:
    """The folder of a checkpoint, and all dictionaries in it; of a hub repository only those at `hookpoints`."""
    if (folder := local(name)) is not None:
        return folder, find(folder)
    fetched = list(fetch(name, hookpoints or None).values())
    return fetched[0].root, named(fetched)  # by hookpoint, whatever they were called here


def _is_pattern(hookpoint: str) -> bool:
    return re.search(r"[*?\[]", hookpoint) is not None


def _runs_in(folder: Path) -> str:
    """The way to one run, in a folder of several; empty elsewhere."""
    run = next((step.parent for step in sorted(folder.glob("*/step_*"))), None)
    return "" if run is None else f"name one of the runs in it, such as {run}, or "


def _text(cfg: EvalConfig, record: RunRecord | None, context_limit: Any) -> TextConfig:
    """The data: what was given, else what the run recorded."""
    # A run that was started from Python knows its length of context, but not what its data is called.
    recorded = {"ctx_len": record.derived.get("ctx_len"), **record.options} if record is not None else {}
    for name in ("model", "dataset"):
        if not getattr(cfg, name) and not recorded.get(name):
            raise ValueError(
                f"{name.upper()} must be given, because {cfg.checkpoint} is of no run that recorded it; "
                f"{_runs_in(Path(cfg.checkpoint))}give CHECKPOINT MODEL DATASET"
            )
    model, dataset = cfg.model or recorded["model"], cfg.dataset or recorded["dataset"]
    if not _may_be_the_runs(dataset, "dataset", record):
        recorded = {name: value for name, value in recorded.items() if name == "ctx_len"}
    defaults = TextConfig()
    values = {name: _given_or(getattr(cfg, name), recorded.get(name, getattr(defaults, name))) for name in _OF_THE_DATA}
    if cfg.ctx_len is None and recorded.get("ctx_len") is None:
        values["ctx_len"] = min(defaults.ctx_len, context_limit(model) or defaults.ctx_len)
    shared = {name: getattr(cfg, name) for name in _OF_THE_MACHINE}
    if cfg.revision is None and _may_be_the_runs(model, "model", record):
        shared["revision"] = recorded.get("revision")
    shared |= _second(cfg, record)
    return TextConfig(model=model, dataset=dataset, **shared, **values)


def _second(cfg: EvalConfig, record: RunRecord | None) -> dict[str, Any]:
    """The second model, of a crosscoder of two: the one that was given, else the one of the run."""
    recorded = record.options if record is not None else {}
    model_b = _given_or(cfg.model_b, recorded.get("model_b"))
    is_the_runs = model_b is not None and _may_be_the_runs(model_b, "model_b", record)
    return {
        "model_b": model_b,
        "revision_b": _given_or(cfg.revision_b, recorded.get("revision_b") if is_the_runs else None),
    }


def _is_the_runs_data(text: TextConfig, record: RunRecord) -> bool:
    same = _may_be_the_runs(text.dataset, "dataset", record) and _may_be_the_runs(text.model, "model", record)
    as_read = all(getattr(text, name) == record.options.get(name) for name in _OF_THE_DATA)
    return same and as_read and isinstance(record.seed, int)


def may_have_seen(plan: EvalPlan) -> list[str]:
    """The checkpoints that may have been trained on the tokens that are measured."""
    return [name for name, record in plan.records.items() if not _held_these_out(plan, record)]


def _held_these_out(plan: EvalPlan, record: RunRecord | None) -> bool:
    if plan.record is None or record is None or record.seed != plan.seed:
        return False
    ours, theirs = plan.record.options, record.options
    same = all(theirs.get(name) == ours.get(name) for name in ("dataset", *_OF_THE_DATA))
    counts = [one.derived["held_out_sequences"] for one in (record, plan.record)]
    if record.held_out_by != plan.record.held_out_by or (record.held_out_by == "documents" and counts[0] != counts[1]):
        return False  # the runs hold out other sequences
    return same and counts[0] * plan.text.ctx_len >= plan.max_tokens


def _may_be_the_runs(name: str, option: str, record: RunRecord | None) -> bool:
    """Whether `name` may be what the run recorded as `option`: the same, or a copy under another path.

    A copy must be called alike, and be of a run with fingerprints, which decide later.
    """
    recorded = None if record is None else record.options.get(option)
    if record is None or not isinstance(recorded, str) or _same(name, recorded):
        return recorded is not None and _same(name, recorded)
    both_here = os.path.isabs(absolute(name)) and os.path.isabs(absolute(recorded))
    return both_here and bool(fingerprints_in(record.derived)) and Path(name).name == Path(recorded).name


def _same(one: str, other: str | None) -> bool:
    if other is None:
        return False
    if one == other or absolute(one) == absolute(other):
        return True
    return Path(one).exists() and Path(one).resolve() == Path(other).resolve()


def _given_or(given: Any, otherwise: Any) -> Any:
    return otherwise if given is None else given


def _max_tokens(cfg: EvalConfig, held_out: RunRecord | None, ctx_len: int) -> int:
    if held_out is None:
        return cfg.max_tokens or max(SAMPLE_TOKENS, ctx_len)
    recorded = int(held_out.derived["held_out_sequences"]) * ctx_len
    return min(recorded, cfg.max_tokens or recorded)


def _free_folder(cfg: EvalConfig, record: RunRecord | None) -> Path:
    """Where to write. Raises ValueError if --out is taken; else the next free name. Or if it cannot be written."""
    if cfg.out is not None:
        path = without_dots(cfg.out)
        check_writable("out", path)
        if not is_new_or_empty(path):
            raise ValueError(f"out must be a new or empty folder, got {cfg.out}; choose another --out")
        return path
    first = record.folder / "eval" if record is not None else Path(f"eval-{Path(os.path.abspath(cfg.checkpoint)).name}")
    _, path = last_taken_and_next_free(first)
    check_writable("out", path)
    return path
