"""`sae push SOURCE OWNER/NAME`: what is put on the hub."""

import re
from dataclasses import dataclass, field


@dataclass
class PushConfig:
    """Which dictionaries to put on the hub, and where."""

    source: str = ""
    """Folder of a run, of one of its steps or of one dictionary, of any format that is known."""

    repository: str = ""
    """Repository on the hub, as OWNER/NAME. It is created if need be."""

    formats: list[str] = field(default_factory=list)
    """Other libraries' formats to add, each in a folder of its name: saelens, dictionary-learning, circuit-tracer,
    llamascopium, gemma-scope-2. EleutherAI's, our own, is always there; SAELens's in its place for dictionaries with a
    layer norm, which it cannot say."""

    private: bool = False
    """Create the repository as a private one."""

    license: str = "mit"
    """Licence that the card names."""

    force: bool = False
    """Add a commit to a repository that holds other files already."""

    dry_run: bool = False
    """List what would be sent, and send nothing."""

    hf_token: str | None = field(default=None, repr=False)
    """Token that may write. Never written anywhere. Also read from HF_TOKEN."""

    def __post_init__(self) -> None:
        if not self.source or not self.repository:
            raise ValueError("SOURCE and OWNER/NAME must be given; sae push checkpoints/my-run OWNER/NAME")
        parts = self.repository.split("/")
        if len(parts) != 2 or not all(re.fullmatch(r"[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?", part) for part in parts):
            raise ValueError(
                f"the repository must be OWNER/NAME, got {self.repository!r}; give both, of letters, digits, -, _ and ."
            )
