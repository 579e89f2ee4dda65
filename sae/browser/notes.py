"""Notes, bookmarks and explanations of latents, in one JSON file beside the indexes of a run."""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

from sae.storage.files import read_json, short, write_json

_MAX_BYTES = 2**26
_MAX_TEXT = 20_000
FIELDS = ("note", "explanation", "bookmarked")


class Notes:
    """What people and models wrote about latents. Each change is on the disk when `put` returns.

    `sae browse --explain` and a page may write the same file in turns: each change begins with what the file holds.
    """

    def __init__(self, path: Path) -> None:
        """Raises ValueError if the file holds something else."""
        self._path, self._lock, self._version = path, Lock(), ""
        self._all: dict[str, dict[str, dict[str, Any]]] = {}
        self._read()

    def _read(self) -> None:
        """Take over what another process has written."""
        if (version := _version(self._path)) in ("", self._version):
            return
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for place, latents in read_json(self._path, max_bytes=_MAX_BYTES).items():
            if not isinstance(latents, dict):
                raise ValueError(
                    f"{self._path} must hold notes by place and latent, got {short(latents)}; move it away"
                )
            for latent, note in latents.items():
                found.setdefault(place, {})[str(latent)] = checked(note)
        self._all, self._version = found, version

    def _write(self) -> None:
        write_json(self._path, self._all)
        self._version = _version(self._path)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Inside `with`, no other thread or process changes the file, and what it holds is known."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            with self._lock:
                with suppress(OSError):  # some network disks have no locks
                    fcntl.flock(folder, fcntl.LOCK_EX)
                self._read()
                yield
        finally:
            os.close(folder)

    def of(self, place: str) -> dict[str, dict[str, Any]]:
        """All that was written about the latents of a place, by their number."""
        with self._lock:
            self._read()
            return self._all.get(place, {})

    def put(self, place: str, latent: int, changes: Any) -> dict[str, Any]:
        """Change what is written about a latent; empty values are taken away. Raises ValueError for no note."""
        with self._alone():
            latents = self._all.setdefault(place, {})
            note = latents.get(str(latent), {}) | checked(changes)
            latents[str(latent)] = {name: value for name, value in note.items() if value}
            self._write()
            return latents[str(latent)]

    def put_many(self, place: str, explanations: Iterable[tuple[int, str]]) -> int:
        """Take over explanations; how many there were."""
        count = 0
        with self._alone():
            latents = self._all.setdefault(place, {})
            for latent, text in explanations:
                latents[str(latent)] = latents.get(str(latent), {}) | checked({"explanation": text})
                count += 1
            self._write()
        return count


def _version(path: Path) -> str:
    """Which writing of the file there is; empty if there is no file."""
    if not path.exists():
        return ""
    found = path.stat()
    return f"{found.st_ino} {found.st_mtime_ns} {found.st_size}"


def checked(note: Any) -> dict[str, Any]:
    """The fields of a note. Raises ValueError for a value of another type, or a text that is too long."""
    if not isinstance(note, dict):
        raise ValueError(f"a note must be an object with {', '.join(FIELDS)}, got {type(note).__name__}")
    for name in ("note", "explanation"):
        if not isinstance(note.get(name, ""), str) or len(note.get(name, "")) > _MAX_TEXT:
            raise ValueError(f"{name} must be a text of at most {_MAX_TEXT} characters")
    if not isinstance(note.get("bookmarked", False), bool):
        raise ValueError("bookmarked must be true or false")
    return {name: note[name] for name in FIELDS if name in note}


def read_explanations(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(latent, explanation) of JSON lines: Neuronpedia's index and description, or delphi's latent and explanation.

    Raises ValueError naming the first line that is neither.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name = next(each for each in ("index", "latent", "feature") if each in entry)
            text = entry["description"] if "description" in entry else entry["explanation"]
            latent = int(str(entry[name]).rpartition("latent")[2])
            if not isinstance(text, str) or latent < 0:
                raise TypeError
        except (ValueError, TypeError, KeyError, StopIteration, RecursionError):
            raise ValueError(
                f"line {number} must be a JSON object with index and description, or latent and explanation, got "
                f"{' '.join(line.split())[:60]!r}"
            ) from None
        yield latent, text


def write_explanations(notes: dict[str, dict[str, Any]], *, model: str, layer: str) -> str:
    """Explanations as JSON lines that both Neuronpedia's import and delphi's readers take."""
    lines = [
        {"modelId": model, "layer": layer, "index": latent, "description": note["explanation"], "latent": int(latent),
         "explanation": note["explanation"], "typeName": "sae-browse"}
        for latent, note in notes.items() if note.get("explanation")
    ]  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in lines)
