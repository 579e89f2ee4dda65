"""Activations on the disk: their format, a reader and a writer."""
