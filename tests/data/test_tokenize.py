"""Text to rows of tokens: nothing is lost, nothing depends on how the work is split."""

import json
from itertools import islice

import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sae.data import chunk_and_tokenize
from sae.data.pack import ChunkLayout
from sae.data.tokenize import DOCUMENTS_PER_PROCESS, derived_num_proc, encode_once, separator_id, special_ends

ENDS_IDS = {
    "plain": ([], [], 1),
    "bos": ([2], [], 1),
    "both": ([2], [1], 1),
    "cls_sep": ([3], [4], 4),
}  # prefix, suffix, separator


def rows(tokenized):
    return [row["input_ids"].tolist() for row in tokenized]


@pytest.mark.parametrize("kind", ENDS_IDS)
def test_special_tokens_of_the_tokenizer_are_found(make_tokenizer, kind):
    prefix, suffix, separator = ENDS_IDS[kind]
    tokenizer = make_tokenizer(kind)
    assert special_ends(tokenizer) == (tuple(prefix), tuple(suffix))
    assert separator_id(tokenizer) == separator


ALPHABET = ["<s>", "</s>", "A", "C", "G", "T"]
MODELS_WITHOUT_UNKNOWN = {
    "BPE": lambda ids: models.BPE(ids, []),
    "WordLevel": models.WordLevel,
    "WordPiece": models.WordPiece,
    "Unigram": lambda ids: models.Unigram([(token, -float(index)) for token, index in ids.items()]),
}


def tokenizer_of(model, template, ids):
    """A tokenizer of this model, without an unknown token."""
    tokenizer = Tokenizer(model(ids))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    ends = [(token, ids[token]) for token in template.split() if token != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("template", ["<s> $A", "$A </s>", "<s> $A </s>", "</s> $A </s>", "<s> <s> $A", "$A"])
@pytest.mark.parametrize("model", MODELS_WITHOUT_UNKNOWN)
def test_special_tokens_are_found_whatever_letters_the_tokenizer_knows(model, template):
    ids = {token: index for index, token in enumerate(ALPHABET)}
    tokenizer = tokenizer_of(MODELS_WITHOUT_UNKNOWN[model], template, ids)
    before, after = (tuple(ids[token] for token in end.split()) for end in template.split("$A"))
    assert special_ends(tokenizer) == (before, after)
    chunks = chunk_and_tokenize(Dataset.from_dict({"text": ["ACGT" * 9]}), tokenizer, max_seq_len=8)
    assert {tuple(row[: len(before)]) for row in rows(chunks)} == {before}


def test_a_tokenizer_that_shows_no_special_tokens_is_an_error_and_not_none():
    ids = {token: index for index, token in enumerate(ALPHABET[:2])}
    with pytest.raises(ValueError, match="must show which special tokens it puts around a text, but .* input_ids"):
        special_ends(tokenizer_of(MODELS_WITHOUT_UNKNOWN["BPE"], "<s> $A", ids))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_text_that_the_tokenizer_refuses_is_one_line(streaming):
    ids = {token: index for index, token in enumerate(ALPHABET)}
    data = Dataset.from_dict({"text": ["ACGT" * 9, "AXGT"]})
    with pytest.raises(ValueError, match="text column 'text' must hold what the tokenizer can read, .*unknown token"):
        tokenizer = tokenizer_of(models.WordLevel, "<s> $A", ids)
        list(chunk_and_tokenize(data.to_iterable_dataset() if streaming else data, tokenizer, max_seq_len=8))


@pytest.mark.parametrize("size", [3, 16, 37])
@pytest.mark.parametrize("kind", ENDS_IDS)
def test_rows_are_the_joined_documents_cut_to_size_and_only_the_tail_is_lost(make_tokenizer, texts, oracle, kind, size):
    prefix, suffix, separator = ENDS_IDS[kind]
    tokenized = chunk_and_tokenize(Dataset.from_dict({"text": texts}), make_tokenizer(kind), max_seq_len=size)
    tokens, body = oracle(texts, separator), size - len(prefix) - len(suffix)
    expected = [prefix + tokens[i : i + body] + suffix for i in range(0, len(tokens) - body + 1, body)]
    assert rows(tokenized) == expected
    assert len(tokens) - body * len(tokenized) < body


@pytest.mark.parametrize("kind", ENDS_IDS)
@pytest.mark.parametrize("return_final_batch", [False, True])
def test_a_stream_gives_the_rows_of_the_data_set(make_tokenizer, texts, kind, return_final_batch):
    data, options = Dataset.from_dict({"text": texts}), {"max_seq_len": 37, "return_final_batch": return_final_batch}
    whole = rows(chunk_and_tokenize(data, make_tokenizer(kind), **options))
    assert rows(chunk_and_tokenize(data.to_iterable_dataset(), make_tokenizer(kind), **options)) == whole


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on fork()
def test_the_number_of_processes_changes_nothing(make_tokenizer, texts):
    data, tokenizer = Dataset.from_dict({"text": texts}), make_tokenizer("bos")
    one, two = (rows(chunk_and_tokenize(data, tokenizer, max_seq_len=16, num_proc=n)) for n in (1, 2))
    assert one == two


def test_return_final_batch_keeps_every_token(make_tokenizer, texts, oracle):
    tokenized = chunk_and_tokenize(
        Dataset.from_dict({"text": texts}), make_tokenizer("cls_sep"), max_seq_len=37, return_final_batch=True
    )
    *whole, last = rows(tokenized)
    assert all(len(row) == 37 for row in whole) and len(last) < 37
    assert [token for row in [*whole, last] for token in row[1:-1]] == oracle(texts, 4)


@pytest.mark.parametrize("stop", [1, 20, 21, 74])
def test_a_stream_resumed_at_any_row_continues_as_if_never_stopped(make_tokenizer, texts, stop):
    def make():
        data = Dataset.from_dict({"text": texts}).to_iterable_dataset(num_shards=3)
        return chunk_and_tokenize(data, make_tokenizer("bos"), max_seq_len=16)

    whole, stopped, resumed = rows(make()), make(), make()
    begun = rows(islice(stopped, stop))
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert begun + rows(resumed) == whole
    assert rows(resumed.with_format("torch")) == whole  # a view starts at the beginning


def test_looking_at_a_stream_first_does_not_lose_what_was_looked_at(make_tokenizer, texts):
    data = Dataset.from_dict({"text": texts}).to_iterable_dataset()
    whole = rows(chunk_and_tokenize(data, make_tokenizer(), max_seq_len=16))
    next(iter(data))
    assert rows(chunk_and_tokenize(data, make_tokenizer(), max_seq_len=16)) == whole


def test_empty_texts_and_none_are_skipped(make_tokenizer, texts):
    sparse = Dataset.from_dict({"text": ["", *texts, None], "source": ["x"] * (len(texts) + 2)})
    full = Dataset.from_dict({"text": texts})
    first, second = (rows(chunk_and_tokenize(data, make_tokenizer(), max_seq_len=16)) for data in (sparse, full))
    assert first == second


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("written", ["{}", "<eos>{}", "{}<eos>", "<eos> {} <eos>"])
def test_a_separator_that_a_text_carries_is_not_doubled(make_tokenizer, texts, written, streaming):
    plain, carrying = (Dataset.from_dict({"text": [form.format(text) for text in texts]}) for form in ("{}", written))
    if streaming:
        plain, carrying = plain.to_iterable_dataset(), carrying.to_iterable_dataset()
    first, second = (rows(chunk_and_tokenize(data, make_tokenizer(), max_seq_len=16)) for data in (plain, carrying))
    assert first == second


CARRIED = {
    "bos": ["<bos> {}", "<bos> {} <eos>", "<eos> <bos> {}", "<bos> <bos> {}"],
    "both": ["<bos> {}", "<bos> {} <eos>", "{} <eos> <eos>"],
    "cls_sep": ["[CLS] {}", "[CLS] {} [SEP]", "{} [SEP]"],
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("kind", "written"), [(kind, form) for kind, forms in CARRIED.items() for form in forms])
def test_special_tokens_around_a_chunk_that_a_text_carries_are_not_doubled(
    make_tokenizer, texts, kind, written, streaming
):
    plain, carrying = (Dataset.from_dict({"text": [form.format(text) for text in texts]}) for form in ("{}", written))
    if streaming:
        plain, carrying = plain.to_iterable_dataset(), carrying.to_iterable_dataset()
    first, second = (rows(chunk_and_tokenize(data, make_tokenizer(kind), max_seq_len=16)) for data in (plain, carrying))
    assert first == second


@pytest.mark.parametrize(
    ("kind", "text", "ids"),
    [
        ("plain", "<bos> w3", [2, 8]),
        ("bos", "w3", [2, 8]),
        ("bos", "<bos> w3", [2, 8]),
        ("bos", "<bos> w3 <eos>", [2, 8, 1]),
        ("bos", "<bos>", [2]),
        ("bos", "", [2]),
        ("both", "<bos> w3 <eos>", [2, 8, 1]),
        ("both", "w3 <eos> w4", [2, 8, 1, 9, 1]),
        ("cls_sep", "[CLS] w3", [3, 8, 4]),
    ],
)
def test_a_text_that_is_typed_gets_each_special_token_once(make_tokenizer, kind, text, ids):
    assert encode_once(make_tokenizer(kind), [text, "w3"]) == [ids, make_tokenizer(kind)("w3")["input_ids"]]


CHATS = [
    [{"role": "user", "content": f"w{i}"}, {"role": "assistant", "content": f"w{i + 1}"}][: i % 3 + 1]
    for i in range(40)
]
CLOSED = "{% for m in messages %}<bos> {{ m['content'] }} <eos> {% endfor %}"
OPEN = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("template", [CLOSED, OPEN])
@pytest.mark.parametrize("as_json", [False, True])
def test_chats_become_text_by_the_tokenizers_template(make_tokenizer, template, streaming, as_json):
    chats = [json.dumps(chat) for chat in CHATS] if as_json else CHATS
    data = Dataset.from_dict({"messages": chats, "id": range(len(CHATS))})
    tokenizer = make_tokenizer(chat_template=template)
    found = chunk_and_tokenize(
        data.to_iterable_dataset() if streaming else data, tokenizer, max_seq_len=7, text_key="messages"
    )
    eos, bos, first = 1, 2, 5
    turns = [[int(turn["content"][1:]) + first for turn in chat] for chat in CHATS]
    closed = [token for chat in turns for word in chat for token in (bos, word, eos)]
    left_open = [token for chat in turns for token in (eos, *chat)]
    expected = closed if template == CLOSED else left_open
    assert [token for row in rows(found) for token in row] == expected[: len(expected) // 7 * 7]


BEGUN = "{{ '<bos> ' }}{% for m in messages %}{{ m['content'] + ' <eos> ' }}{% endfor %}"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["plain", "bos", "both"])
def test_a_chat_has_the_one_bos_that_its_template_gives(make_tokenizer, kind, streaming):
    tokenizer = make_tokenizer(kind, chat_template=BEGUN)

    def tokenized(chats, size, **options):
        data = Dataset.from_dict({"messages": chats})
        data = data.to_iterable_dataset() if streaming else data
        return rows(chunk_and_tokenize(data, tokenizer, max_seq_len=size, text_key="messages", **options))

    prefix, suffix, _ = ENDS_IDS[kind]
    expected = [tokenizer.apply_chat_template(chat, tokenize=True)["input_ids"] for chat in CHATS]
    assert all(ids[0] == 2 and ids[-1] == 1 and ids.count(2) == 1 for ids in expected)
    if kind == "plain":
        assert tokenized(CHATS[:3], 32, return_final_batch=True) == [sum(expected[:3], [])]
    for chat, ids in zip(CHATS, expected, strict=True):
        assert tokenized([[*chat] * 3], 64, return_final_batch=True) == [[2, *ids[1:] * 3]]
    whole = tokenized(CHATS, 9)
    if kind != "plain":
        assert all(row[0] == 2 and row.count(2) == 1 for row in whole)
    stream = [token for row in whole for token in row[len(prefix) : 9 - len(suffix)]]
    assert stream == [token for ids in expected for token in ids[len(prefix) :]][: len(stream)]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, r"must have a chat template for the chats in column 'messages', got none; .*--text_column"),
        (
            "{{ raise_exception('roles must alternate') }}",
            "must hold chats .* can render, got one in row 1 .*: roles must alternate; mend",
        ),
    ],
)
def test_chats_that_cannot_become_text_are_an_error(make_tokenizer, template, message):
    tokenizer = make_tokenizer(chat_template=template)
    with pytest.raises(ValueError, match=message):
        chunk_and_tokenize(Dataset.from_dict({"messages": CHATS}), tokenizer, max_seq_len=7, text_key="messages")


def test_a_row_is_no_longer_than_the_tokenizers_model_allows(make_tokenizer, texts):
    tokenized = chunk_and_tokenize(Dataset.from_dict({"text": texts}), make_tokenizer(model_max_length=12))
    assert {len(row) for row in rows(tokenized)} == {12}


def test_every_split_is_packed_on_its_own(make_tokenizer, texts):
    splits = DatasetDict(train=Dataset.from_dict({"text": texts}), test=Dataset.from_dict({"text": texts[:50]}))
    tokenized = chunk_and_tokenize(splits, make_tokenizer(), max_seq_len=16)
    for name, data in splits.items():
        assert rows(tokenized[name]) == rows(chunk_and_tokenize(data, make_tokenizer(), max_seq_len=16))


def test_long_documents_cause_no_warning(make_tokenizer, texts, capfd):
    data = Dataset.from_dict({"text": [" ".join(texts)]})
    chunk_and_tokenize(data, make_tokenizer(model_max_length=12))
    assert "longer than" not in capfd.readouterr().err


def test_tokens_are_read_from_the_cache_the_second_time(make_tokenizer, texts, tmp_path):
    Dataset.from_dict({"text": texts}).save_to_disk(tmp_path)

    def cached(size):
        data = load_from_disk(tmp_path)
        files = chunk_and_tokenize(data, make_tokenizer(), max_seq_len=size).cache_files
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache-*")}, files

    first, files = cached(16)
    assert cached(16) == (first, files)
    second, _ = cached(20)
    assert len(second) == len(first) + 1  # another length packs again, but tokenises nothing
    assert first.items() <= second.items()


def test_small_data_is_tokenised_by_one_process():
    assert derived_num_proc(0) == derived_num_proc(DOCUMENTS_PER_PROCESS - 1) == 1
    assert 1 <= derived_num_proc(2 * DOCUMENTS_PER_PROCESS) <= 2


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"body": ["w1"], "id": [1]}, {}, r"one of the data set's columns \(body, id\), got 'text'.*--text_column"),
        ({"text": [1, 2]}, {}, "text column 'text' must hold strings, got int64"),
        ({"text": [["w1"]]}, {}, "text column 'text' must hold strings"),
        ({"text": ["w1 w2"]}, {"max_seq_len": 16}, "at least one chunk of 16 tokens, got fewer in 1 documents"),
        ({"text": ["w1 w2"]}, {"max_seq_len": 0}, "max_seq_len must be larger than .* 0 special tokens .*, got 0"),
        ({"text": ["w1 w2"]}, {"num_proc": 0}, "num_proc must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_tokenised_is_an_error_that_says_why(make_tokenizer, columns, options, message):
    with pytest.raises(ValueError, match=message):
        chunk_and_tokenize(Dataset.from_dict(columns), make_tokenizer(), **options)


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"text": [1, 2]}, "must hold strings, got int"), ({"body": ["w1"]}, r"columns \(body\), got 'text'")],
)
def test_a_stream_without_known_columns_fails_at_the_row(make_tokenizer, columns, message):
    data = Dataset.from_dict(columns).to_iterable_dataset().map(lambda row: row)  # forgets its features
    with pytest.raises(ValueError, match=message):
        next(iter(chunk_and_tokenize(data, make_tokenizer(), max_seq_len=4)))


def test_special_tokens_must_leave_room_for_text():
    with pytest.raises(ValueError, match="2 special tokens per chunk, got 2"):
        ChunkLayout(2, prefix=(3,), suffix=(4,))


def test_only_data_sets_are_accepted(make_tokenizer):
    with pytest.raises(ValueError, match="got list; use load_dataset"):
        chunk_and_tokenize([{"text": "w1"}], make_tokenizer())
