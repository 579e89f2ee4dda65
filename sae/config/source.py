"""The language model, and the data."""

from dataclasses import dataclass, field
from typing import Literal

from .checks import check_positive


@dataclass
class SourceConfig:
    """Which language model, which data, on what machine."""

    model: str = "EleutherAI/pythia-160m"
    """Language model: a hub id, a local folder, or a .gguf file."""

    dataset: str = "togethercomputer/RedPajama-Data-1T-Sample"
    """Text or tokens: a hub id, a folder, files or globs. Files of text are .txt .jsonl .csv .tsv .parquet, compressed
    (.gz, .zst, ...) or not; files of tokens are .bin or .npy."""

    revision: str | None = None
    """Branch, tag or commit of the model on the hub."""

    model_b: str | None = None
    """Second language model, or another checkpoint of the first, for a crosscoder of both: a hub id, a local folder, or
    a .gguf file. It reads the same tokens. Its hookpoints are called b:…, those of MODEL a:…."""

    revision_b: str | None = None
    """Branch, tag or commit of model_b on the hub."""

    hf_token: str | None = field(default=None, repr=False)
    """Token for gated models and data on the hub. Never written anywhere. Also read from HF_TOKEN."""

    load_in_8bit: bool = False
    """Load the language model in 8 bits, through bitsandbytes."""

    attn_implementation: str | None = None
    """Attention of the language model: eager, sdpa, flash_attention_2, ... None: what transformers chooses."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type in which the language model computes. auto: bfloat16 where the hardware multiplies it and the model can,
    else float32."""

    data_preprocessing_num_proc: int | None = None
    """Processes that tokenise. None: half of the cores."""

    device: str = "auto"
    """Where to compute: cuda, cuda:1, cpu, ... auto: cuda if there is one."""

    device_map: str | None = None
    """Lay a language model that is too large for one device over all GPUs of the process: auto, balanced,
    balanced_low_0 (which leaves room for the autoencoders on the first) or sequential. None: one device."""

    def __post_init__(self) -> None:
        maps = ("auto", "balanced", "balanced_low_0", "sequential")
        if self.device_map is not None and self.device_map not in maps:
            raise ValueError(
                f"device_map must be one of {', '.join(maps)}, got {self.device_map!r}; "
                "leave out --device_map for a model that fits on one device"
            )
        if self.data_preprocessing_num_proc is not None:
            check_positive(self, "data_preprocessing_num_proc")
        if self.revision_b is not None and self.model_b is None:
            raise ValueError(
                f"revision_b must come with model_b, got {self.revision_b} alone; add --model_b, which may be MODEL "
                "again"
            )

    @property
    def lm_dtype(self) -> str | None:
        """Type in which the language model is told to compute; None: the fastest that works."""
        return None if self.dtype == "auto" else self.dtype


@dataclass
class TextConfig(SourceConfig):
    """How the data becomes sequences of tokens."""

    split: str = "train"
    """Split of the data set."""

    text_column: str = "text"
    """Column that holds the text."""

    streaming: bool = False
    """Read the data set as a stream, for data that does not fit on the disk. Needs max_tokens."""

    ctx_len: int = 2048
    """Tokens per sequence."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "ctx_len")
