"""An index is the same bits from several processes and after any kill; what fails leaves what was there."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import browse_job
import pytest
from full_disk import files_of_at_most
from tiny_models import save_tiny

import sae.__main__
from sae.browser import Index

SERVER = """
import sys, time
sys.path.insert(0, {support!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from browse_job import many_parts
from several import fork_for_each_line
from tiny_index import make
many_parts()
make(Path({straight!r}))
start = time.perf_counter()
make(Path({again!r}))
print(time.perf_counter() - start, flush=True)
fork_for_each_line(lambda: make(Path({killed!r})))
"""
"""Makes an index for each line it reads, in a process of its own that has imported everything already."""


def contents(folder: Path) -> dict[str, bytes]:
    """The files of an index. In the manifest, the command and the folder of the run may differ."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    manifest = json.loads(found["manifest.json"])
    manifest["about"].pop("command", None), manifest.pop("digest")
    return found | {"manifest.json": json.dumps(manifest).encode()}


def test_an_index_that_is_killed_at_random_moments_is_continued_to_the_same_bits(tmp_path: Path) -> None:
    folders = {name: str(tmp_path / name) for name in ("straight", "again", "killed")}
    script = SERVER.format(support=str(Path(browse_job.__file__).parent), **folders)
    moments, ends = random.Random(5), []
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        seconds = float(server.stdout.readline())
        for kill in range(40):
            server.stdin.write("go\n"), server.stdin.flush()
            child = int(server.stdout.readline())
            complete = (tmp_path / "killed/manifest.json").exists()  # one was killed after its last file
            if kill < 39 and not complete:  # later ones have less to do
                share = 0.2 if kill < 4 else 0.9**kill  # the first early, as the machine may be faster by now
                time.sleep(seconds * moments.random() * share)
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            ends.append(int(server.stdout.readline()))
            if ends[-1] == 0:
                break
        server.stdin.close()
    assert ends[-1] == 0 and ends.count(-signal.SIGKILL) == len(ends) - 1 >= 3, ends
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight") == contents(tmp_path / "again")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """A tiny run, as `sae browse` takes it, from whose folder the commands are typed."""
    folder = tmp_path_factory.mktemp("interrupted")
    save_tiny(folder / "model", "gpt_neox")
    lines = [f"The quick brown fox number {n} jumps over it." for n in range(400)]
    (folder / "text.txt").write_text("\n".join(lines))
    options = ["--num_latents", "96", "--k", "4", "--batch_size", "4", "--ctx_len", "16", "--max_tokens", "512"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sae.report.training.draw_curves", lambda records, path: None)
        arguments = ["model", "text.txt", *options, "--layers", "0", "2", "--no_log_to_wandb", "--device", "cpu"]
        assert sae.__main__.main([*arguments, "--save_dir", "runs", "--run_name", "run"]) == 0
        yield ["runs/run", "--max_tokens", "2000", "--batch_size", "4", "--device", "cpu", "--no_browser"]


@pytest.mark.slow
def test_an_index_of_three_processes_under_torchrun_is_that_of_one(command: list[str], tmp_path: Path) -> None:
    jobs = {
        "one": [sys.executable],
        "three": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"],
    }
    for name, start in jobs.items():
        options = ["--out", str(tmp_path / name), "--export", str(tmp_path / f"{name}-pages"), "--latents", "1"]
        done = subprocess.run(
            [*start, browse_job.__file__, *command, *options], env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert done.stdout.count("exported ") == 1
    (one,), (three,) = (list((tmp_path / name).glob("*/")) for name in jobs)
    assert contents(three) == contents(one) and len(contents(one)) > 50


@pytest.mark.parametrize("size", [200, 5000, 16_000])
def test_a_full_disk_is_one_line_and_what_was_there_stays(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    monkeypatch.setattr("sae.browser.server.serve", lambda app, bound: bound.close())
    older = [*command, "--hookpoints", "layers.0", "--out", str(tmp_path / "browse")]
    assert sae.__main__.main(["browse", *older]) == 0
    (before,) = (tmp_path / "browse").glob("*/")
    kept, both = contents(before), [*command, "--out", str(tmp_path / "browse")]
    capsys.readouterr()
    with files_of_at_most(size):
        status = sae.__main__.main(["browse", *both])
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("sae: error:")]
    assert status == 2 and "Traceback" not in err and "File too large" in line, err
    assert contents(before) == kept
    assert sae.__main__.main(["browse", *both]) == 0
    assert sorted(len(list(Index.open(path))) for path in (tmp_path / "browse").glob("*/")) == [1, 2]
