"""The command under torchrun: on one machine, after a rank was killed, and on two hosts that only a network joins."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import several
from same_result import assert_same_result
from several import free_port
from tiny_models import save_tiny

from sae.parallel.world import ring_bytes
from sae.runs import checkpoint

pytestmark = pytest.mark.slow
JOB = Path(several.__file__).with_name("torchrun_job.py")
LATENTS, STEPS = 1024, 8
# With --lr 3e-3 a token has two scores that agree to the last digit, and two processes choose the other.
OPTIONS = [
    "--layers", "0", "2", "--num_latents", str(LATENTS), "--k", "4", "--batch_size", "4", "--ctx_len", "16",
    "--max_tokens", str(STEPS * 2 * 4 * 16),
    "--lr", "2e-3", "--no_log_to_wandb", "--save_every", "2", "--run_name", "run",
]  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model and a text, as the command line takes them."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny(folder / "model", "gpt_neox")
    (folder / "text.txt").write_text("\n".join(f"The quick brown fox number {n} jumps over it." for n in range(400)))
    return [str(folder / "model"), str(folder / "text.txt")]


def torchrun(*arguments: str, on: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
    """Start torchrun; `on` is put before its command."""
    command = [*on, sys.executable, "-m", "torch.distributed.run", *arguments]
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def alone(inputs: list[str], folder: Path, grad_acc_steps: int) -> Path:
    """The same run in one process."""
    options = [*OPTIONS, "--grad_acc_steps", str(grad_acc_steps), "--save_dir", str(folder)]
    done = subprocess.run([sys.executable, str(JOB), *inputs, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_a_killed_rank_ends_the_job_within_a_minute_with_its_name_and_restarted_it_ends_as_if_nothing_had_been(
    inputs: list[str], tmp_path: Path
) -> None:
    mark, kill = tmp_path / "mark", {"KILL_RANK": "1", "KILL_STEP": "5", "KILL_MARK": str(tmp_path / "mark")}
    arguments = ["--standalone", "--nproc_per_node", "2", str(JOB), *inputs, *OPTIONS, "--save_dir", str(tmp_path)]
    killed = torchrun(*arguments, **kill)
    said = killed.communicate(timeout=180)[0]
    assert killed.returncode != 0 and time.time() - mark.stat().st_mtime < 60, said
    assert "Signal 9 (SIGKILL)" in said and "rank      : 1" in said
    assert checkpoint.newest_undamaged(tmp_path / "run")[0] == tmp_path / "run" / "step_4"

    restarted = tmp_path / "restarted"
    arguments[-1] = str(restarted)
    again = torchrun("--max-restarts", "1", *arguments, **kill)
    said = again.communicate(timeout=300)[0]
    assert again.returncode == 0, said
    assert f"continuing from {restarted / 'run' / 'step_4'}" in said
    assert_same_result(restarted / "run", alone(inputs, tmp_path / "alone", 2))


def test_one_wrong_option_is_one_line(inputs: list[str], tmp_path: Path) -> None:
    wrong = torchrun("--standalone", "--nproc_per_node", "2", str(JOB), *inputs, *OPTIONS, "--shard_latents", "3")
    said = wrong.communicate(timeout=120)[0]
    lines = [line for line in said.splitlines() if line.startswith("sae: error:")]
    assert wrong.returncode != 0 and len(lines) == 1, said
    assert "rank 0: shard_latents must divide the number of processes, 2, got 3" in lines[0]


def test_a_cache_whose_processes_are_all_killed_is_continued_by_the_same_command_to_the_same_bytes(
    inputs: list[str], tmp_path: Path
) -> None:
    options = ["--ctx_len", "16", "--batch_size", "4", "--layers", "0", "2", "--activations"]
    done = subprocess.run([sys.executable, str(JOB), "cache", *inputs, *options, str(tmp_path / "alone")], check=False)
    assert done.returncode == 0
    command = ["--standalone", "--nproc_per_node", "2", str(JOB), "cache", *inputs, *options, str(tmp_path / "c")]
    started = torchrun(*command)
    while not (tmp_path / "c" / "progress.json").exists() and started.poll() is None:
        time.sleep(0.01)
    for process in [*psutil.Process(started.pid).children(recursive=True), psutil.Process(started.pid)]:
        process.kill()
    started.communicate(timeout=60)
    assert not (tmp_path / "c" / "manifest.json").exists()
    again = torchrun(*command)
    said = again.communicate(timeout=180)[0]
    assert again.returncode == 0, said
    found, expected = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "c", tmp_path / "alone")
    )
    assert found == expected and len(found) == 10


@pytest.fixture
def hosts() -> Iterator[list[tuple[str, str]]]:
    """Two hosts, each with one address of its own, joined by a wire: (name of the network namespace, address)."""
    names = [f"sae{os.getpid()}{end}" for end in "ab"]
    addresses = ["10.213.7.1", "10.213.7.2"]
    allowed = os.geteuid() == 0 and shutil.which("ip") is not None
    if not allowed or subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("two hosts need network namespaces: root, the command ip, and a kernel that allows them")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
        for name, address in zip(names, addresses, strict=True):
            ip("link", "set", name, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            for link in (name, "lo"):
                ip("-n", name, "link", "set", link, "up")
        yield list(zip(names, addresses, strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def sent_over_the_wire(host: str) -> int:
    """Bytes that the host has sent, with all headers."""
    path = f"/sys/class/net/{host}/statistics/tx_bytes"
    return int(subprocess.run(["ip", "netns", "exec", host, "cat", path], capture_output=True, check=True).stdout)


def test_two_hosts_run_one_job_over_torchruns_rendezvous(
    inputs: list[str], tmp_path: Path, hosts: list[tuple[str, str]]
) -> None:
    endpoint = f"{hosts[0][1]}:{free_port()}"
    agents = [
        torchrun(
            "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_endpoint", endpoint,
            "--rdzv_id", "job", "--rdzv_conf", f"is_host={int(address == hosts[0][1])}",
            "--local_addr", address, str(JOB), *inputs, *OPTIONS, "--save_dir", str(tmp_path),
            on=("ip", "netns", "exec", name), GLOO_SOCKET_IFNAME=name,
        )
        for name, address in hosts
    ]  # fmt: skip
    said = [agent.communicate(timeout=180)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(said)
    assert_same_result(tmp_path / "run", alone(inputs, tmp_path / "alone", 2))
    gradients = 2 * ring_bytes(8 * 32 * LATENTS + 12 * LATENTS + 12 * 32 + 48, 2)
    for name, _ in hosts:
        # headers, and what is not counted: the rendezvous, the agreement in each step, the metrics
        assert STEPS * gradients < sent_over_the_wire(name) < 1.1 * STEPS * gradients + 2**20
