"""From a name to sequences: every kind of source gives the tokens of its text, and every wrong name one clear line."""

import gc
import json
import os
import re

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

from sae.data import TokenBatches, chunk_and_tokenize, load_data
from sae.data.files import PIECE_CHARACTERS, text_pieces

CTX_LEN = 16


@pytest.fixture
def load(make_tokenizer, tmp_path, monkeypatch):
    """load_data with what a test does not choose; names are relative to a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    chosen = {"tokenizer": make_tokenizer("bos"), "ctx_len": CTX_LEN, "vocab_size": 1000}
    return lambda name, **options: load_data(str(name), **{**chosen, **options})


@pytest.fixture
def expected(make_tokenizer, texts):
    """The sequences of the documents `texts`."""
    return chunk_and_tokenize(Dataset.from_dict({"text": texts}), make_tokenizer("bos"), max_seq_len=CTX_LEN)[:][
        "input_ids"
    ]


def everything(source):
    """All sequences in the order of the data."""
    if hasattr(source, "take"):
        return source.take(list(range(len(source))))
    return torch.cat(list(TokenBatches(source, 1, seed=0)))


def write_text(texts):
    with open("data.txt", "w") as file:
        file.write("\n".join(texts))
    return "data.txt"


def write_jsonl(texts, name="data.jsonl"):
    with open(name, "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return name


def write_json(texts):
    with open("data.json", "w") as file:
        json.dump([{"text": text} for text in texts], file)
    return "data.json"


def write_parquet(texts):
    Dataset.from_dict({"text": texts}).to_parquet("data.parquet")
    return "data.parquet"


def write_csv(texts):
    Dataset.from_dict({"id": range(len(texts)), "text": texts}).to_csv("data.csv")
    return "data.csv"


def write_glob(texts):
    os.makedirs("parts/b")
    write_jsonl(texts[:70], "parts/a.jsonl")
    write_jsonl(texts[70:], "parts/b/c.jsonl")
    return "parts/**/*.jsonl"


def write_saved(texts):
    Dataset.from_dict({"text": texts}).save_to_disk("saved")
    return "saved"


def write_saved_splits(texts):
    DatasetDict(test=Dataset.from_dict({"text": ["w1"]}), train=Dataset.from_dict({"text": texts})).save_to_disk("dict")
    return "dict"


def write_folder(texts):
    os.makedirs("folder/data")
    Dataset.from_dict({"text": texts}).to_parquet("folder/data/train-00000-of-00001.parquet")
    Dataset.from_dict({"text": ["w1"]}).to_parquet("folder/data/test-00000-of-00001.parquet")
    return "folder"


WRITERS = [
    write_jsonl, write_json, write_parquet, write_csv, write_glob, write_saved, write_saved_splits, write_folder
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # `datasets` leaves a .csv open that is not read on
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_of_source_gives_the_tokens_of_its_text(load, texts, expected, write, streaming):
    assert torch.equal(everything(load(write(texts), streaming=streaming)), expected)
    gc.collect()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_text_file_is_one_document_per_piece(load, texts, make_tokenizer, streaming):
    document = Dataset.from_dict({"text": ["\n".join(texts)]})
    whole = chunk_and_tokenize(document, make_tokenizer("bos"), max_seq_len=CTX_LEN)[:]["input_ids"]
    assert torch.equal(everything(load(write_text(texts), streaming=streaming)), whole)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_text_files_keeps_its_splits_apart(load, texts, streaming):
    os.mkdir("texts")
    for name, words in {"train": "w1 " * 40, "test": "w2 " * 40}.items():
        with open(f"texts/{name}.txt", "w") as file:
            file.write(words)
    for split, token in {"train": 6, "test": 7}.items():
        found = everything(load("texts", split=split, streaming=streaming))
        assert found.unique().tolist() == [1, 2, token]  # <eos>, <bos>, the word
    assert len(everything(load("texts", split="all", streaming=streaming))) == 5


def test_pieces_of_text_lose_nothing_and_end_at_line_ends(tmp_path):
    lines = [f"line {i}\n" for i in range(40_000)] + ["x" * (3 * PIECE_CHARACTERS)]
    path = tmp_path / "long.txt"
    path.write_text("".join(lines))
    pieces = [piece["text"] for piece in text_pieces([(str(path), 0, 0)])]
    assert "".join(pieces) == "".join(lines)
    assert max(map(len, pieces)) <= 2 * PIECE_CHARACTERS
    assert all(piece.endswith("\n") for piece in pieces[:4])


def test_bytes_that_are_no_text_are_replaced_and_a_byte_order_mark_is_dropped(tmp_path):
    path = tmp_path / "odd.txt"
    path.write_bytes(b"\xef\xbb\xbfab\xffcd")
    assert list(text_pieces([(str(path), 0, 0)])) == [{"text": "ab\ufffdcd"}]


def test_a_changed_text_file_is_read_again(load):
    write_text(["w1 " * 40])
    first = everything(load("data.txt"))
    write_text(["w2 " * 40])
    os.utime("data.txt", ns=(1, 1))
    assert not torch.equal(everything(load("data.txt")), first)


@pytest.mark.parametrize(("split", "part"), [("train[:50]", slice(0, 50)), ("train[25%:]", slice(50, None))])
@pytest.mark.parametrize("write", [write_jsonl, write_saved, write_saved_splits, write_folder])
def test_a_slice_of_a_split_is_that_part_of_the_documents(load, texts, write, split, part):
    sliced = everything(load(write(texts), split=split))
    assert torch.equal(sliced, everything(load(write_jsonl(texts[part], "part.jsonl"))))


def test_another_column_can_hold_the_text(load, texts, expected):
    Dataset.from_dict({"body": texts, "text": ["w1"] * len(texts)}).to_parquet("data.parquet")
    assert torch.equal(everything(load("data.parquet", text_column="body")), expected)


def test_a_token_file_is_read_as_it_is(load, expected):
    with open("tokens.bin", "wb") as file:
        file.write(expected.numpy().astype("<u2").tobytes())
    for name in ("tokens.bin", "*.bin"):
        assert torch.equal(everything(load(name, tokenizer=None)), expected)


def tokenised(rows):
    Dataset.from_dict({"input_ids": rows, "attention_mask": [[1]] * len(rows)}).save_to_disk("tokenised")
    return "tokenised"


@pytest.mark.parametrize("streaming", [False, True])
def test_tokenised_rows_of_the_right_length_are_kept(load, expected, streaming):
    found = everything(load(tokenised(expected.tolist()), tokenizer=None, streaming=streaming))
    assert torch.equal(found, expected)


def test_longer_tokenised_rows_are_cut(load, expected):
    found = everything(load(tokenised(expected.tolist()), ctx_len=5))
    assert torch.equal(found, expected[:, :15].reshape(-1, 5))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("lengths", [(3,), (1, 30, 4), (16, 15), (0, 40)])
def test_tokenised_rows_of_other_lengths_are_joined_and_cut(load, lengths, streaming):
    ends = np.cumsum([lengths[i % len(lengths)] for i in range(50)]).tolist()
    tokens = list(range(1, ends[-1] + 1))
    rows = [tokens[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    found = everything(load(tokenised(rows), streaming=streaming)).flatten().tolist()
    assert found == tokens[: len(tokens) // CTX_LEN * CTX_LEN]


def test_text_is_preferred_to_tokens_of_another_tokenizer_unless_they_are_named(load, texts, expected):
    Dataset.from_dict({"text": texts, "input_ids": [[1] * CTX_LEN] * len(texts)}).save_to_disk("both")
    assert torch.equal(everything(load("both")), expected)
    assert everything(load("both", text_column="input_ids")).unique().tolist() == [1]


def test_a_tokenizer_that_allows_less_than_ctx_len_is_logged(load, make_tokenizer, texts, caplog):
    sequences = load(write_jsonl(texts), tokenizer=make_tokenizer(model_max_length=12))
    assert sequences.ctx_len == 12
    assert "sequences are 12 tokens long, not 16" in caplog.text


def write(name, content=""):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "w") as file:
        file.write(content)


BAD = {
    "file that is not there": ("data.txl", {}, None),
    "near name": ("near/dat.jsonl", {}, r"got 'near/dat\.jsonl'; near names: near/data\.jsonl"),
    "glob without a match": ("near/*.txt", {}, r"got 'near/\*\.txt'; near holds data\.jsonl"),
    "folder that is not there": ("./nowhere/x", {}, r"got '\./nowhere/x'; near names: \./near"),
    "several kinds of file": ("mixed/*", {}, r"all be of one kind, got \.csv, \.jsonl; name one kind with a glob"),
    "unknown kind of file": ("odd.xyz", {}, r"one of \.txt, .*\.bin, got \.xyz; convert"),
    "kind of file as a name": ("json", {}, r"got 'json', a kind of file; name the files"),
    "several token files": ("bins/*.bin", {}, "single .bin file, got 2 that match"),
    "missing column": ("near/data.jsonl", {"text_column": "body"}, r"columns \(text\), got 'body'; .*--text_column"),
    "missing column of a stream": (
        "near/data.jsonl", {"text_column": "body", "streaming": True}, r"columns \(text\), got 'body'"
    ),
    "column that is not text": ("numbers.jsonl", {"text_column": "n"}, "text column 'n' must hold strings, got int64"),
    "missing split": ("near/data.jsonl", {"split": "test"}, "split must be one of train, got test; change --split"),
    "missing split of a folder": ("folder", {"split": "validation"}, "one of train, test, got validation"),
    "missing split of a saved folder": ("dict", {"split": "x+train"}, "one of test, train, got x"),
    "slice of a stream": ("near/data.jsonl", {"split": "train[:5]", "streaming": True}, "must be a whole split"),
    "split that is no split": ("dict", {"split": "train[a:b]"}, "got 'dict': ValueError: Unrecognized instruction"),
    "no rows": ("empty.jsonl", {}, "at least one row, got none"),
    "no rows in a text stream": ("empty.txt", {"streaming": True}, "at least one row, got none"),
    "no rows in a saved folder": ("saved_empty", {}, "at least one row, got none"),
    "too few tokens": ("short.txt", {}, "at least one chunk of 16 tokens, got fewer"),
    "too few tokens in a stream": ("short.txt", {"streaming": True}, "one sequence of ctx_len=16 .*--ctx_len"),
    "too few tokens in rows": ("short_rows", {}, "at least one sequence of ctx_len=16"),
    "input_ids that are not ids": ("not_ids", {}, "lists of whole numbers, got string"),
    "text without a tokenizer": ("near/data.jsonl", {"tokenizer": None}, "tokenizer must be given"),
    "broken file": ("broken.jsonl", {}, "dataset must be readable, got 'broken.jsonl': "),
    "broken stream": ("broken.jsonl", {"streaming": True}, "dataset must be readable, got 'broken.jsonl': "),
    "folder without data": ("bare", {}, r"must hold data files \(.*\), got none in 'bare'"),
    "folder with a script": ("script", {}, "must not need a loading script, got 'script'; convert"),
    "hub id while offline": ("someone/data", {}, "HF_HUB_OFFLINE is set; unset it, or pass local files"),
    "hub id with a configuration while offline": ("someone/data:en", {"streaming": True}, "HF_HUB_OFFLINE is set"),
}  # fmt: skip


@pytest.fixture
def bad_data(load):
    write("near/data.jsonl", '{"text": "w1 w2"}\n')
    write("numbers.jsonl", '{"n": 1}\n')
    write("mixed/a.csv", "text\nw1\n")
    for name in ("mixed/b.jsonl", "odd.xyz", "bins/a.bin", "bins/b.bin", "broken.jsonl"):
        write(name, '{"text": "w1\n{{{\n')
    for name in ("empty.jsonl", "empty.txt", "bare/x.weird", "script/script.py"):
        write(name)
    write("short.txt", "w1 w2 w3")
    write_saved_splits(["w1"])
    Dataset.from_dict({"text": []}).save_to_disk("saved_empty")
    Dataset.from_dict({"input_ids": [[1, 2, 3]] * 5}).save_to_disk("short_rows")
    Dataset.from_dict({"input_ids": [["1"]] * 5}).save_to_disk("not_ids")
    write_folder(["w1"])
    return load


def test_bad_input_is_one_line_that_names_it_and_the_way_out(bad_data):
    messages = {}
    for case, (name, options, _) in BAD.items():
        with pytest.raises(ValueError) as error:
            bad_data(name, token="hf_secret", **options)
        messages[case] = str(error.value)
    for case, (_, _, pattern) in BAD.items():
        message = messages[case]
        assert "\n" not in message and len(message) < 400 and "hf_secret" not in message, (case, message)
        assert pattern is None or re.search(pattern, message), (case, message)
