"""Files to a repository of the hub, in one commit: all of them are there afterwards, or none."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae.formats.hub import reason_of

CARD = "README.md"
_BELONGS_TO_NOBODY = {".gitattributes"}


def check_repository(name: str, *, token: str | None, force: bool, private: bool) -> None:
    """Raise ValueError if a repository of that name holds files and is not to be written over (`force`).

    So it does without a token, and for a public repository where a `private` one is wanted: it would stay public.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    api, held, is_public = HfApi(token=token), set[str](), False
    with _in_one_line(name):
        try:
            is_public = api.repo_info(name).private is False
            held = set(api.list_repo_files(name)) - _BELONGS_TO_NOBODY
        except RepositoryNotFoundError as error:
            if isinstance(error, GatedRepoError):  # it is there
                raise
    if private and is_public:
        raise ValueError(
            f"--private must be a new repository, or one that is private, but {name} is there and public; make it "
            "private on the hub first, or choose another name"
        )
    if held and not force:
        raise ValueError(
            f"OWNER/NAME must be a new or empty repository, but {name} holds {', '.join(sorted(held)[:4])}; "
            "choose another name, or add a commit to it with --force"
        )
    if token is None and get_token() is None:
        raise ValueError(
            "sae push needs a token of the hub that may write, got none; give --hf_token, set HF_TOKEN, or run "
            "`hf auth login`"
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
    either = f"all of it is in {name}, or nothing; the same command sends it, with --force if it is there"
    try:
        with _in_one_line(name):
            api.create_repo(name, private=private, exist_ok=True)
            api.preupload_lfs_files(name, operations, free_memory=False)  # before the commit: an error is no doubt
        with _in_one_line(name, either):
            return str(api.create_commit(name, operations, commit_message=message).commit_url)
    except KeyboardInterrupt as stop:
        stop.add_note(either)
        raise


@contextmanager
def _in_one_line(name: str, either: str = "") -> Iterator[None]:
    """The hub client's message, in one line. `either` says what may be there, unless the hub has refused it."""
    try:
        yield
    except Exception as error:  # those of the client's own HTTP library have no base that is ours to name
        if either and not _is_refusal(error):
            raise ValueError(f"{name} did not confirm the commit ({reason_of(error)}): {either}") from None
        raise ValueError(
            f"{name} cannot be written on the hub ({reason_of(error)}); check OWNER/NAME, the network, "
            "HF_HUB_OFFLINE, and that --hf_token may write"
        ) from None


def _is_refusal(error: BaseException) -> bool:
    """Whether it is an answer of the hub that it did not take the commit, or the client's own refusal to send it."""
    response = getattr(error, "response", None)
    if response is not None:
        return bool(400 <= response.status_code < 500)
    return isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError)


def files_below(folder: Path, into: str = "") -> dict[str, Path | bytes]:
    """The files of a folder by their paths in a repository, below `into`."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[f"{into}/{path.relative_to(folder).as_posix()}".lstrip("/")] = path
    return found
