"""Qwen Scope: a file layer<n>.sae.pt for each layer; k stands in the name of the repository alone."""

import re
from collections.abc import Container
from pathlib import Path, PurePosixPath

from sae.dictionary.spec import Saved
from sae.formats.format import Claim, Format, by_itself
from sae.formats.record import Contents, record, transposed

_FILE = re.compile(r"layer_?(\d{1,4})\.sae\.pt")
_K = re.compile(r"L0[_-](\d{1,6})(?!\d)")


def _claim(file: PurePosixPath, names: Container[str]) -> Claim | None:
    return by_itself(file) if _FILE.fullmatch(file.name) else None


def hookpoint(path: Path) -> str:
    """The output of the block that the file's name numbers."""
    found = _FILE.fullmatch(path.name)
    return f"layers.{int(found[1])}" if found else ""


def k_of(path: Path) -> int | None:
    """k, by the names of the folders around a file."""
    named = _K.findall("/".join(path.absolute().parts[-6:]))
    return int(named[-1]) if named else None


def read(path: Path) -> Saved:
    """The dictionary in a file. Raises ValueError naming the file and the rule it breaks."""
    found = Contents.of(path)
    W_enc, b_enc, W_dec, b_dec = found.tensors("W_enc", "b_enc", "W_dec", "b_dec")
    found.check_all_taken()
    if (k := k_of(path)) is None:
        raise ValueError(
            f"{path} must lie in a folder whose name ends with L0_<k>, as the repository's does: nothing else says k; "
            "rename its folder"
        )
    tensors = {"encoder.weight": W_enc, "encoder.bias": b_enc, "W_dec": transposed(W_dec), "b_dec": b_dec}
    return record(path, tensors, "topk", k=k, centred=False, writes=hookpoint(path))


QWEN_SCOPE = Format("qwen-scope", "Qwen Scope", "layer<n>.sae.pt", (), _claim, hookpoint, read)
