"""Colours of lines in pictures, which tell neighbours apart on white, also for the colour-blind."""


def line_color(index: int, count: int) -> tuple[float, ...]:
    """Colour (red, green, blue, alpha) of line `index` of `count`, without the palest."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.8 * index / max(1, count - 1))
