"""Dictionaries on the hub: what a repository holds, by its small files, and the files of those that are wanted."""

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sae.formats import FORMATS
from sae.formats.circuit_tracer import CONFIG, elsewhere
from sae.formats.files import Shape, shapes_far, shapes_of
from sae.formats.find import chosen_of, find, named, stored_in
from sae.formats.find import local as here
from sae.formats.format import StoredDictionary
from sae.storage.files import is_inside, near_here, near_names

_MOST_CONFIGS = 2_000
_BLOCK = 2**17
"""Bytes that are fetched of a file at once for its header."""


class Access(NamedTuple):
    """How a repository of the hub is reached; the defaults are those of huggingface_hub."""

    revision: str | None = None
    """A branch, tag or commit. None: the newest."""
    token: str | None = None
    """For what is private. None: that of the environment or of `hf auth login`."""
    cache_dir: str | Path | None = None
    """Where files are kept. None: HF_HUB_CACHE."""
    cached_only: bool = False
    """Whether the cache alone is used, without a request."""

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `snapshot_download`, but for the revision."""
        given = {"token": self.token, "cache_dir": self.cache_dir, "local_files_only": self.cached_only}
        return {name: value for name, value in given.items() if value}


ANYBODY = Access()


def find_anywhere(
    name: str | Path,
    hookpoints: Iterable[str] | None = None,
    pattern: str | None = None,
    *,
    local: bool | None = None,
    access: Access = ANYBODY,
) -> dict[str, StoredDictionary]:
    """`find` in a local folder, or in a hub repository, of which nothing but what is named is fetched.

    `local=None` means the folder if there is one of that name, else the hub.
    """
    folder = here(name) if local is None else Path(name) if local else None
    return find(folder, hookpoints, pattern) if folder else fetch(str(name), hookpoints, pattern, access=access)


def local_copy(name: str | Path, hookpoints: Iterable[str] = ()) -> Path:
    """The local folder `name`, else the local copy of the hub repository with these dictionaries, or all."""
    return here(name) or next(iter(fetch(str(name), [*hookpoints] or None).values())).root


class Found(NamedTuple):
    """Dictionaries on the hub, of which no weights are fetched yet."""

    dictionaries: dict[str, StoredDictionary]
    homes: dict[Path, tuple[str, Access]]
    """Repository and commit of each local copy."""


def fetch(
    name: str,
    hookpoints: Iterable[str] | None,
    pattern: str | None = None,
    *,
    access: Access = ANYBODY,
    only_one: bool = False,
) -> dict[str, StoredDictionary]:
    """The dictionaries of the hub repository `name` that are named, or match a glob (None: all), fetched; see `find`.

    Raises ValueError in one line if the hub cannot be reached, the repository does not exist, or it lacks one. So it
    does if it has several, and `only_one` is wanted.
    """
    chosen, homes = look(name, hookpoints, pattern, access=access)
    if only_one and len(chosen) > 1:
        raise ValueError(f"hookpoint must be given for {name}, which holds {', '.join(list(chosen)[:20])}")
    for folder, (repository, exact) in homes.items():
        files = {file for stored in chosen.values() if stored.root == folder for file in stored.files}
        if files:
            _snapshot(repository, exact, sorted(files))
    return chosen


def look(
    name: str, hookpoints: Iterable[str] | None = None, pattern: str | None = None, *, access: Access = ANYBODY
) -> Found:
    """The dictionaries of the hub repository `name` that are named, of which configurations alone are fetched.

    A set that circuit-tracer reads may name files of other repositories. Raises ValueError as `fetch`.
    """
    wanted = None if hookpoints is None else list(hookpoints)
    for hookpoint in wanted or []:
        if not is_inside(hookpoint):
            raise ValueError(f"hookpoint must be a module path, got {hookpoint!r}")
    files, exact = _files(name, access)
    folder, found = _looked(name, access, exact, _named_by_path(files, wanted or []) or files)
    homes = {folder: (name, exact)}
    for repository, revision, theirs in _of_others(folder, found):
        at = access._replace(revision=revision)
        files, exact = _files(repository, at)
        missing = sorted(set().union(*theirs.values()) - {*files})
        if missing and not exact.cached_only:  # the cache may well have a part
            raise ValueError(
                f"{name} names files of {repository}, which must have {missing[0]}, but has not ({len(missing)} of "
                f"{sum(map(len, theirs.values()))} are missing); has it changed since? its layers would not be whole"
            )
        other, more = _looked(repository, at, exact, [file for file in files if PurePosixPath(file).parent in theirs])
        homes[other] = (repository, exact)
        found += [stored for stored in more if theirs[PurePosixPath(stored.files[-1]).parent] & {*stored.files}]
    return Found(chosen_of(name, named(found), wanted, pattern), homes)


def _named_by_path(files: list[str], wanted: list[str]) -> list[str]:
    """The files of the dictionaries that `wanted` names by their paths; none if any has another name.

    A repository may have a thousand configurations, and nobody needs those of others.
    """
    folders = {PurePosixPath(name) for name in wanted}
    near = [file for file in files if {*PurePosixPath(file).parents, PurePosixPath(file)} & folders]
    there = {stored.relative for stored in stored_in(Path(), near)}
    beside = {parent for folder in folders for parent in folder.parents}
    return (
        [file for file in files if file in near or PurePosixPath(file).parent in beside] if there >= {*wanted} else []
    )


def _looked(name: str, access: Access, exact: Access, files: list[str]) -> tuple[Path, list[StoredDictionary]]:
    """The local copy of a repository, of these files, and the dictionaries in it."""
    configs = {config for each in FORMATS.values() for config in each.configs}
    small = [file for file in files if file.rpartition("/")[2] in configs][:_MOST_CONFIGS]
    folder = _snapshot(name, access, small)  # by the name of the revision, which is then known without a network too
    if exact != access and folder.name != exact.revision:  # it has just moved on
        folder = _snapshot(name, exact, small)
    return folder, stored_in(folder, files)


def _of_others(
    folder: Path, found: list[StoredDictionary]
) -> list[tuple[str, str | None, dict[PurePosixPath, set[str]]]]:
    """The files, by their folders, that sets in `folder` have in each other repository and revision."""
    used = {stored.path.parent for stored in found}
    named: dict[tuple[str, str | None], dict[PurePosixPath, set[str]]] = {}
    for config in folder.rglob(CONFIG):
        for link in elsewhere(config) if config.parent not in used else ():
            folders = named.setdefault((link.repository, link.revision), {})
            folders.setdefault(PurePosixPath(link.file).parent, set()).add(link.file)
    return [(*key, folders) for key, folders in named.items()]


class Headers:
    """Headers of files of the hub: of those that are not here, only these parts are fetched."""

    def __init__(self, found: Found) -> None:
        from huggingface_hub import HfFileSystem

        self._homes = found.homes
        self._hub = {folder: HfFileSystem(token=access.token) for folder, (_, access) in found.homes.items()}

    def shapes(self, path: Path) -> dict[str, Shape]:
        """See `shapes_of`."""
        if path.exists():
            return shapes_of(path)
        folder, place = self._place(path)
        with _asked(place, self._hub[folder].open, place, "rb", block_size=_BLOCK) as file:
            return shapes_far(path, file, file.size)

    def size(self, path: Path) -> int:
        """Bytes of a file."""
        folder, place = self._place(path)
        return path.stat().st_size if path.exists() else int(_asked(place, self._hub[folder].size, place))

    def _place(self, path: Path) -> tuple[Path, str]:
        folder = next(folder for folder in self._homes if path.is_relative_to(folder))
        repository, access = self._homes[folder]
        return folder, f"{repository}@{access.revision or folder.name}/{path.relative_to(folder).as_posix()}"


def _files(name: str, access: Access) -> tuple[list[str], Access]:
    """Names of the repository's files, and the path of its commit; without a network, those in the cache."""
    from huggingface_hub import HfApi

    if _offline():
        return _cached(name, access)
    try:
        info = _asked(name, HfApi(token=access.token).model_info, name, revision=access.revision)
    except _Unreachable as error:
        try:
            return _cached(name, access)
        except ValueError:
            raise error from None
    files = [file.rfilename for file in info.siblings or []]
    return sorted(file for file in files if is_inside(file)), access._replace(revision=info.sha or access.revision)


def _cached(name: str, access: Access) -> tuple[list[str], Access]:
    """Names and path as by `_files`, from the cache."""
    access = access._replace(cached_only=True)
    folder = _snapshot(name, access, [])  # whatever part of it there is
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()), access


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _snapshot(name: str, access: Access, files: list[str]) -> Path:
    """The local copy, which then has these files."""
    from huggingface_hub import snapshot_download

    escaped = ["".join(f"[{c}]" if c in "*?[" else c for c in file) for file in files]
    options = access.options | {"allow_patterns": escaped}
    return Path(_asked(name, snapshot_download, name, revision=access.revision, **options))


class _Unreachable(ValueError):
    """The hub did not answer."""


def _asked(name: str, call: Any, *arguments: Any, **options: Any) -> Any:
    """The hub's answer. Raises ValueError in one line if it refuses, and _Unreachable if it does not answer."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    refusals = HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, ValueError
    try:
        return call(*arguments, **options)
    except Exception as error:  # those of the client's own HTTP library have no base that is ours to name
        raise (ValueError if isinstance(error, refusals) else _Unreachable)(
            f"{name} must be a folder or a repository on the hub, but it cannot be had ({_why(error)}); "
            f"check the name, the network and HF_HUB_OFFLINE{_beside(name)}"
        ) from None


def _why(error: Exception) -> str:
    """The reason in few words, where the client's own sentence has many or is about names on the hub."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if isinstance(error, HFValidationError):
        return "there is no such folder, and the hub has no such names"
    if isinstance(error, LocalEntryNotFoundError) and _offline():
        return "there is no such folder, HF_HUB_OFFLINE is set, and the local cache does not hold it"
    return reason_of(error)


def _beside(name: str) -> str:
    """What lies where a path was meant to lead, for a message; of a name of the hub only what is like it."""
    holds = f"; {near_names(name)}" if "/" in name and Path(name).parent.is_dir() else ""
    return near_here(name) or holds


def reason_of(error: BaseException) -> str:
    """The first line of the hub client's message, and the next one after a colon.

    If it only names the file, the reason behind it follows.
    """
    if isinstance(error, json.JSONDecodeError):
        return "what answered is not the hub, or a proxy before it: it sent no JSON"
    lines = [line.strip()[:160] for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    if type(error) is RuntimeError and error.__cause__ is not None:  # the client's for a file's upload
        return f"{said.rstrip('.')}: {reason_of(error.__cause__)}"
    return said
