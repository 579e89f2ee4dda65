"""Errors of libraries about the contents of files are told in plain words."""

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from strangers import STRANGERS

from sae import Sae, SaeConfig
from sae.data import load_data
from sae.formats import FORMATS
from sae.storage.damage import plainly
from sae.storage.files import read_json

KIND = "is cut off, damaged or of another kind"


def error_of(call: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def test_each_kind_of_error_has_its_words_and_others_keep_theirs(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"hello" * 99)[:-9])
    assert plainly(error_of(lambda: gzip.open(tmp_path / "a.gz").read())) == f"it {KIND}"
    assert plainly(error_of(lambda: zipfile.ZipFile(tmp_path / "a.gz"))) == f"it {KIND}"
    assert plainly(error_of(lambda: json.loads('{"a":\n 1,}'))) == "at line 2, column 4"
    assert plainly(error_of(b"\xff".decode)) == "it is not UTF-8"
    assert plainly(OSError(13, "Permission denied")) == "PermissionError: [Errno 13] Permission denied"
    assert plainly(TypeError("one\ntwo")) == "TypeError: one"


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[: len(whole) * 2 // 3], lambda whole: b"", lambda whole: b"\x07" * 99]
)
@pytest.mark.parametrize("name", ["eleuther", "saelens topk", "TopK", "Gemma Scope"])
def test_a_damaged_dictionary_is_told_in_our_words(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    folder = tmp_path / "layers.0"
    if name == "eleuther":
        Sae(16, SaeConfig(num_latents=32, k=4)).save_to_disk(folder)
    else:
        STRANGERS[name].write(folder)
    (weights,) = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".pt", ".npz")]
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(ValueError, match=rf"{weights.name} must be a .*, but it {KIND}; is the download complete\?"):
        Sae.load_many(folder)


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize(("damage", "why"), [(b'{"trainer": {"k": 3,', "at line 1"), (b'{"k": "\xff"}', "UTF-8")])
def test_a_configuration_that_is_there_and_damaged_is_told_also_where_a_format_does_without(
    tmp_path: Path, name: str, damage: bytes, why: str
) -> None:
    folder = tmp_path / "layers.3"
    STRANGERS[name].write(folder)
    configs = [path for path in folder.rglob("*.json") if path.name in FORMATS[STRANGERS[name].format].configs]
    if not configs:
        pytest.skip("it has no configuration of its own in JSON")
    for config in configs:
        config.write_bytes(damage)
    with pytest.raises(
        ValueError, match=rf"{configs[0].name} must be JSON, but it is not \(.*{why}.*\); is it complete"
    ):
        Sae.load_many(folder)


def test_damage_that_pyarrow_finds_is_told_in_our_words_and_errors_of_the_system_in_theirs(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a fox jumps over the dog " * 9] * 50}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-60] + b"\x07" * 52 + whole[-8:])
    damaged = error_of(lambda: pq.read_table(tmp_path / "a.parquet"))
    assert type(damaged) is OSError and plainly(damaged) == f"it {KIND}"
    absent = error_of(lambda: pq.read_table(tmp_path / "b.parquet"))
    assert plainly(absent).startswith("FileNotFoundError")
    assert plainly(OSError("the hub is away")) == "OSError: the hub is away"


def test_json_that_is_cut_says_where(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1,\n "b"')
    with pytest.raises(
        ValueError, match=r"a.json must be JSON, but it is not \(at line 2, column 5\); is it complete\?"
    ):
        read_json(tmp_path / "a.json")


def test_damaged_token_files_are_told_in_our_words(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(999))
    whole = (tmp_path / "ids.npy").read_bytes()
    for content in (whole[:500], whole[:20], b""):
        (tmp_path / "ids.npy").write_bytes(content)
        with pytest.raises(ValueError, match=f"array of token ids, got '.*', but it {KIND}; write it again"):
            load_data(str(tmp_path / "ids.npy"), tokenizer=None, ctx_len=8, vocab_size=1000)


def test_a_file_with_code_is_no_damage(tmp_path: Path) -> None:
    STRANGERS["TopK"].write(tmp_path)
    torch.save({"encoder.weight": torch.nn.Linear(2, 2)}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="holds tensors and no code, but it holds .*Linear"):
        Sae.load_from_disk(tmp_path)
