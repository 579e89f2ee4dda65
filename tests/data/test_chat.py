"""Chats of all kinds become turns of text, or are one line that names row and rule."""

import json
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from sae.data import TokenBatches, chunk_and_tokenize, load_data
from sae.data.chat import ChatError, takes_parts, turns_of

PLAIN = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
PARTS = "{% for m in messages %}{% for part in m['content'] %}{{ part.text + ' ' }}{% endfor %}{% endfor %}"
USER, ANSWER = {"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}
EMPTY = [[], None, "[]", ""]


@pytest.mark.parametrize("chat", EMPTY)
def test_an_empty_chat_has_no_turns(chat: object) -> None:
    assert turns_of(chat) == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("w1", "w1"),
        ([], ""),
        (["w1 ", "w2"], "w1 w2"),
        ([{"type": "text", "text": "w1 "}, {"type": "input_text", "text": "w2"}], "w1 w2"),
        ([{"type": "text", "text": "w1", "image_url": None}], "w1"),
    ],
)
def test_content_becomes_text(content: object, text: str) -> None:
    expected = [{"role": "user", "content": text}]
    assert turns_of([{"role": "user", "content": content, "name": None}]) == expected
    assert turns_of(json.dumps([{"role": "user", "content": content}])) == expected
    if content is None:
        assert turns_of([{"role": "user"}]) == expected


def test_a_call_of_a_tool_has_no_content_and_arguments_that_are_an_object() -> None:
    def called(arguments: object) -> list[dict]:
        call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
        return [{"role": "assistant", "content": None, "tool_calls": [call]}]

    expected = [called({"a": 1})[0] | {"content": ""}]
    assert turns_of(called('{"a": 1}')) == turns_of(called({"a": 1, "b": None})) == expected
    assert turns_of(called("{cut"))[0]["tool_calls"][0]["function"]["arguments"] == "{cut"


def loaded(path: Path, tokenizer: object, **options: object) -> object:
    return load_data(str(path), tokenizer=tokenizer, text_column="text", split="train", vocab_size=99, **options)


BAD = {
    "no list": ({"role": "user"}, "got dict"),
    "no JSON": ("hello", "got text that is no JSON ('hello')"),
    "a word": (["hello"], "got a turn that is str ('hello')"),
    "no role": ([{"from": "human", "value": "hi"}], "got a turn without a role ({'from': 'human', 'value': 'hi'})"),
    "a role that is no word": ([{"role": 1, "content": "hi"}], "got a turn without a role"),
    "a number": ([{"role": "user", "content": 7}], "got content that is int (7)"),
    "an image": ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "a part that is no text but 'image'"),
    "a part that is a number": ([{"role": "user", "content": [3]}], "got a part that is no text but 'int'"),
    "calls that are none": ([{"role": "assistant", "tool_calls": 3}], "got tool_calls that are no list (3)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_malformed_chat_is_one_line_that_names_file_line_and_rule(
    make_tokenizer, tmp_path: Path, case: str, streaming: bool
) -> None:
    chat, found = BAD[case]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in ([USER], [], chat, [USER])))
    with pytest.raises(ValueError, match=re.escape(found)) as refused:
        tokens(loaded(path, make_tokenizer(chat_template=PLAIN), ctx_len=2, streaming=streaming))
    message = str(refused.value)
    assert "\n" not in message and "column 'messages' must hold chats" in message
    assert message.endswith(f"in line 3 of {path}; mend or leave out that row")


def test_a_malformed_chat_of_a_data_set_names_its_row(make_tokenizer) -> None:
    data = Dataset.from_dict({"messages": [[USER]] * 300 + [[{"role": None, "content": "w1"}]]})
    with pytest.raises(ValueError, match="got a turn without a role .* in row 301 of the data; mend or leave out"):
        chunk_and_tokenize(data, make_tokenizer(chat_template=PLAIN), max_seq_len=2, text_key="messages")


def test_what_the_template_refuses_names_the_row_and_shows_the_chat(make_tokenizer) -> None:
    strict = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no\\ntools') }}{% endif %}{% endfor %}"
    )
    data = Dataset.from_dict({"messages": [[USER], [USER, ANSWER], [{"role": "tool", "content": "w3"}]]})
    with pytest.raises(ValueError, match=r"in row 3 of the data \(.*'tool'.*\) of which it says: .*no tools") as said:
        chunk_and_tokenize(data, make_tokenizer(chat_template=strict), max_seq_len=2, text_key="messages")
    assert "\n" not in str(said.value)


def tokens(data: object) -> list[int]:
    """All ids, in the order of the data."""
    if hasattr(data, "column_names"):
        return [token for row in data for token in row["input_ids"].tolist()]
    if hasattr(data, "take"):
        return data.take(list(range(len(data)))).flatten().tolist()
    return torch.cat(list(TokenBatches(data, 1, seed=0))).flatten().tolist()


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "memory"])
@pytest.mark.parametrize("streaming", [False, True])
def test_empty_chats_are_skipped_as_empty_texts_are(make_tokenizer, tmp_path: Path, kind: str, streaming: bool) -> None:
    tokenizer = make_tokenizer(chat_template=PLAIN)
    with_empty, without = [[USER, ANSWER], [], None, [ANSWER], []] * 5, [[USER, ANSWER], [ANSWER]] * 5

    def tokenized(chats: list) -> list[int]:
        if kind == "memory":
            data = Dataset.from_dict({"messages": chats})
            data = data.to_iterable_dataset() if streaming else data
            return tokens(chunk_and_tokenize(data, tokenizer, max_seq_len=5, text_key="messages"))
        path = tmp_path / f"{len(chats)}.{kind}"
        if kind == "parquet":
            Dataset.from_dict({"messages": chats}).to_parquet(path)
        else:
            path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
        return tokens(loaded(path, tokenizer, ctx_len=5, streaming=streaming))

    assert tokenized(with_empty) == tokenized(without) != []


@pytest.mark.parametrize("template", [PLAIN, PARTS])
def test_a_template_gets_content_in_the_form_that_it_renders(make_tokenizer, template: str) -> None:
    tokenizer = make_tokenizer(chat_template=template)
    assert takes_parts(tokenizer) == (template == PARTS)
    chats = [[{"role": "user", "content": [{"type": "text", "text": "w1 "}, {"type": "text", "text": "w2"}]}, ANSWER]]
    found = chunk_and_tokenize(
        Dataset.from_dict({"messages": [json.dumps(each) for each in chats] * 4}),
        tokenizer,
        max_seq_len=4,
        text_key="messages",
    )
    assert tokens(found) == [1, 6, 7, 7] * 4


def test_half_a_surrogate_pair_does_not_stop_the_run(make_tokenizer) -> None:
    chat = json.dumps([{"role": "user", "content": "w1 \ud83d w2"}])
    data = Dataset.from_dict({"messages": [chat] * 8})
    found = chunk_and_tokenize(data, make_tokenizer(chat_template=PLAIN), max_seq_len=3, text_key="messages")
    assert {1, 6, 7} <= set(tokens(found))


def deep(levels: int) -> object:
    found: object = "x"
    for _ in range(levels):
        found = {"a": found}
    return found


@pytest.mark.parametrize("streaming", [False, True])
def test_fields_that_lie_in_one_another_too_deep_are_one_line(make_tokenizer, tmp_path: Path, streaming: bool) -> None:
    turn = {"role": "user", "content": "the dog", "x": deep(900)}
    with pytest.raises(ChatError, match="more than hundreds deep"):
        turns_of([turn])
    file = tmp_path / "deep.jsonl"
    file.write_text(json.dumps({"messages": [turn]}) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="deep"):
        tokens(loaded(file, make_tokenizer(chat_template=PLAIN), ctx_len=8, streaming=streaming))


@pytest.mark.parametrize("chat", ["[" * 100_000, [[1]], [{"role": ["user"]}], '{"a": 1}', 7])
def test_nothing_but_a_chat_error_comes_of_what_is_none(chat: object) -> None:
    with pytest.raises(ChatError):
        turns_of(chat)
