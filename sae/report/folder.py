"""The folder of a report, which is new."""

from collections.abc import Callable
from pathlib import Path


def write_report(out: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill the folder `out`, and say where its numbers and its page are.

    What was measured has been shown by then. Raises OSError, in one line, if the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        write(out)
    except OSError as error:
        raise OSError(f"{out} cannot be written ({error}); the table above is all that was measured") from error
    for what, path in {"numbers": out / "eval.json", "report": out / "report.html"}.items():
        print(f"{what:<11} {path}")
