"""The hot operations. Each is one public function; `naive` holds its readable twin with the same signature."""

from sae.ops.decode import decode, gather_dot
from sae.ops.encode import encode
from sae.ops.segments import LatentSegments
from sae.ops.topk import topk

__all__ = ["LatentSegments", "decode", "encode", "gather_dot", "topk"]
