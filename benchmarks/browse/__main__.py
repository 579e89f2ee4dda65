"""What an index costs: `python -m benchmarks.speed.browse --tokens 319000 --num_latents 4608`.

SmolLM2-135M's block 9, random dictionaries (an index's time hangs on its sizes alone), and text of this machine. The
language model alone reads the same tokens first, in the same process.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.harness import inputs
from sae import Sae, SaeConfig, lm
from sae.browser import Index
from sae.browser.collect import Read, collect
from sae.browser.reading import LiveText
from sae.data.tokens import SampledSequences

"""The demonstration, for its model and its text."""


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"tokens": 65_536, "ctx_len": 512, "num_latents": 4608, "k": 32, "latents_shown": 50}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--hookpoints", nargs="+", default=["layers.9"])
    print(json.dumps(measure(parser.parse_args())))


def measure(cfg: argparse.Namespace) -> dict[str, float]:
    """Seconds and sizes."""
    name = str(inputs.demo().find_model())
    tokenizer = lm.load_tokenizer(name)
    model = lm.load_model(name, device="cpu", dtype=lm.compute_dtype(torch.device("cpu")), head=True)
    sample = SampledSequences(_rows(tokenizer, cfg), None, 8, seed=0)
    generator = torch.Generator().manual_seed(0)
    sizes = SaeConfig(num_latents=cfg.num_latents, k=cfg.k)
    reads = {hookpoint: Read(hookpoint, Sae(576, sizes, generator=generator)) for hookpoint in cfg.hookpoints}
    start = time.perf_counter()
    for tokens in sample:
        lm.harvest(model, tokens, cfg.hookpoints)
    alone = time.perf_counter() - start
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        texts = lm.token_texts(tokenizer, lm.vocab_size(model))
        collect(Path(folder), LiveText(model, sample), reads, texts, model=model, about={})
        seconds = time.perf_counter() - start
        index = Index.open(folder)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        pages = _pages(index, cfg)
    events = sum(place.events for place in index.places.values())
    return {
        "tokens": sample.num_tokens, "latents": cfg.num_latents * len(reads), "lm_alone_s": alone, "index_s": seconds,
        "ratio": seconds / alone, "MB": size / 1e6, "bytes_an_event": size / events, "page_ms": pages,
        "memory_over_the_model_MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3,
    }  # fmt: skip


def _rows(tokenizer: object, cfg: argparse.Namespace) -> torch.Tensor:
    demo = inputs.demo()
    texts = demo.some_of(demo.english(), 6 * cfg.tokens)
    ids = [token for text in texts for token in tokenizer.encode(text)]  # type: ignore[attr-defined]
    rows = min(len(ids), cfg.tokens) // cfg.ctx_len
    return torch.tensor(ids[: rows * cfg.ctx_len]).view(rows, cfg.ctx_len)


def _pages(index: Index, cfg: argparse.Namespace) -> float:
    """Milliseconds that a latent's page takes, from the index to JSON."""
    from sae.browser.payload import about_latent

    place = index[cfg.hookpoints[0]]
    start = time.perf_counter()
    for latent in range(0, place.num_latents, max(1, place.num_latents // cfg.latents_shown)):
        json.dumps(about_latent(place[latent]))
    return 1000 * (time.perf_counter() - start) / cfg.latents_shown


if __name__ == "__main__":
    main()
