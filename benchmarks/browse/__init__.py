"""What it costs to look at latents, as typed, beside SAEDashboard: `python -m benchmarks.browse`."""
