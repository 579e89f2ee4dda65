"""Activations on disk: where everything lies in the folder of a cache, and how a token's activation becomes bytes.

<cache>/manifest.json                     what it holds, sizes and SHA-256 of all files; written last
<cache>/progress.json, finished.txt       only while it is written: what is safely on disk
<cache>/held_out/tokens                   int32 (sequences, ctx_len): the token ids that were held out
<cache>/train/tokens                      int32: those that are trained on, in the order of a live run
<cache>/train/batches                     int32: sequences of each batch whose tokens were dealt; if shuffled
<cache>/<section>/kept                    int32: tokens of each sequence that are not excluded
<cache>/<section>/<hookpoint>/00000.rows  one row of bytes a token, without a header, so that it can be mapped

The sections are `train` and `held_out`. A row is d_in numbers; in int8 a float32 scale follows them. Older caches lack
train/tokens and train/batches, and train/kept if they are shuffled.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sae.storage.files import MANIFEST, is_inside, json_object
from sae.storage.remote import RemoteFolder

PROGRESS, FINISHED = "progress.json", "finished.txt"
TRAIN, HELD_OUT = "train", "held_out"
TOKENS, KEPT, BATCHES = "tokens", "kept", "batches"
STORED_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "int8": torch.int8}
_MAX_MANIFEST_BYTES = 2**26
SHARD_BYTES = 2**28
"""A shard has about this size: it is shuffled in memory."""


class CacheHeader(NamedTuple):
    """Contents of a cache, known before it is written. Everything is JSON."""

    options: dict[str, Any]
    """Model, data, and the options that decide what is read there, such as exclude_tokens."""
    hookpoints: dict[str, int]
    """{hookpoint: d_in}"""
    blocks: list[str]
    """The hookpoints that `--layers 0 1 …` means."""
    dtype: str
    shuffled: bool
    seed: int
    ctx_len: int
    num_sequences: int | None
    """Sequences of the data, the held-out ones included; None for a stream."""
    num_shards: int
    """Shards of the section `train`, the same number at every hookpoint."""
    fingerprints: dict[str, str] = {}
    """Fingerprints of the weights of the `model` and of the `held_out` sequences; empty in older caches."""
    sequences: int | None = None
    """How many were asked for to train on, which a stream may not have; older caches do not say."""


class CacheManifest(NamedTuple):
    """A complete cache."""

    header: CacheHeader
    shards: dict[str, list[int]]
    """{section: [tokens of each shard]}, the same at every hookpoint."""
    files: dict[str, tuple[int, str]]
    """{path in the cache: (bytes, SHA-256)}"""


def row_bytes(d_in: int, dtype: str) -> int:
    """Bytes of one token's activation."""
    return d_in + 4 if dtype == "int8" else d_in * STORED_DTYPES[dtype].itemsize


def encode_rows(x: Float[Tensor, "tokens d_in"], dtype: str) -> UInt8[Tensor, "tokens row"]:
    """Activations as rows of bytes, on the CPU. Raises ValueError if a number does not fit into float16."""
    if dtype == "int8":
        scale = (x.abs().amax(1, keepdim=True).float() / 127).clamp_min(torch.finfo(torch.float32).tiny)
        codes = (x.float() / scale).round_().to(torch.int8).cpu()
        return torch.cat([codes.view(torch.uint8), scale.cpu().view(torch.uint8)], 1)
    rows = x.to(STORED_DTYPES[dtype])
    if dtype == "float16" and not rows.isfinite().all():
        raise ValueError("dtype must hold every activation, and float16 ends at 65504; give --dtype bfloat16")
    return rows.cpu().contiguous().view(torch.uint8)


def decode_rows(rows: UInt8[Tensor, "tokens row"], dtype: str) -> Float[Tensor, "tokens d_in"]:
    """Activations from rows of bytes; int8 comes back in bfloat16."""
    if dtype != "int8":
        stored = STORED_DTYPES[dtype]
        return rows.view(stored) if len(rows) else rows.to(stored)[:, :: stored.itemsize]  # empty has no layout to view
    codes, scale = rows[:, :-4].view(torch.int8), rows[:, -4:].contiguous().view(torch.float32)
    return (codes * scale).to(torch.bfloat16)


def rows_path(section: str, hookpoint: str, shard: int) -> str:
    """The path of a shard in the cache."""
    return f"{section}/{hookpoint}/{shard:05d}.rows"


def manifest_to_json(manifest: CacheManifest) -> str:
    """The text of manifest.json."""
    files = {name: {"bytes": size, "sha256": sha256} for name, (size, sha256) in manifest.files.items()}
    document = {"version": 1, **manifest.header._asdict(), "shards": manifest.shards, "files": files}
    return json.dumps(document, indent=1) + "\n"


def read_manifest(folder: Path | RemoteFolder) -> CacheManifest:
    """The manifest of a complete cache. Raises ValueError, naming what is missing or damaged."""
    path = f"{folder}/{MANIFEST}"
    if not _has(folder, MANIFEST):
        found = "an unfinished one; repeat its sae cache command" if _has(folder, PROGRESS) else "none"
        raise ValueError(f"activations must name a cache that sae cache wrote, but {folder} holds {found}")
    document = json_object(manifest_content(folder), path)
    try:
        given = CacheHeader._field_defaults | document
        header = CacheHeader(**{name: given[name] for name in CacheHeader._fields})
        files = {name: (_count(entry["bytes"]), str(entry["sha256"])) for name, entry in document["files"].items()}
        shards = {section: [_count(n) for n in document["shards"][section]] for section in (TRAIN, HELD_OUT)}
        manifest = CacheManifest(header, shards, files)
        fits = (
            _is_of_its_types(header) and all(map(is_inside, [*files, *header.hookpoints])) and _has_its_sizes(manifest)
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(f"{path} is damaged; write the cache again")
    return manifest


def manifest_content(folder: Path | RemoteFolder) -> bytes:
    """The bytes of manifest.json. Raises ValueError if they are too many."""
    if isinstance(folder, RemoteFolder):
        return folder.read(MANIFEST, max_bytes=_MAX_MANIFEST_BYTES)
    if (size := (folder / MANIFEST).stat().st_size) > _MAX_MANIFEST_BYTES:
        raise ValueError(
            f"{folder / MANIFEST} must be a small JSON file of at most {_MAX_MANIFEST_BYTES} bytes, got {size}"
        )
    return (folder / MANIFEST).read_bytes()


def _has(folder: Path | RemoteFolder, name: str) -> bool:
    return folder.has(name) if isinstance(folder, RemoteFolder) else (folder / name).is_file()


def _count(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError("not a count")
    return number


def _is_of_its_types(header: CacheHeader) -> bool:
    """Whether a header that a stranger may have written can be used as one."""
    excluded = [header.options["exclude_tokens"], header.options["exclude_positions"]]
    ints = [
        header.seed,
        header.ctx_len,
        header.num_shards,
        header.num_sequences or 0,
        header.sequences or 0,
        *header.hookpoints.values(),
    ]
    return (
        all(type(each) is list for each in excluded)
        and all(type(number) is int and number >= 0 for number in [*ints, *excluded[0], *excluded[1]])
        and min(header.ctx_len, *header.hookpoints.values()) > 0
        and type(header.options.get("model", "")) is str
        and type(header.fingerprints) is dict
        and all(type(text) is str for pair in header.fingerprints.items() for text in pair)
        and type(header.blocks) is list
        and all(type(name) is str for name in header.blocks)
        and type(header.dtype) is str
        and type(header.shuffled) is bool
    )


def _has_its_sizes(manifest: CacheManifest) -> bool:
    """Whether the files are as long as the tokens that they hold. A shard without tokens has no file."""
    header = manifest.header
    return manifest.files[f"{HELD_OUT}/{TOKENS}"][0] % (4 * header.ctx_len) == 0 and all(
        manifest.files.get(rows_path(section, name, shard), (0, ""))[0] == tokens * row_bytes(d_in, header.dtype)
        for section, lengths in manifest.shards.items()
        for name, d_in in header.hookpoints.items()
        for shard, tokens in enumerate(lengths)
    )
