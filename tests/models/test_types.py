"""One model type of each kind is right in all that the sweep asks of all types, or refused for the reason on record."""

import pytest
from sweep import check, word

TYPES = {
    "llama": "OK",  # rotary positions
    "gpt2": "OK",  # learned positions
    "opt": "OK",  # a head that calls a part of the base model
    "bart": "OK",  # encoder and decoder
    "t5": "OK",  # encoder and decoder, blocks that return tuples
    "bert-generation": "OK",  # a causal class that sees all tokens
    "xlm": "OK",  # a block spread over four lists
    "mpnet": "OK",  # two positions fewer than the config counts
    "longformer": "OK",  # pads to its window
    "qwen3_5": "OK",  # a text model inside one for images
    "deepseek_v4": "OK",  # residual streams (batch, seq, streams, d)
    "gemma3n_text": "OK",  # residual streams (streams, batch, seq, d)
    "mamba": "OK",  # no attention
    "fnet": "OK",  # float32 only
    "dpr": "OK",  # no head
    "albert": "OK",  # one block that runs several times
    "hrm_text": "OK",  # two stacks that run in turns
    "cpmant": "OK",  # a prompt before the tokens
    "reformer": "OK",  # two streams that are one state
    "zaya": "OK",  # a router's state beside the residual stream
    "pegasus_x": "OK",  # pads, and its global tokens are apart
    "fastspeech2_conformer_with_hifigan": "OK",  # a model of text inside one of sound
    "squeezebert": "REFUSED",  # blocks without a forward
    "clip": "REFUSED",  # needs an image
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", TYPES)
def test_a_model_type_is_right_in_all_that_we_promise_or_refused_for_the_reason_on_record(model_type: str) -> None:
    found = check(model_type)
    assert word(found) == TYPES[model_type], f"{found.step}: {found.text}"
