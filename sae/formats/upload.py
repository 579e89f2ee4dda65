"""Files to a repository of the hub, in one commit: all of them are there afterwards, or none."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CARD = "README.md"
_BELONGS_TO_NOBODY = {".gitattributes"}


def check_repository(name: str, *, token: str | None, force: bool) -> None:
    """Raise ValueError if a repository of that name holds files and is not to be written over (`force`)."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with _in_one_line(name):
        held = set(api.list_repo_files(name)) - _BELONGS_TO_NOBODY if api.repo_exists(name) else set()
    if held and not force:
        raise ValueError(
            f"OWNER/NAME must be a new or empty repository, but {name} holds {', '.join(sorted(held)[:4])}; "
            "choose another name, or add a commit to it with --force"
        )


def upload(name: str, files: Mapping[str, Path | bytes], *, token: str | None, private: bool, message: str) -> str:
    """Create the repository if need be, and add the files, by their paths in it, as one commit; returns its address.

    What was transferred before an interruption is not transferred again. Raises ValueError in one line.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    operations = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in files.items()
    ]
    with _in_one_line(name):
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.create_commit(name, operations, commit_message=message).commit_url)


@contextmanager
def _in_one_line(name: str) -> Iterator[None]:
    """The hub client's message, in one line."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ValueError(
            f"{name} cannot be written on the hub ({reason}); check OWNER/NAME, the network, HF_HUB_OFFLINE, and that "
            "--hf_token may write"
        ) from None


def files_below(folder: Path, into: str = "") -> dict[str, Path | bytes]:
    """The files of a folder by their paths in a repository, below `into`."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[f"{into}/{path.relative_to(folder).as_posix()}".lstrip("/")] = path
    return found
