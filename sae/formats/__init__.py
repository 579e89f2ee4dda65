"""Everybody's formats: one file each, which says how its files are recognised, read and written."""

from sae.formats.circuit_tracer import CIRCUIT_TRACER
from sae.formats.dictionary_learning import DICTIONARY_LEARNING
from sae.formats.eleuther import ELEUTHER
from sae.formats.format import Format
from sae.formats.gemma_scope import GEMMA_SCOPE, GEMMA_SCOPE_2
from sae.formats.llama_scope import LLAMA_SCOPE, LLAMASCOPIUM
from sae.formats.openai import GOODFIRE, OPENAI
from sae.formats.overcomplete import OVERCOMPLETE
from sae.formats.qwen_scope import QWEN_SCOPE
from sae.formats.saelens import SAELENS

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        ELEUTHER, SAELENS, DICTIONARY_LEARNING, CIRCUIT_TRACER, GEMMA_SCOPE, GEMMA_SCOPE_2, LLAMA_SCOPE, LLAMASCOPIUM,
        QWEN_SCOPE, OPENAI, GOODFIRE, OVERCOMPLETE,
    )
}  # fmt: skip
"""All formats by name."""
