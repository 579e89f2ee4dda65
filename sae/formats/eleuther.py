"""EleutherAI's format: a folder per hookpoint with cfg.json and sae.safetensors. It is also our own.

Files may come from strangers: every name, type, size and shape is checked before memory is taken.
"""

import fnmatch
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae.config import SaeConfig
from sae.dictionary.spec import Saved, Spec
from sae.storage.files import is_inside, read_json, short

CFG, WEIGHTS, BEST = "cfg.json", "sae.safetensors", "best.json"
_MAX_HEADER_BYTES = 2**20
_SEED = re.compile(r"seed\d+")
_INPUT_OF_BLOCK = re.compile(r"(?:.+\.)?(\d+)\.input")
_OF_OTHERS = {"sae_weights.safetensors": "SAELens", "params.npz": "Gemma Scope", "ae.pt": "dictionary_learning"}
_KINDS = {
    "expansion_factor": int, "normalize_decoder": bool, "num_latents": int, "k": int,
    "transcode": bool, "skip_connection": bool, "prefixes": list, "budgets": list,
}  # fmt: skip
"""Types of the fields of cfg.json that are fields of `SaeConfig`."""


def save(folder: Path, saved: Saved) -> None:
    """Write `saved` into `folder`, which is created if need be.

    What EleutherAI's library has no word for is written under names of ours, and an `activation` that it refuses.
    Raises ValueError for what this format cannot say.
    """
    spec, tensors = saved
    if spec.layer_norm or spec.centred == spec.cfg.transcode:
        raise ValueError(
            "EleutherAI's format has autoencoders that subtract b_dec and transcoders that do not; convert it first"
        )
    folder.mkdir(parents=True, exist_ok=True)
    cfg = {
        "activation": spec.selection,
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
    cfg |= {"d_out": spec.d_out} if spec.d_out != spec.d_in else {}
    (folder / CFG).write_text(json.dumps(cfg, indent=2) + "\n")
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / WEIGHTS)


def load(folder: Path) -> Saved:
    """Read the dictionary in `folder`. Raises ValueError naming the file and the rule it breaks."""
    if not (folder / WEIGHTS).exists():
        _check_not_of_others(folder)
    spec = _read_cfg(folder / CFG)
    shapes = {name: list(declared.shape) for name, declared in spec.tensors().items()}
    tensors = read_tensors(folder / WEIGHTS, shapes, others_too=False)
    _check_one_float_type(folder / WEIGHTS, {name: t for name, t in tensors.items() if name != "threshold"})
    return Saved(spec, tensors)


def _check_not_of_others(folder: Path) -> None:
    for name, library in _OF_OTHERS.items():
        if (folder / name).exists():
            raise ValueError(
                f"{folder} must hold {CFG} and {WEIGHTS}, EleutherAI's format, but holds {name}, {library}'s, which is "
                "not read yet; load it with that library"
            )


def _read_cfg(path: Path) -> Spec:
    if not path.is_file():
        raise ValueError(
            f"{path.parent} must hold {CFG} and {WEIGHTS}, but there is no {CFG}; "
            "name the folder of one hookpoint, or use Sae.load_many for all of them"
        )
    _check_link(path)
    raw = read_json(path)
    selection = _selection_in(path, raw)
    fields = {name: raw[name] for name in ("d_in", *_KINDS) if raw.get(name) is not None}
    for name, wanted in {"d_in": int, **_KINDS}.items():
        found = fields.get(name, wanted())
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
    return Spec(cfg, d_in, d_out, num_latents, selection)


def _selection_in(path: Path, raw: dict[str, Any]) -> str:
    selection = raw.get("activation", "topk")
    if selection not in ("topk", "batchtopk", "groupmax", "jumprelu"):
        raise ValueError(f"{path}: activation={short(selection)} is not supported; known are topk and groupmax")
    if raw.get("signed"):
        raise ValueError(f"{path}: signed={short(raw['signed'])} is not supported: latents here are non-negative")
    return selection


def _check_link(path: Path) -> None:
    """A file lies in its folder; in the hub's cache it is a link to one in `blobs`."""
    folder = path.parent.resolve()
    homes = [folder, *(parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots")]
    if path.is_symlink() and not any(path.resolve().is_relative_to(home) for home in homes):
        raise ValueError(f"{path} leads out of its folder; put the file itself there")


def read_tensors(path: Path, shapes: dict[str, list[int]], *, others_too: bool = True) -> dict[str, Tensor]:
    """The tensors of these names and shapes in a safetensors file, which are checked before memory is taken.

    `others_too`: the file may hold more than these. Raises ValueError naming the file and the rule it breaks.
    """
    if not path.is_file():
        raise ValueError(f"{path} must hold the weights, but there is no such file; is the download complete?")
    _check_link(path)
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if not header_bytes <= min(_MAX_HEADER_BYTES, path.stat().st_size - 8):
        raise ValueError(f"{path} must be a safetensors file, but it is damaged (a header of {header_bytes} bytes)")
    try:
        with safe_open(path, framework="pt") as file:
            if not others_too and (unknown := sorted(set(file.keys()) - set(shapes))):
                raise ValueError(
                    f"{path} must hold {', '.join(shapes)} and nothing else, but holds {short(unknown)}, without which "
                    f"the autoencoder is another; {CFG} must say what they are for"
                )
            for name, shape in shapes.items():
                if name not in file.keys():
                    raise ValueError(f"{path} must hold the tensor {name}, but holds {sorted(file.keys())[:8]}")
                found = file.get_slice(name).get_shape()
                if found != shape:
                    raise ValueError(f"{path}: {name} must have shape {shape} by {CFG}, got {found}")
            tensors = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} must be a safetensors file, but it is damaged ({str(error)[:80]})") from None
    return tensors


def _check_one_float_type(path: Path, tensors: dict[str, Tensor]) -> None:
    dtypes = {t.dtype for t in tensors.values()}
    if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
        raise ValueError(f"{path}: all tensors must have one floating-point type, got {sorted(map(str, dtypes))}")


def find(folder: Path, names: Iterable[str] | None = None, pattern: str | None = None) -> dict[str, Path]:
    """The folders of autoencoders below `folder`, by hookpoint, in natural order.

    A run's folder stands for its newest checkpoint, and one autoencoder's for that alone. Of several configurations or
    seeds each is `<group>/<hookpoint>`. A name may leave out the group if there is one of that hookpoint, may be longer
    or shorter by the module that the text model lies in, as another class of the model calls it, and is the key of what
    it found. Raises ValueError if there is none, or a named one is missing or one of several.
    """
    found = _found_in(folder)
    if names is None:
        chosen = {name: [name] for name in found if pattern is None or fnmatch.fnmatchcase(name, pattern)}
    else:
        chosen = {name: _meant(name, found) for name in names}
    missing = [name for name, meant in chosen.items() if not meant]
    if missing or not chosen:
        _check_not_of_others(folder)
        raise ValueError(
            f"{folder} must hold {missing or pattern or 'autoencoders'}, "
            f"but holds {sorted(found, key=_natural)[:20] or 'none'}"
        )
    for name, meant in chosen.items():
        if len(meant) > 1:
            several = sorted(meant, key=_natural)[:20]
            raise ValueError(
                f"{folder} must hold one autoencoder of {name}, but holds {', '.join(several)}; "
                f"name one group, such as {folder / several[0].rpartition('/')[0]}"
            )
    return {name: found[chosen[name][0]] for name in sorted(chosen, key=_natural)}


def _meant(name: str, found: Iterable[str]) -> list[str]:
    """Which of `found` a name stands for."""
    if (canonical := _canonical(name)) in found:
        return [canonical]
    block = _INPUT_OF_BLOCK.fullmatch(name)
    also = [name] if block is None else [name, f"layer_{block[1]}", f"layer_{block[1]}.pt"]
    same = [each for each in found if each.rpartition("/")[2] in also]
    near = [each for each in found if _is_wrapped(name, each) or _is_wrapped(each, name)]
    return same or (near if len(near) == 1 else [])


def _found_in(folder: Path) -> dict[str, Path]:
    """All autoencoders below `folder`, by group and hookpoint."""
    if _is_a_seed(folder):
        seed, every = f"{folder.name}/", _found_in(folder.parent)
        return {name.replace(seed, "", 1): path for name, path in every.items() if f"/{seed}" in f"/{name}"}
    folder = _newest_step(folder)
    places = {path.parent.relative_to(folder).as_posix(): path.parent for path in folder.rglob(CFG)}
    below = {place: path for place, path in places.items() if place != "."}
    if not below:
        return {hookpoint_of(path): path for path in places.values()}
    # What eai-sparsify puts into `best` is an earlier state of what lies beside it.
    newest = {place: path for place, path in below.items() if not place.startswith("best/")}
    return {_canonical(place.removeprefix("best/")): path for place, path in (newest or below).items()}


def _is_a_seed(folder: Path) -> bool:
    """Whether `<run>/seed<n>` is no folder, but one seed of each `<run>/<hookpoint>/seed<n>`."""
    return _SEED.fullmatch(folder.name) is not None and not folder.exists() and folder.parent.is_dir()


def _canonical(place: str) -> str:
    """`<group>/<hookpoint>` of a folder. eai-sparsify writes `<hookpoint>/seed<n>`, and either twice in `best`."""
    parts = place.split("/")
    for length in (1, 2):
        if parts[-length:] == parts[-2 * length : -length]:
            parts = parts[:-length]
    if len(parts) > 1 and _SEED.fullmatch(parts[-1]):
        parts[-2:] = reversed(parts[-2:])
    return "/".join(parts)


def hookpoint_of(folder: Path) -> str:
    """The hookpoint of an autoencoder by the name of its folder; the repository's name if it is all that is there."""
    folder = folder.absolute()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return _canonical("/".join(folder.parts[-4:])).rpartition("/")[2]


def _is_wrapped(name: str, longer: str) -> bool:
    """Whether `longer` is `name` below the module that a text model lies in, as in `language_model.layers.3`."""
    wrapper = longer.removesuffix(f".{name}")
    return "." in name and wrapper != longer and not any(map(str.isdigit, wrapper))


def _newest_step(folder: Path) -> Path:
    steps = [path for path in folder.glob("step_*") if path.is_dir() and path.name[5:].isdigit()]
    return max(steps, key=lambda path: int(path.name[5:]), default=folder)


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.findall(r"\d+|\D+", name.replace("/", "."))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def local(name: str | Path) -> Path | None:
    """The folder `name`; for `<run>/best` the run's best checkpoint; None if nothing of that name is on this disk."""
    path = Path(name)
    if path.name == "best" and path.with_name(BEST).is_file() and not path.exists():
        return _best(path.with_name(BEST))
    return path if path.is_dir() or _is_a_seed(path) else None


def locate(name: str | Path) -> Path:
    """The local folder `name`, else the local copy of the hub repository."""
    return local(name) or download(str(name), None)


def _best(path: Path) -> Path:
    found = read_json(path).get("checkpoint")
    if not isinstance(found, str) or not re.fullmatch(r"step_\d+", found):
        raise ValueError(f"{path} must name a checkpoint such as step_1000, got {short(found)}; name the folder itself")
    return path.with_name(found)


def download(name: str, hookpoint: str | None, *, revision: str | None = None) -> Path:
    """Fetch `hookpoint` (or everything) of the hub repository `name`; the local folder of the repository.

    Only JSON and safetensors files are fetched. Raises ValueError in one line if the hub cannot be reached, the
    repository does not exist, or it lacks the hookpoint.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if hookpoint is not None and not is_inside(hookpoint):
        raise ValueError(f"hookpoint must be a module path, got {hookpoint!r}")
    prefix = f"{hookpoint}/" if hookpoint else "*"
    patterns = [f"{prefix}{CFG}", f"{prefix}{WEIGHTS}"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ValueError(
            f"{name} must be a folder or a repository on the hub, but it cannot be had ({reason}); "
            "check the name, the network and HF_HUB_OFFLINE"
        ) from None
    if hookpoint and not (folder / hookpoint / CFG).is_file():
        raise ValueError(
            f"{name} must hold the hookpoint {hookpoint}, but has no {hookpoint}/{CFG}; "
            "Sae.load_many(name) lists and loads what is there"
        )
    return folder
