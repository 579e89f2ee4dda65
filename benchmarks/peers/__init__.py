"""Each library's own training loop, in an environment of its own; `environments` makes those."""
