"""How dictionaries learn: the loop, what a run decides, the optimizer, and the state of all of it."""
