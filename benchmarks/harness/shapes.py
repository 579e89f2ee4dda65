"""The shapes that are measured, and who takes part."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """One autoencoder."""

    name: str
    d_in: int
    num_latents: int
    k: int
    cpu_tokens: tuple[int, ...]
    """Tokens per step on a CPU."""
    cuda_tokens: tuple[int, ...] = ()
    real: bool = False
    """Train on real activations."""

    @property
    def num_parameters(self) -> int:
        """Weights and biases."""
        return 2 * self.d_in * self.num_latents + self.d_in + self.num_latents


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("small", 576, 4608, 32, (1024, 4096), (16384,), real=True),
        Shape("medium", 576, 18432, 32, (1024, 4096), (16384,), real=True),
        Shape("a", 768, 24576, 32, (1024, 4096), (32768,)),
        Shape("b", 4096, 131072, 192, (1024,), (16384,)),
        Shape("tiny", 32, 256, 4, (64,), (64,)),
    )
}
"""(a) and (b) are those of the cost model; `tiny` is for the quick mode."""


@dataclass(frozen=True)
class Contestant:
    """A library in one of its settings."""

    library: str
    setting: str
    options: tuple[tuple[str, Any], ...] = ()
    documented: bool = True
    """A setting that the library offers. One that is not is shown, and never counted as the peer's best."""
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.library} {self.setting}".strip()


PRODUCTS = (
    Contestant("product", "bf16", (("dtype", "bfloat16"),)),
    Contestant("product", "fp32", (("dtype", "float32"),)),
)
OURS = Contestant("sae", "default")
SIGNUM = Contestant("sparsify", "default (signum)", (("optimizer", "signum"),))
ADAM = Contestant("sparsify", "adam", (("optimizer", "adam"),))
STEP_CONTESTANTS = (
    OURS,
    Contestant("sae", "bf16, no candidates", (("encode_in_8bit", False),)),
    Contestant("sae", "fp32", (("float32", True), ("encode_in_8bit", False))),
    *PRODUCTS,
    SIGNUM,
    ADAM,
    Contestant("sparsify", "adam, CPU autocast", (("optimizer", "adam"), ("autocast", True)), False, ("cpu",)),
    Contestant("sparsify", "adam, huge pages", (("optimizer", "adam"), ("huge_pages", True)), False, ("cpu",)),
    Contestant("sae_lens", "default"),
    Contestant("sae_lens", "autocast", (("autocast", True),)),
    Contestant("sae_lens", "autocast, compiled", (("autocast", True), ("compile_sae", True))),
    Contestant(  # its backward of the rescaling is not implemented for sparse tensors on a CPU
        "sae_lens", "sparse, unscaled", (("use_sparse_activations", True), ("rescale_acts_by_decoder_norm", False))
    ),
    Contestant("dictionary_learning", "default"),
    Contestant("dictionary_learning", "autocast", (("autocast_dtype", "bfloat16"),), devices=("cuda",)),
)
COMPILED = Contestant("sae", "language model compiled", (("compile_lm", True),), devices=("cuda",))
MODEL_CONTESTANTS = (OURS, COMPILED, SIGNUM, ADAM)
QUALITY_CONTESTANTS = (
    OURS,
    SIGNUM,
    ADAM,
    Contestant("sae_lens", "default"),
    Contestant("dictionary_learning", "default"),
)

PREFIXES = (512, 2048)
"""Ends of the inner groups of everybody's Matryoshka dictionaries."""
_MATRYOSHKA = (("kind", "matryoshka"), ("prefixes", PREFIXES))
FAMILY_CONTESTANTS = (
    Contestant("sae", "topk"),
    Contestant("sae", "batchtopk", (("selection", "batchtopk"),)),
    Contestant("sae", "matryoshka", (("prefixes", PREFIXES),)),
    Contestant("sae", "matryoshka batchtopk", (("selection", "batchtopk"), ("prefixes", PREFIXES))),
    Contestant("sparsify", "topk", (("optimizer", "adam"),)),
    Contestant("sae_lens", "topk"),
    Contestant("dictionary_learning", "topk"),
    Contestant("sae_lens", "batchtopk", (("kind", "batchtopk"),)),
    Contestant("dictionary_learning", "batchtopk", (("kind", "batchtopk"),)),
    Contestant("sae_lens", "matryoshka batchtopk", _MATRYOSHKA),
    Contestant("dictionary_learning", "matryoshka batchtopk", _MATRYOSHKA),
)
"""Members of the k-sparse family that a peer has too, ours first. The peers' Matryoshka ones select in a batch."""


@dataclass(frozen=True)
class Cell:
    """What everybody trains in a comparison of quality."""

    text: str
    layer: int
    num_latents: int
    k: int
    tokens: int
    batch: int
