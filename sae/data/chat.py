"""Chats: lists of turns, each with a role and content. They come as lists, and as JSON text of them."""

import json
from typing import TYPE_CHECKING, Any

from sae.storage.files import short

if TYPE_CHECKING:
    import transformers

RULE = "must hold chats, which are lists of turns with a role and content of text"
_MARK = "marker"

Turn = dict[str, Any]


class ChatError(ValueError):
    """A chat that breaks the RULE; the message says what was found."""


def turns_of(chat: Any) -> list[Turn]:
    """The turns of a chat, whose content is text; an empty chat, or None, has none.

    Content that is null or left out is the empty text. Parts of text are joined. Arguments of a tool's call that are
    JSON text, as OpenAI writes them, become the object that chat templates expect. Raises ChatError.
    """
    if isinstance(chat, str):
        try:
            chat = json.loads(chat or "[]")
        except (ValueError, RecursionError):
            raise ChatError(f"text that is no JSON ({short(chat)})") from None
    if chat is None:
        return []
    if not isinstance(chat, list):
        raise ChatError(f"{type(chat).__name__} ({short(chat)})")
    try:
        return [_turn(_without_null(turn)) for turn in chat]
    except RecursionError:
        raise ChatError("a turn whose fields lie in one another more than hundreds deep") from None


def _turn(turn: Any) -> Turn:
    if not isinstance(turn, dict):
        raise ChatError(f"a turn that is {type(turn).__name__} ({short(turn)})")
    if not isinstance(turn.get("role"), str) or not turn["role"]:
        raise ChatError(f"a turn without a role ({short(turn)})")
    calls = {"tool_calls": _calls(turn["tool_calls"])} if "tool_calls" in turn else {}
    return turn | {"content": _text(turn.get("content"))} | calls


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ChatError(f"content that is {type(content).__name__} ({short(content)})")
    return "".join(map(_text_of_part, content))


def _text_of_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    if not isinstance(part, dict) or not str(kind).endswith("text") or not isinstance(part.get("text", ""), str):
        raise ChatError(f"a part that is no text but {short(kind)}")
    return part.get("text", "")


def _calls(calls: Any) -> Any:
    """Calls of tools, with arguments that are objects where they are JSON text of one."""
    if not isinstance(calls, list):
        raise ChatError(f"tool_calls that are no list ({short(calls)})")
    return [_call(call) for call in calls]


def _call(call: Any) -> Any:
    if not isinstance(call, dict):
        raise ChatError(f"a tool call that is {type(call).__name__} ({short(call)})")
    changed = {name: _call(call[name]) for name in ("function",) if name in call}
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            found = json.loads(arguments)
        except (ValueError, RecursionError):  # a model's own words, cut or wrong: they stay text
            found = None
        changed |= {"arguments": found} if isinstance(found, dict) else {}
    return call | changed


def _without_null(value: Any) -> Any:
    """The value without null fields: a table of turns gives every turn the fields of all."""
    if isinstance(value, dict):
        return {name: _without_null(each) for name, each in value.items() if each is not None}
    return [_without_null(each) for each in value] if isinstance(value, list) else value


def takes_parts(tokenizer: "transformers.PreTrainedTokenizerBase") -> bool:
    """Whether the chat template renders content only as a list of parts, as some of models that see do."""
    return not _renders(tokenizer, _MARK) and _renders(tokenizer, as_part(_MARK))


def as_part(text: str) -> list[dict[str, str]]:
    """Content of this text, as a list of one part."""
    return [{"type": "text", "text": text}]


def _renders(tokenizer: "transformers.PreTrainedTokenizerBase", content: Any) -> bool:
    try:
        return _MARK in str(tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False))
    except Exception:  # templates raise what they like
        return False
