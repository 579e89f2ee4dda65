"""Tokens to activations: from a language model at work, from a cache, mixed."""
