"""The text of every token, for people, and whether two models mean the same by a token.

A text is as it stands in a document, with the bytes of a part of a character spelled out.
"""

from typing import Any


def token_texts(tokenizer: Any, size: int) -> list[str]:
    """The text of tokens 0 to size - 1. Without a tokenizer, or for a number that it does not know, the number."""
    texts = [f"⟨{token}⟩" for token in range(size)]
    if tokenizer is None:
        return texts
    known = min(size, len(tokenizer))
    anchor = _anchor(tokenizer)
    before = _decode(tokenizer, [anchor])
    raw = tokenizer.convert_ids_to_tokens(list(range(known)))
    bytes_of = _byte_alphabet()
    for token in range(known):
        # After another token: decoders drop a space at the start of a text.
        text = _decode(tokenizer, [anchor, token])
        text = text[len(before) :] if text.startswith(before) else _decode(tokenizer, [token])
        if "�" in text and isinstance(raw[token], str):
            text = _spelled_out(raw[token], bytes_of)
        texts[token] = text or str(raw[token] or "")
    return texts


_TRIED = ("The tokens of 2 models, e.g. 1,234.5:\n\tif x != 'naïve':  return 42", "  don't – 你好 🙂 ＡＢ\r\n")
"""Texts that tokenizers of one vocabulary may cut in several ways: numbers, spaces, accents, other scripts."""


def check_same_tokens(tokenizer: Any, other: Any) -> list[str]:
    """Compare the tokenizers of two models that are to read the same token ids, cut by the first one.

    The second may know more tokens. Returns a sentence where they give special tokens to different ids.

    Raises:
        ValueError: For tokens of the first that are others in the second, and for texts that they cut differently.
    """
    first, second = tokenizer.get_vocab(), other.get_vocab()
    unlike = sorted((token for token, number in first.items() if second.get(token) != number), key=first.__getitem__)
    if unlike:
        theirs = second.get(unlike[0])
        raise ValueError(
            f"model_b must have the vocabulary of MODEL, whose token ids it reads, but {len(unlike):,} of its "
            f"{len(first):,} tokens differ, such as {unlike[0][:40]!r}, which is {first[unlike[0]]} in MODEL and "
            f"{'missing' if theirs is None else theirs} in model_b; give two models with one tokenizer"
            + (", the one with fewer tokens as MODEL" if len(second) < len(first) == len(second) + len(unlike) else "")
        )
    for text in _TRIED:
        cut, theirs = (list(each.encode(text, add_special_tokens=False)) for each in (tokenizer, other))
        if cut != theirs:
            raise ValueError(
                f"model_b must have the tokenizer of MODEL, but they make {len(cut)} and {len(theirs)} tokens of "
                f"{text[:20]!r}, or others; give two models with one tokenizer"
            )
    return _other_roles(tokenizer, other)


def _other_roles(tokenizer: Any, other: Any) -> list[str]:
    """A sentence on special tokens that the two give to different ids; the text is cut with those of the first."""
    roles = [f"{role}_token" for role in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")]
    unlike = [role for role in roles if getattr(tokenizer, f"{role}_id", None) != getattr(other, f"{role}_id", None)]
    if not unlike:
        return []
    example = f"{unlike[0]} is {getattr(tokenizer, unlike[0])!r} in MODEL and {getattr(other, unlike[0])!r} in model_b"
    return [f"{len(unlike)} special tokens of the two models differ ({example}); the text has those of MODEL"]


def _anchor(tokenizer: Any) -> int:
    ids = tokenizer.encode("a", add_special_tokens=False)
    return ids[-1] if ids else 0


def _decode(tokenizer: Any, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))


def _spelled_out(raw: str, bytes_of: dict[str, int]) -> str:
    """A part of a character by its bytes, if the tokenizer writes these as GPT-2's does."""
    if not all(character in bytes_of for character in raw):
        return raw
    content = bytes(bytes_of[character] for character in raw)
    return content.decode("utf-8", "backslashreplace")


def _byte_alphabet() -> dict[str, int]:
    """The byte that each character stands for in a byte-level vocabulary (Radford et al. 2019): printable ones as they
    are, the others from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}
