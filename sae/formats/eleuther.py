"""EleutherAI's format: a folder per hookpoint with cfg.json and sae.safetensors. It is also our own.

Files may come from strangers: every name, type, size and shape is checked before memory is taken.
"""

import re
from collections.abc import Container
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from torch import Tensor

from sae.config import SaeConfig
from sae.config.dictionary import Rule
from sae.dictionary.spec import Saved, Spec, with_centre
from sae.formats.files import check_link, check_one_float_type, read_tensors, write_tensors
from sae.formats.format import About, Claim, Format, beside, in_folder, quietly
from sae.formats.record import with_both_signs
from sae.storage.files import is_inside, read_json, short, write_json

CFG, WEIGHTS, RUN_CONFIG = "cfg.json", "sae.safetensors", "config.json"
_CENTRED = "centred_transcoder"
"""Flag of ours: a transcoder that subtracts b_dec, as EleutherAI's do from before 2025-02-12. `transcode` is left out
then, and their library computes it too."""
_SEVERAL = ("crosscode", "cross_layer")
"""Kinds of dictionaries with several hookpoints. Their name stands before the selection, so that no library takes them
for others."""
_LARGEST_SCALE = 10_000
"""A factor of tied decoders beyond this is damage: layers' outputs do not differ so much."""
SEED = re.compile(r"seed\d+")
"""Name of a folder of eai-sparsify: one of several seeds."""
_KINDS = {
    "expansion_factor": int, "normalize_decoder": bool, "num_latents": int, "k": int,
    "transcode": bool, "skip_connection": bool, "prefixes": list, "budgets": list, "crosscode": bool,
    "cross_layer": bool, "tie_decoders": bool, "inference_l0": float,
}  # fmt: skip
"""Types of the fields of cfg.json that are fields of `SaeConfig`."""


def write(folder: Path, saved: Saved) -> None:
    """Write `saved` into `folder`, which is created if need be.

    EleutherAI's library refuses an `activation` that it does not know. What it has no word for is written with such a
    one, under names of ours. Raises ValueError for what this format cannot say.
    """
    spec, tensors = saved
    if spec.layer_norm or not spec.centred and not spec.cfg.transcode:
        got = "with a layer norm" if spec.layer_norm else "that does not subtract it"
        raise ValueError(
            f"an autoencoder in EleutherAI's format must subtract b_dec and have no layer norm, got one {got}; "
            "sae convert --to saelens writes it"
        )
    kind = next((name for name in _SEVERAL if getattr(spec.cfg, name)), "")
    widths = spec.every_width
    if kind and not widths:
        raise ValueError(f"{kind}: a dictionary must know its hookpoints and their widths to be saved; give its Spec")
    folder.mkdir(parents=True, exist_ok=True)
    cfg = {
        "activation": f"{kind} {spec.selection}" if kind else spec.selection,
        "expansion_factor": spec.cfg.expansion_factor,
        "normalize_decoder": spec.cfg.normalize_decoder,
        "num_latents": len(tensors["W_dec"]),
        "k": spec.cfg.k,
        "multi_topk": False,
        "skip_connection": spec.cfg.skip_connection,
        "transcode": spec.cfg.transcode,
        "d_in": spec.d_in,
    }
    cfg |= {name: value for name in ("prefixes", "budgets") if (value := getattr(spec.cfg, name))}
    cfg |= (
        {"inference_l0": float(spec.cfg.inference_l0)}
        if spec.selection == "batchtopk" and spec.cfg.inference_l0
        else {}
    )
    cfg |= {"d_out": spec.d_out} if spec.d_out != spec.d_in else {}
    if kind:
        cfg |= {kind: True, "hookpoints": dict(zip(spec.writes, widths, strict=True))}
        cfg |= {"tie_decoders": spec.cfg.tie_decoders} if spec.cfg.tie_decoders else {}
    if spec.cfg.transcode and spec.centred:
        cfg = {name: value for name, value in cfg.items() if name != "transcode"} | {_CENTRED: True}
    if spec.cfg.transcode and spec.reads and spec.writes:
        cfg |= {"reads": spec.reads[0], "writes": spec.writes[0]}
    write_json(folder / CFG, cfg)
    write_tensors(folder / WEIGHTS, tensors)


def read(folder: Path) -> Saved:
    """Read the dictionary in `folder`. Raises ValueError naming the file and the rule it breaks."""
    spec, signed = _read_cfg(folder / CFG)
    shapes = {name: list(shape) for name, shape in spec.shapes().items()}
    tensors = read_tensors(folder / WEIGHTS, shapes, others_too=False)
    check_one_float_type(folder / WEIGHTS, tensors)
    if "layer_scale" in tensors:
        _check_layer_scale(folder / WEIGHTS, tensors["layer_scale"].float())
    return _unsigned(Saved(spec, tensors)) if signed else Saved(spec, tensors)


def _unsigned(saved: Saved) -> Saved:
    spec = saved.spec
    n = 2 * spec.num_latents
    cfg = replace(spec.cfg, num_latents=n)
    return Saved(replace(spec, cfg=cfg, num_latents=n), with_both_signs(saved.tensors))


def _check_layer_scale(path: Path, scale: Tensor) -> None:
    """Raise ValueError for factors of tied decoders that no training can have made."""
    if not (scale[0] == 1).all():
        raise ValueError(
            f"{path}: layer_scale must begin with 1, as its own module gets all, got {short(scale[0].tolist())}"
        )
    if not (scale.abs() <= _LARGEST_SCALE).all():
        raise ValueError(
            f"{path}: layer_scale must hold numbers of at most {_LARGEST_SCALE:,}, got {short(scale.tolist())}; "
            "the file is damaged"
        )


def _read_cfg(path: Path) -> tuple[Spec, bool]:
    """What the configuration says, and whether it is of 2024 and keeps the k largest in magnitude, with their sign."""
    if not path.is_file():
        raise ValueError(
            f"{path.parent} must hold {CFG} and {WEIGHTS}, but there is no {CFG}; "
            "name the folder of one hookpoint, or use Sae.load_many for all of them"
        )
    check_link(path)
    raw = read_json(path)
    selection = _selection_in(path, raw)
    signed = _is_signed(path, raw, selection)
    fields = {name: raw[name] for name in ("d_in", *_KINDS) if raw.get(name) is not None}
    numbers = [name for name, kind in _KINDS.items() if kind is float and type(fields.get(name)) is int]
    fields |= {name: float(fields[name]) for name in numbers}  # 5, as other writers of JSON have 5.0
    centred = _is_centred_transcoder(path, raw)
    fields |= {"transcode": True} if centred else {}
    for name, wanted in {"d_in": int, **_KINDS}.items():
        found = fields.get(name, wanted())
        if (name, found) == ("tie_decoders", "target"):
            continue
        entries_fit = wanted is not list or (type(found) is list and all(type(end) is int for end in found))
        if type(found) is not wanted or not entries_fit or (name in ("d_in", "k") and name not in fields):
            raise ValueError(f"{path}: {name} must be {wanted.__name__}, got {short(fields.get(name))}")
    d_in, d_out = int(fields.pop("d_in")), raw.get("d_out", raw.get("d_in"))
    trained = "topk" if selection == "jumprelu" else selection
    try:
        cfg = SaeConfig(**fields, selection=trained)  # type: ignore[arg-type]
        num_latents = cfg.latents_for(d_in)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if type(d_out) is not int or not all(0 < d < 2**31 for d in (d_in, d_out)) or num_latents >= 2**31:
        raise ValueError(
            f"{path}: d_in, d_out and num_latents must be between 1 and 2**31, "
            f"got {d_in}, {short(d_out)} and {num_latents}"
        )
    ends = _hookpoints_in(path, raw, d_out, tied=bool(cfg.tie_decoders)) if cfg.crosscode or cfg.cross_layer else {}
    if cfg.crosscode and d_out != d_in:
        raise ValueError(f"{path}: a crosscoder must write what it reads, got d_in={d_in} and d_out={d_out}")
    reads, writes = _ends_in(path, raw) if cfg.transcode else ((), ())
    if ends and writes and writes[0] != next(iter(ends)):
        raise ValueError(
            f"{path}: writes must be the first of its hookpoints, {next(iter(ends))}, got {writes[0]}; name one place"
        )
    writes = tuple(ends) or writes
    if cfg.cross_layer and not reads:
        raise ValueError(f"{path}: a layer of a cross-layer transcoder must name what it reads; add reads and writes")
    widths = () if cfg.tie_decoders else tuple(ends.values())
    spec = Spec(
        cfg, d_in, d_out, num_latents, selection, centred=centred or None, reads=reads, writes=writes, widths=widths
    )
    return spec, signed


def _is_centred_transcoder(path: Path, raw: dict[str, Any]) -> bool:
    """Whether it is a transcoder of before 2025-02-12, which subtracts b_dec and does not say that it is one.

    A skip connection reveals it, the configuration of the run one folder up, or our own flag.
    """
    if "transcode" in raw or raw.get(_CENTRED) is False:
        return False
    run = path.parent.absolute().parent / RUN_CONFIG
    if run.is_file():
        check_link(run)
    options = quietly(run)
    of_run = [options, options.get("sae")]
    return (
        raw.get(_CENTRED) is True
        or raw.get("skip_connection") is True
        or any(isinstance(part, dict) and part.get("transcode") is True for part in of_run)
    )


def _ends_in(path: Path, raw: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The hookpoints that a transcoder reads and writes, if its configuration names them."""
    found = [raw[name] for name in ("reads", "writes") if raw.get(name) is not None]
    if not all(isinstance(name, str) and is_inside(name) for name in found) or len(found) == 1:
        raise ValueError(f"{path}: reads and writes must be two hookpoints, got {short(found)}; leave both out")
    return tuple(found[:1]), tuple(found[1:])


def _hookpoints_in(path: Path, raw: dict[str, Any], d_out: int, *, tied: bool) -> dict[str, int]:
    """The hookpoints that are written, of several, and their widths: with `tied` decoders each that of the decoder."""
    found = raw.get("hookpoints")
    ends: dict[str, int] = found if isinstance(found, dict) else {}
    fit = all(is_inside(name) and type(width) is int and width > 0 for name, width in ends.items())
    if not ends or not fit or (set(ends.values()) != {d_out} if tied else sum(ends.values()) != d_out):
        rule = f"of {d_out} each, for tied decoders" if tied else f"that add up to {d_out}"
        raise ValueError(f"{path}: hookpoints must map those that are written to widths {rule}, got {short(found)}")
    return ends


def _selection_in(path: Path, raw: dict[str, Any]) -> str:
    selection = raw.get("activation", "topk")
    if isinstance(selection, str):
        selection = next((selection.removeprefix(f"{kind} ") for kind in _SEVERAL if raw.get(kind) is True), selection)
    known = get_args(Rule)
    if selection not in (*known, "jumprelu"):
        raise ValueError(
            f"{path}: activation={short(selection)} is not supported; known are {', '.join(known)} and jumprelu"
        )
    return selection


def _is_signed(path: Path, raw: dict[str, Any], selection: str) -> bool:
    signed = raw.get("signed") or False
    if type(signed) is not bool or signed and selection != "topk":
        raise ValueError(f"{path}: signed must be true or false, and go with topk, got {short(signed)} and {selection}")
    return signed


def _claim(file: PurePosixPath, names: Container[str]) -> Claim | None:
    if file.name not in (CFG, WEIGHTS):
        return None
    of_saelens = beside(file, "sae_weights.safetensors") in names and beside(file, WEIGHTS) not in names
    if of_saelens:
        return None
    found = in_folder(file, CFG, WEIGHTS)
    run = (file.parent.parent / RUN_CONFIG).as_posix()
    return found._replace(files=(*found.files, run)) if file.parent.name and run in names else found


def canonical(place: str) -> str:
    """`<group>/<hookpoint>` of a folder. eai-sparsify writes `<hookpoint>/seed<n>`, and either twice in `best`."""
    parts = place.split("/")
    for length in (1, 2):
        if parts[-length:] == parts[-2 * length : -length]:
            parts = parts[:-length]
    if len(parts) > 1 and SEED.fullmatch(parts[-1]):
        parts[-2:] = reversed(parts[-2:])
    return "/".join(parts)


def hookpoint_of(folder: Path) -> str:
    """The hookpoint of an autoencoder by the name of its folder; the repository's name if the folder has none."""
    folder = folder.absolute()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return canonical("/".join(folder.parts[-4:])).rpartition("/")[2]


def _write(folder: Path, saved: Saved, about: About) -> None:
    """Write one dictionary of any library. b_dec goes into b_enc where an autoencoder does not subtract it."""
    write(folder, saved if saved.spec.cfg.transcode else with_centre(saved, True))


ELEUTHER = Format(
    "eleuther", "EleutherAI's sparsify, and this library", f"{CFG} with {WEIGHTS}", (CFG,), _claim, hookpoint_of, read,
    _write,
)  # fmt: skip
