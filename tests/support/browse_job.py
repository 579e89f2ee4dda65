"""`sae browse` with chunks so small that a tiny text has many; for torchrun, which starts a file."""

import sys

import sae.__main__
from sae.browser import chunks, collect


def many_parts() -> None:
    """Make an index of many chunks, merged in many parts."""
    collect._CHUNK_BYTES, chunks.EVENTS_AT_ONCE = 2**14, 700


if __name__ == "__main__":
    many_parts()
    sys.exit(sae.__main__.main(["browse", *sys.argv[1:]]))
