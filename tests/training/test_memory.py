"""Memory that is given back."""

import platform

import psutil
import pytest

from sae.training.memory import return_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others give back what is freed by themselves")
def test_freed_memory_below_what_is_in_use_is_given_back() -> None:
    chunks = [bytes(1000) for _ in range(200_000)]
    last = chunks.pop()  # stays, and keeps the end of the heap where it is
    before = psutil.Process().memory_info().rss
    chunks.clear()
    return_freed_memory()
    assert len(last) == 1000
    assert before - psutil.Process().memory_info().rss > 150e6
