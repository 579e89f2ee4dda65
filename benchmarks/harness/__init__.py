"""What several benchmarks use: processes that take turns, clocks, inputs, reports."""
