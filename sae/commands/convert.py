"""`sae convert SOURCE TARGET`: dictionaries in another library's format. `sae info SOURCE`: what is there."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from sae.activations.cache.read import ActivationCache, held_out_batches
from sae.config import ConvertConfig, InfoConfig
from sae.dictionary.autoencoder import Sae
from sae.dictionary.cross_layer import members
from sae.dictionary.spec import Saved
from sae.dictionary.wiring import Wiring
from sae.evaluation.thresholds import with_fitted_threshold, with_fitted_thresholds
from sae.formats.convert import says_topk, unsaid, writable, write_set
from sae.formats.describe import Description, describe, model_of
from sae.formats.find import find, local
from sae.formats.format import About, StoredDictionary
from sae.formats.hub import Headers, find_anywhere, look
from sae.runs.folder import RunRecord
from sae.storage.files import check_writable, full_disk_explained, is_new_or_empty, whole_folder, without_dots

_MOST_TOKENS, _BATCH = 65_536, 8
_REQUESTS = 8
"""Requests at a time."""


def convert(cfg: ConvertConfig) -> int:
    """Write, or leave nothing. The cheap checks come first."""
    writable(cfg.to)
    target = without_dots(cfg.target)
    check_writable("TARGET", target)
    if not is_new_or_empty(target):
        raise ValueError(f"TARGET must be a new or empty folder, but {target.absolute()} is there; choose another")
    found = find_anywhere(cfg.source, cfg.hookpoints or None)
    cache = ActivationCache(cfg.activations) if cfg.activations is not None else None
    with (
        full_disk_explained(
            lambda reason: f"{target} cannot be written ({reason}); make room, or choose another; nothing of it is left"
        ),
        whole_folder(target) as folder,
    ):
        fitted = _fitted_together(cfg, found, cache)
        readers = {name: partial(_read, cfg, name, stored, cache, fitted) for name, stored in found.items()}
        write_set(folder, readers, cfg.to, about_run(next(iter(found.values()))))
    _show([describe(name, stored) for name, stored in find(target).items()])
    return 0


def about_run(stored: StoredDictionary) -> About:
    """What the run's record says of model and data, or the configuration of a dictionary that is of no run here."""
    record = RunRecord.of(stored.path)
    options = record.options if record is not None else {"model": model_of(stored)}
    ctx_len = record.derived.get("ctx_len") if record is not None else None
    known = {name: str(options[name]) for name in ("model", "dataset", "model_b") if isinstance(options.get(name), str)}
    return About(**known, ctx_len=ctx_len if type(ctx_len) is int else 0)


def _fitted_together(
    cfg: ConvertConfig, found: Mapping[str, StoredDictionary], cache: ActivationCache | None
) -> dict[str, Saved]:
    """The layers of a TopK cross-layer transcoder with thresholds, by name; empty for others, and without activations.

    All layers reconstruct together, so what it changes is told of them together.
    """
    first = next(iter(found.values())).read().spec if cache is not None and cfg.to == "circuit-tracer" else None
    if cache is None or first is None or not first.cfg.cross_layer or first.selection != "topk":
        return {}
    groups = members({name: Sae.from_saved(stored.read()).float() for name, stored in found.items()})
    if len(groups) != 1:
        raise ValueError(
            f"SOURCE must hold one cross-layer transcoder, got {', '.join(groups)}; name one of its folders"
        )
    (layers,) = groups.values()
    reads, writes = ([ends[0] for ends in each] for each in ([layer.sae.spec.reads for layer in layers],
                                                             [layer.sae.spec.writes for layer in layers]))  # fmt: skip
    acts = _activations(cache, list(dict.fromkeys([*reads, *writes])))
    by_name = dict(zip(dict.fromkeys([*reads, *writes]), acts, strict=True))
    changed = with_fitted_thresholds(layers, [by_name[name] for name in reads], [by_name[name] for name in writes])
    print(
        f"TopK becomes JumpReLU with thresholds {' '.join(f'{least:.4g}' for least in changed.thresholds)}; on "
        f"{len(acts[0]):,} held-out tokens L0 of all layers was {changed.l0[0]:.2f} and is {changed.l0[1]:.2f}, FVU of "
        f"their outputs was {changed.fvu[0]:.4f} and is {changed.fvu[1]:.4f}"
    )
    return {layer.name: sae.saved() for layer, sae in zip(layers, changed.saes, strict=True)}


def _read(
    cfg: ConvertConfig, name: str, stored: StoredDictionary, cache: ActivationCache | None, fitted: Mapping[str, Saved]
) -> Saved:
    """The dictionary, with a threshold if the format needs one and activations are given. Tells what is not said."""
    saved = fitted[name] if name in fitted else stored.read()
    if levels := unsaid(cfg.to, saved):
        print(f"{name}: {cfg.to} has no word for {levels}; the whole dictionary is written, which computes the same")
    if saved.spec.cfg.cross_layer and cfg.hookpoints:
        raise ValueError(
            f"hookpoints must not part the layers of a cross-layer transcoder, of which {name} is one; leave it out"
        )
    if saved.spec.cfg.crosscode or saved.spec.cfg.cross_layer:  # told by the formats, which have none
        return saved
    if saved.spec.selection != "topk" or says_topk(cfg.to, saved) or cache is None:
        return saved
    hookpoint = name.rpartition("/")[2]
    wiring = Wiring.of(hookpoint, transcode=saved.spec.cfg.transcode)
    reads = next(iter(saved.spec.reads), wiring.reads[0])
    sides = [reads, *(wiring.writes if saved.spec.cfg.transcode else [])]
    x, *y = _activations(cache, sides)
    changed = with_fitted_threshold(Sae.from_saved(saved).float(), x, *y)
    print(
        f"{name}: TopK becomes JumpReLU with threshold {changed.threshold:.4g}; on {len(x):,} held-out tokens L0 was "
        f"{changed.l0[0]:.2f} and is {changed.l0[1]:.2f}, FVU was {changed.fvu[0]:.4f} and is {changed.fvu[1]:.4f}"
    )
    return changed.sae.saved()


def _activations(cache: ActivationCache, hookpoints: Sequence[str]) -> list[torch.Tensor]:
    """Held-out activations of each hookpoint (tokens, width), in float32."""
    if missing := [name for name in hookpoints if name not in cache.header.hookpoints]:
        raise ValueError(
            f"activations must be of {', '.join(hookpoints)}, but {cache.folder} has no {', '.join(missing)}; "
            f"cache them with sae cache --hookpoints {' '.join(hookpoints)}"
        )
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in hookpoints}
    tokens = 0
    for batch in held_out_batches(cache, hookpoints, _BATCH):
        for name in hookpoints:
            parts[name].append(batch.activations[name].float())
        tokens += len(parts[hookpoints[0]][-1])
        if tokens >= _MOST_TOKENS:
            break
    return [torch.cat(parts[name])[:_MOST_TOKENS] for name in hookpoints]


def info(cfg: InfoConfig) -> int:
    """Print a line for each dictionary. On the hub it fetches configurations and headers alone."""
    if (folder := local(cfg.source)) is not None:
        _show([describe(name, stored) for name, stored in find(folder).items()])
        return 0
    found = look(cfg.source)
    headers = Headers(found)
    told = partial(describe, shapes_of=headers.shapes, size_of=headers.size)
    with ThreadPoolExecutor(_REQUESTS) as pool:
        _show(list(pool.map(told, found.dictionaries, found.dictionaries.values())))
    return 0


_COLUMNS: dict[str, Callable[[Description], str]] = {
    "hookpoint": lambda d: d.hookpoint,
    "format": lambda d: d.format,
    "width": lambda d: f"{d.d_in:,}" if d.d_in == d.d_out else f"{d.d_in:,} → {d.d_out:,}",
    "latents": lambda d: f"{d.num_latents:,}",
    "rule": lambda d: d.rule,
    "type": lambda d: d.dtype,
    "MB": lambda d: f"{d.num_bytes / 1e6:,.1f}",
    "model": lambda d: d.model,
}


def _show(descriptions: Sequence[Description]) -> None:
    rows = [list(_COLUMNS), *([column(each) for column in _COLUMNS.values()] for each in descriptions)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
