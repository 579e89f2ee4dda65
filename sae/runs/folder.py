"""The folder of a run: where it is, whether it is free, and config.json, which says how to repeat the run."""

import hashlib
import json
import math
import os
import platform
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sae.config import RunConfig, TrainConfig
from sae.storage.files import (
    MANIFEST,
    absolute,
    check_writable,
    free_bytes,
    is_here,
    last_taken_and_next_free,
    link_that_leaves,
    newest_step,
    read_json,
    short,
    without_dots,
    write_json,
)
from sae.storage.lock import alone_in, check_unlocked, holds_nothing

_CODE = {".py", ".c", ".h"}
"""Suffixes of the files that decide the result."""
_COMPILER = "C compiler"
_OF_WANDB = ("wandb",)
"""Folder in a run's that Weights & Biases writes, with links to its logs in the user's cache."""
_PACKAGES = ("sae", "torch", "transformers", "datasets", "tokenizers", "safetensors", "numpy")
Cfg = TypeVar("Cfg", bound=TrainConfig)
_SECRET = "hf_token"
_HELD_OUT = "held_out_sequences"
_FINGERPRINTS = "fingerprints"
_SOURCES = {"model": "model", "model_b": "model_b", "held_out": "dataset", "activations": "activations"}
"""The option that names each fingerprint's subject."""
_PATHS = ("model", "model_b", "dataset", "finetune", "activations")
"""Options that may name a file or a folder."""
_STEP = re.compile(r"step_\d+")
_SIZES_OF_A_STEP = ("batches_per_step", "steps_per_batch")
_FREE_TO_CHANGE = (
    "resume", "resume_changed", "run_name", "save_dir", "save_every", "keep_last", "save_best", "eval_every",
    "log_to_wandb", "log_every", "distribute_layers", "shard_latents",
    "data_preprocessing_num_proc",
)  # fmt: skip
_MAY_CHANGE = (
    "model", "dataset", "revision", "device", "attn_implementation", "compile_lm", "load_in_8bit", "dtype", "finetune",
    "max_tokens", "lr", "lr_warmup_steps", "auxk_alpha", "dead_feature_threshold", "micro_acc_steps", "exclude_tokens",
    "exclude_positions", "activations", "model_b", "revision_b",
)  # fmt: skip
"""Options that --resume_changed may name: the saved state does not depend on them. docs/reliability.md has their
effects."""


class RunFolder(NamedTuple):
    """`<save_dir>/<run_name>`. Planned before any work, claimed when training starts."""

    path: Path
    keep_last: int | None = None
    """How many of the newest checkpoints stay; None: all."""

    @property
    def metrics(self) -> Path:
        """One JSON object a line: the metrics of each log step."""
        return self.path / "metrics.jsonl"

    @classmethod
    def plan(cls, cfg: TrainConfig, *, model_name: str = "") -> "RunFolder":
        """Choose the folder, and check that it is free, or can be resumed. Touches nothing.

        Raises ValueError for a named folder that holds another run, and for a run that cannot be resumed with these
        options. So it does for a folder that cannot be written or that another process writes into. An unnamed run
        takes the next free name; resumed, the last one taken.
        """
        save_dir = without_dots(cfg.save_dir)
        if cfg.run_name is not None:
            path = save_dir / cfg.run_name
        else:
            taken, free = last_taken_and_next_free(save_dir / derived_name(cfg, model_name))
            path = taken if cfg.resume else free
        check_unlocked(path)
        if cfg.resume:
            _check_resumable(path, cfg)
        else:
            check_free(path)
        check_writable("save_dir", path)
        return cls(path)

    def sized(self, cfg: TrainConfig, *, model_name: str = "", checkpoint_bytes: int, total_steps: int) -> "RunFolder":
        """The folder of a run whose size and length are now known. Touches nothing.

        An unnamed run whose folder another one has taken meanwhile takes the next free name. Raises ValueError for too
        little space.
        """
        path, save_dir = self.path, without_dots(cfg.save_dir)
        if cfg.run_name is None and not cfg.resume and path.exists():
            _, path = last_taken_and_next_free(save_dir / derived_name(cfg, model_name))
        space = free_bytes(save_dir)
        _check_space(save_dir, space, checkpoint_bytes)
        if cfg.resume and cfg.keep_last is None:
            return RunFolder(path, _kept_before(path))
        planned = math.ceil(total_steps / cfg.save_every)
        return RunFolder(path, cfg.keep_last or checkpoints_to_keep(planned, checkpoint_bytes, space))

    def alone(self, tell: Callable[[str], None]) -> AbstractContextManager[None]:
        """Create the folder, and be the only process that writes into it. Raises ValueError if another process does."""
        self.path.mkdir(parents=True, exist_ok=True)
        return alone_in(self.path, tell=tell)

    def claim(self, cfg: TrainConfig, derived: dict[str, Any], compiler: str = "") -> None:
        """Create the folder and write config.json; when resuming, write into it which options changed.

        `compiler` is what has compiled the passes that train, as it calls itself, or "none"; empty on a GPU. Raises
        ValueError if another run took the folder meanwhile.
        """
        if cfg.resume:
            self._note_changes(cfg, derived, compiler)
            return
        check_free(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        derived |= {"keep_last": self.keep_last}
        document = {"options": _options(cfg), "derived": derived, "versions": versions(compiler)}
        here = {"command": command(), "folder": str(self.path.absolute()), "launch": _launch()}
        write_json(self.path / "config.json", document | here)

    def _note_changes(self, cfg: TrainConfig, derived: dict[str, Any], compiler: str) -> None:
        path = self.path / "config.json"
        document = read_json(path)
        changed = _changes(_located(document["options"], self.path, document), cfg)
        if changed:
            document["options"] |= {name: now for name, (_, now) in changed.items()}
            document["derived"] = derived | {"keep_last": self.keep_last}
            document["changes"] = [*document.get("changes", []), changed]
        recorded, now = document.get("derived"), derived.get(_FINGERPRINTS)
        replaced = isinstance(recorded, dict) and now is not None and recorded.get(_FINGERPRINTS) != now
        if isinstance(recorded, dict) and replaced:
            recorded[_FINGERPRINTS] = now
        if other := _other_versions(document, compiler):
            now_here = versions(compiler)
            document["changes"] = [*document.get("changes", []), {"versions": [dict(document["versions"]), now_here]}]
            document["versions"] |= now_here  # of a compiler that is not needed here nothing is said: its name stays
        if changed or replaced or other:
            write_json(path, document)

    def other_versions(self, compiler: str = "") -> list[str]:
        """A sentence if the run that is resumed was made by other versions of what decides its bits."""
        other = _other_versions(_config(self.path), compiler)
        told = ", ".join(f"{name} {short(before)} (now {now})" for name, (before, now) in other.items())
        return [f"the run was made with {told}: what comes now may differ from what those would have made"] * bool(told)


def continue_after_restart(cfg: Cfg, model_name: str, *, restarted: bool) -> Cfg:
    """`cfg`, with `resume` if torchrun started the processes anew (`restarted`) and the run is there already."""
    if cfg.resume or not restarted:
        return cfg
    resumed = replace(cfg, resume=True)
    try:
        path = RunFolder.plan(resumed, model_name=model_name).path
    except ValueError:
        return cfg  # it had not begun
    return resumed if _config(path).get("launch") == _launch() else cfg


def derived_before(cfg: TrainConfig, path: Path) -> dict[str, Any]:
    """What the run in `path`, if it is resumed, derived from model and data, as its config.json says; else nothing.

    Raises ValueError if that does not say it, or in another way than it was written.
    """
    if not cfg.resume:
        return {}
    found = _config(path).get("derived")
    derived: dict[str, Any] = found if isinstance(found, dict) else {}
    sizes = [derived.get(name, 1) for name in _SIZES_OF_A_STEP]
    if not derived or any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError(
            f"resume must name a run whose config.json says what was derived, {' and '.join(_SIZES_OF_A_STEP)} as "
            f"positive numbers, but that of {path} does not; write it anew, or leave out --resume"
        )
    return derived


def check_sources(before: dict[str, Any], now: dict[str, str], cfg: TrainConfig) -> list[str]:
    """Sentences about what has been replaced since the run that is resumed began; `before` is what it derived then.

    Raises ValueError for a model or data that --resume_changed does not name.
    """
    recorded = fingerprints_in(before)
    if not recorded:
        return ["the run does not say which model and data it had, as newer ones do: taking it that they are the same"]
    replaced = [_SOURCES[name] for name in _SOURCES if not may_be_same(recorded.get(name, ""), now.get(name, ""))]
    refused = [name for name in replaced if name not in cfg.resume_changed]
    if refused:
        told = " ".join(dict.fromkeys([*cfg.resume_changed, *refused]))
        raise ValueError(
            f"resume must go on with what the run had, but the {' and the '.join(refused)} of that name now holds "
            "something else, other weights or tokens; bring the old back, or begin a new run, with --finetune, or tell "
            f"that it is meant: --resume_changed {told}"
        )
    return [f"the {name} holds something else than before, as told" for name in replaced]


def fingerprints_in(derived: dict[str, Any]) -> dict[str, str]:
    """Fingerprints of a run's model and data, as its record has them; empty for an older record, or none."""
    found = derived.get(_FINGERPRINTS)
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}


def may_be_same(one: str, other: str) -> bool:
    """Whether two fingerprints are equal, or cannot be compared: one is missing, or is of another kind."""
    return not one or not other or one == other or one.partition("-")[0] != other.partition("-")[0]


def _launch() -> str | None:
    """torchrun's name of this job (--rdzv_id)."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def _config(path: Path) -> dict[str, Any]:
    return read_json(path / "config.json")


def _options(cfg: TrainConfig) -> dict[str, Any]:
    """Options as they are recorded: without the token, and with paths that lead to the same from anywhere."""
    options = {name: value for name, value in asdict(cfg).items() if name != _SECRET}
    return options | {name: absolute(options[name]) for name in _PATHS if isinstance(options.get(name), str)}


def _located(options: dict[str, Any], folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    """The options that `document`, in the folder of a run, records; with paths that lead to what they led to then.

    The run's folder may have been moved together with what they name. Older versions recorded paths as they were given,
    from the folder where the run was started.
    """
    paths = {name: options[name] for name in _PATHS if isinstance(options.get(name), str)}
    written_in = document.get("folder")
    if not isinstance(written_in, str):
        start = _start_of(options, folder)
        moved = {name: os.path.join(start, os.path.expanduser(path)) for name, path in paths.items()}
        return options | {name: path for name, path in moved.items() if is_here(path)}
    lost = {name: path for name, path in paths.items() if os.path.isabs(path) and not is_here(path)}
    moved = {n: os.path.abspath(os.path.join(folder, os.path.relpath(p, written_in))) for n, p in lost.items()}
    return options | {name: path for name, path in moved.items() if is_here(path)}


def _start_of(options: dict[str, Any], folder: Path) -> str:
    """The folder that a run of an older version was started from, by its save_dir, if that is relative."""
    save_dir, name = (str(options.get(key) or "") for key in ("save_dir", "run_name"))
    depth = len(Path(save_dir).parts) + max(1, len(Path(name).parts))
    return os.path.abspath(os.path.join(folder, *[".."] * depth))


def _from_here(options: dict[str, Any]) -> dict[str, Any]:
    """Options whose paths are short where they lead below the current folder."""
    here = os.path.join(os.getcwd(), "")
    paths = {name: options[name] for name in _PATHS if isinstance(options.get(name), str)}
    below = {n: path.removeprefix(here) for n, path in paths.items() if path.startswith(here) and is_here(path)}
    return options | below


def _changes(before: dict[str, Any], cfg: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Old and new value of each option that decides the result and differs; new options had their default."""
    now, default = (json.loads(json.dumps(_options(config))) for config in (cfg, type(cfg)()))
    pairs = {
        name: (_completed(before.get(name, default[name]), default[name]), now[name])
        for name in now
        if name not in _FREE_TO_CHANGE
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and not _leads_to(name, *pair)}


def _leads_to(name: str, before: Any, now: Any) -> bool:
    """Whether a path is another spelling of the recorded one, of which nothing may be left."""
    if name not in _PATHS or not isinstance(before, str) or not isinstance(now, str):
        return False
    return os.path.abspath(os.path.expanduser(now)) == before


def _completed(before: Any, default: Any) -> Any:
    """A group of options, or several, completed with the defaults of those that the run did not know yet."""
    if isinstance(before, list):
        return [_completed(each, default) for each in before]
    return default | before if isinstance(before, dict) and isinstance(default, dict) else before


def _single(name: str, pair: tuple[Any, Any]) -> dict[str, tuple[Any, Any]]:
    """Differences by option; those in a group of options each by itself."""
    before, now = pair
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return {name: pair}
    # Names are our own: those that a file brings may say anything.
    return {key: (before.get(key), now[key]) for key in now if before.get(key) != now[key]} or {name: pair}


def _check_resumable(path: Path, cfg: TrainConfig) -> None:
    """Raise ValueError unless `path` holds a run with the options of `cfg`, but for those that do not matter."""
    if not os.path.lexists(path / "config.json"):
        raise ValueError(
            f"resume must name a run, but {path} holds none (no config.json); "
            "check --run_name and --save_dir, or leave out --resume"
        )
    try:
        document = read_json(path / "config.json")
        if not isinstance(document["options"], dict) or not isinstance(document.get("changes", []), list):
            raise TypeError
        changed = _changes(_located(document["options"], path, document), cfg)
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = str(error) if isinstance(error, OSError | ValueError) else f"{path}/config.json records no options"
        raise ValueError(f"resume must name a run with its record, but {why}{_copy_of_record(path)}") from None
    if link := link_that_leaves(path, within=_OF_WANDB):
        raise ValueError(f"resume must name a run that lies in its folder, but {link} leads out of it; move it there")
    for name in cfg.resume_changed:
        if name not in _MAY_CHANGE:
            raise ValueError(f"resume_changed must name options that can change ({', '.join(_MAY_CHANGE)}), got {name}")
    refused = [n for n, pair in changed.items() if n not in cfg.resume_changed or not _can_change(n, pair)]
    if refused:
        pairs = {key: pair for name in refused for key, pair in _single(name, changed[name]).items()}
        was = ", ".join(f"{name} was {short(before)} and is {short(now)}" for name, (before, now) in pairs.items())
        can_change = all(_can_change(name, changed[name]) for name in refused)
        told = f", or tell that it is meant: --resume_changed {' '.join(changed)}" if can_change else ""
        raise ValueError(
            f"resume must not change what is computed, but {was}; use the options of {path}/config.json{told}"
        )


def _can_change(name: str, pair: tuple[Any, Any]) -> bool:
    """Whether --resume_changed may tell of this change: how k grows follows from whether there was a `finetune`."""
    return name in _MAY_CHANGE and not (name == "finetune" and None in pair)


def _kept_before(path: Path) -> int | None:
    """The run's earlier decision on keep_last."""
    derived = read_json(path / "config.json").get("derived")
    kept = derived.get("keep_last") if isinstance(derived, dict) else None
    return kept if type(kept) is int and kept > 0 else None


def check_free(path: Path) -> None:
    """Raise ValueError if `path` exists and holds anything."""
    if path.exists() and not (path.is_dir() and holds_nothing(path)):
        raise ValueError(
            f"the run's folder must be new or empty, but {path} already holds a run; "
            "choose another --run_name or --save_dir, or move the old run away"
        )


class RunRecord(NamedTuple):
    """Record, in config.json, of the run that a checkpoint comes from."""

    folder: Path
    options: dict[str, Any]
    """Options of the run; those of the data are the cache's, if it read one."""
    derived: dict[str, Any]

    @property
    def seed(self) -> Any:
        """Seed of the order of the data, whose beginning is held out."""
        return self.derived.get("data_seed", self.options.get("seed"))

    @property
    def held_out_by(self) -> str:
        """Kind of what was held out: whole `documents`, or `sequences`, as in earlier versions."""
        return "documents" if self.derived.get("held_out_by") == "documents" else "sequences"

    @classmethod
    def of(cls, checkpoint: Path) -> "RunRecord | None":
        """The record of the run that this folder of a run, of a step or of one autoencoder belongs to, if there is one.

        Other tools write a config.json too: it is a record only if it says what we write. That of a step is a copy, and
        counts where the run is not around it. Raises ValueError naming a record that is damaged, or what it says in a
        way that we do not.
        """
        for folder in _folders_of_run(checkpoint.absolute()):
            document = _recorded_in(folder)
            options, derived = document.get("options"), document.get("derived")
            if isinstance(options, dict) and isinstance(derived, dict) and _HELD_OUT in derived:
                read_with = derived.get("read_with", {})
                _check_record(folder / "config.json", options, derived, read_with)
                here = Path.cwd()
                options = _from_here(_located(options | read_with, folder, document))
                return cls(folder.relative_to(here) if folder.is_relative_to(here) else folder, options, derived)
        return None


def _folders_of_run(checkpoint: Path) -> list[Path]:
    """Folders that may hold config.json: the run around the checkpoint, the checkpoint, its step, in this order."""
    steps = [at for at in (checkpoint, *checkpoint.parents[:2]) if _STEP.fullmatch(at.name) or (at / MANIFEST).exists()]
    runs = [step.parent for step in steps if _STEP.fullmatch(step.name)]
    return list(dict.fromkeys([*runs, *({checkpoint} - set(steps)), *steps]))


def _recorded_in(folder: Path) -> dict[str, Any]:
    """What config.json in a folder says, empty if there is none; or another tool's, which may be of any kind.

    Raises ValueError for a damaged one of a run of ours, which the manifests of its checkpoints tell.
    """
    path = folder / "config.json"
    if not os.path.lexists(path):
        return {}
    is_ours = (folder / MANIFEST).exists() or any(folder.glob(f"step_*/{MANIFEST}"))
    try:
        document = read_json(path)
        if is_ours and not all(isinstance(document.get(part), dict) for part in ("options", "derived")):
            raise ValueError(f"{path} must record options and derived, two objects, of its run, but does not")
    except (OSError, ValueError) as error:
        if is_ours:
            raise ValueError(f"{error}{_copy_of_record(folder)}") from None
        return {}
    return document


def _copy_of_record(run: Path) -> str:
    """A hint to the copy of a run's record in its newest checkpoint, if there is one."""
    step = newest_step(run)
    has_copy = step != run and (step / "config.json").is_file()
    return f"; {step.name} has a copy of it" if has_copy else "; put it back, or move it away"


def _check_record(path: Path, options: dict[str, Any], derived: dict[str, Any], read_with: Any) -> None:
    """Raise ValueError unless what the evaluation of a run follows is of the types that a run writes."""
    if not isinstance(read_with, dict):
        raise ValueError(f"{path}: read_with must be an object, got {short(read_with)}; is it the file of the run?")
    for source, rules in ((derived, _DERIVED), (options, _TYPES), (read_with, _TYPES)):
        for name, (what, holds) in rules.items():
            if name in source and not holds(source[name]):
                raise ValueError(
                    f"{path}: {name} must be {what}, got {short(source[name])}; is it the file of the run?"
                )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**40


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value.splitlines()) <= 1 and "\0" not in value


_COUNT = ("a whole number, at least 0 and below 2**40", _is_count)
_LENGTH = ("a whole number, at least 1", lambda value: _is_count(value) and value > 0)
_TEXT = ("a line of text", _is_text)
_TEXT_OR_NONE = ("a line of text or null", lambda value: value is None or _is_text(value))
_COUNTS = ("a list of whole numbers", _are_counts)
_DERIVED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    _HELD_OUT: _COUNT,
    "num_sequences": ("a whole number or null", lambda value: value is None or _is_count(value)),
    "data_seed": ("a whole number", lambda value: type(value) is int),
    "ctx_len": _LENGTH,
}
_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("model", "dataset", "split", "text_column", "save_dir"), _TEXT),
    **dict.fromkeys(("revision", "model_b", "revision_b", "finetune", "activations", "run_name"), _TEXT_OR_NONE),
    "streaming": ("true or false", lambda value: isinstance(value, bool)),
    "ctx_len": _LENGTH,
    **dict.fromkeys(("exclude_tokens", "exclude_positions"), _COUNTS),
}


@cache
def _sources() -> str:
    """A name that tells these sources of sae from others of the same version."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.suffix in _CODE):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def versions(compiler: str = "") -> dict[str, str]:
    """Versions of Python, of the packages that decide the result, and of the C compiler if it is one of them.

    That of sae has a name of its sources.
    """
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found | {"sae": f"{found['sae']}+{_sources()}"} | ({_COMPILER: compiler} if compiler else {})


def _other_versions(document: dict[str, Any], compiler: str) -> dict[str, tuple[str, str]]:
    """Packages of which another version is here than a run's record names, with both."""
    before = document.get("versions")
    if not isinstance(before, dict):
        return {}
    return {name: (before[name], now) for name, now in versions(compiler).items() if before.get(name, now) != now}


def derived_name(cfg: TrainConfig, model_name: str = "") -> str:
    """A name for what is made of this model and data, fit for a folder."""
    parts = [Path(model_name).name or "model"]
    if isinstance(cfg, RunConfig):
        parts = [_short(name) for name in (cfg.model, cfg.model_b, cfg.dataset) if name is not None]
    return "-".join("".join(c if c.isalnum() or c in "._-" else "_" for c in part) for part in parts)


def _short(source: str) -> str:
    path = Path(source)
    return path.stem if path.suffix in (".gguf", ".jsonl", ".json", ".txt", ".parquet", ".csv", ".bin") else path.name


def checkpoints_to_keep(planned: int, checkpoint_bytes: int, free: int) -> int | None:
    """None, for all, if the checkpoints that are planned take no more than half of the free disk; else 3."""
    return None if planned * checkpoint_bytes <= free / 2 else 3


def _check_space(save_dir: Path, free: int, needed: int) -> None:
    if free < needed:
        raise ValueError(
            f"save_dir must have space for one checkpoint, {needed / 1e6:,.0f} MB, but {save_dir.absolute()} has "
            f"{free / 1e6:,.0f} MB left; make room or choose another --save_dir"
        )


def command() -> list[str]:
    """The command line, without the token."""
    words, hide_next = [], False
    for argument in sys.argv:
        name, equals, _ = argument.partition("=")
        is_secret = name.lstrip("-").replace("-", "_") == _SECRET
        words.append("…" if hide_next else f"{name}=…" if is_secret and equals else argument)
        hide_next = is_secret and not equals
    return words
