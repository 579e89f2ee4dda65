"""A large file opens in the memory of one tensor of it."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

D, N = 64, 32 * 2**20
"""Two matrices of 32 Mi latents x 64 in float32: 8 GiB each."""
CODE = """
import resource, sys
from pathlib import Path
from sae.formats.find import find
from sae.formats.describe import describe
folder, = sys.argv[1:]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(stored,) = find(Path(folder)).values()
described = describe("layers.0", stored)
told = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from sae import Sae
sae = Sae.load_from_disk(folder)
assert sae.W_dec.shape == (described.num_latents, described.d_in) == (32 * 2**20, 64)
assert sae.W_dec[-1, -1] == 0 and sae.encoder.weight[-1].sum() == 0
print(before, told, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def sparse_file(path: Path) -> int:
    """A safetensors file of zeros that takes no room on the disk; its size in bytes."""
    shapes = {"encoder.weight": [N, D], "encoder.bias": [N], "W_dec": [N, D], "b_dec": [D]}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return at


@pytest.mark.slow
def test_a_file_of_16_gb_opens_in_the_memory_of_one_tensor(tmp_path: Path) -> None:
    (tmp_path / "layers.0").mkdir()
    size = sparse_file(tmp_path / "layers.0" / "sae.safetensors")
    cfg = {"expansion_factor": 32, "normalize_decoder": True, "num_latents": N, "k": 32, "d_in": D}
    (tmp_path / "layers.0" / "cfg.json").write_text(json.dumps(cfg))
    assert size > 16e9
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "layers.0")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-800:]
    before, told, after = (1024 * int(number) for number in done.stdout.split())
    assert told - before < 64 * 2**20  # what there is is told by the header
    assert after - told < 4 * N * D + 2**29, f"{(after - told) / 2**30:.1f} GiB for a file of {size / 2**30:.1f}"
