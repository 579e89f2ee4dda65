"""From other libraries' tensors to `Saved`, and the exact changes of form between conventions.

Lengths of decoder rows can go into the encoder, and a gate is a threshold: the function stays.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.config import SaeConfig
from sae.dictionary.spec import Saved, Spec, in_float32
from sae.formats.files import check_one_float_type, read_npz, read_safetensors, read_torch
from sae.storage.files import short

_UNIT = 1e-5
"""How far lengths in float32 may be from 1 by rounding alone."""
_MOST = 2**31
DEFAULT_K = SaeConfig.k


def record(
    path: Path,
    tensors: dict[str, Tensor],
    selection: str,
    *,
    k: Any = None,
    centred: bool,
    transcode: bool = False,
    layer_norm: bool = False,
    prefixes: list[int] | None = None,
    reads: str = "",
    writes: str = "",
) -> Saved:
    """The dictionary of these tensors by the names of `Spec`, of any shape: a stranger gave them.

    k may be meaningless (jumprelu). `path` is for messages. Raises ValueError, naming it, for what does not fit.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{path}: {name} must be a tensor, got {short(tensor)}")
        if tensor.dim() == 1 and bool(tensor.isnan().any()):
            raise ValueError(f"{path}: {name} must hold numbers, got NaN; is the file of a run that diverged?")
    W_enc, W_dec = tensors["encoder.weight"], tensors["W_dec"]
    if W_enc.dim() != 2 or W_dec.dim() != 2 or not 0 < W_enc.numel() < _MOST**2 or not W_dec.numel():
        raise ValueError(
            f"{path}: W_enc and W_dec must be matrices, got shapes {tuple(W_enc.shape)} and {tuple(W_dec.shape)}"
        )
    (num_latents, d_in), d_out = W_enc.shape, W_dec.shape[1]
    if not transcode and d_in != d_out:
        raise ValueError(f"{path}: an autoencoder must write what it reads, got widths {d_in} and {d_out}")
    if k is None:
        k = min(DEFAULT_K, num_latents)
    if type(k) is not int:
        raise ValueError(f"{path}: k must be a whole number, got {short(k)}")
    try:
        cfg = SaeConfig(
            num_latents=num_latents, k=k, selection="topk" if selection == "jumprelu" else selection,  # type: ignore[arg-type]
            prefixes=prefixes or [], transcode=transcode, skip_connection="W_skip" in tensors,
        )  # fmt: skip
        spec = Spec(
            cfg, d_in, d_out, num_latents, selection, centred=centred, layer_norm=layer_norm,
            writes=(writes,) if writes else (), reads=(reads,) if reads else (),
        )  # fmt: skip
        cfg.check_k(num_latents)
        saved = Saved(spec, _apart(tensors))
        spec.check(saved.tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    check_one_float_type(path, saved.tensors)
    return saved


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each with memory of its own: safetensors refuses to write tied ones."""
    seen, apart = set[int](), {}
    for name, tensor in tensors.items():
        own = tensor.contiguous()
        apart[name] = own.clone() if (start := own.untyped_storage().data_ptr()) in seen else own
        seen.add(start)
    return apart


class Contents(dict[str, Any]):
    """Contents of a file, by name, which note what a reader takes. A tensor that it passes over may be another rule."""

    def __init__(self, path: Path, found: Mapping[str, Any]) -> None:
        super().__init__(found)
        self.path = path
        self._taken: set[str] = set()

    @classmethod
    def of(cls, path: Path) -> "Contents":
        """All that is in a file of safetensors, torch or NumPy. Raises ValueError naming it and the rule it breaks."""
        if path.suffix == ".npz":
            return cls(path, read_npz(path))
        return cls(path, read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path))

    def __getitem__(self, name: str) -> Any:
        self._taken.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The entry of this name, which is then taken."""
        self._taken.add(name)
        return super().get(name, default)

    def tensors(self, *names: str) -> list[Tensor]:
        """The tensors of these names, which are then taken. Raises ValueError if one is missing."""
        for name in names:
            if not isinstance(self.get(name), Tensor):
                raise ValueError(f"{self.path} must hold the tensor {name}, but holds {short(sorted(self)[:8])}")
            dtype = self[name].dtype
            if not dtype.is_floating_point or dtype.itemsize < 2:
                raise ValueError(f"{self.path}: {name} must have a floating-point type of 16 bits or more, got {dtype}")
        return [self[name] for name in names]

    def check_all_taken(self, *ignored: str) -> None:
        """Raise ValueError for a tensor that nobody took. Names that begin with one of `ignored` say nothing."""
        left = [
            name for name, value in self.items()
            if isinstance(value, Tensor) and name not in self._taken and not name.startswith(ignored)
        ]  # fmt: skip
        if left:
            raise ValueError(
                f"{self.path} must hold the tensors of one dictionary alone, but holds {short(sorted(left)[:4])} too, "
                "which its kind does not have: it may compute something else; check its configuration, or take them out"
            )


def transposed(tensor: Tensor) -> Tensor:
    """The transpose of a matrix; other tensors stay, to be refused later."""
    return tensor.T.contiguous() if tensor.dim() == 2 else tensor


def has_unit_rows(W: Tensor) -> bool:
    """Whether the rows have length 1 but for float32's rounding."""
    lengths = torch.linalg.vector_norm(W.float(), dim=1)
    return bool((lengths - 1).abs().max() <= _UNIT) if len(lengths) else True


def with_norms_folded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same function with decoder rows of length 1, for libraries that select by act · length.

    A threshold is one on act · length already, and stays. Rows of length 0 stay.
    """
    W_dec = tensors["W_dec"]
    if W_dec.dim() != 2 or has_unit_rows(W_dec):
        return tensors
    wide = in_float32(tensors)
    lengths = torch.linalg.vector_norm(wide["W_dec"], dim=1)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    return wide | {
        "encoder.weight": wide["encoder.weight"] * lengths[:, None],
        "encoder.bias": wide["encoder.bias"] * lengths,
        "W_dec": wide["W_dec"] / lengths[:, None],
    }


def with_both_signs(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same function with non-negative latents, for libraries that keep the k largest in magnitude, with their sign.

    Latent i becomes two: i, and its negative at num_latents + i. At most one of them is positive, and it is |act|.
    """
    signed = ("encoder.weight", "encoder.bias", "W_dec")
    return tensors | {name: torch.cat([tensors[name], -tensors[name]]) for name in signed}


def gate_as_threshold(W_enc: Tensor, r_mag: Tensor, b_gate: Tensor, b_mag: Tensor) -> dict[str, Tensor]:
    """Encoder and threshold of a gated encoder, exactly: e^r w·x + b_mag, where w·x + b_gate > 0.

    W_enc is (latents, d_in). Source: Rajamanoharan et al. 2024, arXiv:2404.16014, app. on weight sharing.
    """
    scale = r_mag.exp()
    return {
        "encoder.weight": W_enc * scale[:, None],
        "encoder.bias": b_mag,
        "threshold": b_mag - scale * b_gate,
    }


def thresholds(saved: Saved) -> Tensor | None:
    """The threshold of each latent (num_latents,); None if other rules than thresholds decide."""
    spec, tensors = saved
    if spec.selection not in ("jumprelu", "batchtopk"):
        return None
    return tensors["threshold"].expand(spec.num_latents).contiguous()


def as_jumprelu(saved: Saved, library: str) -> Saved:
    """The dictionary with a threshold on each latent as its rule. Raises ValueError if its rule is another."""
    found = thresholds(saved)
    if found is None:
        raise ValueError(
            f"{library} has no {saved.spec.selection}{' transcoder' * saved.spec.cfg.transcode} here, but thresholds; "
            "sae convert with --activations fits one and says what that changes"
        )
    return with_threshold(saved, found)


def with_threshold(saved: Saved, threshold: Tensor) -> Saved:
    """The dictionary with a threshold (num_latents,) instead of its selection."""
    kept = {name: t for name, t in saved.tensors.items() if name != "threshold"}
    W = kept["encoder.weight"]
    return Saved(replace(saved.spec, selection="jumprelu"), kept | {"threshold": threshold.to(W.dtype).to(W.device)})


def check_plain(
    saved: Saved, library: str, *, transcoders: bool = True, skip: bool = True, norm: bool = False,
    cross_layer: bool = False,
) -> None:  # fmt: skip
    """Raise ValueError for a dictionary that a library has no word for."""
    spec = saved.spec
    kinds = {
        "crosscoders": spec.cfg.crosscode,
        "cross-layer transcoders": spec.cfg.cross_layer and not cross_layer,
        "transcoders": spec.cfg.transcode and not transcoders,
        "skip connections of cross-layer transcoders": spec.cfg.skip_connection and spec.cfg.cross_layer,
        "skip connections": spec.cfg.skip_connection and not skip,
        "a layer norm of what is read": spec.layer_norm and not norm,
        f"{spec.selection} selection": spec.selection not in ("topk", "batchtopk", "jumprelu"),
    }
    if has_not := [kind for kind, there in kinds.items() if there]:
        raise ValueError(f"{library} cannot say this dictionary: it has no {' and no '.join(has_not)}; choose another")
