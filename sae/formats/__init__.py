"""Other libraries' checkpoints, one file each."""
