"""Look at latents: an index of what they fire on, a page that shows it, and what both can be exported to.

`Index.open(folder)["layers.6"][1234].top_contexts()` is the interface for notebooks.
Reading an index needs numpy alone.
"""

from .findings import Context
from .store import Index, Latent, Place

__all__ = ["Context", "Index", "Latent", "Place"]
