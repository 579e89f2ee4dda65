"""Load a language model from the Hub, a folder or a .gguf file, and what a run must know about it beforehand.

Whatever is wrong with what the user named is a ValueError of one line. Code that comes with a model is never executed.
"""

import copy
import functools
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import nn

from sae.ops.defaults import own_defaults
from sae.ops.exact import multiplies_bf16
from sae.ops.native import compile_ahead
from sae.storage.files import near_names

from .adapter import adapter_in, check_peft, merge
from .explain import Access, model_errors_explained
from .gguf import read_quickly
from .gguf_header import check_whole
from .hookpoints import part_that_reads
from .pair import models_in
from .wrappers import base_model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
else:  # they take seconds to import, and the tests' shape checks look annotations up at run time
    PreTrainedConfig = PreTrainedModel = PreTrainedTokenizerBase = Any


def load_config(name: str, *, revision: str | None = None, token: str | None = None) -> PreTrainedConfig:
    """The model's config: a few kB from the Hub, or read off a local folder or .gguf file; of an adapter its base's.

    What it says about the form of a forward's output is set as we read it: see `_FORM`.
    """
    if adapter := adapter_in(name):
        return load_config(adapter.base, revision=adapter.revision, token=token)
    location, access = _location(name), Access(name, revision, token)
    with _loading(location, access):
        if location.gguf_file is not None:
            return copy.deepcopy(_gguf_config(location, location.stamp))
        from transformers import AutoConfig, PreTrainedConfig

        _check_file(location)
        written, _ = PreTrainedConfig.get_config_dict(**_source(location, access))
        _check_depth(written)
        config: PreTrainedConfig = AutoConfig.from_pretrained(**_source(location, access))
        _set_form(config)
        return config


_FORM = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
"""Settings of a config that say what a forward shows beside its result, and in which form.

They should change no activation. With `output_attentions` Falcon's tokens attend to later ones.
"""


def _set_form(config: PreTrainedConfig) -> None:
    for name, value in _FORM.items():
        if getattr(config, name, value) != value:
            setattr(config, name, value)
    for name in getattr(config, "sub_configs", ()):
        if (part := getattr(config, name, None)) is not None:
            _set_form(part)


_MAX_CONFIG_BYTES, _MAX_LAYERS = 2**24, 10_000


def _check_file(location: "ModelLocation") -> None:
    path = Path(location.folder, "config.json")
    if path.exists() and (not path.is_file() or path.stat().st_size > _MAX_CONFIG_BYTES):
        raise ValueError(f"config.json must be a file of at most {_MAX_CONFIG_BYTES} bytes")


def _check_depth(written: dict[Any, Any], file: str = "config.json") -> None:
    """Raise ValueError for more layers than can be meant: the modules of each are made before anything else is."""
    for name, value in written.items():
        if isinstance(value, dict):
            _check_depth(value, file)
        elif isinstance(value, int) and value > _MAX_LAYERS and re.search("layers?$|blocks$|depth$", str(name)):
            raise ValueError(f"{file} must count at most {_MAX_LAYERS:,} layers, got {name}={value}")


def load_skeleton(
    name: str, *, revision: str | None = None, token: str | None = None, attn_implementation: str | None = None
) -> PreTrainedModel:
    """The model's modules without weights, on the meta device: enough to resolve hookpoints.

    Args:
        name: Hub id, local folder, or .gguf file.
        revision: Branch, tag or commit on the hub.
        token: Token for a gated model.
        attn_implementation: Attention, by its name in transformers. None: what transformers chooses.

    Returns:
        Base model without weights.

    Raises:
        ValueError: In one line, for whatever is wrong with the name, the access or the files.
    """
    if adapter := adapter_in(name):
        check_peft(name)
        name, revision = adapter.base, adapter.revision
    config = load_config(name, revision=revision, token=token)
    with _loading(_location(name), Access(name, revision, token)), torch.device("meta"):
        options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        model: nn.Module = _auto_class(config, head=False).from_config(config, trust_remote_code=False, **options)
        return cast("PreTrainedModel", base_model(model) if is_decoder_alone(config) else model)


def load_tokenizer(name: str, *, revision: str | None = None, token: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer; an adapter may bring its own.

    Args:
        name: Hub id, local folder, or .gguf file.
        revision: Branch, tag or commit on the hub.
        token: Token for a gated model.

    Returns:
        Tokenizer of transformers.

    Raises:
        ValueError: If the model comes without one.
    """
    adapter = adapter_in(name)
    if adapter and not Path(adapter.folder, "tokenizer_config.json").exists():
        return load_tokenizer(adapter.base, revision=adapter.revision, token=token)
    location, access = ModelLocation(adapter.folder) if adapter else _location(name), Access(name, revision, token)
    with _loading(location, access):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(**_source(location, access))
    # transformers builds an empty tokenizer, and says nothing, when the files are missing
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise ValueError(f"model {name} must come with a tokenizer, and has no tokenizer files; add its tokenizer.json")
    return tokenizer


@own_defaults()
def load_model(
    name: str,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    revision: str | None = None,
    token: str | None = None,
    attn_implementation: str | None = None,
    load_in_8bit: bool = False,
    head: bool = False,
    device_map: str | None = None,
    devices: Sequence[torch.device] = (),
) -> PreTrainedModel:
    """The base model, frozen: no head, eval mode, no gradients, dense weights.

    A class whose weights the files lack gives way to the one that wrote them, and that to the model without a head. The
    folder of a PEFT adapter gives the model that it was trained on, with the adapter merged into its weights.

    Args:
        name: Hub id, local folder, or .gguf file.
        device: Device of the weights.
        dtype: Type of the weights.
        revision: Branch, tag or commit on the hub.
        token: Token for a gated model.
        attn_implementation: Attention, by its name in transformers. None: what transformers chooses.
        load_in_8bit: Keep the linear weights in int8, through bitsandbytes.
        head: Keep the language-modelling head, where the architecture and the files have one.
        device_map: One of accelerate's words for laying the layers over all `devices` that are GPUs, within their free
            memory.
        devices: Devices for `device_map`.

    Returns:
        Model of transformers.

    Raises:
        ValueError: In one line, for whatever is wrong with the name, the access, the files, or an installation that
            lacks what they need.
    """
    if adapter := adapter_in(name):
        if load_in_8bit:
            raise ValueError(f"--load_in_8bit must not be used with an adapter, got {name}; drop it, or merge it first")
        check_peft(name)
        same: dict[str, Any] = {"device": device, "dtype": dtype, "token": token, "devices": devices}
        same |= {"attn_implementation": attn_implementation, "device_map": device_map}
        whole = load_model(adapter.base, revision=adapter.revision, head=True, **same)
        merge(name, whole, adapter)
        return frozen(whole, head)
    location, access = _location(name), Access(name, revision, token)
    if torch.device(device).type == "cpu":  # which the model's first forward needs
        compile_ahead()
    options = _quantization(location, load_in_8bit)
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if device_map is not None and (room := _free_memory(devices)):
        options |= {"max_memory": room}
    config = load_config(name, revision=revision, token=token)

    def load(cls: Any) -> nn.Module:
        with _loading(location, access):
            model, info = cls.from_pretrained(
                **_source(location, access),
                config=copy.deepcopy(config),
                dtype=dtype,
                device_map=device_map or {"": torch.device(device)},
                output_loading_info=True,
                **options,
            )
        _check_complete(name, model, info["missing_keys"])
        return cast(nn.Module, model)

    model = _first_complete(_classes(config, head), load)
    if "fp8" in str(getattr(config, "quantization_config", "")):
        _cast_evenly(model, dtype)
    return frozen(model, head)


def _first_complete(classes: Iterable[Any], load: Callable[[Any], nn.Module]) -> nn.Module:
    """The model of the first class for which the files have every weight.

    Raises the first class's error if there is none; an error of another kind counts until a class lacked weights.
    """
    incomplete: list[ValueError] = []
    for cls in classes:
        try:
            return load(cls)
        except IncompleteError as error:
            incomplete.append(error)
        except ValueError:
            if not incomplete:
                raise
    raise incomplete[0]


def frozen(model: nn.Module, head: bool) -> PreTrainedModel:
    """The model, or what of it is not the head, to be read and not trained."""
    whole: Any = model if head else base_model(model)
    found: PreTrainedModel = whole.eval().requires_grad_(False)
    return found


def _classes(config: PreTrainedConfig, head: bool) -> list[Any]:
    """The classes that may hold the weights, first choice first: an automatic one, and the one that wrote them.

    A folder of a translation model lacks the embedding of its class that is a decoder alone, and is whole all the same.
    """
    import transformers

    written_by = [getattr(transformers, name, None) for name in getattr(config, "architectures", None) or []]
    theirs = [cls for cls in written_by if getattr(cls, "config_class", None) is type(config)]
    return list(dict.fromkeys([_auto_class(config, head), *theirs, transformers.AutoModel]))


def _auto_class(config: PreTrainedConfig, head: bool) -> Any:
    import transformers

    if head and is_masked(config):  # encoders, which may also be made causal
        return transformers.AutoModelForMaskedLM
    # before the causal ones, of which some hold the text half alone, whose modules have other names
    if head and type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    if head and type(config) in transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return transformers.AutoModelForMultimodalLM
    if is_decoder_alone(config):
        return transformers.AutoModelForCausalLM
    # before the causal ones, which are the decoder alone
    if head and config.is_encoder_decoder and type(config) in transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForSeq2SeqLM
    if head and type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModel


def is_decoder_alone(config: PreTrainedConfig) -> bool:
    """Whether it is the decoder of an architecture that has an encoder too: `MarianForCausalLM` and its like."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = type(config)
    if config.is_encoder_decoder or kind not in MODEL_FOR_CAUSAL_LM_MAPPING or not kind().is_encoder_decoder:
        return False
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[kind]
    return getattr(causal, "__name__", "") in (config.architectures or [])


def is_masked(config: PreTrainedConfig) -> bool:
    """Whether models of this kind are made to fill gaps, so that every token sees every other."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    return type(config) in MODEL_FOR_MASKED_LM_MAPPING


def class_with_head(model: nn.Module) -> str | None:
    """The name of the class that loads such a model with its language-modelling head; None if it did, or none does."""
    from transformers import AutoModel

    config: Any = getattr(model, "config", None)
    auto: Any = AutoModel if config is None else _auto_class(config, head=True)
    if auto is AutoModel or isinstance(model, auto._model_mapping[type(config)]):
        return None
    return str(auto.__name__)


def _free_memory(devices: Sequence[torch.device]) -> dict[int, int]:
    """Bytes that are free on each GPU, by its number."""
    gpus = [device for device in devices if device.type == "cuda" and device.index is not None]
    return {gpu.index: torch.cuda.mem_get_info(gpu)[0] for gpu in gpus}


def check_device(device: str = "auto") -> torch.device:
    """The device to run on.

    Args:
        device: Name of a device; "auto" is CUDA where there is one, else the CPU (mps only when asked for).

    Returns:
        The device.

    Raises:
        ValueError: For one that torch does not know or that this machine does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        backend = torch.get_device_module(found)
    except RuntimeError:
        raise ValueError(f"--device must be auto, cpu, cuda, cuda:1 or mps, got {device!r}; use --device cpu") from None
    if not backend.is_available():
        raise ValueError(
            f"--device must be usable here, got {device!r}, and torch {torch.__version__} finds none; use --device cpu"
        )
    if found.index is not None and found.index >= (count := backend.device_count()):
        raise ValueError(f"--device must be one of this machine's {count}, got {device!r}; use {found.type}:0")
    return found


def compute_dtype(device: torch.device) -> torch.dtype:
    """The fastest type that a device multiplies.

    Args:
        device: Device to compute on.

    Returns:
        bfloat16 where the device has it (half the time of float32, on a CPU with avx512_bf16), else float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and multiplies_bf16() else torch.float32


def vocab_size(model: nn.Module | PreTrainedConfig) -> int:
    """Number of token ids of a model.

    Args:
        model: Model of transformers, a pair of them, or its config.

    Returns:
        Rows of its embedding, of a pair's smaller one, or what the config says. Without a vocabulary (CANINE), the
        code points of Unicode.

    Raises:
        ValueError: For anything but a model of transformers.
    """
    if not isinstance(model, nn.Module):
        return getattr(model.get_text_config(), "vocab_size", sys.maxunicode + 1)
    return min(map(_vocab_size, models_in(model).values()))


def _vocab_size(model: nn.Module) -> int:
    try:
        embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
        return int(embeddings.weight.shape[0])
    except (AttributeError, NotImplementedError):
        config: Any = getattr(model, "config", None)
    if part := part_that_reads(model):
        return vocab_size(model.get_submodule(part))
    if not hasattr(config, "get_text_config"):
        raise ValueError(
            f"the model must be one of transformers, which says how many tokens it knows, got {type(model).__name__}; "
            "give the model that it was made of"
        )
    return vocab_size(config)


class ModelLocation(NamedTuple):
    """Where a model is: a hub id or a local folder, and the file in it if that is a GGUF file."""

    folder: str
    gguf_file: str | None = None

    @property
    def path(self) -> Path:
        return Path(self.folder, self.gguf_file or "")

    @property
    def stamp(self) -> tuple[int, int]:
        """What tells one state of the file from others."""
        stat = self.path.stat()
        return stat.st_mtime_ns, stat.st_size


_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".json"}
"""Endings of files in a model's folder."""


def _location(name: str) -> ModelLocation:
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder_location(name, path)
    if path.is_file():
        if path.suffix != ".gguf":
            way = f"give the folder {path.parent}" if path.suffix in _WEIGHTS else "MODEL comes before DATASET"
            raise ValueError(f"model {name} must be a hub id, a folder or a .gguf file, and is another file; {way}")
        return ModelLocation(str(path.parent), path.name)
    if name.startswith((".", "/", "~")) or path.suffix == ".gguf" or name.count("/") > 1:
        near = near_names(os.path.expanduser(name))
        raise ValueError(f"model {name} does not exist: there is no such file or folder; {near}")
    return ModelLocation(name)


def _folder_location(name: str, path: Path) -> ModelLocation:
    if (path / "config.json").is_file():
        return ModelLocation(str(path))
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return ModelLocation(str(path), files[0].name)
    if files:
        raise ValueError(f"model {name} must be one of the {len(files)} .gguf files in that folder; give its path")
    raise ValueError(f"model {name} is not a model folder: it has no config.json and no .gguf file; check the path")


def _source(location: ModelLocation, access: Access) -> dict[str, Any]:
    """What every from_pretrained of transformers is told about where the model is."""
    source: dict[str, Any] = {"pretrained_model_name_or_path": location.folder, "trust_remote_code": False}
    if location.gguf_file is not None:
        return source | {"gguf_file": location.gguf_file}
    return source | {"revision": access.revision or "main", "token": access.token}


@functools.lru_cache(maxsize=4)
def _gguf_config(location: ModelLocation, stamp: tuple[int, int]) -> PreTrainedConfig:
    """A GGUF file's config, parsed once for each state of the file."""
    from transformers import AutoConfig

    config: PreTrainedConfig = AutoConfig.from_pretrained(**_source(location, Access(location.folder)))
    _check_depth(config.to_dict(), location.path.name)
    return config


def _quantization(location: ModelLocation, load_in_8bit: bool) -> dict[str, Any]:
    """The `quantization_config` to load with, checked against what is installed."""
    if load_in_8bit and location.gguf_file is not None:
        raise ValueError("--load_in_8bit must not be used with a .gguf file, which is always unpacked; drop it")
    if load_in_8bit and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("--load_in_8bit needs bitsandbytes, which is not installed; pip install bitsandbytes")
    if not load_in_8bit and location.gguf_file is None:
        return {}
    import transformers

    if load_in_8bit:
        # It says at every product that inputs are cast to float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return {"quantization_config": transformers.BitsAndBytesConfig(load_in_8bit=True)}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


@contextmanager
def _loading(location: ModelLocation, access: Access) -> Iterator[None]:
    """transformers at work on this model: quiet, errors of one line, random state as before."""
    with ExitStack() as stack:
        if location.gguf_file is not None:
            if importlib.util.find_spec("gguf") is None:
                raise ValueError(f"model {access.name} needs gguf, which is not installed; pip install gguf")
            stack.enter_context(model_errors_explained(access, "cannot be read as GGUF: {text}; download it again"))
            check_whole(location.path, location.stamp)
            stack.enter_context(read_quickly())
        else:
            stack.enter_context(model_errors_explained(access))
        stack.enter_context(_quiet())
        # Building modules draws initial weights, on the meta device too: a run's seed must not depend on it.
        stack.enter_context(torch.random.fork_rng(devices=[]))
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """No bar while weights are copied and no report on the head that we leave out; downloads keep their bars."""
    from transformers.utils import logging as messages

    verbosity = messages.get_verbosity()
    messages.set_verbosity_error()
    hook = messages.set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **(kwargs | {"disable": True})))
    try:
        yield
    finally:
        messages.set_tqdm_hook(hook)
        messages.set_verbosity(verbosity)


def _cast_evenly(model: nn.Module, dtype: torch.dtype) -> None:
    """Give all weights `dtype`, where those in 8-bit floats were unpacked: the others come in the type of the file."""
    weights = dict(model.named_parameters())
    if any(weight.dtype.itemsize == 1 for weight in weights.values()):  # not unpacked: a GPU multiplies them
        return
    kept = re.compile("|".join(getattr(model, "_keep_in_fp32_modules", None) or ["$^"]))
    for name, weight in weights.items():
        if not kept.search(name):
            weight.data = weight.data.to(dtype)


class IncompleteError(ValueError):
    """Files that lack weights of the class that was to hold them."""


def _check_complete(name: str, model: nn.Module, missing: set[str]) -> None:
    """A weight that the files lack is random, and SAEs trained behind it are worthless. Only a pooler may be, or a
    table that is computed and never learned."""
    computed = {key for key, weight in model.named_parameters() if not weight.requires_grad}
    absent = sorted(key for key in missing - computed if "pooler" not in key.split("."))
    if absent:
        raise IncompleteError(
            f"model {name} must have all weights of {type(model).__name__}, and its files lack {len(absent)} of "
            f"{len(model.state_dict())} ({absent[0]} …); check that config.json and weights belong together"
        )
