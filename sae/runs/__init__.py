"""The folder of a run: its options, checkpoints, logs and locks."""
