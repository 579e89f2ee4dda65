"""Whether other libraries read what is written here: `python -m benchmarks.clients.check`."""
