"""The text of every token, for people: as it stands in a text, with the bytes of a part of a character spelled out."""

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
