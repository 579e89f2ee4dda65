"""The hot operations. Each is one public function; `naive` holds its readable twin with the same signature."""

from sae.ops.bags import Bags, decode_bags, gather_dot_bags
from sae.ops.decode import decode, gather_dot
from sae.ops.encode import encode
from sae.ops.segments import LatentSegments
from sae.ops.topk import TopK, topk

__all__ = [
    "Bags", "LatentSegments", "TopK", "decode", "decode_bags", "encode", "gather_dot", "gather_dot_bags", "topk",
]  # fmt: skip
