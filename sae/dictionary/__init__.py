"""Dictionaries, which are learned: tensors in, tensors out. They know no run, no rank and no file."""
