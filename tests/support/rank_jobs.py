"""What tests let every rank of several do. `several.Launcher` runs these by name."""

import dataclasses
import errno
import itertools
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from tiny_models import VOCAB_SIZE, tiny_model

import sae.__main__
import sae.lm
import sae.report.training
from sae import Sae, SaeConfig, SaeTrainer, TrainConfig, evaluate
from sae.activations import shuffle
from sae.activations.cache import write as cache_write
from sae.activations.source import LiveActivations
from sae.commands.cache import cache_activations
from sae.config import CacheConfig
from sae.data import ActivationCache
from sae.data import tokens as data_tokens
from sae.dictionary import losses
from sae.lm import ModelPair
from sae.parallel import world as distributed
from sae.parallel.world import World
from sae.runs import checkpoint
from sae.runs.log import note

SEQ = 8
WIDTHS = ["layers.0", "layers.1.mlp.dense_h_to_4h", "layers.2", "layers.1.mlp"]
"""Hookpoints of two widths."""


def tokens(count: int = 104) -> torch.Tensor:
    return torch.randint(3, VOCAB_SIZE, (count, SEQ), generator=torch.Generator().manual_seed(1))


def make_trainer(
    save_dir: str | Path,
    *,
    sequences: int = 104,
    stream: bool = False,
    cache: str | None = None,
    two_models: bool = False,
    **changes: Any,
) -> SaeTrainer:
    """A trainer in float32, so that rounding is small; the same weights and tokens on every rank."""
    sae.lm.compute_dtype = lambda device: torch.float32
    options = {"batch_size": 4, "lr": 3e-3, "log_to_wandb": False, "run_name": "run", "dead_feature_threshold": 400}
    kinds = [field.name for field in dataclasses.fields(SaeConfig)]
    sizes = {name: changes.pop(name) for name in kinds if name in changes}
    cfg = TrainConfig(SaeConfig(**{"num_latents": 128, "k": 4} | sizes), save_dir=str(save_dir), **options | changes)
    if cache is not None:
        return SaeTrainer(cfg, ActivationCache(cache))
    rows = [{"input_ids": row.tolist()} for row in tokens(sequences)]
    model: Any = tiny_model("gpt_neox", causal_lm=cfg.loss_fn != "fvu")
    model = ModelPair(model, tiny_model("gpt_neox", seed=1)) if two_models else model
    return SaeTrainer(cfg, iter(rows) if stream else tokens(sequences), model)


def write_cache(folder: Path | str, **changes: Any) -> str:
    """Activations of the model and tokens of `make_trainer`, in float32."""
    cfg = CacheConfig(batch_size=4, layers=[0, 2], dtype="float32", activations=str(folder), **changes)
    return str(cache_activations(cfg, tokens(), tiny_model("gpt_neox")))


def write_caches(folder: str, caches: dict[str, dict[str, Any]], **end: Any) -> None:
    """Write these caches, by name, with small shards and buffers; `end` is how a rank fails in the first of them.

    `batch`: the batch of a rank's own that it fails at, `rank`, and `how`: killed, nan, full.
    """
    cache_write.SHARD_BYTES, cache_write.BUFFER_BYTES, cache_write.APPEND_BYTES = 2**13, 2**13, 1
    if end and int(os.environ["RANK"]) == end["rank"]:
        fail_at(**end)
    for name, changes in caches.items():
        write_cache(f"{folder}/{name}", **changes)


class Shelf(DirFileSystem):
    """A store that several processes see: files below the folder SHELF. Nothing can be renamed or appended to."""

    protocol = "shelf"

    def __init__(self, **options: Any) -> None:
        super().__init__(path=os.environ["SHELF"], fs=LocalFileSystem(auto_mkdir=True), **options)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """An object is there whole or not."""
        partial = Path(os.environ["SHELF"], f".{os.getpid()}.partial")
        partial.write_bytes(value)
        target = Path(os.environ["SHELF"], path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(target)


fsspec.register_implementation("shelf", Shelf, clobber=True)


def cache_apart(folder: str) -> None:
    """The processes leave out different tokens."""
    write_cache(Path(folder, "c"), exclude_tokens=[int(os.environ["RANK"])])


def fail_at(batch: int, how: str, rank: int) -> None:
    """Let this rank fail when it runs the model on its so manieth batch."""
    read, made = LiveActivations.read, itertools.count(1)

    def failing(self: LiveActivations, *given: Any, **options: Any) -> Any:
        found = read(self, *given, **options)
        if next(made) != batch:
            return found
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise FloatingPointError("layers.0: an activation is not finite")

    LiveActivations.read = failing  # type: ignore[method-assign]


@contextmanager
def small_sizes(fitting: int | None, massive: float | None) -> Iterator[None]:
    """A stream holds out four sequences; so many batches of four, at three hookpoints, fit into a shuffle's block.

    Tokens of more than `massive` variances are massive.
    """
    before = shuffle.BYTES, data_tokens.HELD_OUT_TOKENS_STREAM, losses.MASSIVE
    data_tokens.HELD_OUT_TOKENS_STREAM = 4 * SEQ
    if fitting is not None:
        shuffle.BYTES = fitting * 4 * SEQ * 3 * 32 * 4
    if massive is not None:
        losses.MASSIVE = massive
    yield
    shuffle.BYTES, data_tokens.HELD_OUT_TOKENS_STREAM, losses.MASSIVE = before


def stop(trainer: SaeTrainer, step: int) -> None:
    """Let a signal come, on the last rank only, in this step."""
    train_step = trainer.train_step

    def counted() -> bool:
        went_on = train_step()
        if trainer.step == step and trainer.world.rank == trainer.world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return went_on

    trainer.train_step = counted  # type: ignore[method-assign]


def warm_up() -> None:
    """Let what is imported at first use be imported; draw no pictures."""
    sae.report.training.draw_curves = lambda records, path: None
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(folder, sequences=24).fit()


def train(save_dir: str, runs: dict[str, dict[str, Any]]) -> None:
    """Train these runs, by name, one after the other in one world; leave the bytes that each rank sent."""
    for name, changes in runs.items():
        stop_after = changes.pop("stop_after", None)
        with small_sizes(changes.pop("fitting", None), changes.pop("massive", None)):
            trainer = make_trainer(save_dir, run_name=name, **changes)
            if stop_after is not None:
                stop(trainer, stop_after)
            trainer.fit()
        sent = {"steps": trainer.step, **trainer.world.sent}
        Path(save_dir, name, f"sent_{trainer.world.rank}.json").write_text(json.dumps(sent))


def add_up_late(save_dir: str, seconds: float) -> None:
    """The last rank comes late to a sum; the first tells when it could go on, when it had the sum, and what it was."""
    world = World.from_environment()
    world.gather("all are here")
    if world.rank > 0:
        time.sleep(seconds)
    begun, summed = time.monotonic(), torch.full((3,), 1.0 + world.rank)
    wait = world.add_up([summed])
    went_on = time.monotonic() - begun
    wait()
    found = {"went_on": went_on, "had_it": time.monotonic() - begun, "sum": summed.tolist()}
    Path(save_dir, f"sum_{world.rank}.json").write_text(json.dumps(found))


def prepare(save_dir: str, fail: bool = False) -> None:
    """The first rank takes its time to prepare what the others then read."""
    world, path = World.from_environment(), Path(save_dir, "prepared")
    with world.one_first(note, "prepared the data"):
        if world.is_main:
            time.sleep(0.5)
            if fail:
                raise ValueError("there are no data")
            path.write_text("ready")
        assert path.read_text() == "ready"


def save_slowly(save_dir: str, patience: float, seconds: float) -> None:
    """A checkpoint takes so many seconds to write, and nobody waits longer than `patience` for a step."""
    distributed.TIMEOUT = timedelta(seconds=patience)
    trainer = make_trainer(save_dir, max_tokens=128)
    write = checkpoint.save

    def slowly(*arguments: Any, **options: Any) -> Path:
        time.sleep(seconds)
        return write(*arguments, **options)

    checkpoint.save = slowly
    trainer.fit()


def die(save_dir: str, step: int) -> None:
    """The last rank is killed in the middle of a step."""
    trainer = make_trainer(save_dir, save_every=2)
    exchange = trainer.world.exchange

    def killed(activations: Any) -> Any:
        if trainer.step == step and trainer.world.rank == trainer.world.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return exchange(activations)

    trainer.world.exchange = killed  # type: ignore[method-assign]
    trainer.fit()


def poison(save_dir: str, batch: int) -> None:
    """One batch, which one rank reads, has a NaN in its activations."""
    trainer = make_trainer(save_dir)
    harvest = trainer.store.source._harvest

    def poisoned(harvested: torch.Tensor) -> Any:
        activations = harvest(harvested)
        if trainer.store.source.batch_index == batch:
            next(iter(activations.values()))[0, 0, 0] = torch.nan
        return activations

    trainer.store.source._harvest = poisoned
    trainer.fit()


def command(folder: str, arguments: list[str]) -> None:
    """The command line, in float32; of GPUs there may be fewer than processes."""
    sae.lm.compute_dtype = lambda device: torch.float32
    os.chdir(folder)
    assert sae.__main__.main([*arguments, "--device", "cpu"]) == 0


def measure_with_a_nan() -> None:
    """Measure with a model that on the last rank is broken."""
    world, model = World.from_environment(), tiny_model("llama", causal_lm=True)
    if world.rank == world.size - 1:
        next(model.parameters()).data.fill_(torch.nan)
    saes = {"layers.1": Sae(32, SaeConfig(num_latents=64, k=4))}
    evaluate(model, tokens(), saes, ranks=world)


def differ(save_dir: str, what: str) -> None:
    """The last rank has other data or another model than the others."""
    trainer, rank = make_trainer(save_dir), int(os.environ["RANK"])
    seed, ids = (1 if rank and what == name else 0 for name in ("model", "held_out"))
    SaeTrainer(trainer.cfg, tokens() - ids, tiny_model("gpt_neox", seed=seed)).fit()
