"""Whole runs as a user types them, ours beside eai-sparsify's: `python -m benchmarks.as_typed`."""
