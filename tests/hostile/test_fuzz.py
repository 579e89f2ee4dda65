"""Files from strangers: over 10,000 broken ones, each a clear error of one line or read as what it says."""

import copy
import gc
import itertools
import json
import math
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import make_sae
from torch import Tensor

from sae import Sae, TrainConfig
from sae.activations.cache.format import CacheHeader
from sae.activations.cache.read import ActivationCache, CachedActivations, held_out_batches
from sae.activations.cache.write import write_cache
from sae.activations.shuffle import ShuffleBuffer
from sae.activations.source import LiveActivations
from sae.config import EvalConfig
from sae.data import MemmapTokens, TokenBatches
from sae.evaluation.plan import plan_evaluation
from sae.runs import checkpoint
from sae.runs.checkpoint import MANIFEST, STATE, TRAINER
from sae.runs.folder import RunFolder
from sae.runs.log import JsonLines, read_records
from sae.storage.files import sha256_of

pytestmark = pytest.mark.slow

MORE_BYTES = 64 * 2**20
"""What a loader of a file of some kB may take."""

# What a stranger writes


ODD = [None, True, -1, 0, 1, 2**31, 2**63, 10**18, 10**4000, 0.5, 1e308, math.nan, -math.inf, "", "32", "../x",
       "/etc/passwd", "a\0b", "\\", [], {}, [[[[]]]], "x" * 3000]  # fmt: skip
VALUES = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a JSON document with a key in it."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def dumps(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


@st.composite
def documents(draw: st.DrawFn, original: bytes) -> bytes:
    """The JSON document with some values replaced, removed, renamed, doubled, or nested deep."""
    document = json.loads(original)
    for _ in range(draw(st.integers(1, 3))):
        found = places(document)
        if not found:
            break
        holder, key = found[draw(st.integers(0, len(found) - 1))]
        what = draw(st.integers(0, 3))
        if what == 0 and isinstance(holder, dict):
            holder[draw(st.text(max_size=6) | st.sampled_from(["../up", "/root", "..", "a/../../b"]))] = holder.pop(key)
        elif what == 1:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(draw(VALUES))
    text = dumps(document)
    more = draw(st.sampled_from(["", "", "", "", "twice", "deep", "number", "garbage"]))
    if more == "twice":
        text = text.replace(b"{", b'{"k": 1, "k": 2, "d_in": 8, ', 1)
    elif more == "deep":
        depth = draw(st.sampled_from([50, 900, 20_000]))
        text = text.replace(b"{", b'{"deep": ' + b"[" * depth + b"]" * depth + b", ", 1)
    elif more == "number":
        text = text.replace(b"{", b'{"k": ' + b"9" * draw(st.sampled_from([30, 5000])) + b", ", 1)
    elif more == "garbage":
        return draw(broken(text))
    return text


@st.composite
def broken(draw: st.DrawFn, original: bytes) -> bytes:
    """The bytes with some changed, cut out or put in."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        what = draw(st.integers(0, 3))
        if what == 0 and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif what == 1:
            del content[at : at + draw(st.integers(1, 64))]
        elif what == 2:
            content[at:at] = draw(st.binary(max_size=16))
        else:
            del content[at:]
    return bytes(content)


@st.composite
def tensor_files(draw: st.DrawFn, original: bytes) -> bytes:
    """A safetensors file whose header, or its length, claims something else."""
    what = draw(st.integers(0, 3))
    if what == 0:
        return draw(broken(original))
    if what == 1:
        length = draw(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 10**12, 2**40, 2**63]))
        return length.to_bytes(8, "little") + original[8:]
    end = 8 + int.from_bytes(original[:8], "little")
    header = draw(documents(original[8:end])) if what == 2 else claiming(original[8:end], draw(st.integers(1, 2**50)))
    return len(header).to_bytes(8, "little") + header + original[end:]


def claiming(header: bytes, factor: int) -> bytes:
    """Every tensor larger, at places to match."""
    document = json.loads(header)
    for entry in document.values():
        if entry.get("shape"):
            entry["shape"][0] *= factor
            entry["data_offsets"] = [offset * factor for offset in entry["data_offsets"]]
    return dumps(document)


# What must hold


@pytest.fixture(autouse=True)
def little_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The process's data may not grow by more than MORE_BYTES, once it has imported what loading needs.

    Data, not addresses: what the allocator reserves for a new thread, or what maps a file, is not memory taken.
    """
    checkpoint.load(checkpoint.save(tmp_path_factory.mktemp("warm"), 3, make_checkpoint()), make_checkpoint())
    VALUES.validate()  # hypothesis' table of characters: made within the limit it took minutes
    gc.collect()  # what earlier tests have left would be given back later, and make room
    kilobytes = int(re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * kilobytes + MORE_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder beside others that nobody may touch."""
    for name in ("up", "b", "x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    (tmp_path / "room").mkdir()
    before = outside(tmp_path)
    yield tmp_path / "room"
    assert outside(tmp_path) == before


def outside(folder: Path) -> dict[str, Any]:
    paths = [path for path in folder.rglob("*") if "room" not in path.relative_to(folder).parts]
    return {str(path): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in paths}


def check_error(action: Callable[[], Any]) -> bool:
    """Whether it was read; else it must be said in one line."""
    try:
        action()
    except (ValueError, OSError) as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 1000, text
        return False
    return True


def fuzz(inputs: st.SearchStrategy[bytes], files: int, check: Callable[[bytes], Any]) -> None:
    """`check` on so many files, the same ones each time: what is drawn, and three ways in which that is damaged."""
    checked = []

    @settings(max_examples=files // 4, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(inputs, st.integers(0, 2**20))
    def run(content: bytes, number: int) -> None:
        at = number % max(1, len(content))
        flipped = content[:at] + bytes(byte ^ (1 << number % 8) for byte in content[at : at + 1]) + content[at + 1 :]
        for damaged in (content, content[:at], flipped, content[:at] + content[at + number % 9 :]):
            check(damaged)
            checked.append(damaged)

    run()
    assert len(checked) >= files


def replaced(path: Path, action: Callable[[], Any]) -> Callable[[bytes], None]:
    def check(content: bytes) -> None:
        path.write_bytes(content)
        check_error(action)

    return check


@pytest.fixture
def one_sae(room: Path) -> Path:
    make_sae(8, 16, 3, dtype=torch.float32).save_to_disk(room / "sae")
    return room / "sae"


def test_any_cfg_json(one_sae: Path) -> None:
    path = one_sae / "cfg.json"
    fuzz(documents(path.read_bytes()), 1700, replaced(path, lambda: Sae.load_from_disk(one_sae)))


def test_any_safetensors_file(one_sae: Path) -> None:
    path = one_sae / "sae.safetensors"
    fuzz(tensor_files(path.read_bytes()), 1700, replaced(path, lambda: Sae.load_from_disk(one_sae)))


@pytest.fixture
def run(room: Path) -> Path:
    options = {"save_dir": str(room), "run_name": "run"}
    RunFolder.plan(TrainConfig(**options)).claim(TrainConfig(**options), {"ctx_len": 8})
    checkpoint.save(room / "run", 3, make_checkpoint())
    return room / "run"


def test_any_manifest(run: Path) -> None:
    path, like = run / "step_3" / MANIFEST, make_checkpoint()
    fuzz(documents(path.read_bytes()), 700, replaced(path, lambda: checkpoint.load(run / "step_3", like)))


def test_any_state_with_a_manifest_to_match(run: Path) -> None:
    """Whoever writes the file can write its hash as well."""
    folder, like = run / "step_3", make_checkpoint()
    path = folder / "layers.0" / STATE
    manifest = json.loads((folder / MANIFEST).read_text())
    entry = manifest["files"][f"layers.0/{STATE}"]

    def check(content: bytes) -> None:
        path.write_bytes(content)
        entry.update({"bytes": len(content), "sha256": sha256_of(path)})
        (folder / MANIFEST).write_text(json.dumps(manifest))
        check_error(lambda: checkpoint.load(folder, like))

    fuzz(tensor_files(path.read_bytes()), 500, check)


def source() -> ShuffleBuffer:
    tokens = torch.arange(320).reshape(40, 8)
    batches = TokenBatches(tokens, 2, seed=0, held_out=2)
    live = LiveActivations(batches, lambda ids: {"a": ids.float().unsqueeze(-1)})
    return ShuffleBuffer(live, 4, seed=0)


def test_any_place_in_the_data(room: Path) -> None:
    started = source()
    for _ in range(6):
        next(started)
    original = json.dumps({"step": 6, "source": started.state_dict()}).encode()

    def check(content: bytes) -> None:
        (room / TRAINER).write_bytes(content)
        check_error(lambda: use(room / TRAINER))

    def use(path: Path) -> None:
        resumed = source()
        with checkpoint.understood(room):
            resumed.load_state_dict(checkpoint.read_json(path)["source"])
        part: dict[str, Tensor] = next(resumed, {})
        assert all(len(acts) <= 16 for acts in part.values())

    fuzz(documents(original), 1000, check)


def test_any_config_json_of_a_run_that_is_resumed(run: Path) -> None:
    path = run / "config.json"
    cfg = TrainConfig(save_dir=str(run.parent), run_name="run", resume=True)

    def resume() -> None:
        folder = RunFolder.plan(cfg).sized(cfg, checkpoint_bytes=10, total_steps=10**6)
        assert folder.path == run and (folder.keep_last is None or folder.keep_last > 0)
        folder.claim(cfg, {})

    fuzz(documents(path.read_bytes()), 700, replaced(path, resume))
    assert {path.name for path in run.iterdir()} == {"config.json", "step_3"}


def test_any_config_json_of_a_run_that_is_evaluated(run: Path) -> None:
    path = run / "config.json"
    document = json.loads(path.read_bytes())
    document["options"] |= {"model": "m", "dataset": "d", "exclude_tokens": [3], "ctx_len": 8, "split": "train"}
    document["derived"] |= {"held_out_sequences": 4, "num_sequences": 9, "data_seed": 42, "read_with": {"model": "m"}}

    def plan() -> None:
        planned = plan_evaluation(EvalConfig(checkpoint=str(run)), context_limit=lambda model: None)
        assert 0 <= planned.max_tokens < 2**80 and planned.text.ctx_len > 0 and planned.out.parent in (run, Path())

    path.write_bytes(dumps(document))
    assert check_error(plan)
    fuzz(documents(dumps(document)), 700, replaced(path, plan))


def test_any_metrics(run: Path) -> None:
    line = json.dumps({"step": 1, "tokens": 64, "layers.0/fvu": 0.5}).encode()
    path = run / "metrics.jsonl"

    def check(content: bytes) -> None:
        path.write_bytes(line + b"\n" + content + b"\n" + line)
        assert all(set(map(type, record.values())) <= {int, float} for record in read_records(path))
        JsonLines(path, keep_until_step=1).close()
        assert len(read_records(path)) >= 1

    fuzz(documents(line) | broken(line * 3), 500, check)


def test_any_best_json(run: Path) -> None:
    path = run / "best.json"
    original = json.dumps({"checkpoint": "step_3", "held_out_fvu": 0.5}).encode()
    fuzz(documents(original), 500, replaced(path, lambda: Sae.load_many(run / "best")))


def test_any_manifest_of_a_cache(room: Path) -> None:
    tokens = torch.arange(30 * 8).reshape(30, 8)
    batches = TokenBatches(tokens, 2, seed=0, held_out=4)
    live = LiveActivations(batches, lambda ids: {"a": ids.float().unsqueeze(-1)})
    header = CacheHeader(
        {"model": "m", "exclude_tokens": [], "exclude_positions": []}, {"a": 1}, ["a"], "float32", False, 0, 8, 30, 2
    )
    write_cache(room / "c", header, live, batches.held_out_batches())
    path = room / "c" / "manifest.json"

    def read() -> None:
        cache = ActivationCache(room / "c")
        for batch in itertools.islice(CachedActivations(cache, list(cache.header.hookpoints), 2), 3):
            assert all(len(acts) <= len(tokens) * 8 for acts in batch.values())
        for held_out in held_out_batches(cache, list(cache.header.hookpoints), 2):
            assert held_out.tokens.numel() <= len(tokens) * 8

    assert check_error(read)
    fuzz(documents(path.read_bytes()), 700, replaced(path, read))


class Killed(BaseException):
    """A process that ends."""


@pytest.fixture
def begun(room: Path) -> Callable[[Path, bool], None]:
    """Writes a cache, or ends at one of two moments: in the middle of either pass."""
    batches = TokenBatches(torch.arange(30 * 8).reshape(30, 8), 2, seed=0, held_out=4)
    start = LiveActivations(batches, dict).state_dict()
    options = {"model": "m", "exclude_tokens": [], "exclude_positions": []}
    header = CacheHeader(options, {"a": 1}, ["a"], "float32", True, 0, 8, 30, 2)

    def write(folder: Path, on_batch: Callable[[int], None] = lambda index: None) -> None:
        live = LiveActivations(batches, lambda ids: {"a": ids.float().unsqueeze(-1)})
        live.load_state_dict(start)
        write_cache(folder, header, live, batches.held_out_batches(), on_batch=on_batch)

    return write


def kill(index: int) -> None:
    raise Killed


def copied(begun: Path, path: Path, action: Callable[[], Any]) -> Callable[[bytes], None]:
    """`action` on a fresh copy of a folder with one file replaced."""

    def check(content: bytes) -> None:
        shutil.rmtree(path.parent, ignore_errors=True)
        shutil.copytree(begun, path.parent)
        path.write_bytes(content)
        check_error(action)

    return check


def test_any_progress_of_a_cache_that_is_continued(room: Path, begun: Callable[..., None]) -> None:
    folder = room / "c"
    with pytest.raises(Killed):
        begun(room / "begun", kill)
    original = (room / "begun" / "progress.json").read_bytes()
    check = copied(room / "begun", folder / "progress.json", lambda: begun(folder))
    check(original)
    assert (folder / "manifest.json").exists()
    fuzz(documents(original), 400, check)


def test_any_list_of_what_the_second_pass_has_finished(
    room: Path, begun: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = room / "c"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("sae.activations.cache.local.sha256_of", lambda path: kill(0))
        begun(room / "begun")
    original = (room / "begun" / "finished.txt").read_bytes()
    assert b".rows" in original

    def write() -> None:
        begun(folder)
        ActivationCache(folder)

    check = copied(room / "begun", folder / "finished.txt", write)
    check(original)
    assert (folder / "manifest.json").exists()
    fuzz(broken(original), 400, check)


def test_any_file_of_rows_of_a_cache_that_is_continued(room: Path, begun: Callable[..., None]) -> None:
    folder = room / "c"
    with pytest.raises(Killed):
        begun(room / "begun", lambda index: kill(index) if index == 7 else None)
    path = "held_out/a/00000.rows"
    original = (room / "begun" / path).read_bytes()

    def check(content: bytes) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(room / "begun", folder)
        (folder / path).write_bytes(content)
        if check_error(lambda: begun(folder)):
            assert len(content) == len(original)
            ActivationCache(folder)

    fuzz(broken(original), 200, check)


def test_any_npy_file(room: Path) -> None:
    path = room / "tokens.npy"

    def read() -> None:
        assert all(len(row) == 8 for row in MemmapTokens(path, 8, 320).take([0]))

    np.save(path, np.arange(200, dtype=np.uint16))
    original = path.read_bytes()
    assert check_error(read)
    fuzz(broken(original) | st.sampled_from(headers(original)), 700, replaced(path, read))


def headers(original: bytes) -> list[bytes]:
    """The array with other headers: of other types, absurd shapes, and what is no header."""
    described = ("|O", "<i8", "<f4", "<u2", "<U9", "m8", [["a", "<u2"]], 7, None)
    shapes = ((200,), (-1,), (2**62,), (2**40, 2**40), (), (0,), "200", ((1,),), None)
    texts = [repr({"descr": d, "fortran_order": False, "shape": shape}) for d in described for shape in shapes]
    texts += ["(" * 5000, "[" * 90, "{", "1" * 6000, "__import__('os')"]
    return [original[:8] + len(text).to_bytes(2, "little") + text.encode() + original[-400:] for text in texts]


def test_any_token_file(room: Path) -> None:
    path = room / "tokens.bin"

    def read() -> None:
        sequences = MemmapTokens(path, 8, 320)
        batches = TokenBatches(sequences, 2, seed=0, vocab_size=320, held_out=1)
        assert all(batch.shape == (2, 8) and batch.max() < 320 for batch in batches)

    tokens = np.arange(200, dtype=np.uint16).tobytes()
    fuzz(broken(tokens) | st.binary(max_size=600), 700, replaced(path, read))


def test_the_limits_of_these_tests_bite(one_sae: Path) -> None:
    with pytest.raises((MemoryError, RuntimeError)):
        torch.zeros(resource.getrlimit(resource.RLIMIT_DATA)[0], dtype=torch.int8)
    assert check_error(lambda: Sae.load_from_disk(one_sae))
    shutil.rmtree(one_sae)
    assert not check_error(lambda: Sae.load_from_disk(one_sae))
