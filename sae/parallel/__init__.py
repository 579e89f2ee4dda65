"""Several processes: who holds what, and what they send each other."""
