"""The shape of a dictionary."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from .checks import check, check_positive

Rule = Literal["topk", "batchtopk", "groupmax"]
"""Names of the rules that keep latents, which are trained here."""


@dataclass
class SaeConfig:
    """The shape of one sparse autoencoder."""

    d_in: int = 0
    """Width of the activations. 0: taken from the model at each hookpoint."""

    expansion_factor: int = 32
    """Latents per dimension of the activations; used when num_latents is 0."""

    normalize_decoder: bool = True
    """Keep every row of W_dec at unit length."""

    num_latents: int = 0
    """Number of latents. 0: expansion_factor times the width of the activations."""

    k: int = 32
    """Latents kept per token; with batchtopk in the mean over tokens."""

    selection: Rule = "topk"
    """Rule that keeps latents. topk: the k largest of each token. batchtopk: those above a threshold; k in the mean
    over tokens, at most 4 k of one token. groupmax: the largest latent of each of k equal groups."""

    inference_l0: float | None = None
    """With batchtopk: latents kept per token at inference, in the mean over tokens; at most k. None: k. Training keeps
    k all the same, and the threshold that is saved leaves out the weakest."""

    prefixes: list[int] = field(default_factory=list)
    """Matryoshka: sizes of nested dictionaries. A size n means the first n latents, which reconstruct by themselves
    too, with equal weight in the loss. The whole dictionary is always the last."""

    budgets: list[int] = field(default_factory=list)
    """Hierarchical: numbers of latents. With a number n, the n largest of a token reconstruct by themselves too. One
    dictionary then serves every k among them. k is always the last, and counts twice in the loss."""

    crosscode: bool = False
    """Crosscoder: one dictionary that reads all chosen hookpoints and reconstructs all of them. Each hookpoint counts
    equally: it is divided by its standard deviation. expansion_factor multiplies the widest hookpoint."""

    transcode: bool = False
    """Transcoder: read the input of each hookpoint, which is a module, and reconstruct its output. With 'A->B' read A
    and reconstruct B."""

    cross_layer: bool = False
    """Cross-layer transcoder: transcode each hookpoint, which is a module, to its own output and those of all chosen
    modules after it. The dictionaries up to a module reconstruct its output together. For L modules L (L + 1) / 2
    decoders."""

    tie_decoders: bool | Literal["source", "target"] = False
    """With cross_layer: one decoder for each module; for L modules L, and all must be equally wide. source, or nothing:
    later modules get what a dictionary writes for its own, times one learned number each. target: a module's decoder
    also decodes the latents of earlier ones, each times a learned number of its own."""

    skip_connection: bool = False
    """Add a linear map of what is read to what is reconstructed; for transcoders."""

    def __post_init__(self) -> None:
        check_positive(self, "expansion_factor", "k")
        if self.selection not in get_args(Rule):
            *others, last = get_args(Rule)
            raise ValueError(
                f"selection must be {', '.join(others)} or {last}, got {self.selection!r}; choose one of them"
            )
        for name in ("prefixes", "budgets"):
            ends = getattr(self, name)
            rising = all(a < b for a, b in zip([0, *ends], ends, strict=False))
            check(name, ends, rising, "increasing positive numbers", f"leave --{name} out for one reconstruction")
        if self.prefixes and self.budgets:
            raise ValueError("prefixes and budgets both nest reconstructions; give one of --prefixes and --budgets")
        if self.budgets and self.selection != "topk":
            raise ValueError(
                f"budgets must go with the selection topk, whose latents a token ranks, got {self.selection}; "
                "leave out one of them"
            )
        check("budgets", self.budgets, max(self.budgets, default=0) <= self.k, f"at most k={self.k}", "raise --k")
        self._check_inference_l0()
        if self.cross_layer:
            self.transcode = True
        if self.tie_decoders not in (False, True, "source", "target"):
            raise ValueError(
                f"tie_decoders must be source or target, got {self.tie_decoders!r}; choose one of them, or leave it out"
            )
        self.tie_decoders = "target" if self.tie_decoders == "target" else bool(self.tie_decoders)
        if self.tie_decoders and not self.cross_layer:
            raise ValueError(
                "tie_decoders must come with cross_layer, whose dictionaries write several modules; add --cross_layer, "
                "or leave out --tie_decoders"
            )
        if self.skip_connection and not self.transcode:
            raise ValueError(
                "skip_connection must come with transcode: an autoencoder would copy what it reads; "
                "add --transcode, or leave out --skip_connection"
            )
        if self.crosscode and self.transcode:
            raise ValueError(
                "crosscode reconstructs what is read and transcode something else, got both; leave out one of them"
            )
        for name in ("d_in", "num_latents"):
            value = getattr(self, name)
            check(name, value, value >= 0, "0 or more", f"leave {name} out to have it derived")
        if self.num_latents or self.d_in:
            self.check_k(self.num_latents or self.d_in * self.expansion_factor)

    def _check_inference_l0(self) -> None:
        if (l0 := self.inference_l0) is None:
            return
        if self.selection != "batchtopk":
            raise ValueError(
                f"inference_l0 must go with the selection batchtopk, which has a threshold, got {self.selection}; "
                "leave it out, or give --selection batchtopk alone"
            )
        fits = type(l0) in (int, float) and 0 < l0 <= self.k
        check("inference_l0", l0, fits, f"above 0 and at most k={self.k}", "choose another, or raise --k")
        self.inference_l0 = float(l0)

    def check_k(self, num_latents: int) -> None:
        """Refuse a k that does not fit a dictionary.

        Args:
            num_latents: Latents of the dictionary.

        Raises:
            ValueError: Names k, and the way out.
        """
        if self.k > num_latents:
            raise ValueError(
                f"k must be between 1 and num_latents={num_latents}, got {self.k}; "
                "lower --k or raise --num_latents or --expansion_factor"
            )
        if self.selection == "groupmax" and num_latents % self.k:
            raise ValueError(
                f"k must divide num_latents={num_latents} into equal groups for the selection groupmax, got {self.k}; "
                "choose a divisor for --k, or another --num_latents"
            )
        if self.prefixes and self.prefixes[-1] > num_latents:
            raise ValueError(
                f"prefixes must be at most num_latents={num_latents}, got {self.prefixes[-1]}; "
                "leave it out, or raise --num_latents or --expansion_factor"
            )

    def latents_for(self, d_in: int) -> int:
        """Number of latents of a dictionary.

        Args:
            d_in: Width of the activations.

        Returns:
            `num_latents`, or `expansion_factor` times the width.

        Raises:
            ValueError: If the width is another than `d_in`, or k does not fit.
        """
        if self.d_in and self.d_in != d_in:
            raise ValueError(f"d_in must be the width of the activations, {d_in}, got {self.d_in}; leave d_in out")
        num_latents = self.num_latents or d_in * self.expansion_factor
        self.check_k(num_latents)
        return num_latents

    @property
    def l0(self) -> float:
        """Latents that a token keeps at inference, in the mean over tokens."""
        return self.k if self.inference_l0 is None else self.inference_l0

    @property
    def tied_by_target(self) -> bool:
        """Whether a module's decoder decodes for all dictionaries that write it; `tie_decoders` else ties by source."""
        return self.tie_decoders == "target"

    @property
    def keeps_largest(self) -> bool:
        """Whether the rule looks at a token's largest latents alone: they may be found in 8 bits."""
        return self.selection in ("topk", "batchtopk")

    @property
    def needs_reconstruction(self) -> str:
        """The option of this shape that cannot be trained end to end; empty if there is none."""
        return "crosscode" if self.crosscode else ""

    def levels_for(self, num_latents: int) -> list[int]:
        """Ends of the nested reconstructions.

        Args:
            num_latents: Latents of the dictionary.

        Returns:
            Ends in latents (prefixes) or ranks (budgets), the whole code last; empty for one reconstruction.
        """
        ends = self.prefixes or self.budgets
        whole = num_latents if self.prefixes else self.k
        return [*ends, whole] if ends and ends[-1] != whole else ends if len(ends) > 1 else []
