"""The processes of a run: the only place that knows of more than one. With one process everything is the identity."""

import functools
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from sae.dictionary.shards import WHOLE, LatentShards
from sae.parallel.placement import Placement

TIMEOUT = timedelta(minutes=20)
"""How long a rank waits for the others in training: longer than data that fail are tried again (`data.retry`). A rank
that dies is noticed at once, by its connection."""
PATIENCE = timedelta(hours=12)
"""How long the ranks wait for the one that prepares data, or writes or checks a checkpoint."""
SMALL = 2**20
"""Tensors below this many bytes are added up together, as one."""


Made = TypeVar("Made")
Caught = TypeVar("Caught", bound=Exception)


class PeerFailed(ConnectionError):
    """Another rank failed, and says why; this one cannot go on without it."""


def tell_launcher(error: Exception) -> str:
    """Leave the error where torchrun looks for it; returns how a message about it begins.

    Waits a little where another process has more to say: torchrun ends all as soon as one has ended.
    """
    rank, size = os.environ.get("RANK", "0"), int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ""
    if isinstance(error, PeerFailed):
        time.sleep(10)
    elif rank != "0":
        time.sleep(5)  # mostly all have the same to say, and the first has said it
    if not isinstance(error, PeerFailed):
        get_error_handler().record_exception(error)
    return f"rank {rank}: "


def check_alone(command: str) -> None:
    """Raise ValueError if a command that runs in one process was started in several."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        raise ValueError(f"{command} runs in one process, got WORLD_SIZE={size}; start it without torchrun")


class World:
    """This rank among all, and what ranks do together. With one process everything is the identity."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.placement = Placement(size)
        self.is_whole = size == 1
        """Whether, after an error, all processes are at the same place and can still do things together."""
        self.sent: Counter[str] = Counter()
        """Bytes that this rank sent to others, by kind: `exchange`, `replicas`, `shards`. Without control messages."""

    @classmethod
    def from_environment(cls, *, shard_latents: int = 1) -> "World":
        """The world that torchrun describes in the environment; joins it.

        Raises ValueError if its processes do not split into groups of `shard_latents`.
        """
        rank, size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
        if size % shard_latents:
            raise ValueError(
                f"shard_latents must divide the number of processes, {size}, got {shard_latents}; start as many groups "
                f"of {shard_latents} as you like with torchrun --nproc_per_node, or lower --shard_latents"
            )
        if size > 1 and not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))  # type: ignore[attr-defined]
            # torchrun keeps its store when it starts processes anew, with the addresses of those that died.
            prefix = f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
            attempt = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=attempt, rank=rank, world_size=size, timeout=TIMEOUT)
        return cls(rank, size)

    def close(self) -> None:
        """Leave the other processes in peace. Does nothing with one process."""
        if dist.is_initialized():
            _group.cache_clear()
            dist.destroy_process_group()

    # Who does what

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @property
    def restarted(self) -> bool:
        """Whether torchrun has started the processes anew after a failure (--max-restarts)."""
        return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0

    def local_devices(self, device: torch.device) -> list[torch.device]:
        """The devices of this process: `device`, or its equal share of the machine's GPUs if that is just "cuda".

        Raises ValueError if there are more processes than GPUs.
        """
        local, processes = (int(os.environ.get(f"LOCAL_{name}", d)) for name, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
        if device.type != "cuda" or device.index is not None or self.size == 1:
            return [device]
        each = torch.cuda.device_count() // processes
        if not each:
            raise ValueError(
                f"every process needs a GPU of its own, got {processes} processes for {torch.cuda.device_count()} on "
                "this machine; lower --nproc_per_node of torchrun"
            )
        torch.cuda.set_device(local * each)
        return [torch.device("cuda", local * each + index) for index in range(each)]

    # Together

    def from_main(self, make: Callable[[], Made], *, slow: bool = False) -> Made:
        """The result of `make`, which the main process alone calls; if it raises there, no process goes on.

        The others wait as long as for a step. `slow`: as long as for the data, where the state is large.
        """
        with self.together():
            try:
                made = make() if self.is_main else None
            finally:
                if slow and self.size > 1:
                    _meet(self._patient())
        return cast(Made, self.gather(made)[0])

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every rank, on every rank. For small plain values."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _peers_may_fail():
            dist.all_gather_object(values, value)
        return values

    def merged(self, own: Mapping[str, Made], names: Iterable[str]) -> dict[str, Made]:
        """The ranks' findings about the autoencoders that they hold, in the order of `names`; on every rank."""
        found: dict[str, Made] = {}
        for part in reversed(self.gather(dict(own))):
            found |= part
        return {name: found[name] for name in names}

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return bool(self.highest(int(flag)))

    def highest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        if self.size == 1:
            return number
        highest = torch.tensor(number)
        with _peers_may_fail():
            dist.all_reduce(highest, dist.ReduceOp.MAX)
        return int(highest)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that may fail on one rank only: then all ranks leave it with an error, at the same place."""
        try:
            yield
        except PeerFailed:
            raise
        except Exception:
            self.is_whole = self.any(True)
            raise
        if self.any(False):
            raise self.on_all(PeerFailed("another process failed; its own message says why"))

    def on_all(self, error: Caught) -> Caught:
        """The error, noted as one that all processes raise here."""
        self.is_whole = True
        return error

    @contextmanager
    def one_first(self, tell: Callable[[str], None], what: str) -> Iterator[None]:
        """The first process of each machine does the block, then the others, who find its results on the disk."""
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        if self.size == 1:
            yield
            return
        group = self._patient()
        if not first:
            hours = int(PATIENCE.total_seconds() // 3600)
            if os.environ["LOCAL_RANK"] == "1":
                tell(f"the other processes wait until the first one has {what}, {hours} hours at most")
            _meet(group)
        yield
        if first:
            _meet(group)

    def _patient(self) -> Any:
        """The group of all ranks, who wait long for each other in it."""
        return _group((tuple(range(self.size)),), self.rank, PATIENCE)

    # What moves

    def exchange(self, activations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the tokens of every hookpoint to the ranks that train on it, and no others: one all-to-all.

        `activations` holds the (tokens, d_in) that this rank harvested at every hookpoint, any number of tokens on
        each rank. Returns those of all ranks, in their order, for the autoencoders that this rank holds.
        """
        if not self.placement.moves:
            return dict(activations)
        placement, ranks = self.placement, range(self.size)
        tokens = self._token_counts(activations)
        received = [[name for name in activations if placement.sends(rank, self.rank, name)] for rank in ranks]
        parts = [
            torch.cat(
                [_bytes(x) for name, x in activations.items() if placement.sends(self.rank, rank, name)] or [_NOTHING]
            )
            for rank in ranks
        ]
        sizes = [
            [count * activations[name][0:0].element_size() * activations[name].shape[1] for name in names]
            for count, names in zip(tokens, received, strict=True)
        ]
        device = next(iter(activations.values())).device
        outgoing = torch.cat([part.to(device) for part in parts])
        incoming = outgoing.new_empty(sum(map(sum, sizes)))
        with _peers_may_fail():
            dist.all_to_all_single(incoming, outgoing, [sum(each) for each in sizes], [len(part) for part in parts])
        self.sent["exchange"] += sum(len(part) for rank, part in enumerate(parts) if rank != self.rank)
        pieces: dict[str, list[Tensor]] = defaultdict(list)
        for name, piece in zip(sum(received, []), incoming.split(sum(sizes, [])), strict=True):
            pieces[name].append(piece)
        return {name: _like(torch.cat(pieces[name]), x) for name, x in activations.items() if name in pieces}

    def _token_counts(self, activations: Mapping[str, Tensor]) -> list[int]:
        counts = torch.zeros(self.size, dtype=torch.int64)
        own = torch.tensor(len(next(iter(activations.values()))))
        with _peers_may_fail():
            dist.all_gather(list(counts.unbind()), own)
        return counts.tolist()

    @property
    def has_replicas(self) -> bool:
        """Whether other ranks train copies of what this one trains."""
        return len(self.placement.replicas(self.rank)) > 1

    def add_up(self, tensors: Iterable[Tensor]) -> Callable[[], None]:
        """Start to add tensors, in place, over the ranks that train copies of the same; the result waits for it."""
        replicas = len(self.placement.replicas(self.rank))
        if replicas == 1:
            return lambda: None
        group = self._group_of(self.placement.replicas)
        with _peers_may_fail():
            sums = [_Sum(members, group) for members in _packed(tensors)]
        self.sent["replicas"] += sum(ring_bytes(each.flat.nbytes, replicas) for each in sums)

        def wait() -> None:
            with _peers_may_fail():
                for each in sums:
                    each.wait()

        return wait

    def sum_(self, tensor: Tensor) -> Tensor:
        """A tensor, in place, added up over the processes, where each trains other autoencoders; else as it is.

        With split latents it is added up over the same part of all autoencoders.
        """
        groups = self.placement.groups
        if groups == 1 or self.placement.owners is None:
            return tensor
        with _peers_may_fail():
            dist.all_reduce(tensor, group=self._group_of(self.placement.peers))
        self.sent["layers"] += ring_bytes(tensor.nbytes, groups)
        return tensor

    def share(self, held: Mapping[str, Made]) -> dict[str, Made]:
        """This rank's share of what all replicas hold."""
        ranks = self.placement.replicas(self.rank)
        return dict(islice(held.items(), ranks.index(self.rank), None, len(ranks)))

    def assembled(self, name: str, held: dict[str, Tensor], *, is_split: Callable[[str], bool]) -> dict[str, Tensor]:
        """The tensors of an autoencoder, on the main process, whoever holds it; split parts are joined.

        Every rank calls it, with what it holds of it, or nothing.
        """
        owner = next(rank for rank in range(self.size) if self.placement.holds(rank, name))
        parts = [self._brought(held, source) for source in self.placement.members(owner)]
        if len(parts) == 1 or not self.is_main:
            return parts[0]
        return {
            key: torch.cat([part[key].cpu() for part in parts]) if is_split(key) else t for key, t in parts[0].items()
        }

    def part(self, tensors: Mapping[str, Tensor], *, is_split: Callable[[str], bool]) -> dict[str, Tensor]:
        """This rank's rows of split tensors, and the others whole."""
        part, shards = self.placement.part(self.rank), self.placement.shards
        return {key: t.chunk(shards)[part] if is_split(key) else t for key, t in tensors.items()}

    def shapes_of_whole(self, tensors: Mapping[str, Tensor], *, is_split: Callable[[str], bool]) -> dict[str, Tensor]:
        """Tensors without memory, of the shapes that this rank's have when their parts are joined."""
        times = self.placement.shards
        shapes = {key: (len(t) * times, *t.shape[1:]) if is_split(key) else t.shape for key, t in tensors.items()}
        return {key: torch.empty(shapes[key], dtype=t.dtype, device="meta") for key, t in tensors.items()}

    def _brought(self, tensors: dict[str, Tensor], source: int) -> dict[str, Tensor]:
        """The tensors of the rank `source`, on the main process (on its CPU, if they come from another)."""
        if source == 0 or self.rank not in (0, source):
            return tensors
        with _peers_may_fail():
            if self.rank == source:
                kinds = [{name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}]
                dist.send_object_list(kinds, 0)
                for t in tensors.values():
                    dist.send(t.detach().cpu().contiguous(), 0)
                return tensors
            dist.recv_object_list(kinds := [{}], source)
            found = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in kinds[0].items()}
            for t in found.values():
                dist.recv(t, source)
        return found

    def latent_shards(self) -> LatentShards:
        """The ranks that hold the other latents of this rank's autoencoders."""
        if self.placement.shards == 1:
            return WHOLE
        group = self._group_of(self.placement.members)
        return ShardGroup(group, self.placement.part(self.rank), self.placement.shards, self.sent)

    def _group_of(self, ranks_with: Callable[[int], list[int]]) -> Any:
        """This rank's group, of those into which `ranks_with` divides the ranks."""
        partition = dict.fromkeys(tuple(ranks_with(rank)) for rank in range(self.size))
        return _group(tuple(partition), self.rank)


class ShardGroup:
    """The ranks that hold parts of the latents of the same autoencoders: `LatentShards` of more than one."""

    def __init__(self, group: Any, part: int, parts: int, sent: Counter[str]) -> None:
        """`part` is this rank's, of so many `parts`; `sent` counts its bytes."""
        self._group, self.part, self.parts, self._sent = group, part, parts, sent

    def total(self, number: int) -> int:
        """The sum of the parts' numbers."""
        total = torch.tensor(number)
        with _peers_may_fail():
            dist.all_reduce(total, group=self._group)
        return int(total)

    def sum_(self, partial: Tensor) -> Tensor:
        """Add up what every part computed, in place; every part gets the same bits."""
        return self._reduced(partial, dist.ReduceOp.SUM)

    def least_(self, partial: Tensor) -> Tensor:
        """The least over the parts, entry by entry, in place."""
        return self._reduced(partial, dist.ReduceOp.MIN)

    def _reduced(self, partial: Tensor, how: Any) -> Tensor:
        with _peers_may_fail():
            dist.all_reduce(partial, how, group=self._group)
        self._sent["shards"] += ring_bytes(partial.nbytes, self.parts)
        return partial

    def gathered(self, own: Tensor) -> list[Tensor]:
        """All parts' tensors, which have one shape, in order."""
        own = own.contiguous()
        everybody = [torch.empty_like(own) for _ in range(self.parts)]
        with _peers_may_fail():
            dist.all_gather([_bytes(each) for each in everybody], _bytes(own), group=self._group)
        self._sent["shards"] += (self.parts - 1) * own.nbytes
        return everybody


def ring_bytes(nbytes: int, ranks: int) -> int:
    """Bytes that one rank sends when a ring of `ranks` adds up tensors of `nbytes`: 2 (ranks − 1) / ranks of them."""
    return 2 * (ranks - 1) * nbytes // ranks


_NOTHING = torch.empty(0, dtype=torch.uint8)


class _Sum:
    """Tensors on their way to be added up over a group, as one flat tensor."""

    def __init__(self, members: Sequence[Tensor], group: Any) -> None:
        self._members = members
        self.flat = members[0] if len(members) == 1 else torch.cat([t.flatten() for t in members])
        self._work = dist.all_reduce(self.flat, group=group, async_op=True)

    def wait(self) -> None:
        self._work.wait()
        if len(self._members) > 1:
            for t, added in zip(self._members, self.flat.split([t.numel() for t in self._members]), strict=True):
                t.copy_(added.view_as(t))


def _packed(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Large tensors one by one, small ones of a kind together, in an order that is the same on all ranks."""
    large, small = [], defaultdict(list)
    for t in tensors:
        if t.nbytes < SMALL:
            small[t.dtype, t.device.type].append(t)
        else:
            large.append([t])
    return large + list(small.values())


@functools.cache
def _group(partition: tuple[tuple[int, ...], ...], rank: int, timeout: timedelta = TIMEOUT) -> Any:
    """The process group of `rank`, in a partition of all ranks; all ranks make the groups together, once."""
    if len(partition) == 1 and timeout == TIMEOUT:
        return dist.group.WORLD
    groups = {ranks: dist.new_group(list(ranks), timeout=timeout) for ranks in partition}
    return next(group for ranks, group in groups.items() if rank in ranks)


def _meet(group: Any) -> None:
    """Wait until all ranks of the group are here; over gloo, so that no GPU is kept waiting."""
    with _peers_may_fail():
        dist.all_reduce(torch.zeros(()), group=group)


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8).flatten()


def _like(flat: Tensor, x: Tensor) -> Tensor:
    """Bytes as rows of the type and width of x."""
    return flat.view(x.dtype).view(-1, x.shape[1])


@contextmanager
def _peers_may_fail() -> Iterator[None]:
    """A broken connection in the words of our own error."""
    try:
        yield
    except RuntimeError as error:  # what torch.distributed raises
        raise PeerFailed(f"the connection to another process broke ({str(error).splitlines()[0][:120]})") from error
