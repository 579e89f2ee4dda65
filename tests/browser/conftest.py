"""One small index for all tests of the browser."""

from collections.abc import Iterator

import pytest
from tiny_index import Made, make


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sae.browser.collect._CHUNK_BYTES", 2**17)  # several chunks
        patch.setattr("sae.browser.chunks.EVENTS_AT_ONCE", 700)  # several parts
        yield make(tmp_path_factory.mktemp("index"))
