"""`sae push SOURCE OWNER/NAME`: dictionaries to the hub, with a card, in one commit."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sae.commands.convert import about_run
from sae.config import PushConfig
from sae.dictionary.spec import Saved
from sae.formats.card import card
from sae.formats.convert import writable, write_set
from sae.formats.describe import describe
from sae.formats.find import find
from sae.formats.find import local as here
from sae.formats.format import About, StoredDictionary
from sae.formats.upload import CARD, check_repository, files_below, upload
from sae.runs.folder import RunRecord
from sae.storage.files import read_json

_TOLD = (
    "revision_b",
    "recipe",
    "max_tokens",
    "ctx_len",
    "batch_size",
    "lr",
    "seed",
    "loss_fn",
    "exclude_tokens",
    "exclude_positions",
)

_TOP = ("eleuther", "saelens")
"""Formats of which one stands at the top of a repository; the first one if it can say everything."""
_MAX_EVAL_BYTES = 2**26
"""An evaluation has some 10 kB for each hookpoint."""


def push(cfg: PushConfig) -> int:
    """Write everything into a folder of its own, then add it as one commit. The cheap checks come first."""
    for name in cfg.formats:
        writable(name)
    folder = here(cfg.source)
    if folder is None:
        raise ValueError(f"SOURCE must be a local folder, and {cfg.source} is none; name a run or one of its steps")
    found = find(folder)
    if not cfg.dry_run:
        check_repository(cfg.repository, token=cfg.hf_token, force=cfg.force, private=cfg.private)
    with TemporaryDirectory() as staged:
        files = _files(cfg, found, Path(staged))
        for path, content in files.items():
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            print(f"{size / 1e6:10,.2f} MB  {path}")
        if cfg.dry_run:
            print(f"nothing was sent: this is what {cfg.repository} would get")
            return 0
        message = f"{len(found)} dictionaries, by sae"
        address = upload(cfg.repository, files, token=cfg.hf_token, private=cfg.private, message=message)
    print(f"pushed  {address}")
    return 0


def _files(cfg: PushConfig, found: dict[str, StoredDictionary], staged: Path) -> dict[str, Path | bytes]:
    """What the repository gets, by path: one format at the top, others in folders of their names, and the card."""
    first = next(iter(found.values()))
    about = about_run(first)
    readers = {name: stored.read for name, stored in found.items()}
    top = _write_top(staged, readers, about)
    files = files_below(staged / top)
    others = [name for name in dict.fromkeys(cfg.formats) if name != top]
    for name in others:
        write_set(staged / name, readers, name, about)
        files |= files_below(staged / name, name)
    described = {name: describe(name, stored) for name, stored in find(staged / top).items()}
    record = RunRecord.of(first.path)
    run = {} if record is None else {name: record.options[name] for name in _TOLD if record.options.get(name)}
    text = card(
        cfg.repository, described, about, [top, *others], run=run, measured=_measured(record),
        license=cfg.license,
    )  # fmt: skip
    return {CARD: text.encode(), **files}


def _write_top(staged: Path, readers: Mapping[str, Callable[[], Saved]], about: About) -> str:
    """Write what stands at the top of the repository below `staged`, and return the name of its format.

    It is EleutherAI's, and SAELens's for what that cannot say. Raises ValueError for what neither can.
    """
    first, other = _TOP
    try:
        write_set(staged / first, readers, first, about)
        return first
    except ValueError as error:
        shutil.rmtree(staged / first, ignore_errors=True)
        try:
            write_set(staged / other, readers, other, about)
        except ValueError:
            raise error from None
        print(f"in {other}'s format: {error}")
        return other


def _measured(record: RunRecord | None) -> dict[str, dict[str, float]]:
    """The newest `eval.json` of the run, by hookpoint; nothing without one, or with several labels.

    Raises ValueError for one that is damaged.
    """
    if record is None:
        return {}
    paths = [path for path in record.folder.glob("eval*/eval.json") if re.fullmatch(r"eval(-\d+)?", path.parent.name)]
    newest = max(paths, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        return {}
    results: Any = read_json(newest, max_bytes=_MAX_EVAL_BYTES).get("results")
    try:
        found = [
            {at: {name: value for name, value in quality["metrics"].items() if isinstance(value, float | int)}
             for at, quality in by_hookpoint.items()}
            for by_hookpoint in results.values()
        ]  # fmt: skip
    except (AttributeError, TypeError, KeyError):
        raise ValueError(
            f"{newest} must hold results, metrics by checkpoint and hookpoint, but does not; measure again, or move it "
            "away"
        ) from None
    return found[0] if len(found) == 1 else {}
