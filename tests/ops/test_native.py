"""The optimizer's passes in C equal their plain twins, for any number of threads, and are not needed."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import sae
from sae import ops
from sae.ops import LatentSegments, exact, momentum, native
from sae.ops.extremes import Columns
from sae.ops.native import bags, eight_bit, topk, transformer
from sae.ops.native.logits import LogitRows
from sae.ops.segments import Segments

SIZES = [(1, 48), (37, 48), (5, 7), (0, 48), (4, 300), (257, 16)]
NO = torch.zeros(())

sizes = pytest.mark.parametrize(("rows", "d"), SIZES)
outs = pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])


@pytest.fixture(autouse=True)
def compiled() -> None:
    if native.library() is None:
        pytest.skip("this machine has no C compiler")


def plainly(monkeypatch: pytest.MonkeyPatch, function: Callable[[], Any]) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        return function()


def close(found: Tensor, plain: Tensor) -> None:
    torch.testing.assert_close(found, plain, atol=0.0, rtol=1e-5 if plain.dtype == torch.float32 else 2**-7)


def segments_of(rows: int, d: int) -> Segments:
    """Of entries that leave out the last row, if there are several."""
    indices = torch.randint(max(1, rows - 1), (29, 3))
    found = LatentSegments(indices, rows).rows(torch.rand(29, 3), torch.rand(29, d)).segments
    assert found is not None
    return found


@outs
@pytest.mark.parametrize("moment", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_all", [False, True])
@pytest.mark.parametrize("of_segments", [False, True])
@sizes
def test_momentum_equals_its_twin(
    rows: int,
    d: int,
    of_segments: bool,
    with_all: bool,
    moment: torch.dtype,
    out: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if of_segments and not rows:
        return
    m, v, gradient = torch.rand(rows, d, dtype=moment), torch.rand(rows), torch.rand(rows, d)
    segments = segments_of(rows, d) if of_segments else None
    if segments is not None:
        bounds, tokens, weights, of_tokens = segments
        parts = [weights[a:b] @ of_tokens[tokens[a:b]] for a, b in zip(bounds, bounds[1:], strict=False)]
        gradient = torch.stack(parts)
    options = {"skip": NO, "beta1": 0.7, "beta2": 0.9, "epsilon": 1e-8}
    if with_all:
        options |= {"tangent": (-torch.rand(rows), torch.rand(rows, d)), "rates": torch.rand(rows)}

    def taken(gradient: Any) -> tuple[Tensor, ...]:
        mine, squares, step = m.clone(), v.clone(), torch.empty(rows, d, dtype=out)
        total = momentum.momentum_(mine, squares, gradient, **options, out=step)
        return mine, squares, step, total

    plain = plainly(monkeypatch, lambda: taken(gradient))
    for found, twin in zip(taken(gradient if segments is None else segments), plain, strict=True):
        close(found, twin)


@outs
@pytest.mark.parametrize("with_all", [False, True])
@sizes
def test_descend_equals_its_twin(
    rows: int, d: int, with_all: bool, out: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, other, step = torch.rand(rows, d) + 1, torch.rand(rows, d) + 1, torch.rand(rows, d).to(out)
    factors = torch.rand(rows) + 0.5

    def taken() -> tuple[Tensor, ...]:
        parameter, follower, copy = start.clone(), other.clone(), torch.empty(rows, d, dtype=out)
        options = {"unit_rows": True, "copy": copy, "factors": factors, "follower": (follower, torch.tensor(0.2))}
        momentum.descend_(parameter, step, torch.tensor(0.1), skip=NO, **(options if with_all else {}))
        return (parameter, follower, copy) if with_all else (parameter,)

    for found, twin in zip(taken(), plainly(monkeypatch, taken), strict=True):
        close(found, twin)


@pytest.mark.parametrize("d", [5, 64, 100, 1100])
@pytest.mark.parametrize("counts", [[3, 0, 4, 1], [2] * 37, [0, 0]])
def test_sums_over_bags_and_their_gradient_equal_their_twins(counts: list[int], d: int) -> None:
    """Also of rows that are apart in memory, and of bags without entries."""
    starts = torch.tensor([0, *counts]).cumsum(0)
    acts, indices = torch.rand(int(starts[-1])), torch.randint(11, (int(starts[-1]),))
    W, rows = torch.randn(11, d + 3)[:, :d], torch.randn(len(counts), d + 1)[:, :d]
    expected = [(acts[a:b, None] * W[indices[a:b]]).sum(0) for a, b in zip(starts, starts[1:], strict=False)]
    torch.testing.assert_close(bags.decode(acts, indices, starts, W), torch.stack(expected))
    dots = torch.cat([W[indices[a:b]] @ rows[n] for n, (a, b) in enumerate(zip(starts, starts[1:], strict=False))])
    torch.testing.assert_close(bags.gather_dot(rows, indices, starts, W), dots, atol=1e-4, rtol=1e-5)


def test_codes_of_both_kinds_are_decoded_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    acts, indices, x = torch.rand(37, 8), torch.randint(96, (37, 8)), torch.randn(37, 300)
    W, calls = torch.randn(96, 300), []
    code = ops.Bags.of(acts, indices)
    plain = ops.decode(acts[:1], indices[:1], W), ops.gather_dot(x[:1], indices[:1], W)
    for name in ("decode", "gather_dot"):
        run = getattr(bags, name)
        monkeypatch.setattr(bags, name, lambda *given, name=name, run=run: calls.append(name) or run(*given))
    made = ops.decode(acts, indices, W), ops.gather_dot(x, indices, W)
    torch.testing.assert_close((made[0][:1], made[1][:1]), plain)
    assert torch.equal(ops.decode_bags(code, W), made[0])
    assert torch.equal(ops.gather_dot_bags(x, code, W), made[1].flatten())
    assert calls == ["decode", "gather_dot"] * 2


@pytest.mark.parametrize("wrong", [-1, 96])
def test_a_latent_that_does_not_exist_is_an_error(wrong: int) -> None:
    indices = torch.randint(96, (37, 8))
    indices[3, 2] = wrong
    with pytest.raises(RuntimeError, match=f"value {wrong} which is not in the valid range"):
        ops.decode(torch.rand(37, 8), indices, torch.randn(96, 300))


def test_what_does_not_fit_together_is_left_to_pytorchs_errors() -> None:
    acts, indices, W, x = torch.rand(37, 8), torch.randint(96, (37, 8)), torch.randn(96, 300), torch.randn(37, 300)
    assert bags.covers_decode(acts, indices, W) and bags.covers_gather_dot(x, indices, W, 37)
    assert not bags.covers_decode(acts[:, :4], indices, W) and not bags.covers_decode(acts[:30], indices, W)
    assert not bags.covers_decode(acts.double(), indices, W) and not bags.covers_decode(acts, indices.int(), W)
    assert not bags.covers_gather_dot(x[:, :200], indices, W, 37) and not bags.covers_gather_dot(x, indices, W, 36)
    assert not bags.covers_gather_dot(x, indices, W.double(), 37)


def test_indices_of_32_bits_are_read_as_that() -> None:
    acts, indices, x, W = torch.rand(37, 8), torch.randint(96, (37, 8)), torch.randn(37, 300), torch.randn(96, 300)
    torch.testing.assert_close(ops.decode(acts, indices.int(), W), ops.decode(acts, indices, W))
    torch.testing.assert_close(ops.gather_dot(x, indices.int(), W), ops.gather_dot(x, indices, W))


def test_tensors_that_are_traced_and_have_no_memory_are_left_to_pytorch() -> None:
    with FakeTensorMode():
        made = ops.decode(torch.rand(37, 8), torch.randint(96, (37, 8)), torch.randn(96, 300))
    assert made.shape == (37, 300)


def in_c() -> list[Tensor]:
    """What each compiled pass makes that somebody may call outside of training and evaluation."""
    generator = torch.Generator().manual_seed(0)
    to = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    x, W, rows = torch.randn(600, 48, **to), torch.randn(2048, 48, **to), torch.randn(37, 48, **to)
    bias = torch.zeros(2048, dtype=torch.float32, device="cpu")
    acts, indices = exact.encode(x, W, bias, 5, 200)
    code = [ops.decode(acts, indices, W), ops.gather_dot(x, indices, W), *topk.topk((x @ W.T).bfloat16(), 5)]
    logits = LogitRows.of(x)
    return [
        acts, indices, *code, *Columns(W).extremes(rows, 3, 4), *logits[1:], logits.divergence(x + 1)[0],
        *([eight_bit.candidates(x, W, bias, torch.ones_like(x[0]), 8)] if eight_bit.has_product() else []),
    ]  # fmt: skip


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, "meta"])
def test_what_c_writes_is_of_its_own_type_and_on_the_cpu_whatever_the_defaults_are(default: Any) -> None:
    expected, before = in_c(), torch.get_default_dtype()
    try:
        if isinstance(default, torch.dtype):
            torch.set_default_dtype(default)
        with torch.device(default if default == "meta" else "cpu"):
            found = in_c()
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shift", [0.0, -2.0, -50.0, 50.0])
@pytest.mark.parametrize(("tokens", "columns", "k"), [(0, 96, 5), (1, 48, 6), (37, 96, 5), (5, 301, 9), (3, 4608, 32)])
def test_topk_of_bf16_is_exact_and_its_columns_are_distinct(tokens: int, columns: int, k: int, shift: float) -> None:
    """Also with many equal values, and with fewer than k that are positive, or none."""
    x = (torch.randn(tokens, columns).mul(3).round() / 2 + shift).bfloat16()
    assert topk.covers(x, k)
    values, indices = topk.topk(x, k)
    assert values.shape == indices.shape == (tokens, k)
    expected = x.float().relu().topk(k).values
    assert torch.equal(values.float().sort(descending=True).values, expected)
    assert torch.equal(values, x.gather(1, indices).relu())
    assert all(len(set(row)) == k for row in indices.tolist())


def test_topk_keeps_nan_and_infinity() -> None:
    x = torch.randn(2, 64).bfloat16()
    x[0, 11], x[1, 63] = float("nan"), float("inf")
    values, indices = topk.topk(x, 3)
    assert 11 in indices[0] and values[0].isnan().sum() == 1
    assert 63 in indices[1] and values[1].max() == float("inf")


def without_team(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The code as of a compiler that has no OpenMP, or not PyTorch's."""
    apart = native._built(native._compiler(), folder, [])
    monkeypatch.setattr(native, "library", lambda: apart)
    monkeypatch.setattr(native, "has_team", lambda: bool(apart.has_team()))


@pytest.mark.parametrize("team", [True, False])
def test_any_number_of_threads_gives_the_same_bits(team: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not team:
        without_team(monkeypatch, tmp_path)
        assert not native.has_team()
    monkeypatch.setattr(native, "_LEAST_ELEMENTS", 0)
    m, gradient, found = torch.rand(37, 48), torch.rand(37, 48), []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        mine, v, step = m.clone(), torch.zeros(37), torch.empty(37, 48, dtype=torch.bfloat16)
        momentum.momentum_(mine, v, gradient, skip=NO, beta1=0.7, beta2=0.9, epsilon=1e-8, out=step)
        momentum.descend_(mine, step, torch.tensor(0.1), skip=NO)
        acts, indices, starts = m[:, :5].flatten(), torch.arange(185).remainder(37), torch.arange(0, 186, 5)
        sums = bags.decode(acts, indices, starts, gradient), bags.gather_dot(m, indices, starts, gradient)
        found.append((mine, v, step, *sums))
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


def test_the_threads_are_those_of_pytorch() -> None:
    """Else its team and another fight for the cores: on Linux, with GNU's OpenMP, as its packages on PyPI."""
    if native._openmp() is None:
        pytest.skip("PyTorch has no OpenMP of GNU here")
    assert native.has_team()
    assert native._openmp() is not None  # no second one was loaded


def test_of_several_openmps_pytorchs_own_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(torch.__file__).parent

    def found(*files: str) -> str | None:
        lines = "".join(f"7f0-7f1 r-xp 00000000 fe:01 42    {file}\n" for file in ("/lib/libc.so.6", *files))
        monkeypatch.setattr(Path, "read_text", lambda self: lines)
        return native._openmp()

    other, own = "/env/sentencepiece.libs/libgomp-1.so", f"{package}/lib/libgomp.so.1"
    assert found(other, own) == found(own) == own
    assert found(other, beside := f"{package.parent}/torch.libs/libgomp-2.so") == beside
    assert found(other) == other and found(other, "/lib/libgomp.so.1") is None and found() is None


@pytest.mark.parametrize("matrix", ["topk", "gated"])
def test_threads_of_python_may_call_at_the_same_time(matrix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    given = [torch.randn(512, 256).bfloat16() for _ in range(4)]

    def call(x: Tensor) -> Tensor:
        if matrix == "topk":
            return topk.topk(x, 4)[0]
        return transformer.gated(x, x, is_gelu=False, out=torch.empty_like(x))

    expected = [call(x) for x in given]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            assert all(torch.equal(a, b) for a, b in zip(pool.map(call, given), expected, strict=True))


def test_what_is_not_finite_stays_so_in_bf16() -> None:
    start = torch.tensor([[float("nan"), float("inf"), -float("inf"), 3.3895e38, 1.0]])
    copy = torch.empty(1, 5, dtype=torch.bfloat16)
    momentum.descend_(start.clone(), torch.zeros(1, 5), torch.tensor(0.0), skip=NO, copy=copy)
    torch.testing.assert_close(copy, start.bfloat16(), equal_nan=True)


def test_denormal_numbers_are_as_elsewhere_after_the_code_is_loaded() -> None:
    assert native.library() is not None
    assert (torch.tensor(1e-40) * 0.5).item() > 0


def told_with(compiler: str) -> str:
    """Whether C is usable, by which compiler, and the advice, in a process whose CC is `compiler`."""
    code = "import torch; from sae.ops import native; "
    code += "print(native.usable(torch.ones(2, 3)), native.version(), native.advice())"
    env = {"CC": compiler, "PATH": os.environ["PATH"], "PYTHONPATH": str(Path(sae.__file__).parent.parent)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("compiler", ["", "  ", "false", "cc --no-such-option", 'cc "'])
def test_without_a_compiler_that_works_the_twins_run_and_the_user_is_told(compiler: str) -> None:
    assert told_with(compiler).startswith("False  no C compiler works here")


def test_a_compiler_that_is_not_done_in_time_is_tried_once_and_not_told_as_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = tmp_path / "slow-cc"
    slow.write_text(f"#!/bin/sh\necho >> {tmp_path}/calls\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CC", str(slow))
    monkeypatch.setattr(native, "_SECONDS", 0.2)
    monkeypatch.setattr(native, "_slow", [])
    monkeypatch.setattr(native, "library", native._library.__wrapped__)
    assert str(native.advice()).startswith(f"{slow} had not compiled the optimizer after 0.2 s")
    assert (tmp_path / "calls").read_text() == "\n"


def test_arguments_in_CC_reach_the_compiler() -> None:
    command = " ".join(native._compiler())
    assert told_with(f"{command} -g '-DA=a b'") == f"True {native.version()} None\n"


def test_the_code_is_compiled_once_though_it_is_wanted_while_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    plain = native._with_team
    monkeypatch.setattr(native, "_with_team", lambda *given: built.append("") or plain(*given))
    native._library.cache_clear()
    native.compile_ahead()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: native.library(), range(8)))
    native.compile_ahead()
    assert len(built) == 1 and found[0] is not None and set(found) == {native.library()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_process_that_is_forked_meanwhile_compiles_for_itself() -> None:
    code = """
import os, time
from sae.ops import native
plain = native._with_team
native._with_team = lambda *given: (time.sleep(2 * (os.getpid() == parent)), plain(*given))[1]
parent = os.getpid()
native.compile_ahead()
child = os.fork()
if not child:
    os._exit(0 if native.library() is not None else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    env = os.environ | {"PYTHONPATH": str(Path(sae.__file__).parent.parent)}
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, env=env, capture_output=True, text=True, timeout=120).stdout == "0\n"
