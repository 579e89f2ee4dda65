"""Files of strangers: tensors from safetensors, torch and NumPy archives, checked before memory is taken.

Every reader raises ValueError, in one line that names the file and the rule that it breaks.
"""

import json
import os
import re
import zipfile
from collections.abc import Mapping
from math import prod
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sae.storage.damage import DAMAGED
from sae.storage.files import short, whole_file

_MAX_HEADER_BYTES = 2**20
_GLOBAL = re.compile(r"(?:[Uu]nsupported (?:global: )?GLOBAL|unrecognized function) (\S{1,100})")
"""What torch says of a name of code in a pickle: unknown, of a module that it blocks, or called."""
_MAX_PICKLE_BYTES, _MAX_ENTRIES = 2**20, 10_000
_MAX_DEFLATED = 16
"""Factor by which a compressed NumPy archive may claim to be larger than its file."""


class Shape(NamedTuple):
    """Shape and type of a tensor in a file."""

    dims: tuple[int, ...]
    dtype: str


def check_link(path: Path) -> None:
    """A file lies in its folder; in the hub's cache it is a link to one in `blobs`."""
    folder = path.parent.resolve()
    homes = [folder, *(parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots")]
    if path.is_symlink() and not any(path.resolve().is_relative_to(home) for home in homes):
        raise ValueError(f"{path} leads out of its folder; put the file itself there")


def check_there(path: Path) -> None:
    """Raise ValueError unless there is such a file, in its folder."""
    if not path.is_file():
        raise ValueError(f"{path} must hold the weights, but there is no such file; is the download complete?")
    check_link(path)


# safetensors


def check_header(path: Path) -> None:
    """Raise ValueError if the header of a safetensors file cannot be one."""
    check_there(path)
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if not header_bytes <= min(_MAX_HEADER_BYTES, path.stat().st_size - 8):
        raise ValueError(f"{path} must be a safetensors file, but {DAMAGED}; is the download complete?")


def shapes_in(path: Path) -> dict[str, Shape]:
    """The tensors of a safetensors file by name; nothing but its header is read."""
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            return {name: Shape(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise _damaged(path, "a safetensors file") from error


def read_tensors(path: Path, shapes: Mapping[str, list[int]], *, others_too: bool = True) -> dict[str, Tensor]:
    """The tensors of these names and shapes in a safetensors file, which are checked before memory is taken.

    `others_too`: the file may hold more than these. Raises ValueError naming the file and the rule it breaks.
    """
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            if not others_too and (unknown := sorted(set(file.keys()) - set(shapes))):
                raise ValueError(
                    f"{path} must hold {', '.join(shapes)} and nothing else, but holds {short(unknown)}, without which "
                    f"the autoencoder is another; its configuration must say what they are for"
                )
            for name, shape in shapes.items():
                if name not in file.keys():
                    raise ValueError(f"{path} must hold the tensor {name}, but holds {short(sorted(file.keys())[:8])}")
                found = file.get_slice(name).get_shape()
                if found != list(shape):
                    raise ValueError(f"{path}: {name} must have shape {shape} by its configuration, got {found}")
            return {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as error:
        raise _damaged(path, "a safetensors file") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None) -> None:
    """Write a safetensors file of tensors on any device and of any layout; `about` is text for its header.

    Raises OSError if the disk is full, and leaves what was there.
    """
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    try:
        with whole_file(path) as partial:
            save_file(plain, partial, about)
    except SafetensorError as error:
        if (code := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def check_one_float_type(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless all tensors, but for a threshold, have one type that can be computed in."""
    types = {tensor.dtype for name, tensor in tensors.items() if name != "threshold"}
    if len(types) > 1 or not all(dtype.is_floating_point and dtype.itemsize > 1 for dtype in types):
        raise ValueError(
            f"{path}: all tensors must have one floating-point type, of 16 bits or more, got {sorted(map(str, types))}"
        )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    return read_tensors(path, {name: list(shape.dims) for name, shape in shapes_in(path).items()})


# torch


def write_torch(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file of `torch.save`, as `write_tensors` does. Tensors own what they store: views would bring all."""
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    with whole_file(path) as partial, partial.open("wb") as file:  # by its path a full disk is a RuntimeError
        try:
            torch.save(plain, file)
        except RuntimeError as error:  # of the archive's end, behind what a full disk said
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def read_torch(path: Path) -> dict[str, Any]:
    """The dictionary in a file of `torch.save`; its tensors are mapped, not copied. No code in it is run.

    Only tensors and plain values are taken, and a tensor may not be larger than the file.
    """
    check_there(path)
    _check_archive(path, "a file of torch.save", path, largest=path.stat().st_size, small="data.pkl")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a hostile pickle can raise anything
        if code := _GLOBAL.search(str(error)):
            raise ValueError(
                f"{path} must be a file of torch.save that holds tensors and no code, but it holds {short(code[1])}; "
                "nothing in it was run: save the state_dict alone, or get safetensors"
            ) from None
        raise _damaged(path, "a file of torch.save that holds tensors and no code") from error
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{path} must hold tensors by name, got {type(value).__name__}")
    _check_sizes(path, value)
    return dict(value)


def _check_sizes(path: Path, value: Mapping[Any, Any]) -> None:
    """Raise ValueError for a tensor that claims more elements than the file has bytes for."""
    for name, tensor in value.items():
        if isinstance(tensor, Tensor) and (
            tensor.layout != torch.strided
            or tensor.device.type != "cpu"
            or tensor.is_quantized
            or tensor.numel() * tensor.element_size() > path.stat().st_size
        ):
            raise ValueError(f"{path}: {short(name)} must be a plain tensor of the file, got {short(tensor.shape)}")


# NumPy


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of numbers in a NumPy archive. Nothing in it is unpickled."""
    check_there(path)
    _check_archive(path, "a NumPy archive", path, largest=_MAX_DEFLATED * path.stat().st_size, small="")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            return {name: _array(archive, entry) for name, entry in names.items()}
    except Exception as error:  # zlib, zipfile and NumPy each raise their own
        raise _damaged(path, "a NumPy archive of numbers") from error


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Tensor:
    with archive.open(entry) as file:
        shape, fortran, dtype = _header(file)
        size = prod(shape) * dtype.itemsize
        if dtype.kind not in "fiu" or any(dim < 0 for dim in shape) or size != entry.file_size - file.tell():
            raise ValueError(f"{short(entry.filename)} is no array of numbers")
        array = np.frombuffer(bytearray(file.read(size)), dtype=dtype)
    array = array.astype(dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(array.reshape(shape, order="F" if fortran else "C"))


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of an array, behind which its numbers begin."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return header(file)


def _check_archive(path: Path, what: str, file: Any, *, largest: int, small: str) -> None:
    """Raise ValueError unless the file is a zip archive whose entries do not claim more than `largest` bytes.

    The entry of the name `small` is to be small. What torch maps must lie in the file uncompressed.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except Exception as error:
        raise _damaged(path, what) from error
    if len(entries) > _MAX_ENTRIES or sum(entry.file_size for entry in entries) > largest:
        raise ValueError(f"{path} must be {what}, but it claims to be larger than it is; get it again")
    for entry in entries:
        if small and (entry.compress_type or entry.filename.endswith(small) and entry.file_size > _MAX_PICKLE_BYTES):
            raise ValueError(f"{path} must be {what}, but {short(entry.filename)} is compressed or too large")


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} must be {what}, but {DAMAGED}; is the download complete?")


def shapes_of(path: Path) -> dict[str, Shape]:
    """The tensors of a file of any of these kinds by name; no weights are read."""
    if path.suffix == ".safetensors":
        return shapes_in(path)
    if path.suffix == ".npz":
        check_there(path)
        return _shapes_npz(path, path)
    return _shapes_torch(read_torch(path))


def shapes_far(path: Path, file: Any, size: int) -> dict[str, Shape]:
    """The same of an open file of `size` bytes that lies elsewhere, of which only the ends and headers are read."""
    if path.suffix == ".safetensors":
        return _shapes_safetensors(path, file, size)
    if path.suffix == ".npz":
        return _shapes_npz(path, file)
    _check_archive(path, "a file of torch.save", file, largest=size, small="data.pkl")
    file.seek(0)
    try:
        with FakeTensorMode():  # which makes no storages
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # as in read_torch
        raise _damaged(path, "a file of torch.save that holds tensors and no code") from error
    return _shapes_torch(found if isinstance(found, dict) else {})


def _shapes_safetensors(path: Path, file: Any, size: int) -> dict[str, Shape]:
    num_bytes = int.from_bytes(file.read(8), "little")
    if num_bytes > min(_MAX_HEADER_BYTES, size - 8):
        raise ValueError(f"{path} must be a safetensors file, but {DAMAGED}; is the upload complete?")
    try:
        header = json.loads(file.read(num_bytes))
        named = {name: each for name, each in header.items() if name != "__metadata__"}
        shapes = {name: Shape(tuple(map(index, each["shape"])), str(each["dtype"])) for name, each in named.items()}
        ends = [index(each["data_offsets"][1]) for each in named.values()]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise _damaged(path, "a safetensors file") from error
    if max(ends, default=0) != size - 8 - num_bytes:
        raise ValueError(f"{path} must be a safetensors file, but {DAMAGED}; is the upload complete?")
    return shapes


def _shapes_torch(found: Mapping[Any, Any]) -> dict[str, Shape]:
    inner = next((found[name] for name in ("ae", "sae") if isinstance(found.get(name), dict)), found)
    return {
        str(name): Shape(tuple(t.shape), str(t.dtype).removeprefix("torch."))
        for name, t in inner.items()
        if isinstance(t, Tensor)
    }


def _shapes_npz(path: Path, file: Any) -> dict[str, Shape]:
    try:
        with zipfile.ZipFile(file) as archive:
            return {entry.filename.removesuffix(".npy"): _shape(archive, entry) for entry in archive.infolist()}
    except Exception as error:
        raise _damaged(path, "a NumPy archive of numbers") from error


def _shape(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Shape:
    with archive.open(entry) as file:
        shape, _, dtype = _header(file)
        return Shape(tuple(shape), str(dtype))
