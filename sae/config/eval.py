"""`sae eval CHECKPOINT`: what is measured."""

from dataclasses import dataclass, field
from typing import Literal

from .checks import check, check_positive
from .source import SourceConfig


@dataclass
class EvalConfig(SourceConfig):
    """Which autoencoders to measure, on what."""

    model: str = ""
    """Language model: a hub id, a local folder, or a .gguf file. Left out: the one of the run."""

    dataset: str = ""
    """Text or tokens: a hub id, a folder, local files or globs, or a .bin file of tokens. Left out: the run's held-out
    tokens."""

    model_b: str | None = None
    """Second language model, of a crosscoder of two: a hub id, a local folder, or a .gguf file. None: the one of the
    run."""

    checkpoint: str = ""
    """Folder of a run, of one of its steps or of one autoencoder, or hub id."""

    compare: list[str] = field(default_factory=list)
    """Further checkpoints, measured on the same tokens."""

    baselines: list[Literal["random", "pca"]] = field(default_factory=list)
    """Measure dictionaries that nobody trained beside the checkpoint's, with its L0. random: as many random unit rows;
    pca: the principal components, of which each token keeps its largest."""

    probes: list[str] | None = field(default=None, metadata={"alone": True})
    """Measure k-sparse probes too: how well few latents tell two classes of texts apart, beside --baselines and raw
    activations. Name data sets of the package sae-probes, or CSV files with the columns text and label. Without a name,
    as the last argument: all 113 data sets. None: no probes."""

    probe_texts: int | None = None
    """Texts of each probing task, the first of both classes. None: all, 5000 at most."""

    absorption: bool = False
    """Measure too how much of a word's first letter its latents have taken over from the letter's own, beside
    --baselines. It means something for models of about 1B parameters or more."""

    absorption_words: int = 5000
    """Words of the vocabulary that --absorption asks about."""

    stability: list[str] = field(default_factory=list)
    """Say how many latents the checkpoint shares with these, such as runs of other seeds, and nothing else. Only
    weights are read, no model and no data. To compare the seeds of one run, name the run itself."""

    hookpoints: list[str] = field(default_factory=list)
    """Measure only these hookpoints, with globs. None: all that the checkpoint has."""

    split: str | None = None
    """Split of the data set. None: as in the run, or else train."""

    text_column: str | None = None
    """Column that holds the text. None: as in the run, or else text."""

    streaming: bool | None = None
    """Read the data set as a stream. None: as in the run, or else not."""

    ctx_len: int | None = None
    """Tokens per sequence. None: as in the run, or else 2048 or what the model can read."""

    max_tokens: int | None = None
    """Measure on this many tokens. None: on all that the run held out, or on 65,536 of other data."""

    exclude_tokens: list[int] | None = None
    """Token ids that are left out of all metrics and keep their activations. None: as in the run."""

    exclude_positions: list[int] | None = None
    """Positions in the sequence, from 0, that are left out of all metrics and keep their activations. None: as in the
    run."""

    batch_size: int = 8
    """Sequences per forward pass of the language model."""

    out: str | None = None
    """Folder for eval.json, the pictures and report.html. None: eval in the run's folder, or eval-NAME here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.checkpoint:
            raise ValueError("CHECKPOINT must be given: the folder of a run, or a hub id; sae eval CHECKPOINT")
        others = [name for name in ("compare", "baselines") if getattr(self, name)]
        others += ["probes"] * (self.probes is not None) + ["absorption"] * self.absorption
        if self.stability and others:
            raise ValueError(
                f"stability reads weights alone, and {others[0]} measures on data; give one of --stability and "
                f"--{others[0]}"
            )
        check_positive(self, "batch_size")
        for name in ("ctx_len", "max_tokens"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        if self.probe_texts is not None:
            if self.probes is None:
                raise ValueError("probe_texts must come with probes, got it without; add --probes")
            check("probe_texts", self.probe_texts, self.probe_texts >= 40, "at least 40", "leave --probe_texts out")
        if self.absorption_words != EvalConfig.absorption_words and not self.absorption:
            raise ValueError("absorption_words must come with absorption, got it without; add --absorption")
        check("absorption_words", self.absorption_words, self.absorption_words >= 500, "at least 500", "leave it out")
        for name in ("exclude_tokens", "exclude_positions"):
            lowest = min(getattr(self, name) or [], default=0)
            check(name, lowest, lowest >= 0, "0 or more", "count from the start, from 0")
