"""A check that a file holds a picture."""

from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n"


def assert_is_a_picture(path: Path) -> None:
    from matplotlib.image import imread

    assert path.read_bytes()[:8] == PNG
    pixels = imread(path)
    assert min(pixels.shape[:2]) > 300 and pixels.std() > 0.01
