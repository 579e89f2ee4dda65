"""Passes over the rows of a matrix in C, compiled when first used, where the machine has a C compiler.

A pass holds a row in the first-level cache: what PyTorch does in some twenty operations, each through memory, reads and
writes it once. Every function has the meaning of its plain twin, up to the order of sums. A row is the work of one
thread, so results are bitwise equal for any number of threads. Without a compiler the twins run.

The threads are PyTorch's own team of OpenMP, which stays awake between its products. Others would fight it for cores.
They are others all the same where the compiler cannot use PyTorch's OpenMP, as Apple's.
"""

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

# Sums may be reordered, as vectors need; what is not finite stays so, and denormal numbers are as elsewhere.
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math")
_TEAM = "-fopenmp"
_SOURCES = [Path(__file__).with_name(f"{name}.c") for name in ("rows", "momentum", "bags", "eight_bit", "attention")]
_SECONDS = 300
"""How long a compiler may take; it needs a third of one, and many on a machine that is full."""
_LEAST_ELEMENTS = 2**16
"""Elements of the smallest matrix that more than one thread is worth."""
_PARTS = 4
"""Into how many parts the rows are split for each thread: some take longer."""

_ONCE = Lock()
_slow: list[str] = []
"""The compiler, if it was given up after `_SECONDS`."""

COPIES = (torch.float32, torch.bfloat16)
"""Types of what is written beside the float32 that is computed with."""


def usable(*tensors: Tensor) -> bool:
    """Whether these float32 tensors can be handed to C: rows one after the other, on a CPU, and there is a compiler."""
    plain = all(has_memory(t) and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
    return plain and library() is not None


def readable(rows: Tensor) -> bool:
    """Whether C reads these float32 rows, which may be apart in memory; and there is a compiler."""
    plain = has_memory(rows) and rows.dtype == torch.float32 and rows.dim() == 2 and rows.stride(1) == 1
    return plain and library() is not None


def has_memory(tensor: Tensor) -> bool:
    """Whether its numbers are in the memory that it names: not on another device, nor for tracing alone."""
    return tensor.is_cpu and type(tensor) in (Tensor, Parameter)


def computes_here() -> bool:
    """Whether what is called computes numbers, in the types of its arguments.

    Otherwise it is traced, transformed or differentiated in forward mode, or autocast chooses the types.
    """
    functions, dispatch = torch._C._functorch, torch._C._len_torch_dispatch_stack()
    transformed = functions.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    return not (torch._C._get_tracing_state() or dispatch or transformed or torch.is_autocast_enabled("cpu"))


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory that C writes to: of this type and on the CPU, whatever PyTorch's defaults are."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def library() -> ctypes.CDLL | None:
    """The compiled code; None if it cannot be had. It is compiled by each process, in a folder that then goes."""
    with _ONCE:
        return _library()


def compile_ahead() -> None:
    """Compile in a thread of its own, while something else is done: it takes a second, once for each process."""
    if not _library.cache_info().currsize:
        os.register_at_fork(after_in_child=_free)  # the thread that holds the lock is not in the child
        Thread(target=library, name="compile").start()


def _free() -> None:
    global _ONCE
    _ONCE = Lock()


@cache
def _library() -> ctypes.CDLL | None:
    if not (compiler := _compiler()):
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="sae-") as folder:
            return _with_team(compiler, Path(folder)) or _built(compiler, Path(folder), [])
    except subprocess.TimeoutExpired:
        _slow.append(compiler[0])
        return None
    except (OSError, subprocess.SubprocessError):
        return None


def _compiler() -> list[str]:
    """The command that compiles, with the arguments that CC may give it; empty if there is none."""
    try:
        words = shlex.split(os.environ.get("CC", "cc"))
    except ValueError:  # a quotation without an end
        return []
    found = shutil.which(words[0]) if words else None
    return [] if found is None else [found, *words[1:]]


def _with_team(compiler: list[str], folder: Path) -> ctypes.CDLL | None:
    """The code that runs in PyTorch's team; None where it cannot be had."""
    openmp = _openmp()
    try:
        return None if openmp is None else _built(compiler, folder, [_TEAM], [openmp, "-Wl,--no-undefined"])
    except (OSError, subprocess.CalledProcessError):
        return None


def _built(compiler: list[str], folder: Path, flags: list[str], libraries: Sequence[str] = ()) -> ctypes.CDLL:
    # Linked apart: with its flag a compiler would add an OpenMP of its own, and its threads.
    compiled, linked = [str(folder / f"{source.stem}.o") for source in _SOURCES], str(folder / f"{len(flags)}.so")
    for command in (
        *(
            [*compiler, *_FLAGS, *flags, "-fPIC", "-c", "-o", file, str(source)]
            for file, source in zip(compiled, _SOURCES, strict=True)
        ),
        [*compiler, "-shared", "-o", linked, *compiled, *libraries, "-lm"],
    ):
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=_SECONDS)
    return ctypes.CDLL(linked)


def _openmp() -> str | None:
    """The file of the OpenMP that PyTorch has loaded, if it is GNU's: its own, or else the only one.

    Other packages bring further ones, such as sentencepiece and scikit-learn.
    """
    try:
        mapped = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    files = {line.split(maxsplit=5)[-1] for line in mapped.splitlines() if "/libgomp" in line}
    package = Path(torch.__file__).parent
    own = {file for file in files if {package, package.with_name("torch.libs")} & set(Path(file).parents)}
    found = own or files
    return found.pop() if len(found) == 1 else None


@cache
def has_team() -> bool:
    """Whether the compiled code runs in PyTorch's threads."""
    built = library()
    return built is not None and bool(built.has_team())


def advice() -> str | None:
    """What to tell who trains on a CPU without the compiled code; None if it is there."""
    if library() is not None:
        return None
    if _slow:
        return (
            f"{_slow[0]} had not compiled the optimizer after {_SECONDS} s, so that it takes twice as long: begin the "
            "run anew when the machine has less to do"
        )
    return (
        "no C compiler works here, so that the optimizer takes twice as long: install gcc or clang, or name one in CC; "
        "it needs a folder for temporary files with room, from which programs may run (TMPDIR)"
    )


@cache
def version() -> str:
    """What compiled the code, as it calls itself; empty if nothing did."""
    if library() is None:
        return ""
    command = [*_compiler(), "--version"]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout.split("\n")[0]


def over_rows(name: str, matrix: Tensor, arguments: Sequence[Tensor | float | None]) -> None:
    """Call the C function `name` for all rows of a matrix, its first argument, by as many threads as PyTorch has."""
    function, (rows, d) = getattr(library(), name), matrix.shape
    values = [_value(argument) for argument in (matrix, *arguments)]
    threads = 1 if rows * d < _LEAST_ELEMENTS else torch.get_num_threads()
    parts = 1 if threads == 1 or has_team() else min(rows, _PARTS * threads)
    bounds = [rows * part // parts for part in range(parts + 1)]
    calls = [
        tuple(map(ctypes.c_long, (begin, end, d, threads if parts == 1 else 1)))
        for begin, end in zip(bounds, bounds[1:], strict=False)
    ]
    if parts == 1:
        function(*calls[0], *values)
    else:
        list(_pool(threads).map(lambda call: function(*call, *values), calls))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="rows")


def _value(argument: Tensor | float | None) -> Any:
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    if isinstance(argument, int):
        return ctypes.c_long(argument)
    assert argument is None or argument.is_cpu
    return ctypes.c_void_p(None if argument is None else argument.data_ptr())
