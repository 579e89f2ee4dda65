"""`sae convert SOURCE TARGET` and `sae info SOURCE`."""

from dataclasses import dataclass, field


@dataclass
class ConvertConfig:
    """Which dictionaries to write in another library's format."""

    source: str = ""
    """Folder of a run, of one of its steps or of one dictionary, of any format that is known, a file, or hub id."""

    target: str = ""
    """New or empty folder to write into: one folder for each hookpoint, as the format has it."""

    to: str = "saelens"
    """Format to write: saelens, eleuther, dictionary-learning, circuit-tracer, llamascopium or gemma-scope-2."""

    hookpoints: list[str] = field(default_factory=list)
    """Convert only these hookpoints, with globs. None: all that the source has."""

    activations: str | None = None
    """Folder or address that sae cache wrote. For a library that has no TopK, a threshold is fitted on its held-out
    tokens, so that as many latents fire in the mean. L0 and FVU before and after are printed."""

    def __post_init__(self) -> None:
        for name in ("source", "target"):
            if not getattr(self, name):
                raise ValueError(f"{name.upper()} must be given; sae convert SOURCE TARGET --to saelens")


@dataclass
class InfoConfig:
    """Which dictionaries to describe."""

    source: str = ""
    """Folder of a run, of one of its steps or of one dictionary, of any format that is known, a file, or hub id."""

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("SOURCE must be given: a folder, a file, or a hub id; sae info SOURCE")
