"""Measurements of this library beside its peers: `README.md` says which command makes which table."""

from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
"""The checkout, from which every command here is run: `python -m benchmarks.speed`."""
RESULTS = HERE / "results"
CACHE = HERE / ".cache"
"""Text, activations and models, made once."""
