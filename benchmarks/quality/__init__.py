"""How good dictionaries are, beside the peers' and among recipes, on kept activations."""
