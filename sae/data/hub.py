"""Data sets on the hub, and folders laid out as on the hub; their errors take one line."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sae.storage.damage import plainly

from .files import check_split, odd_files, open_files, split_names
from .read import KINDS, DataError, File, endings, known_endings

if TYPE_CHECKING:
    import datasets

PARQUET_BRANCH = "refs/convert/parquet"
MAX_QUOTED = 200  # characters of a library's message that we repeat

logger = logging.getLogger(__name__)


def open_repository(
    name: str,
    *,
    config: str | None,
    split: str,
    streaming: bool,
    revision: str | None,
    token: str | None,
    num_proc: int | None,
    text_column: str,
) -> "datasets.Dataset | datasets.IterableDataset":
    """A split of a data set on the hub, or of a local folder in the hub's layout.

    `config` is one of its configurations. A data set that needs a loading script is read from the hub's own conversion
    to parquet, with one line in the log. Files that we read ourselves (`read.KINDS`) are read alike here and there,
    unless the data set says how they must be read.
    """
    if name in KINDS.values():
        raise DataError(f"dataset must be files or a hub id, got {name!r}, a kind of file; name the files: '*.{name}'")
    if odd := odd_files(name):
        return open_files(odd, split=split, streaming=streaming, text_column=text_column)
    builder = _builder(name, config=config, split=split, revision=revision, token=token)
    files = {str(part): list(map(str, paths)) for part, paths in (builder.config.data_files or {}).items()}
    check_split(split, files or map(str, builder.info.splits), streaming=streaming)
    if _is_read_by_us(builder, files):
        parts = {part: files[part] for part in (files if split == "all" else split_names(split))}
        found = _opened(parts, token) if streaming else _at_hand(parts, token)
        return open_files(found, split=split, streaming=streaming, text_column=text_column)
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare(num_proc=num_proc)
    return builder.as_dataset(split=split)


def _is_read_by_us(builder: Any, files: dict[str, list[str]]) -> bool:
    """Whether all files are of a kind that we read, and nothing is said about how."""
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in set(KINDS.values()) or (kind == "parquet" and _is_remote(files)):
        return False
    names, usual = [path for paths in files.values() for path in paths], type(builder.config)()
    of_the_data = ("name", "version", "data_dir", "data_files", "description", "features", "sep")
    said = [name for name, value in vars(builder.config).items() if value != getattr(usual, name, value)]
    tabs = [endings(name)[0] == ".tsv" for name in names]
    separated = kind != "csv" or all(builder.config.sep == ("\t" if tab else ",") for tab in tabs)
    known = all(File.of(name).kind == kind for name in names)
    return bool(names) and known and separated and not set(said) - set(of_the_data)


def _opened(files: dict[str, list[str]], token: str | None) -> dict[str, list[File]]:
    """Files where they are, on the hub too."""
    return {part: [File.of(path, token=token) for path in paths] for part, paths in files.items()}


def _at_hand(files: dict[str, list[str]], token: str | None) -> dict[str, list[File]]:
    """Files on this machine, those of the hub in its cache."""
    if not _is_remote(files):
        return _opened(files, None)
    from datasets import DownloadConfig, DownloadManager

    fetched = DownloadManager(download_config=DownloadConfig(token=token)).download(files)
    return {
        part: [File.of(str(path), name) for path, name in zip(fetched[part], paths, strict=True)]
        for part, paths in files.items()
    }


def _is_remote(files: dict[str, list[str]]) -> bool:
    return any("://" in path for paths in files.values() for path in paths)


def _builder(name: str, *, config: str | None, split: str, revision: str | None, token: str | None) -> Any:
    from datasets import load_dataset_builder

    try:
        return load_dataset_builder(name, config, revision=revision, token=token)
    except (RuntimeError, ValueError) as error:
        # the second is what comes once a conversion has been read: `datasets` then looks for the script's own rows
        needs_script = re.search("scripts are no longer supported|Couldn't find cache for", str(error))
        if os.path.isdir(name) or not needs_script:
            raise
    files = _converted_files(name, config=config, split=split, token=token)
    logger.warning("%s needs a loading script, which is not run; reading the hub's parquet conversion of it", name)
    return load_dataset_builder(name, revision=PARQUET_BRANCH, data_files=files, token=token)


def _converted_files(name: str, *, config: str | None, split: str, token: str | None) -> dict[str, list[str]]:
    """The files of the hub's parquet conversion, by split."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        files = HfApi(token=token).list_repo_files(name, repo_type="dataset", revision=PARQUET_BRANCH)
    except (RevisionNotFoundError, RepositoryNotFoundError, HFValidationError):
        files = []
    return choose_converted(name, files, config=config, split=split)


def choose_converted(name: str, files: list[str], *, config: str | None, split: str) -> dict[str, list[str]]:
    """From paths such as `config/train/0000.parquet` those of one configuration, by split, if `split` names it.

    The hub converts only the beginning of a very large split, and calls that `partial-train`: it counts as train.
    """
    parts = [path.split("/") for path in files if path.endswith(".parquet") and path.count("/") == 2]
    if not parts:
        raise DataError(
            f"dataset must not need a loading script, got {name!r}, which has one and no parquet conversion "
            "on the hub; choose a data set of parquet files, or convert it and pass the local files"
        )
    configs = sorted({part[0] for part in parts})
    chosen = config or ("default" if "default" in configs else configs[0])
    if chosen not in configs or (config is None and len(configs) > 1 and chosen != "default"):
        raise _config_needed(name, config, configs)
    by_split: dict[str, list[str]] = {}
    for path in ("/".join(part) for part in parts if part[0] == chosen):
        by_split.setdefault(path.split("/")[1].removeprefix("partial-"), []).append(path)
    check_split(split, by_split, streaming=False)
    return {part: paths for part, paths in by_split.items() if part in split_names(split) or split == "all"}


def _config_needed(name: str, config: str | None, configs: list[str]) -> DataError:
    name = name.partition(":")[0]
    return DataError(
        f"configuration of {name!r} must be one of {', '.join(configs)}, got {config or 'none'}; "
        f"name it after a colon, as in {name}:{configs[0]}"
    )


@contextmanager
def data_errors_explained(name: str, token: str | None) -> Iterator[None]:
    """Turn what `datasets` and the hub raise into a DataError: one line, with the way out and without the token."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # not chained: a library's message may quote the token, in a header that it could not send
        raise explain(error, name, token) from None


def explain(error: Exception, name: str, token: str | None) -> DataError:
    """The one line for an error that was raised while opening the data set `name`."""
    message, kinds = str(error), {kind.__name__ for kind in type(error).__mro__}
    if isinstance(cause := _innermost(error), DataError):
        return cause
    if configs := re.search(r"(?:available configs|Available): (\[.*\])", message):
        given = re.search(r"BuilderConfig '(.*?)' not found", message)
        return _config_needed(name, given and given[1], re.findall(r"'(.*?)'", configs[1]))
    if "scripts are no longer supported" in message:
        return DataError(f"dataset must not need a loading script, got {name!r}; convert it to parquet or jsonl files")
    if kinds & {"ConnectionError", "TransportError", "LocalEntryNotFoundError", "OfflineModeIsEnabled"}:
        return _unreachable(name)
    if "gated" in message or _status(error) in (401, 403):
        return DataError(
            f"dataset must be open to you, got {name!r}, which the hub refuses; ask for access on its page, "
            "then pass --hf_token"
        )
    if "Revision" in message and "doesn't exist" in message:
        return DataError(f"revision must exist on the hub, got one that {name!r} does not have; change --revision")
    if kinds & {"DatasetNotFoundError", "HFValidationError"}:
        return DataError(
            f"dataset must be a local file, folder or glob, or a hub id, got {name!r}, which is neither here nor on "
            "the hub; check the spelling, or pass --hf_token if it is private"
        )
    if kinds & {"DataFilesNotFoundError", "EmptyDatasetError"}:
        return DataError(
            f"dataset must hold data files ({known_endings()} and others), got none in {name!r}; choose another"
        )
    return DataError(f"dataset must be readable, got {name!r}: {_one_line(error, token)}; check its files")


def _unreachable(name: str) -> DataError:
    from huggingface_hub.constants import is_offline_mode

    reason = "HF_HUB_OFFLINE is set" if is_offline_mode() else "the hub cannot be reached (no network?)"
    way_out = "unset it" if is_offline_mode() else "check the connection"
    return DataError(
        f"dataset must be on this machine or on a hub that answers, got {name!r}: it is not here, and {reason}; "
        f"{way_out}, or pass local files"
    )


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _one_line(error: BaseException, token: str | None) -> str:
    """What the innermost cause means, shortened, without the token."""
    text = plainly(_innermost(error))
    return (text.replace(token, "***") if token else text)[:MAX_QUOTED]


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__:
        error = error.__cause__
    return error
