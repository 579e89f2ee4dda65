"""`sae cache MODEL DATASET`: write activations to the disk, for many runs to train on."""

from pathlib import Path
from typing import Any

from torch import nn

from sae import lm
from sae.activations.cache.format import CacheHeader
from sae.activations.cache.write import CacheSize, cache_size, check_space, write_cache
from sae.activations.live import LiveStore
from sae.activations.reading import left_out_note, plan_reading
from sae.commands.load import check_model, load_language_model, load_text
from sae.config import CacheConfig
from sae.ops.defaults import own_defaults
from sae.parallel.world import World
from sae.runs.folder import derived_name
from sae.runs.log import Progress, note
from sae.storage.files import MANIFEST, absolute, check_writable
from sae.storage.lock import check_unlocked
from sae.storage.remote import RemoteFolder, place_of

KEPT_OPTIONS = (
    "model", "dataset", "split", "text_column", "streaming", "ctx_len", "exclude_tokens", "exclude_positions",
    "revision", "load_in_8bit", "attn_implementation",
)  # fmt: skip
"""Options that decide which activations there are; runs that train on a cache take them over."""
SECOND = ("model_b", "revision_b")
"""Options of a second model. A cache of one model does not say them, as caches of earlier versions do not."""


def cache(cfg: CacheConfig) -> int:
    """Write activations to the disk; under torchrun all processes do it together."""
    if isinstance(place := folder_of(cfg), RemoteFolder):
        place.check_lasting("activations")
    world = World.from_environment()
    world.from_main(lambda: check_folder(cfg))
    (device, *_) = world.local_devices(lm.check_device(cfg.device))
    skeleton, hookpoints = check_model(cfg)
    with world.one_first(note, "prepared the data"):
        reading = plan_reading(cfg, load_text(cfg, skeleton), skeleton, hookpoints, checked=cfg.ctx_len)
    try:
        folder = cache_activations(cfg, reading, load_language_model(cfg, device), world)
    except KeyboardInterrupt as stop:
        stop.add_note("what was written stays; the same command continues")
        raise
    if world.is_main:
        print(f"activations {folder}")
    world.close()
    return 0


@own_defaults()
def cache_activations(cfg: CacheConfig, dataset: Any, model: nn.Module, world: World | None = None) -> Path | str:
    """Write the activations of a model on some data. What an earlier call left unfinished is continued.

    Args:
        cfg: Options of `sae cache`.
        dataset: What SaeTrainer takes, or a `Reading` of it.
        model: Model of transformers.
        world: Processes that write side by side. None: those that torchrun has started, mostly one.

    Returns:
        Folder of the cache, or its address. Its size is announced first.

    Raises:
        ValueError: Names the option, for what does not fit.
        OSError: In one line, for a full disk.
    """
    world = world or World.from_environment()
    store = LiveStore(cfg, dataset, model)
    world.from_main(lambda: check_folder(cfg))
    folder = folder_of(cfg)
    batches = store.tokens.num_batches
    assert batches is not None  # LiveStore refuses a stream without an end
    tokens, held_out = batches * cfg.batch_size * store.ctx_len, store.held_out * store.ctx_len
    size = cache_size(
        store.widths, cfg.dtype, tokens=tokens, held_out_tokens=held_out, shuffled=cfg.shuffle, processes=world.size
    )
    if isinstance(folder, RemoteFolder):
        size = size._replace(peak_bytes=2 * size.bytes)
    else:
        world.from_main(lambda: check_space(folder, size))
    if world.is_main:
        note(announcement(folder, size, len(store.widths), cfg.dtype))
        if left_out := left_out_note(cfg, store, batches):
            note(left_out)
    with Progress(total=tokens, what="caching", hidden=not world.is_main) as progress:
        write_cache(
            folder,
            _header(cfg, store, model, size.num_shards),
            store.source,
            store.tokens.held_out_batches(),
            on_batch=lambda done: progress.reach(done * cfg.batch_size * store.ctx_len),
            tell=note,
            workers=world,
        )
    return folder if isinstance(folder, Path) else str(folder)


def folder_of(cfg: CacheConfig) -> Path | RemoteFolder:
    """Where the cache is written."""
    return place_of(cfg.activations or f"activations/{derived_name(cfg)}")


def check_folder(cfg: CacheConfig) -> None:
    """Raise ValueError if a cache cannot be written there, or another process does it. Leaves nothing."""
    folder = folder_of(cfg)
    if isinstance(folder, RemoteFolder):
        if not folder.has(MANIFEST):
            folder.check_writable("activations")
        return
    check_unlocked(folder)
    if not (folder / MANIFEST).exists():
        check_writable("activations", folder)


def announcement(folder: Path | RemoteFolder, size: CacheSize, hookpoints: int, dtype: str) -> str:
    """One line on what is about to be written."""
    return (
        f"caching up to {size.tokens:,} tokens at {hookpoints} hookpoint{'s'[: hookpoints > 1]} in {dtype}: "
        f"{size.bytes / 1e9:,.2f} GB in {folder}, {size.peak_bytes / 1e9:,.2f} GB while it is written"
    )


def _header(cfg: CacheConfig, store: LiveStore, model: nn.Module, num_shards: int) -> CacheHeader:
    try:
        blocks = lm.block_names(model)
    except ValueError:  # some architectures have no list of blocks
        blocks = []
    options = {name: getattr(cfg, name) for name in KEPT_OPTIONS}
    options |= {name: value for name in SECOND if (value := getattr(cfg, name)) is not None}
    paths = {name: absolute(options[name]) for name in ("model", "model_b", "dataset") if name in options}
    options |= paths | {"ctx_len": store.ctx_len}
    by_document = {"held_out_by": store.held_out_by} if store.held_out_by == "documents" else {}
    return CacheHeader(
        options=options | by_document,
        hookpoints=store.widths,
        blocks=blocks,
        dtype=cfg.dtype,
        shuffled=cfg.shuffle,
        seed=cfg.data_seed,
        ctx_len=store.ctx_len,
        num_sequences=store.num_sequences,
        num_shards=num_shards,
        fingerprints=store.fingerprints(),
        sequences=(store.num_batches or 0) * cfg.batch_size,
    )
