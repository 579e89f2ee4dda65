# Sourced: $python has interpreto, and `from words import ...` a tokenizer with a token for each word, models that are a formula, and a tiny GPT-2.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" torch==2.13.0 transformers==5.23.0 interpreto==0.5.2
cat > words.py <<'PY'
from importlib.metadata import version

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import SequenceClassifierOutput

LIBRARY = f"interpreto {version('interpreto')}"
PAD, MASK = 0, 1
WORDS = [f"word{i}" for i in range(64)]
_words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[PAD]", "[MASK]", "[UNK]", *WORDS])}, unk_token="[UNK]"))
_words.pre_tokenizer = pre_tokenizers.Whitespace()
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=_words, pad_token="[PAD]", mask_token="[MASK]", unk_token="[UNK]")


class FormulaForSequenceClassification(PreTrainedModel):
    """One logit: `formula` of the token ids, or of the embeddings, which are the ids as numbers."""

    config_class = PretrainedConfig

    def __init__(self, formula):
        super().__init__(PretrainedConfig(pad_token_id=PAD))
        self.formula = formula
        self.embedding = torch.nn.Embedding(len(TOKENIZER), 1)
        self.post_init()
        self.embedding.weight.data = torch.arange(len(TOKENIZER)).float()[:, None]

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **_):
        return SequenceClassifierOutput(logits=self.formula(input_ids if inputs_embeds is None else inputs_embeds)[:, None])


def explained(explainer, words):
    """The attribution of the one logit to each of the first `words` words."""
    return explainer.explain(" ".join(WORDS[:words]), targets=torch.tensor([0]))[0].attributions[0]


def split():
    """A tiny GPT-2 that is split after its first block, 64 texts of 8 words, and the 512 activations of their words."""
    from interpreto.concepts.splitters import ModelWithSplitPoints

    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=len(TOKENIZER), n_positions=32, bos_token_id=PAD, eos_token_id=PAD)
    splitter = ModelWithSplitPoints(GPT2LMHeadModel(config).eval(), tokenizer=TOKENIZER, split_point=0)
    texts = [" ".join(WORDS[(7 * i + j) % len(WORDS)] for j in range(8)) for i in range(64)]
    activations, _ = splitter.get_activations(texts, activation_granularity=splitter.activation_granularities.TOKEN)
    return splitter, texts, activations.detach()


def shown(numbers):
    return "[" + ", ".join(f"{float(x):.3f}" for x in numbers) + "]"
PY
