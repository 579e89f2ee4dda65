"""An index of many tokens without a language model: made-up chunks, merged by the product's own `collect`.

browse_synthetic.py FOLDER TOKENS LATENTS prints what the merge took. Popularity of the latents is Zipf-like, the
densest fires on a tenth of the tokens. Tokens are drawn likewise.
"""

import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sae import Sae, SaeConfig
from sae.browser.chunks import Found, sort_events, write_chunk
from sae.browser.collect import collect
from sae.browser.reading import LiveText
from sae.browser.reads import Read

D, K, VOCAB, CTX_LEN, BATCH = 576, 32, 49_152, 512, 32
CHUNK = 4 * BATCH * CTX_LEN
"""Tokens of a chunk, as `collect` makes them of batches of this size and this k."""


class Drawn:
    """Batches of token ids; any of them is the same whenever it is asked for."""

    ctx_len = CTX_LEN

    def __init__(self, tokens: int) -> None:
        self.num_tokens = tokens // CHUNK * CHUNK

    def chunk(self, number: int) -> np.ndarray:
        """Token ids of a chunk."""
        return np.minimum(np.random.default_rng(number).zipf(1.3, CHUNK), VOCAB - 1)

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(self.num_tokens // CHUNK):
            yield from torch.from_numpy(self.chunk(number)).view(-1, BATCH, CTX_LEN)


def write_chunks(folder: Path, sample: Drawn, num_latents: int) -> None:
    """Chunks of made-up events: K a token, activations log-normal."""
    folder.mkdir(parents=True, exist_ok=True)
    popularity = np.cumsum(1 / (np.arange(num_latents) + num_latents / 100) ** 0.8)
    latents_of = np.random.default_rng(0).permutation(num_latents)
    for number in range(sample.num_tokens // CHUNK):
        generator = np.random.default_rng(number)
        ranks = np.searchsorted(popularity, generator.random(CHUNK * K) * popularity[-1])
        positions = np.repeat(np.arange(number * CHUNK, (number + 1) * CHUNK, dtype=np.uint32), K)
        values = generator.lognormal(2, 0.7, CHUNK * K).astype(np.float16)
        events = sort_events(latents_of[ranks].astype(np.int32), positions, values, num_latents)
        found = Found(events, np.zeros(CHUNK, np.uint8))
        write_chunk(folder / f"{number:06d}", sample.chunk(number), np.ones(CHUNK, np.uint8), [found])


def tiny_model() -> nn.Module:
    """A language model of the width and vocabulary of SmolLM2 and of one block: only the first look runs it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 9, "intermediate_size": 64}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=VOCAB, **sizes)).eval()


class PeakMemory:
    """The largest anonymous memory of this process, and the largest with mapped files; sampled ten times a second."""

    def __init__(self) -> None:
        self.before = self.now()
        self.peak, self._stop = list(self.before), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def now(self) -> tuple[float, float]:
        """MB: anonymous, and all that is resident."""
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["RssAnon"].split()[0]) / 1e3, int(fields["VmRSS"].split()[0]) / 1e3

    def over(self) -> tuple[float, float]:
        """MB over what there was before."""
        self._stop.set()
        self._thread.join()
        return self.peak[0] - self.before[0], self.peak[1] - self.before[1]

    def _look(self) -> None:
        while not self._stop.wait(0.1):
            self.peak = [max(pair) for pair in zip(self.peak, self.now(), strict=True)]


def make(folder: Path, tokens: int, num_latents: int) -> dict[str, float]:
    """Make the index in a new folder; seconds and memory of the merge."""
    shutil.rmtree(folder, ignore_errors=True)
    write_chunks(folder / "chunks", Drawn(tokens), num_latents)
    return merge(folder, tokens, num_latents)


def merge(folder: Path, tokens: int, num_latents: int) -> dict[str, float]:
    """Make the index of chunks that are there: `collect` takes them over."""
    sample, model = Drawn(tokens), tiny_model()
    sae = Sae(D, SaeConfig(num_latents=num_latents, k=K), generator=torch.Generator().manual_seed(0))
    texts, about = [f" t{token}" for token in range(VOCAB)], {"model": "made up", "dataset": ""}
    memory, start = PeakMemory(), time.perf_counter()
    collect(folder, LiveText(model, sample), {"layers.0": Read("layers.0", sae)}, texts, model=model, about=about)
    anonymous, resident = memory.over()
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "tokens": sample.num_tokens, "latents": num_latents, "events": sample.num_tokens * K,
        "merge_s": time.perf_counter() - start, "memory_over_MB": anonymous, "with_mapped_files_MB": resident,
        "bytes_an_event": sum(path.stat().st_size for path in files) / sample.num_tokens / K,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(make(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
