"""Files of ours: read with limits, written whole or not at all, and locked."""
