"""One sparse autoencoder: parameters, encode, decode, forward, and where they come from and go to."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.config import SaeConfig
from sae.dictionary.losses import VarianceSums, at_least_float32, fvu
from sae.dictionary.selection import selection
from sae.dictionary.shards import LatentShards
from sae.formats import eleuther
from sae.ops.autograd import Decode, Encode
from sae.ops.momentum import settle_

_UNIT = 1e-3
"""How far lengths may be from 1 by the rounding of a file in half precision."""


class Encoded(NamedTuple):
    """The code of each token: at most k latents."""

    top_acts: Float[Tensor, "*batch k"]
    """Activations, non-negative, in no particular order. A latent with activation 0 did not fire."""
    top_indices: Int[Tensor, "*batch k"]
    """Which latents, distinct within a token."""


class SaeOutput(NamedTuple):
    """What `Sae.forward` returns."""

    recon: Float[Tensor, "*batch d_in"]
    """The reconstruction x̂."""
    top_acts: Float[Tensor, "*batch k"]
    """See `Encoded`."""
    top_indices: Int[Tensor, "*batch k"]
    """See `Encoded`."""
    fvu: Float[Tensor, ""]
    """Fraction of variance unexplained over these tokens (`losses.fvu`), differentiable; of float32 at least."""


class Sae(nn.Module):
    """A k-sparse autoencoder: x̂ = Σ_i a_i W_dec[i] + b_dec, a = TopK(ReLU((x − b_dec) W_encᵀ + b_enc)).

    `encoder.weight` and `W_dec` are both (num_latents, d_in): row = latent. New weights follow Gao et al. 2024,
    arXiv:2406.04093, app. A.1: rows of W_dec uniform on the sphere, W_enc equal to W_dec, biases 0; the trainer sets
    b_dec to the mean of the data.
    """

    def __init__(
        self,
        d_in: int,
        cfg: SaeConfig,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        """`generator` draws the weights, on the CPU for any `device`.

        The autoencoder has the latents that `cfg` asks for, or of several equal parts of them one (see `SaePart`).
        Raises ValueError if `cfg` does not fit d_in or the number of parts.
        """
        super().__init__()
        self.cfg, self.d_in, self.num_latents = cfg, d_in, cfg.latents_for(d_in) // parts
        _check_parts(cfg, d_in, parts)
        self.encoder = nn.Linear(d_in, self.num_latents, device="meta", dtype=dtype)
        drawn = _normal_rows(cfg.latents_for(d_in), d_in, part, parts, generator)
        rows = nn.functional.normalize(drawn, dim=-1)
        self.W_dec = nn.Parameter(rows.to(device, dtype))
        self.encoder.weight = nn.Parameter(self.W_dec.detach().clone())
        self.encoder.bias = nn.Parameter(torch.zeros(self.num_latents, device=device, dtype=dtype))
        self.b_dec = nn.Parameter(torch.zeros(d_in, device=device, dtype=dtype))
        self._select = selection(cfg)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters, and of what `encode` and `decode` compute."""
        return self.W_dec.dtype

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Encoded:
        """Keep the k largest latents of each token.

        x has any leading shape. Gradients flow through `top_acts` to x and to the parameters. Raises ValueError if x
        is not d_in wide. Source: Gao et al. 2024, arXiv:2406.04093, sec. 2.3.
        """
        if x.shape[-1] != self.d_in:
            raise ValueError(
                f"activations must be d_in={self.d_in} wide, got shape {tuple(x.shape)}; "
                "is this the autoencoder of another hookpoint?"
            )
        centred = x.to(self.dtype).reshape(-1, self.d_in) - self.b_dec
        acts, indices = Encode.apply(centred, self.encoder.weight, self.encoder.bias, self._select)
        batch = x.shape[:-1]
        return Encoded(acts.view(*batch, acts.shape[1]), indices.view(*batch, indices.shape[1]))

    def decode(
        self, top_acts: Float[Tensor, "*batch k"], top_indices: Int[Tensor, "*batch k"]
    ) -> Float[Tensor, "*batch d_in"]:
        """Σ_i top_acts[i] · W_dec[top_indices[i]] + b_dec, for any number of latents a token and any leading shape."""
        batch, k = top_acts.shape[:-1], top_acts.shape[-1]
        acts = top_acts.to(self.dtype).reshape(-1, k)
        summed = Decode.apply(acts, top_indices.reshape(-1, k).contiguous(), self.W_dec)
        return (summed + self.b_dec).view(*batch, self.d_in)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> SaeOutput:
        """Encode, decode and measure. Raises ValueError if x is not d_in wide."""
        encoded = self.encode(x)
        recon = self.decode(*encoded)
        target = at_least_float32(x).reshape(-1, self.d_in)
        error = (target - at_least_float32(recon).reshape(-1, self.d_in)).square().sum()
        return SaeOutput(recon, *encoded, fvu(error, VarianceSums.of(target).total_variance().to(error.dtype)))

    @torch.no_grad()
    def set_decoder_norm_to_unit_norm(self) -> None:
        """Scale every row of W_dec to unit length."""
        settle_(self.W_dec, unit_rows=True)

    @torch.no_grad()
    def to_continue(self) -> "Sae":
        """The same function in float32, to train on: with rows of W_dec of unit length if it has such a form.

        A length that all rows share goes into W_enc and b_enc. Lengths that differ cannot go there, since other latents
        would be the k largest: such rows stay as they are and are trained freely, without `normalize_decoder`.
        """
        sae = self.to(torch.float32)
        lengths = torch.linalg.vector_norm(sae.W_dec, dim=1)
        if not sae.cfg.normalize_decoder or (lengths - 1).abs().max() < _UNIT:
            return sae
        length = lengths.mean()
        if not (length > 0 and (lengths / length - 1).abs().max() < _UNIT):
            return Sae.of_tensors(replace(sae.cfg, normalize_decoder=False), sae.state_dict())
        folded = {"encoder.weight": sae.encoder.weight * length, "encoder.bias": sae.encoder.bias * length}
        return Sae.of_tensors(sae.cfg, sae.state_dict() | folded | {"W_dec": sae.W_dec / length})

    def save_to_disk(self, path: Path | str) -> None:
        """Write cfg.json and sae.safetensors into the folder `path`, in EleutherAI's format."""
        eleuther.save(Path(path), eleuther.SaeFile(self.cfg, self.d_in, dict(self.state_dict())))

    @classmethod
    def load_from_disk(cls, path: Path | str, device: torch.device | str = "cpu") -> "Sae":
        """Load a folder with cfg.json and sae.safetensors, in the data type of the file.

        Raises ValueError that names the file and what is wrong with it.
        """
        return cls.from_file(eleuther.load(Path(path)), device)

    @classmethod
    def load_from_hub(
        cls, name: str, hookpoint: str | None = None, device: torch.device | str = "cpu", *, revision: str | None = None
    ) -> "Sae":
        """Load the autoencoder of `hookpoint` from the hub repository `name`, or the repository's only one."""
        folder = eleuther.download(name, hookpoint, revision=revision)
        return cls.load_from_disk(folder / hookpoint if hookpoint else folder, device)

    @classmethod
    def load_many(
        cls,
        name: Path | str,
        layers: Iterable[str] | None = None,
        device: torch.device | str = "cpu",
        *,
        local: bool | None = None,
        pattern: str | None = None,
    ) -> dict[str, "Sae"]:
        """Load the autoencoders of a folder or hub repository, by hookpoint.

        `layers` names hookpoints; `pattern` is a glob on them. A run's folder stands for its newest checkpoint, and the
        folder of one autoencoder for that one. Of several configurations or seeds each is `<group>/<hookpoint>`.
        `local=None` means the folder if there is one of that name, else the hub.
        """
        folder = eleuther.locate(name) if local is None else Path(name) if local else eleuther.download(str(name), None)
        found = eleuther.find(folder, layers, pattern)
        return {hookpoint: cls.load_from_disk(path, device) for hookpoint, path in found.items()}

    @classmethod
    def of_tensors(cls, cfg: SaeConfig, tensors: Mapping[str, Tensor]) -> "Sae":
        """The autoencoder with these tensors, by the names of its `state_dict`; they are not copied."""
        W_dec = tensors["W_dec"]
        return cls.from_file(eleuther.SaeFile(cfg, W_dec.shape[1], dict(tensors)), W_dec.device)

    @classmethod
    def from_file(cls, file: eleuther.SaeFile, device: torch.device | str = "cpu") -> "Sae":
        """The autoencoder of these tensors, which it takes over where they already are on `device`."""
        with torch.device("meta"):
            sae = cls(file.d_in, file.cfg, device="meta", dtype=file.tensors["W_dec"].dtype)
        sae.load_state_dict(file.tensors, assign=True)
        return sae.to(device)


class SaePart(Sae):
    """Some of an autoencoder's latents, while `shards` hold the others: all call it together, on the same tokens."""

    def __init__(
        self, d_in: int, cfg: SaeConfig, *, shards: LatentShards, part: int, parts: int, **options: Any
    ) -> None:
        """`part` of `parts` equal parts; see `Sae`."""
        super().__init__(d_in, cfg, part=part, parts=parts, **options)
        self._shards = shards

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Encoded:
        """Of the k largest of all latents, those that are here; `top_indices` counts them from the first here."""
        encoded = super().encode(x)
        acts, indices = self._shards.keep_best(*(t.flatten(0, -2) for t in encoded))
        return Encoded(*(t.view(*x.shape[:-1], t.shape[1]) for t in (acts, indices)))

    @torch.no_grad()
    def decode(
        self, top_acts: Float[Tensor, "*batch k"], top_indices: Int[Tensor, "*batch k"]
    ) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction from the latents of all parts."""
        return self._shards.sum_(super().decode(top_acts, top_indices) - self.b_dec) + self.b_dec


def _check_parts(cfg: SaeConfig, d_in: int, parts: int) -> None:
    num_latents = cfg.latents_for(d_in)
    if num_latents % parts or num_latents // parts < cfg.k:
        raise ValueError(
            f"shard_latents must divide num_latents={num_latents} into equal parts of at least k={cfg.k}, got {parts}; "
            "lower --shard_latents"
        )


def _normal_rows(
    num_latents: int, d_in: int, part: int, parts: int, generator: torch.Generator | None
) -> Float[Tensor, "rows d_in"]:
    """The rows of one part of (num_latents, d_in) normal random numbers; mostly only a part exists at a time."""
    rows = num_latents // parts
    if rows * d_in % 16:  # torch draws normal numbers in blocks of 16
        return torch.randn(num_latents, d_in, generator=generator)[part * rows : (part + 1) * rows]
    for _ in range(part):
        torch.randn(rows, d_in, generator=generator)
    return torch.randn(rows, d_in, generator=generator)
