"""`sae selftest`: a recipe on known features."""

from dataclasses import dataclass, field, replace

from .checks import check, several
from .dictionary import SaeConfig
from .train import TrainConfig


@dataclass
class SelftestSaeConfig(SaeConfig):
    """The shape of a dictionary that is trained on known features."""

    num_latents: int = 0
    """Number of latents. 0: one for each feature."""

    k: int = 2
    """Latents kept per token; with batchtopk in the mean over tokens. 2.1 features of a token fire in the mean."""


@dataclass
class SelftestConfig(TrainConfig):
    """Which recipe to try on synthetic activations of known features, and how hard these are."""

    sae: SelftestSaeConfig | list[SelftestSaeConfig] = field(default_factory=SelftestSaeConfig)  # type: ignore[assignment]
    """Shape of the dictionary, or several shapes: each is trained."""

    num_features: int = 1000
    """Features that make the activations: Zipf-distributed, hierarchical and correlated."""

    width: int = 64
    """Dimensions of the activations, which the features share."""

    max_tokens: int | None = 2_000_000
    """Tokens to train on."""

    batch_size: int = 8
    """Sequences of 256 tokens that are drawn at a time."""

    device: str = "auto"
    """Where to compute: cuda, cuda:1, cpu, ... auto: cuda if there is one."""

    out: str | None = None
    """New file to write the numbers into, as JSON. None: they are only printed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("width", self.width, self.width >= 2, "at least 2", "raise --width")
        fewest, most = 20, 100_000
        check(
            "num_features", self.num_features, fewest <= self.num_features <= most,
            f"between {fewest} and {most}", "choose another --num_features",
        )  # fmt: skip
        held = [self._with_latents(sae) for sae in several(self.sae)]
        self.sae = held if isinstance(self.sae, list) else held[0]

    def _with_latents(self, sae: SelftestSaeConfig) -> SelftestSaeConfig:
        """A shape with as many latents as features, unless it says how many."""
        return sae if sae.num_latents else replace(sae, num_latents=self.num_features)

    @property
    def num_tokens(self) -> int:
        """Tokens to train on."""
        return self.max_tokens or 2_000_000
