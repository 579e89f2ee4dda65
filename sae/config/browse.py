"""`sae browse CHECKPOINT`: what is shown."""

from dataclasses import dataclass, field

from .checks import check
from .eval import EvalConfig


@dataclass
class BrowseConfig(EvalConfig):
    """Which autoencoders to look at, on what they fire, and how it is shown."""

    dataset: str = ""
    """Text or tokens: a hub id, a folder, local files or globs, or a .bin file of tokens. Left out: the data of the
    run."""

    hookpoints: list[str] = field(default_factory=list)
    """Look at only these hookpoints, with globs. None: all that the checkpoint has."""

    max_tokens: int | None = None
    """Tokens to index, the run's held-out ones first. None: a million, or all that there are."""

    exclude_tokens: list[int] | None = None
    """Token ids on which no latent is looked at. None: as in the run."""

    exclude_positions: list[int] | None = None
    """Positions in the sequence, from 0, at which no latent is looked at. None: as in the run."""

    activations: str | None = None
    """Index the activations in this folder or behind this address, which sae cache wrote, instead of running the
    language model. The cache fixes the data and how they are read."""

    out: str | None = None
    """Folder of the index and the notes. None: browse in the run's folder, or browse-NAME here."""

    port: int = 8765
    """Port of the page, on this machine alone; the next free one if it is taken."""

    browser: bool = True
    """Open the page in the browser."""

    export: str | None = None
    """Write instead of serving: a new folder of static pages, which open without a server. neuronpedia or
    circuit-tracer: a folder of that name beside the index, for them to import."""

    explain: str | None = None
    """Address of a service that speaks OpenAI's protocol, as http://127.0.0.1:8080/v1. Its model writes an explanation
    of each latent that has none, the most frequent first. The key is read from OPENAI_API_KEY."""

    explainer: str = ""
    """Name of the model that explains. Left out: the first that the service lists."""

    latents: list[int] = field(default_factory=list)
    """Export or explain only these latents of each hookpoint. None: all."""

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise ValueError("CHECKPOINT must be given: the folder of a run, or a hub id; sae browse CHECKPOINT")
        super().__post_init__()
        check("port", self.port, 0 < self.port < 2**16, "between 1 and 65535", "leave --port out for 8765")
        lowest = min(self.latents, default=0)
        check("latents", lowest, lowest >= 0, "0 or more", "count from the start, from 0")
        if self.latents and self.export is None and self.explain is None:
            raise ValueError("latents must come with export or explain; add --export FOLDER or --explain ADDRESS")
        if self.explainer and self.explain is None:
            raise ValueError(f"explainer must come with explain, got {self.explainer} alone; add --explain ADDRESS")
        if self.explain is not None and not self.explain.startswith(("http://", "https://")):
            raise ValueError(
                f"explain must begin with http:// or https://, got {self.explain}; give an address like "
                "http://127.0.0.1:8080/v1"
            )
