"""What a user can choose. Plain dataclasses; every rule that needs no file, model or device is checked here."""

from .browse import BrowseConfig
from .cache import CacheConfig
from .checks import several
from .convert import ConvertConfig, InfoConfig
from .dictionary import SaeConfig
from .eval import EvalConfig
from .push import PushConfig
from .run import RunConfig
from .selftest import SelftestConfig, SelftestSaeConfig
from .source import SourceConfig, TextConfig
from .train import TrainConfig

__all__ = [
    "BrowseConfig",
    "CacheConfig",
    "ConvertConfig",
    "EvalConfig",
    "InfoConfig",
    "PushConfig",
    "RunConfig",
    "SaeConfig",
    "SelftestConfig",
    "SelftestSaeConfig",
    "SourceConfig",
    "TextConfig",
    "TrainConfig",
    "several",
]
