"""Prompts that ask for the first letter of a word, for the words among a tokenizer's tokens."""

import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sae.data.tokenize import special_ends

if TYPE_CHECKING:
    import transformers

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
EXAMPLES = 10
"""Words with their letter that stand before the one that is asked for."""
FEWEST_WORDS = 500
_QUESTION = " has the first letter:"
_WORD = re.compile(r" ?[A-Za-z]+")


class Spelling(NamedTuple):
    """Words and a prompt for each, in random order."""

    words: list[str]
    letters: list[int]
    """Place of each word's first letter in `LETTERS`."""
    ids: list[list[int]]
    """Token ids of the prompts. Each ends with a word, of one token, and the question."""
    behind: int
    """Tokens of the question, which stand behind the word."""


def spelling_prompts(
    tokenizer: "transformers.PreTrainedTokenizerBase", texts: Sequence[str], num_words: int
) -> Spelling:
    """Prompts of up to `num_words` words: tokens of ASCII letters alone, with or without a space before them.

    `texts` has the text of each token. The task is that of SAEBench (Karvonen et al. 2025, arXiv:2503.09532), after
    Chanin et al. 2024, arXiv:2409.14507. Raises ValueError for a tokenizer with fewer than `FEWEST_WORDS` words.
    """
    special = set(tokenizer.all_special_ids)
    known = [token for token, text in enumerate(texts) if _WORD.fullmatch(text) and token not in special]
    if len(known) < FEWEST_WORDS:
        raise ValueError(
            f"absorption needs a tokenizer with at least {FEWEST_WORDS} tokens that are words of the letters A to Z, "
            f"got {len(known)}; leave --absorption out for this model"
        )
    draw = random.Random(42)
    chosen = draw.sample(known, min(num_words, len(known)))
    start = list(special_ends(tokenizer)[0])
    question = _plain_ids(tokenizer, _QUESTION)
    answers = [_plain_ids(tokenizer, f"{_QUESTION} {letter}\n") for letter in LETTERS]
    letters = {token: LETTERS.index(texts[token].strip()[0].upper()) for token in known}
    ids = []
    for word in chosen:
        before = [each for each in draw.sample(known, EXAMPLES + 1) if each != word][:EXAMPLES]
        shown = [token for each in before for token in (each, *answers[letters[each]])]
        ids.append([*start, *shown, word, *question])
    return Spelling([texts[word] for word in chosen], [letters[word] for word in chosen], ids, len(question))


def _plain_ids(tokenizer: "transformers.PreTrainedTokenizerBase", text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
