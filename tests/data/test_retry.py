"""A source that fails for a while loses no batch and doubles none; one that fails for good stops, after saving."""

import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from tiny_models import VOCAB_SIZE, tiny_model, tiny_tokenizer
from torch import Tensor

from sae import SaeConfig, SaeTrainer, TrainConfig
from sae.data import TokenBatches, chunk_and_tokenize
from sae.data.retry import PAUSES, SourceError, patiently
from sae.runs import checkpoint

try:
    import httpx2 as httpx  # what huggingface_hub 2 speaks with
except ImportError:
    import httpx

ROWS, SEQ = 60, 8
FAULTS = (12, 13, 14, 30, 31, 50)
DOCUMENTS = [f"document {number} speaks of {number**2} foxes and {number**3} dogs" for number in range(150)]


class Faults:
    """Raises at the calls of these numbers, counted over all readers, and counts."""

    def __init__(self, *at: int) -> None:
        self.at, self.calls = set(at), 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls in self.at:
            raise ConnectionResetError("the line is dead")


def tokens() -> Tensor:
    return torch.randint(3, VOCAB_SIZE, (ROWS, SEQ), generator=torch.Generator().manual_seed(3))


def rows(faults: Faults) -> Iterator[dict[str, list[int]]]:
    for row in tokens().tolist():
        faults()
        yield {"input_ids": row}


def documents(faults: Faults) -> Iterator[dict[str, str]]:
    for text in DOCUMENTS:
        faults()
        yield {"text": text}


class Table:
    """Rows by number."""

    def __init__(self, faults: Faults) -> None:
        self.faults, self.tokens = faults, tokens()

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        self.faults()
        return {"input_ids": self.tokens[index].tolist()}


class Iterable:
    """Rows one after the other, from the beginning at each `iter`."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        return rows(self.faults)


def stream(faults: Faults) -> IterableDataset:
    features = Features({"input_ids": List(Value("int64"))})
    return IterableDataset.from_generator(rows, features=features, gen_kwargs={"faults": faults})


def text_stream(faults: Faults) -> Any:
    features = Features({"text": Value("string")})
    texts = IterableDataset.from_generator(documents, features=features, gen_kwargs={"faults": faults})
    return chunk_and_tokenize(texts, tiny_tokenizer(), max_seq_len=SEQ)


SOURCES: dict[str, Callable[[Faults], Any]] = {
    "table": Table,
    "iterable": Iterable,
    "stream": stream,
    "shuffled": lambda faults: stream(faults).shuffle(seed=0, buffer_size=7),
    "text": text_stream,
}


@pytest.fixture(autouse=True)
def few_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.data.tokens.HELD_OUT_TOKENS_STREAM", 2 * SEQ)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for; none is made."""
    pauses: list[float] = []
    monkeypatch.setattr("sae.runs.stop_signals.StopRequests.wait", lambda self, seconds: pauses.append(seconds))
    return pauses


def make_trainer(data: Any, folder: Path, **changes: Any) -> SaeTrainer:
    options: dict[str, Any] = {"batch_size": 2, "max_tokens": 2 * SEQ * 20, "layers": [0], "lr": 3e-3} | changes
    cfg = TrainConfig(SaeConfig(num_latents=64, k=4), save_dir=str(folder), run_name="run", log_to_wandb=False,
                      **options)  # fmt: skip
    return SaeTrainer(cfg, data, tiny_model("gpt_neox"))


def files(folder: Path) -> dict[str, bytes]:
    named = {"config.json", "manifest.json"}  # with the run's own name in it, and its hash
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in named]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", SOURCES)
def test_a_run_over_a_source_that_fails_at_times_equals_one_without_faults_to_the_bit(
    tmp_path: Path, waited: list[float], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = make_trainer(SOURCES[name](Faults()), tmp_path / "smooth").fit()
    bumpy = Faults(*FAULTS)
    with caplog.at_level(logging.WARNING):
        found = make_trainer(SOURCES[name](bumpy), tmp_path / "bumpy").fit()
    assert bumpy.calls > FAULTS[-1]
    assert files(found) == files(expected) and len(files(found)) == 4
    assert len(waited) == len(FAULTS) and max(waited) >= 2
    told = [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()]
    assert len(told) == len(waited)
    assert told[0] == "the data cannot be read (ConnectionResetError: the line is dead); trying again in 1 s"


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_fails_for_good_stops_after_saving_and_the_run_goes_on_later_to_the_bit(
    tmp_path: Path, waited: list[float], name: str
) -> None:
    expected = make_trainer(SOURCES[name](Faults()), tmp_path / "smooth", save_every=5).fit()
    trainer = make_trainer(SOURCES[name](Faults()), tmp_path / "stopped", save_every=5)
    trainer.store.tokens._order._source = _failing_after(trainer.store.tokens._order._source, 14)
    with pytest.raises(SourceError, match=r"the data cannot be read \(ConnectionResetError.*\), tried 10 times") as e:
        trainer.fit()
    assert trainer.step > 0 and waited == list(PAUSES)
    saved = checkpoint.latest(tmp_path / "stopped" / "run")
    assert saved is not None and f"stopped at step {trainer.step}; the state before is saved in {saved}" in (
        e.value.__notes__
    )
    resumed = make_trainer(SOURCES[name](Faults()), tmp_path / "stopped", save_every=5, resume=True).fit()
    assert files(resumed) == files(expected)


def _failing_after(source: Any, reads: int) -> Any:
    """The source, dead after so many reads."""
    method = "read" if hasattr(source, "read") else "take"
    original, calls = getattr(source, method), iter(range(10**6))

    def read(*arguments: Any) -> Any:
        if next(calls) >= reads:
            raise ConnectionResetError("the line is dead")
        return original(*arguments)

    setattr(source, method, read)
    return source


def test_a_stream_that_can_be_read_only_once_stops_instead_of_losing_what_it_read() -> None:
    batches = TokenBatches(rows(Faults(6)), 2, seed=0, held_out=2, wait=lambda seconds: None)
    assert torch.equal(torch.cat(list(batches.held_out_batches())), tokens()[:2])
    assert torch.equal(next(batches), tokens()[2:4])
    with pytest.raises(ValueError, match="can only go forward, got a way back to sequence 4.*datasets.Iterable"):
        next(batches)


# How long, and what for


def response(status: int) -> Any:
    return type("Response", (), {"status_code": status, "headers": {}, "request": None})()


PASSING = [
    ConnectionResetError("x"), TimeoutError("x"), OSError(errno.EIO, "x"), OSError(errno.ESTALE, "x"),
    requests.ConnectionError("x"), requests.HTTPError("x", response=response(503)), httpx.ConnectTimeout("x"),
    httpx.ReadError("x"), requests.HTTPError("x", response=response(429)),
    type("ClientPayloadError", (Exception,), {"__module__": "aiohttp.client_exceptions"})("x"),
]  # fmt: skip
LASTING = [
    FileNotFoundError("x"), PermissionError("x"), requests.HTTPError("x", response=response(404)),
    requests.HTTPError("x", response=response(401)),
]  # fmt: skip
OTHERS = [ValueError("x"), RuntimeError("x"), KeyError("x"), FloatingPointError("x"), MemoryError("x")]


def name_of(error: Exception) -> str:
    return f"{type(error).__module__}.{type(error).__name__}"


class Source:
    """Raises `error` so many times, then is read."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.left, self.waited = error, times, list[float]()

    def read(self) -> str:
        if self.left:
            self.left -= 1
            raise self.error
        return "read"


@pytest.mark.parametrize("error", PASSING, ids=name_of)
def test_errors_of_network_and_disk_are_tried_again_with_doubled_pauses_up_to_nine_times(error: Exception) -> None:
    for times in range(10):
        source = Source(error, times)
        assert patiently(source.read, source.waited.append) == "read"
        assert source.waited == [1, 2, 4, 8, 16, 32, 64, 128, 256][:times]
    source = Source(error, 10)
    with pytest.raises(SourceError, match=r"the data cannot be read \(.*\), tried 10 times"):
        patiently(source.read, source.waited.append)


@pytest.mark.parametrize("error", LASTING, ids=name_of)
def test_an_answer_that_will_not_change_stops_at_once(error: Exception) -> None:
    source = Source(error, 1)
    with pytest.raises(SourceError, match=r"the data cannot be read \(.*\), tried 1 times"):
        patiently(source.read, source.waited.append)
    assert source.waited == []


@pytest.mark.parametrize("error", OTHERS, ids=name_of)
def test_what_is_not_the_sources_fault_passes_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        patiently(Source(error, 1).read, lambda seconds: None)
    assert raised.value is error


def test_a_request_to_stop_ends_the_waiting() -> None:
    source = Source(OSError("away"), 1)
    with pytest.raises(SourceError, match="and the run is to stop"):
        patiently(source.read, lambda seconds: True)


def test_a_signal_ends_the_waiting_and_the_state_is_saved(tmp_path: Path) -> None:
    trainer = make_trainer(stream(Faults()), tmp_path)
    trainer.store.tokens._order._source = _failing_after(trainer.store.tokens._order._source, 12)
    wait, begun = trainer.stop.wait, time.monotonic()

    def wait_then_signal(seconds: float) -> bool:
        # A thread reads ahead, perhaps before training listens to signals; the main thread gets them.
        while signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        return wait(seconds * 1000)

    trainer.store.tokens._wait = wait_then_signal
    with suppress(SourceError):  # unless training stops before it needs what cannot be read
        trainer.fit()
    assert trainer.stop and trainer.step < trainer.total_steps
    assert time.monotonic() - begun < 30
    saved = checkpoint.latest(tmp_path / "run")
    assert saved is not None and saved.name == f"step_{trainer.step}"


@pytest.mark.parametrize("at", range(1, 12))
def test_the_shuffle_buffer_starts_no_block_twice_when_its_source_fails(tmp_path: Path, at: int) -> None:
    data = Dataset.from_dict({"input_ids": tokens().tolist()})
    smooth, bumpy = (make_trainer(data, tmp_path / name).source for name in ("smooth", "bumpy"))
    read, calls = bumpy._source.__next__, iter(range(1, 1000))

    class Failing:
        def __next__(self) -> Any:
            if next(calls) == at:
                raise SourceError("for a while")
            return read()

        state_dict = bumpy._source.state_dict

    bumpy._source = Failing()  # type: ignore[assignment]
    for expected in smooth:
        try:
            found = next(bumpy)
        except SourceError:
            found = next(bumpy)
        assert torch.equal(found["layers.0"], expected["layers.0"])
        assert bumpy.state_dict() == smooth.state_dict()


def test_faults_of_random_reads_reach_no_batch(tmp_path: Path) -> None:
    Dataset.from_dict({"input_ids": tokens().tolist()}).save_to_disk(tmp_path / "data")
    order = list(TokenBatches(tokens(), 4, seed=1, held_out=2))
    source = Table(Faults(*range(5, 100, 7)))
    pauses: list[float] = []
    assert all(map(torch.equal, TokenBatches(source, 4, seed=1, held_out=2, wait=pauses.append), order))
    assert len(pauses) > 5
