"""Every reader under thousands of broken files: one clear line, or a dictionary; never a crash, never much memory.

`SAE_FUZZ_FILES=10000 pytest tests/formats/test_fuzz_formats.py` breaks as many files of each format, the kinds of a
format sharing them, and of the run's own choice; without it there are 11,000 of all formats together.
"""

import io
import os
import random
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from strangers import STRANGERS, D, Stranger

from sae import Sae
from sae.formats.files import shapes_far
from sae.formats.find import find

FILES_OF_A_FORMAT = int(os.environ.get("SAE_FUZZ_FILES", "0"))
FEW = 2
MORE_BYTES = 64 * 2**20
ODD = [b"", b"\0" * 64, b"\xff" * 64, b"{}", b"[]", b"{" * 3000, b"null", b"&a [*a,*a]", b"PK\x03\x04", b"\x80\x04."]


def broken(original: bytes, chance: random.Random) -> bytes:
    """A file with bytes changed, cut, repeated or put in; or numbers in it made huge."""
    content = bytearray(original)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(content) or 1)
        kind = chance.randrange(6)
        if kind == 0 and content:
            content[at] = chance.randrange(256)
        elif kind == 1:
            del content[at : at + chance.choice((1, 7, 100, 10**6))]
        elif kind == 2:
            content[at:at] = content[at : at + chance.choice((1, 9, 300))]
        elif kind == 3:
            content[at : at + 8] = struct.pack("<Q", chance.choice((0, 1, 2**31, 2**40, 2**63)))
        elif kind == 4:
            content[at : at + 1] = chance.choice((b"99999999999999", b"-1", b'"', b"null", b"[", b"\n", b"1e999"))
        else:
            content[at:at] = chance.randbytes(chance.choice((1, 4, 64)))
    return bytes(content)


@contextmanager
def little_memory() -> Iterator[None]:
    """A limit on what is taken beside what is there already."""
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + MORE_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def check(action: Callable[[], object], folder: Path) -> bool:
    """Whether it succeeds; if not it must be a ValueError of one line that is not long."""
    try:
        with little_memory():
            action()
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500 and str(folder) in str(error), str(error)
        return False
    return True


def rounds(name: str) -> int:
    """How many files of a kind are broken."""
    if not FILES_OF_A_FORMAT:
        return 11_000 // len(STRANGERS)
    kinds = sum(stranger.format == STRANGERS[name].format for stranger in STRANGERS.values())
    return -(-FILES_OF_A_FORMAT // kinds)


@pytest.mark.parametrize("name", STRANGERS)
def test_a_few_broken_files_are_told_in_one_line_or_read_as_what_they_say(tmp_path: Path, name: str) -> None:
    break_files(tmp_path, name, FEW, "few")


@pytest.mark.slow
@pytest.mark.parametrize("name", STRANGERS)
def test_a_broken_file_is_told_in_one_line_or_read_as_what_it_says(tmp_path: Path, name: str) -> None:
    break_files(tmp_path, name, rounds(name), f"{FILES_OF_A_FORMAT or ''}")


def break_files(tmp_path: Path, name: str, count: int, seed: str) -> None:
    """Break `count` files of a kind, one at a time, and read each. Nothing but them may change."""
    stranger, chance = STRANGERS[name], random.Random(name + seed)
    folder = tmp_path / "repo-L0_3" / "layer_3"
    stranger.write(folder)
    assert read(folder, stranger).d_in == D
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    untouched = (tmp_path / "victim").write_bytes(b"mine")
    for _ in range(count):
        file = chance.choice(files)
        original = file.read_bytes()
        file.write_bytes(chance.choice(ODD) if chance.random() < 0.1 else broken(original, chance))
        check(lambda: read(folder, stranger), tmp_path)
        check(lambda: find(folder), tmp_path)
        file.write_bytes(original)
    assert read(folder, stranger).d_in == D and untouched == 4
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted([*files, tmp_path / "victim"])
    shutil.rmtree(folder)
    assert not check(lambda: read(folder, stranger), tmp_path)


def read(folder: Path, stranger: Stranger) -> Sae:
    return Sae.load_from_disk(folder / stranger.file)


@pytest.mark.parametrize("name", ["Qwen Scope", "Gemma Scope", "Gemma Scope 2"])
def test_a_broken_header_of_a_file_far_away_is_one_line_or_shapes(tmp_path: Path, name: str) -> None:
    STRANGERS[name].write(tmp_path / "x")
    path = next(path for path in (tmp_path / "x").rglob("*") if path.suffix in (".npz", ".pt", ".safetensors"))
    original, chance = path.read_bytes(), random.Random(0)
    with little_memory():
        for each in [*ODD, *(broken(original, chance) for _ in range(FILES_OF_A_FORMAT or 300))]:
            try:
                found = shapes_far(path, io.BytesIO(each), len(each))
            except ValueError as error:
                assert path.name in str(error) and "\n" not in str(error)
            else:
                assert all(isinstance(dim, int) for shape in found.values() for dim in shape.dims)
