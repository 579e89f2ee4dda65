"""The command line: `python -m sae MODEL DATASET [options]`, or `sae …`. Training is the default command."""

import atexit
import ctypes
import io
import os
import signal
import sys
from _thread import interrupt_main
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Timer, current_thread, main_thread
from types import FrameType
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""What mallopt(3) sets: bytes at the end of the heap, and of an allocation, from which Linux gets them back."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 2 if it cannot be done, 130 if it was stopped by Ctrl-C."""
    if arguments is None and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a table whose ± cannot be shown is better than none
    own = signal.getsignal(signal.SIGINT) is signal.default_int_handler and current_thread() is main_thread()
    if arguments is not None or not own:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    handler: Any = signal.signal(signal.SIGINT, _interrupt)
    told, sys.unraisablehook = sys.unraisablehook, _pass_on
    atexit.register(_leave)  # before all others, so that it comes after them
    status = 1
    try:
        status = _run(sys.argv[1:])
        return status
    finally:
        if status == 130:  # the process ends: one more Ctrl-C ends it at once, and no traceback tells where it was
            handler = signal.SIG_DFL
        else:
            atexit.unregister(_leave)
        signal.signal(signal.SIGINT, handler)
        sys.unraisablehook = told


def _leave() -> None:
    """End the stopped process here: a thread at work in PyTorch, as one that saves, aborts when Python ends itself."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(130)


def _run(arguments: list[str]) -> int:
    _choose_waiting()
    # Tensors of 2 MB and more in huge pages, where Linux has them: a tenth less time for a step (555 ms, not 612, at
    # 24,576 latents and 4096 tokens). Read once, when PyTorch makes its first one.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    _keep_freed_memory()
    command = None
    try:
        # Imported here, where Ctrl-C is expected.
        from sae.commands.parser import typed
        from sae.commands.table import read, renamed

        arguments, renamings = renamed(arguments)
        for sentence in renamings:
            print("sae:", sentence, file=sys.stderr)
        command, cfg = read(arguments)
        return command.run(cfg, typed(arguments)) if command.told_typed else command.run(cfg)
    except BrokenPipeError:  # the reader of our output, such as head, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, FloatingPointError, OSError) as error:
        return _tell(error, str(error))
    except (MemoryError, RuntimeError) as error:
        from sae.commands.memory import is_exhausted, what_takes_less

        if command is None or not is_exhausted(error):
            raise
        return _tell(error, what_takes_less(error, command.options()))
    except KeyboardInterrupt as stop:
        print("sae: stopped;", *getattr(stop, "__notes__", ["nothing was written"]), file=sys.stderr)
        return 130


def _tell(error: Exception, message: str) -> int:
    """Print an error in one line; returns the exit status."""
    lines = [_speaker(error) + message, *getattr(error, "__notes__", [])]
    print("sae: error:", "; ".join(" ".join(line.split()) for line in lines), file=sys.stderr)
    return 2


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, when no library is being imported: an exception may abort PyTorch.

    Until PyTorch is there, nothing has begun, and the process ends here.
    """
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    if frame is None:
        raise KeyboardInterrupt
    torch = sys.modules.get("torch")
    if torch is None or getattr(torch.__spec__, "_initializing", False):
        os.write(2, b"sae: stopped while its libraries were loaded\n")
        os._exit(130)
    _again()


def _again() -> None:
    """Let the Ctrl-C come once more, in a moment."""
    timer = Timer(0.01, interrupt_main)
    timer.daemon = True
    timer.start()


def _pass_on(unraisable: Any) -> None:
    """Bring a Ctrl-C again that came while an object was removed: there Python only reports exceptions."""
    if unraisable.exc_type is KeyboardInterrupt:
        _again()
    else:
        sys.__unraisablehook__(unraisable)


def _choose_waiting() -> None:
    """Say how threads wait for work, which is read once, when PyTorch is imported; unless the user has said it.

    Spinning for a tenth of a millisecond trains 1.11 times as fast on two idle cores (SmolLM2, 4608 latents). On two
    busy ones it trains at 0.75 of the speed.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        name, value = ("OMP_WAIT_POLICY", "PASSIVE") if _others_run() else ("GOMP_SPINCOUNT", "30000")
        os.environ[name] = value


def _others_run() -> bool:
    """Whether more than one of eight cores has work beside this process; also where the system does not say."""
    try:
        running = [int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]) - 1 for _ in range(9)]
    except (OSError, ValueError, IndexError):
        return True
    return sorted(running)[len(running) // 2] > (os.cpu_count() or 1) // 8


def _keep_freed_memory() -> None:
    """Make glibc hand the memory of tensors on to the next ones: else Linux clears it anew, for a tenth of the time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # 32 MiB are the most that glibc before 2.35 takes. The second alone would map each tensor anew.
    if mallopt is not None and mallopt(_M_MMAP_THRESHOLD, 2**25):
        mallopt(_M_TRIM_THRESHOLD, 2**28)


def _speaker(error: Exception) -> str:
    """Prefix of an error's message: the process that ends with it, where there are several."""
    if "RANK" not in os.environ:
        return ""
    from sae.parallel.world import tell_launcher

    return tell_launcher(error)


if __name__ == "__main__":
    sys.exit(main())
