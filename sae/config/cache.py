"""`sae cache MODEL DATASET`: activations on the disk."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from .run import RunConfig


@dataclass
class CacheConfig(RunConfig):
    """Activations to write to the disk: of which model, at which hookpoints, on which data."""

    _trains: ClassVar[bool] = False

    activations: str | None = None
    """Folder to write, or an address such as s3://bucket/folder. None: activations/ and the names of model and data."""

    dtype: Literal["bfloat16", "float16", "float32", "int8"] = "bfloat16"  # type: ignore[assignment]
    """Type of a stored number. int8 halves the size: one scale a token, the largest of its activations / 127."""

    shuffle: bool = True
    """Mix the tokens of the whole data set. Otherwise they stay in the order of a training run with these options.
    Training on them then repeats that run bit for bit, if dtype is the model's."""

    @property
    def lm_dtype(self) -> None:
        """None: the fastest type that works. `dtype` is the type of a stored number."""
        return None
