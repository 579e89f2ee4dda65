"""Time and memory: of a step beside the peers (`python -m benchmarks.speed`), and of single parts."""
