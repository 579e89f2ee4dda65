"""`sae browse CHECKPOINT`: make an index once, then show it. What an index needs is imported only where one is made."""

import os
import shutil
import webbrowser
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING

from sae.browser.layout import DamagedError
from sae.browser.plan import BrowsePlan, export_folder, plan_browse
from sae.browser.store import Index
from sae.config import BrowseConfig
from sae.storage.files import MANIFEST, full_disk_explained, short

if TYPE_CHECKING:
    from sae.browser.steering import Loaded


def browse(cfg: BrowseConfig) -> int:
    """Open the index of a checkpoint, or make it, and show or export it."""
    plan = plan_browse(cfg, _checkpoint(cfg))
    export_to = None if cfg.export is None else export_folder(plan, cfg.export)
    index = open_index(plan)
    if index is None:
        from sae.commands.browse_index import make_index

        with _told_where(plan.folder, "out", "the same command continues"):
            is_main = make_index(cfg, plan)
        if not is_main:
            return 0
        index = Index.open(plan.folder)
    if cfg.explain is not None:
        write_explanations(cfg.explain, cfg, plan, index)
        if cfg.export is None:
            return 0
    if cfg.export is not None and export_to is not None:
        from sae.browser.export import export
        from sae.browser.notes import Notes

        with _told_where(export_to, "export", "nothing of it is left"):
            export(index, export_to, cfg.export, Notes(plan.notes), cfg.latents)
        print(f"exported {export_to}")
        return 0
    return show(cfg, plan, index)


def _told_where(folder: Path, option: str, then: str) -> AbstractContextManager[None]:
    """The error of a full disk, with the folder that was written and the way out."""
    return full_disk_explained(
        lambda reason: f"{folder} cannot be written ({reason}); make room, or choose another --{option}; {then}"
    )


def _checkpoint(cfg: BrowseConfig) -> Path:
    """The folder, or file, of the checkpoint, which is fetched if it is on the hub."""
    path = Path(cfg.checkpoint)
    if path.exists():
        return path
    from sae.formats.hub import local_copy

    return local_copy(cfg.checkpoint, cfg.hookpoints)


def open_index(plan: BrowsePlan) -> Index | None:
    """The index, if it is there and whole; one that is damaged is named and removed."""
    if not (plan.folder / MANIFEST).exists():
        return None
    try:
        return Index.open(plan.folder)
    except DamagedError as error:
        print(f"{error}; indexing anew", flush=True)
        shutil.rmtree(plan.folder)
        return None


def write_explanations(address: str, cfg: BrowseConfig, plan: BrowsePlan, index: Index) -> None:
    """Let a language model explain latents; the notes keep what it says."""
    from sae.browser.explain import Explainer, explain, unexplained
    from sae.browser.notes import Notes
    from sae.runs.log import Progress

    notes, explainer = Notes(plan.notes), Explainer.at(address, cfg.explainer)
    wanted = unexplained(index, notes, cfg.latents)
    with Progress(total=max(1, len(wanted)), what="explaining", unit="latents") as progress:
        try:
            written = explain(wanted, notes, explainer, done=lambda: progress.advance(1))
        except KeyboardInterrupt as stop:
            stop.add_note("the explanations so far are kept; the same command continues")
            raise
    print(f"explained {written:,} latents with {short(explainer.model)}; they are in {plan.notes}")


def show(cfg: BrowseConfig, plan: BrowsePlan, index: Index) -> int:
    """Serve the page until Ctrl-C."""
    from sae.browser.live import LiveModel
    from sae.browser.notes import Notes
    from sae.browser.server import free_socket, make_app, serve

    live = LiveModel(partial(_load, cfg), lambda place: index[place].column("max"))
    app = make_app(index, Notes(plan.notes), live)
    bound = free_socket(cfg.port)
    address = f"http://127.0.0.1:{bound.getsockname()[1]}/"
    print(f"look at {address}  (Ctrl-C ends it)", flush=True)
    if cfg.browser and not os.environ.get("SSH_CONNECTION"):
        opening = Timer(0.3, webbrowser.open, [address])
        opening.daemon = True
        opening.start()
    with suppress(KeyboardInterrupt):
        serve(app, bound)
    return 0


def _load(cfg: BrowseConfig) -> "Loaded":
    from sae.commands.browse_index import load_live

    return load_live(cfg)
