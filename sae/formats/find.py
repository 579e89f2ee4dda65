"""Which dictionaries a folder holds, of whatever format, and under which names."""

import fnmatch
import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from pathlib import Path, PurePosixPath

from sae.formats import FORMATS
from sae.formats.eleuther import ELEUTHER, SEED, canonical
from sae.formats.files import shapes_of
from sae.formats.format import StoredDictionary, names_below, quietly
from sae.formats.overcomplete import DICTIONARY, OVERCOMPLETE
from sae.storage.files import MANIFEST, newest_step, read_json, short

BEST = "best.json"
_GLOB = re.compile(r"[*?\[]")
_INPUT_OF_BLOCK = re.compile(r"(?:.+\.)?(\d+)\.input")


def stored_in(folder: Path, names: Sequence[str]) -> list[StoredDictionary]:
    """The dictionaries among files of these relative names, which need not be there yet, each once.

    Raises ValueError for one that files of two formats claim.
    """
    known, found = frozenset(names), dict[str, StoredDictionary]()
    for name in names:
        for each in FORMATS.values():
            claim = each.claim(PurePosixPath(name), known)
            if claim is None:
                continue
            here = _by_content(StoredDictionary(each, folder / claim.relative, claim.files, claim.relative), known)
            other = found.setdefault(claim.relative, here)
            if other.format is not here.format:
                raise ValueError(
                    f"{folder / claim.relative} must hold one format, but has {other.format.files} of "
                    f"{other.format.library} and {each.files} of {each.library}; move one of them away"
                )
    return list(found.values())


def _by_content(stored: StoredDictionary, known: Container[str]) -> StoredDictionary:
    """The dictionary as another format's, if none of its weights are there and its configuration is that one's."""
    if not stored.path.is_dir() or any(file in known for file in stored.files if not file.endswith(".json")):
        return stored
    for each in FORMATS.values():
        if each.knows is not None and (claim := each.knows(stored.path)) is not None:
            files = tuple((PurePosixPath(stored.relative) / file).as_posix() for file in claim.files)
            return StoredDictionary(each, stored.path, files, stored.relative)
    return stored


def stored_at(path: Path) -> StoredDictionary:
    """The one dictionary in a folder, or in a file. Raises ValueError if there is none, or several."""
    folder = path.parent if path.is_file() else path
    found = stored_in(folder, names_below(folder, depth=0))
    if path.is_file():
        found = [stored for stored in found if path.name in stored.files]
        if not found and path.suffix == ".pt" and DICTIONARY in shapes_of(path):  # of any name
            return StoredDictionary(OVERCOMPLETE, path, (path.name,), path.name)
    found = [stored for stored in found if stored.relative == "."] or found
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(stored.relative for stored in found[:8])
        raise ValueError(f"{path} must hold one dictionary, but holds {several}; name one, or use Sae.load_many")
    raise ValueError(
        f"{path} must hold a dictionary, but there is {_looked_for()}; "
        "name the folder of one hookpoint, or use Sae.load_many for all of them"
    )


def _looked_for() -> str:
    return "no " + ", no ".join(dict.fromkeys(f"{each.files} ({each.library})" for each in FORMATS.values()))


def _why_none(folder: Path) -> str:
    """What a folder without dictionaries is instead, or which files make one."""
    if "num_shards" in quietly(folder / MANIFEST):
        return f"; it is a cache of activations, which sae --activations {folder} trains on"
    if "model_type" in quietly(folder / "config.json"):
        return "; it is a language model, of which sae MODEL DATASET trains some"
    return f": there is {_looked_for()}"


def find(folder: Path, names: Iterable[str] | None = None, pattern: str | None = None) -> dict[str, StoredDictionary]:
    """The dictionaries below `folder`, by hookpoint, in natural order.

    A run's folder stands for its newest checkpoint, and a dictionary's file for that alone. If it does not say its
    hookpoint, as overcomplete's, it is of the one that is named. A dictionary that is the folder itself is found with
    those below it. What `sae push` wrote in several formats is found once. Of several at a hookpoint (configurations,
    seeds, widths) each is `<group>/<hookpoint>`. A name may leave out the group if there is one of that hookpoint, or
    may be the path below `folder`. It may be longer or shorter by the module that the text model lies in, as another
    class of the model calls it. The name is the key of what it found; what a glob finds keeps its own. Raises
    ValueError if there is none, or a named one is missing or one of several.
    """
    if folder.is_file():
        stored, names = stored_at(folder), None if names is None else list(names)
        own = _name_of(stored)
        if not stored.format.says_hookpoint and names is not None and len(names) == 1 and not _GLOB.search(names[0]):
            own = names[0]
        return chosen_of(folder, {own: stored}, names, pattern)
    return chosen_of(folder, found_in(folder), names, pattern)


def chosen_of(
    folder: Path | str, found: dict[str, StoredDictionary], names: Iterable[str] | None, pattern: str | None
) -> dict[str, StoredDictionary]:
    """The dictionaries of `found` that are named; see `find`."""
    once = {name: stored for name, stored in found.items() if not stored.is_copy}
    if names is None:
        matching = [name for name in found if pattern is None or fnmatch.fnmatchcase(name, pattern)]
        chosen = {name: [name] for name in [name for name in matching if name in once] or matching}
    else:
        asked = (_named(name, once) or _named(name, found) or {name: []} for name in names)
        chosen = {name: keys for one in asked for name, keys in one.items()}
    missing = [name for name, meant in chosen.items() if not meant]
    if missing or not chosen:
        why = "" if found else _why_none(Path(folder))
        if missing and [place.relative for place in found.values()] == ["."]:
            why = "; a folder that is one dictionary is named after its hookpoint: rename it, if it is that one"
        raise ValueError(
            f"{folder} must hold {missing or pattern or 'autoencoders'}, "
            f"but holds {sorted(once, key=_natural)[:20] or 'none'}{why}"
        )
    for name, meant in chosen.items():
        if len(meant) > 1:
            several = sorted(meant, key=_natural)[:20]
            raise ValueError(
                f"{folder} must hold one autoencoder of {name}, but holds {', '.join(several)}; "
                f"name one group, such as {Path(folder) / several[0].rpartition('/')[0]}"
            )
    return {name: found[chosen[name][0]] for name in sorted(chosen, key=_natural)}


def meant_by(names: Iterable[str], found: dict[str, StoredDictionary]) -> set[str]:
    """The keys of `found` that one of these names or globs stands for, as in `find`; several of one name are all."""
    return {key for name in names for meant in _named(name, found).values() for key in meant}


def _named(name: str, found: dict[str, StoredDictionary]) -> dict[str, list[str]]:
    """Which of `found` a name or a glob stands for: by that name, or each that matches by its own; empty if none."""
    if _GLOB.search(name) is None:
        return {name: meant} if (meant := _meant(name, found)) else {}
    return {key: [key] for key in found if any(fnmatch.fnmatchcase(one, name) for one in (key, key.rpartition("/")[2]))}


def _meant(name: str, found: dict[str, StoredDictionary]) -> list[str]:
    """Which of `found` a name stands for."""
    if (own := canonical(name)) in found:
        return [own]
    if by_path := [key for key, stored in found.items() if stored.relative == name]:
        return by_path
    block = _INPUT_OF_BLOCK.fullmatch(name)
    also = [name] if block is None else [name, f"layer_{block[1]}", f"layer_{block[1]}.pt"]
    same = [each for each in found if each.rpartition("/")[2] in also]
    near = [each for each in found if _is_wrapped(name, each) or _is_wrapped(each, name)]
    return same or (near if len(near) == 1 else [])


def found_in(folder: Path) -> dict[str, StoredDictionary]:
    """All dictionaries below `folder`, by group and hookpoint."""
    if _is_a_seed(folder):
        seed, every = f"{folder.name}/", found_in(folder.parent)
        return {name.replace(seed, "", 1): stored for name, stored in every.items() if f"/{seed}" in f"/{name}"}
    folder = newest_step(folder)
    return named(stored_in(folder, names_below(folder)))


def named(dictionaries: Iterable[StoredDictionary]) -> dict[str, StoredDictionary]:
    """Dictionaries by group and hookpoint; what `sae push` wrote of them in further formats by its path."""
    every = {stored.relative: stored for stored in dictionaries}
    below = {relative: stored for relative, stored in every.items() if relative != "."}
    # What eai-sparsify puts into `best` is an earlier state of what lies beside it.
    newest = {relative: stored for relative, stored in below.items() if not relative.startswith("best/")} or below
    found = [stored for relative, stored in every.items() if relative == "."] + list(newest.values())
    pairs = _once([(_name_of(stored), stored) for stored in found])
    counts = Counter(name for name, stored in pairs if not stored.is_copy)
    return {_key(name, stored, alone=counts[name] == 1): stored for name, stored in pairs}


def _key(name: str, stored: StoredDictionary, *, alone: bool) -> str:
    """Key of a dictionary: its hookpoint, with its path before it unless it is alone there; of a copy the path."""
    if stored.is_copy:
        return stored.relative
    return name if alone or stored.relative == "." else f"{stored.relative}/{name}"


def _once(pairs: list[tuple[str, StoredDictionary]]) -> list[tuple[str, StoredDictionary]]:
    """The dictionaries, of which those are marked that stand in a further format, in a folder of its name, too."""
    plain = {stored.relative: stored for _, stored in pairs if not _is_in_its_formats_folder(stored)}
    by_name = {name: stored for name, stored in pairs if stored.relative in plain}
    also: dict[str, list[str]] = {}
    marked = set()
    for name, stored in pairs:
        if stored.relative in plain:
            continue
        below = stored.relative.partition("/")[2]
        is_of_a_set = stored.format.folder_of(below) != below
        same = by_name.get(name) if is_of_a_set else plain.get(below)
        if same is not None and same.format is not stored.format:
            also.setdefault(same.relative, []).append(stored.format.name)
            marked.add(stored.relative)
    return [
        (name, stored._replace(also=tuple(also.get(stored.relative, ())), is_copy=stored.relative in marked))
        for name, stored in pairs
    ]


def _is_in_its_formats_folder(stored: StoredDictionary) -> bool:
    return stored.relative.partition("/")[0] == stored.format.name


def _name_of(stored: StoredDictionary) -> str:
    if stored.format is ELEUTHER and stored.relative != ".":
        return canonical(stored.relative.removeprefix("best/"))
    return stored.format.hookpoint(stored.path) or ELEUTHER.hookpoint(stored.path)


def _is_a_seed(folder: Path) -> bool:
    """Whether `<run>/seed<n>` is no folder, but one seed of each `<run>/<hookpoint>/seed<n>`."""
    return SEED.fullmatch(folder.name) is not None and not folder.exists() and folder.parent.is_dir()


def _is_wrapped(name: str, longer: str) -> bool:
    """Whether `longer` is `name` below the module that a text model lies in, as in `language_model.layers.3`."""
    wrapper = longer.removesuffix(f".{name}")
    return "." in name and wrapper != longer and not any(map(str.isdigit, wrapper))


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.findall(r"\d+|\D+", name.replace("/", "."))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def local(name: str | Path) -> Path | None:
    """The folder or file `name`; None if there is none on this disk.

    `<run>/best` is the run's best checkpoint. What is below a run, or below its best, is below its newest, or best,
    checkpoint: such as one group of a sweep.
    """
    path = Path(name)
    if _is_best(path):
        return _best(path.with_name(BEST))
    if path.exists() or _is_a_seed(path):
        return path
    above = next((parent for parent in path.parents if parent.is_dir() or _is_best(parent)), None)
    folder = None if above is None else local(above)
    if above is None or folder is None:
        return None
    below = newest_step(folder) / path.relative_to(above)
    return below if below.exists() else None


def _is_best(path: Path) -> bool:
    return path.name == "best" and path.with_name(BEST).is_file() and not path.exists()


def _best(path: Path) -> Path:
    found = read_json(path).get("checkpoint")
    if not isinstance(found, str) or not re.fullmatch(r"step_\d+", found):
        raise ValueError(f"{path} must name a checkpoint such as step_1000, got {short(found)}; name the folder itself")
    return path.with_name(found)
