"""One sparse autoencoder: parameters, encode, decode, forward, and where they come from and go to."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.config import SaeConfig
from sae.dictionary.losses import VarianceSums, at_least_float32, fvu
from sae.dictionary.selection import agreement, selection, selection_of
from sae.dictionary.shards import WHOLE, LatentShards
from sae.dictionary.spec import Saved, Spec, with_centre
from sae.ops.autograd import DecodeFunction, EncodeFunction
from sae.ops.defaults import own_defaults, products_in_own_type
from sae.ops.encode import Select
from sae.ops.momentum import settle_

_UNIT = 1e-3
"""Tolerance of row lengths about 1: the rounding of a file in half precision."""


class Encoded(NamedTuple):
    """The code of each token: at most `width` latents. For topk and groupmax the width is k."""

    top_acts: Float[Tensor, "*batch width"]
    """Activations, non-negative, in no particular order. A latent with activation 0 did not fire."""
    top_indices: Int[Tensor, "*batch width"]
    """Latents by number; those that fired are distinct within a token."""


class SaeOutput(NamedTuple):
    """Result of `Sae.forward`."""

    recon: Float[Tensor, "*batch d_out"]
    """The reconstruction x̂."""
    top_acts: Float[Tensor, "*batch width"]
    """See `Encoded`."""
    top_indices: Int[Tensor, "*batch width"]
    """See `Encoded`."""
    fvu: Float[Tensor, ""]
    """Fraction of variance unexplained over these tokens (`losses.fvu`), differentiable, in float32 at least."""


class Sae(nn.Module):
    """A k-sparse autoencoder: x̂ = Σ_i a_i W_dec[i] + b_dec, a = TopK(ReLU((x − b_dec) W_encᵀ + b_enc)).

    A transcoder reads x and writes something else, and may add W_skip x. A crosscoder's x is several hookpoints side by
    side, times `scale`. `spec` says which kind it is. `encoder.weight` is (num_latents, d_in) and `W_dec` (num_latents,
    d_out): row = latent. New weights follow Gao et al. 2024, arXiv:2406.04093, app. A.1: rows of W_dec uniform on the
    sphere, W_enc equal to W_dec, biases 0; the trainer sets b_dec to the mean of the data.
    """

    __call__: Callable[..., SaeOutput]

    shards: LatentShards = WHOLE
    """Who has its other latents; nobody, but of a `SaePart`."""

    def __init__(
        self,
        d_in: int,
        cfg: SaeConfig,
        *,
        d_out: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
        part: int = 0,
        parts: int = 1,
        spec: Spec | None = None,
    ) -> None:
        """New weights, drawn by `generator`. The dictionary has the latents that `cfg` asks for.

        Args:
            d_in: Width of what it reads.
            cfg: Shape and selection.
            d_out: Width of what it writes. None: `d_in`.
            device: Device of the parameters.
            dtype: Type of the parameters.
            generator: Source of the weights, on the CPU for any `device`. None: PyTorch's own.
            part: Number of the part, from 0, where latents are split (see `SaePart`).
            parts: Equal parts into which the latents are split.
            spec: What `cfg` does not say of a dictionary that was not trained here.

        Raises:
            ValueError: If `cfg` does not fit `d_in` or the number of parts.
        """
        super().__init__()
        num_latents = cfg.latents_for(d_in) // parts
        self.cfg, self.d_in, self.d_out, self.num_latents = cfg, d_in, d_in if d_out is None else d_out, num_latents
        self.spec = replace(spec or Spec(cfg, d_in, self.d_out, num_latents), num_latents=num_latents)
        """Computation of the dictionary, or of this part of one."""
        _check_parts(cfg, d_in, parts)
        self.encoder = nn.Linear(d_in, self.num_latents, device="meta", dtype=dtype)
        drawn = normal_rows(cfg.latents_for(d_in), d_in, part, parts, generator, device)
        rows = nn.functional.normalize(drawn, dim=-1).to(device, dtype)
        # The trainer sets a transcoder's decoder by its first tokens; until then it writes nothing.
        decoder = rows if self.spec.is_autoencoder else torch.zeros(num_latents, self.d_out, device=device, dtype=dtype)
        self.W_dec = nn.Parameter(decoder)
        self.encoder.weight = nn.Parameter(rows.detach().clone())
        self.encoder.bias = nn.Parameter(torch.zeros(self.num_latents, device=device, dtype=dtype))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out, device=device, dtype=dtype))
        shapes = self.spec.shapes()
        skip = torch.zeros(shapes["W_skip"], device=device, dtype=dtype) if "W_skip" in shapes else None
        self.W_skip = None if skip is None else nn.Parameter(skip)
        self.layer_scale: nn.Parameter | None = None
        if "layer_scale" in shapes:  # as if it wrote its own module alone
            own_alone = torch.zeros(shapes["layer_scale"], device=device, dtype=dtype)
            own_alone[0] = 1  # of each latent, if it has factors of its own
            self.layer_scale = nn.Parameter(own_alone)
        self.scale: Tensor | None
        scale = torch.ones(shapes["scale"], device=device, dtype=dtype) if "scale" in shapes else None
        self.register_buffer("scale", scale)
        self.threshold: Tensor | None
        level = partial(torch.zeros, device=device, dtype=torch.float32)
        threshold = level(shapes["threshold"]) if "threshold" in shapes else None
        self.register_buffer("threshold", threshold)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters, and of what `encode` and `decode` compute."""
        return self.W_dec.dtype

    @property
    def reads_input(self) -> bool:
        """Whether it is a transcoder: it reads the input of the module whose output it writes."""
        return not self.spec.is_autoencoder

    @property
    def reads(self) -> str:
        """The hookpoint that a transcoder reads; empty if it is the input of the module that it writes, or unknown."""
        name = next(iter(self.spec.reads), "") if self.reads_input else ""
        return "" if "hook_" in name else name  # TransformerLens's name, for which no module path is known

    @property
    def reads_several(self) -> bool:
        """Whether it reads several hookpoints: a crosscoder."""
        return self.cfg.crosscode and len(self.spec.widths) > 1

    @property
    def writes_several(self) -> bool:
        """Whether it is a layer of a cross-layer transcoder: it writes several hookpoints and reads at most one."""
        return self.cfg.cross_layer and len(self.spec.writes) > 1

    @property
    def decodes_with_input(self) -> bool:
        """Whether `decode` needs what was encoded."""
        return self.W_skip is not None or self.spec.layer_norm

    def scaled(self, x: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch d_out"]:
        """Activations in the units of the error.

        Args:
            x: Activations that are read or written (…, d).

        Returns:
            x times `scale`, which makes the hookpoints of a crosscoder count alike; x itself without one.
        """
        return x if self.scale is None else x * self.scale

    def unscaled(self, x: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch d_out"]:
        """The opposite of `scaled`.

        Args:
            x: Activations in the units of the error.

        Returns:
            Activations as the model has them.
        """
        return x if self.scale is None else x / self.scale

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Encoded:
        """Keep the latents of each token that the selection says; for topk the k largest.

        Gradients flow through `top_acts` to x and to the parameters. Source: Gao et al. 2024, arXiv:2406.04093, sec.
        2.3.

        Args:
            x: Activations (…, d_in), of any leading shape.

        Returns:
            Code of each token: `top_acts` and `top_indices`, both (…, width).

        Raises:
            ValueError: If x is not d_in wide.
        """
        return self.encode_by(x, selection_of(self.spec, self.threshold))

    def encode_by(self, x: Float[Tensor, "*batch d_in"], select: Select) -> Encoded:
        """As `encode`, with another selection than the dictionary's own.

        Args:
            x: Activations (…, d_in), of any leading shape.
            select: Rule that keeps latents: of pre-activations (tokens, latents) the values and indices, (tokens,
                width) each.

        Returns:
            Code of each token: `top_acts` and `top_indices`, both (…, width).

        Raises:
            ValueError: If x is not d_in wide.
        """
        if x.shape[-1] != self.d_in:
            raise ValueError(
                f"activations must be d_in={self.d_in} wide, got shape {tuple(x.shape)}; "
                "is this the autoencoder of another hookpoint?"
            )
        flat = x.to(self.dtype).reshape(-1, self.d_in)
        flat = self.scaled(flat) if self.spec.is_autoencoder else flat
        flat = _standardised(flat)[0] if self.spec.layer_norm else flat
        read = flat - self.b_dec if self.spec.centred else flat
        acts, indices = EncodeFunction.apply(  # type: ignore[no-untyped-call]
            read, self.encoder.weight, self.encoder.bias, select
        )
        batch = x.shape[:-1]
        return Encoded(acts.view(*batch, acts.shape[1]), indices.view(*batch, indices.shape[1]))

    def decode(
        self,
        top_acts: Float[Tensor, "*batch width"],
        top_indices: Int[Tensor, "*batch width"],
        x: Float[Tensor, "*batch d_in"] | None = None,
    ) -> Float[Tensor, "*batch d_out"]:
        """Σ_i top_acts[i] · W_dec[top_indices[i]] + b_dec, for any number of latents a token and any leading shape.

        Args:
            top_acts: Activations (…, width); 0 adds nothing.
            top_indices: Latents (…, width), by number.
            x: What was encoded (…, d_in). It is needed for a skip connection, which adds W_skip x, and for
                `spec.layer_norm`, which is scaled back to it.

        Returns:
            Reconstruction (…, d_out).

        Raises:
            ValueError: If x is needed and missing.
        """
        batch, width = top_acts.shape[:-1], top_acts.shape[-1]
        acts = top_acts.to(self.dtype).reshape(batch.numel(), width)
        indices = top_indices.reshape(batch.numel(), width).contiguous()
        if width == 0:
            acts, indices = nn.functional.pad(acts, (0, 1)), nn.functional.pad(indices, (0, 1))  # 0 of latent 0
        out = self._decoded(Encoded(acts, indices)) + self.b_dec
        if self.W_skip is None and not self.spec.layer_norm:
            return self.unscaled(out).view(*batch, self.d_out)
        if x is None:
            raise ValueError("x must be given to decode with a skip connection or a layer norm; pass what was encoded")
        flat = x.to(self.dtype).reshape(-1, self.d_in)
        if self.W_skip is not None:
            with products_in_own_type(flat.device):  # as the rest, which does not ask it
                out = out + flat @ self.W_skip.T
        if self.spec.layer_norm:
            _, mean, deviation = _standardised(flat)
            out = out * deviation + mean
        return self.unscaled(out).view(*batch, self.d_out)

    def _decoded(self, code: Encoded) -> Float[Tensor, "tokens d_out"]:
        """What the latents write, scaled, without b_dec."""
        out: Tensor = DecodeFunction.apply(*code, self.W_dec)  # type: ignore[no-untyped-call]
        return out

    def forward(self, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"] | None = None) -> SaeOutput:
        """Encode, decode and measure.

        Args:
            x: Activations (…, d_in).
            y: What a transcoder is to write (…, d_out). None: x; a transcoder's FVU is then NaN.

        Returns:
            Reconstruction, code and FVU over these tokens.

        Raises:
            ValueError: If x is not d_in wide.
        """
        encoded = self.encode(x)
        recon = self.decode(*encoded, x)
        if y is None and not self.spec.is_autoencoder:
            return SaeOutput(recon, *encoded, at_least_float32(recon).new_full((), torch.nan))
        target = self.scaled(at_least_float32(x if y is None else y).reshape(-1, self.d_out))
        error = (target - self.scaled(at_least_float32(recon).reshape(-1, self.d_out))).square().sum()
        return SaeOutput(recon, *encoded, fvu(error, VarianceSums.of(target).total_variance().to(error.dtype)))

    @torch.no_grad()
    def set_decoder_norm_to_unit_norm(self) -> None:
        """Scale every row of W_dec to unit length."""
        settle_(self.W_dec, unit_rows=True)

    @torch.no_grad()
    def to_continue(self) -> "Sae":
        """This function in float32, to train further. Rows of W_dec have unit length if the function has such a form.

        A length that all rows share goes into W_enc and b_enc. Lengths that differ cannot go there, since other latents
        would be the k largest. Such rows stay as they are, and are trained freely, without `normalize_decoder`. An
        autoencoder that did not subtract b_dec becomes one that does, and a transcoder that did becomes one that does
        not. Raises ValueError for thresholds of each latent, and for a layer norm: no training here makes them.
        """
        if self.spec.selection == "jumprelu" or self.spec.layer_norm:
            kind = "a layer norm" if self.spec.layer_norm else "thresholds of its own (JumpReLU, ReLU, gates)"
            raise ValueError(f"a dictionary to continue must be one that is trained here, got one with {kind}")
        sae = self.to(torch.float32)
        sae = Sae.from_saved(with_centre(sae.saved(), sae.spec.is_autoencoder), sae.device)
        lengths = torch.linalg.vector_norm(sae.W_dec, dim=1)
        if not sae.cfg.normalize_decoder or (lengths - 1).abs().max() < _UNIT:
            return sae
        length = lengths.mean()
        shared = sae.cfg.tied_by_target  # by other layers, whose encoders have lengths of their own
        if shared or not (length > 0 and (lengths / length - 1).abs().max() < _UNIT):
            free = replace(sae.cfg, normalize_decoder=False)
            return Sae.of_tensors(free, sae.state_dict(), like=sae.spec)
        folded = {"encoder.weight": sae.encoder.weight * length, "encoder.bias": sae.encoder.bias * length}
        return Sae.of_tensors(sae.cfg, sae.state_dict() | folded | {"W_dec": sae.W_dec / length}, like=sae.spec)

    @own_defaults()
    def save_to_disk(self, path: Path | str, *, format: str = "eleuther") -> None:
        """Write the dictionary into a folder.

        Args:
            path: Folder, which is created if need be.
            format: Format of the files. eleuther is EleutherAI's and our own: cfg.json and sae.safetensors. Others:
                `sae convert --help`.

        Raises:
            ValueError: For what the format cannot say.
        """
        from sae.formats.convert import write_one

        write_one(Path(path), self.saved(), format)

    def saved(self) -> Saved:
        """The dictionary as a value; the tensors are not copied."""
        return Saved(self.spec, dict(self.state_dict()))

    @classmethod
    @own_defaults()
    def load_from_disk(cls, path: Path | str, device: torch.device | str = "cpu") -> "Sae":
        """Load the dictionary in a folder or a file, in the data type of the file.

        Args:
            path: Folder or file. The names of the files reveal the format.
            device: Device of the parameters.

        Returns:
            Dictionary that computes the publisher's formula.

        Raises:
            ValueError: Names the file and what is wrong with it.
        """
        from sae.formats.find import stored_at

        return cls.from_saved(stored_at(Path(path)).read(), device)

    @classmethod
    @own_defaults()
    def load_from_hub(
        cls,
        name: str,
        hookpoint: str | None = None,
        device: torch.device | str = "cpu",
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> "Sae":
        """Load one dictionary of a hub repository. The others are not fetched.

        Args:
            name: Repository, as owner/name.
            hookpoint: Hookpoint of the dictionary, or its path in the repository. None: the only one there.
            device: Device of the parameters.
            revision: Branch, tag or commit.
            token: Token for a private repository.
            cache_dir: Folder where files are kept. None: the hub's own.

        Returns:
            Dictionary that computes the publisher's formula.

        Raises:
            ValueError: In one line, if the hub does not answer or the repository lacks the hookpoint.
        """
        from sae.formats.hub import Access, fetch

        access = Access(revision, token, cache_dir)
        found = fetch(name, None if hookpoint is None else [hookpoint], access=access, only_one=True)
        (stored,) = found.values()
        return cls.from_saved(stored.read(), device)

    @classmethod
    @own_defaults()
    def load_many(
        cls,
        name: Path | str,
        layers: Iterable[str] | None = None,
        device: torch.device | str = "cpu",
        *,
        local: bool | None = None,
        pattern: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> dict[str, "Sae"]:
        """Load the dictionaries of a folder or hub repository.

        A run's folder stands for its newest checkpoint, and the folder of one autoencoder for that one.

        Args:
            name: Folder or hub repository, of any known formats.
            layers: Names of hookpoints to load, or globs. None: all.
            device: Device of the parameters.
            local: Whether `name` is a folder. None: it is if there is such a folder, else the hub is asked.
            pattern: Glob on the hookpoints.
            revision: As for `load_from_hub`.
            token: As for `load_from_hub`.
            cache_dir: As for `load_from_hub`.

        Returns:
            Dictionaries by hookpoint; several at one hookpoint are `<group>/<hookpoint>` each.

        Raises:
            ValueError: In one line, for a source without dictionaries, a hookpoint that it lacks, or a damaged file.
        """
        from sae.formats.hub import Access, find_anywhere

        access = Access(revision, token, cache_dir)
        found = find_anywhere(name, layers, pattern, local=local, access=access)
        return {hookpoint: cls.from_saved(stored.read(), device) for hookpoint, stored in found.items()}

    @classmethod
    def of_tensors(cls, cfg: SaeConfig, tensors: Mapping[str, Tensor], *, like: Spec | None = None) -> "Sae":
        """The dictionary with given tensors, which are not copied.

        Args:
            cfg: Shape and selection.
            tensors: Tensors by the names of `state_dict`.
            like: Record of a dictionary whose hookpoints it has too.

        Returns:
            Dictionary on the device of the tensors.
        """
        (num_latents, d_in), d_out = tensors["encoder.weight"].shape, tensors["W_dec"].shape[1]
        spec = Spec(cfg, d_in, d_out, num_latents)
        if like is not None:
            spec = replace(spec, reads=like.reads, writes=like.writes, widths=like.widths)
        return cls.from_saved(Saved(spec, dict(tensors)), tensors["W_dec"].device)

    @classmethod
    def from_saved(cls, saved: Saved, device: torch.device | str = "cpu") -> "Sae":
        """The dictionary of a record.

        Args:
            saved: Record with its tensors. Those that are on `device` already are taken over, not copied.
            device: Device of the parameters.

        Returns:
            Dictionary in the type of the tensors.
        """
        spec, tensors = saved
        cfg = replace(spec.cfg, num_latents=spec.num_latents)
        sae = cls(spec.d_in, cfg, d_out=spec.d_out, device="meta", dtype=tensors["W_dec"].dtype, spec=spec)
        sae.cfg = spec.cfg
        sae.load_state_dict(tensors, assign=True)
        return sae.to(device)


class SaePart(Sae):
    """Some of an autoencoder's latents; `shards` hold the others. All call it together, on the same tokens."""

    def __init__(self, d_in: int, cfg: SaeConfig, *, shards: LatentShards, **options: Any) -> None:
        """The part that is this process's among the `shards`; see `Sae`."""
        super().__init__(d_in, cfg, part=shards.part, parts=shards.parts, **options)
        self.shards = shards

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Encoded:
        """The latents here that the selection among all keeps; `top_indices` counts from the first here."""
        encoded = self.encode_by(x, selection(self.cfg, threshold=self.threshold, shards=self.shards))
        acts, indices = agreement(self.cfg, self.shards)(*(t.flatten(0, -2) for t in encoded))
        return Encoded(*(t.view(*x.shape[:-1], t.shape[1]) for t in (acts, indices)))

    @torch.no_grad()
    def _decoded(self, code: Encoded) -> Float[Tensor, "tokens d_out"]:
        """What the latents of all parts write."""
        return self.shards.sum_(super()._decoded(code))


def _standardised(x: Float[Tensor, "tokens d_in"]) -> tuple[Tensor, Tensor, Tensor]:
    """Each token with mean 0 and standard deviation 1, its mean, and its deviation. OpenAI's convention: n − 1, and
    1e-5 is added on the way in only.
    """
    mean = x.mean(-1, keepdim=True)
    deviation = (x - mean).std(-1, keepdim=True)
    return (x - mean) / (deviation + 1e-5), mean, deviation


def _check_parts(cfg: SaeConfig, d_in: int, parts: int) -> None:
    num_latents = cfg.latents_for(d_in)
    if num_latents % parts or num_latents // parts < cfg.k:
        raise ValueError(
            f"shard_latents must divide num_latents={num_latents} into equal parts of at least k={cfg.k}, got {parts}; "
            "lower --shard_latents"
        )


def normal_rows(
    num_latents: int, d_in: int, part: int, parts: int, generator: torch.Generator | None, device: torch.device | str
) -> Float[Tensor, "rows d_in"]:
    """The rows of one part of (num_latents, d_in) normal random numbers; mostly only a part exists at a time.

    They are drawn on the CPU, unless `device` is meta: there nothing is drawn.
    """
    rows = num_latents // parts
    place = "meta" if torch.device(device).type == "meta" else "cpu"
    draw = partial(torch.randn, generator=generator, dtype=torch.float32, device=place)
    if rows * d_in % 16:  # torch draws normal numbers in blocks of 16
        return draw(num_latents, d_in)[part * rows : (part + 1) * rows]
    for _ in range(part):
        draw(rows, d_in)
    return draw(rows, d_in)
