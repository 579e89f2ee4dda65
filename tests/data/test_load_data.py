"""From a name to sequences: every kind of source gives the tokens of its text, and every wrong name one clear line."""

import bz2
import gc
import gzip
import json
import lzma
import os
import re
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, DatasetDict

from sae.data import TokenBatches, chunk_and_tokenize, load_data
from sae.data.read import PIECE_CHARACTERS, File, rows_of
from sae.data.sequences import as_sequences

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
    pieces = [piece["text"] for piece in rows_of([File.of(str(path))], ["text"])]
    assert "".join(pieces) == "".join(lines)
    assert max(map(len, pieces)) <= 2 * PIECE_CHARACTERS
    assert all(piece.endswith("\n") for piece in pieces[:4])


def test_bytes_that_are_no_text_are_replaced_and_a_byte_order_mark_is_dropped(tmp_path):
    path = tmp_path / "odd.txt"
    path.write_bytes(b"\xef\xbb\xbfab\xffcd")
    assert list(rows_of([File.of(str(path))], ["text"])) == [{"text": "ab\ufffdcd"}]


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
    Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}).save_to_disk("tokenised")
    return "tokenised"


@pytest.mark.parametrize("streaming", [False, True])
def test_tokenised_rows_of_the_right_length_are_kept(load, expected, streaming):
    found = everything(load(tokenised(expected.tolist()), tokenizer=None, streaming=streaming))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("ctx_len", [4, 5, 15])
def test_longer_tokenised_rows_of_one_length_lose_nothing_but_a_tail(load, expected, ctx_len):
    tokens = expected.flatten()
    found = everything(load(tokenised(expected.tolist()), ctx_len=ctx_len))
    assert torch.equal(found, tokens[: len(tokens) // ctx_len * ctx_len].view(-1, ctx_len))


def test_the_last_token_of_few_rows_is_left_out_where_all_are_less_than_a_sequence(load, expected):
    found = everything(load(tokenised(expected[:3].tolist()), ctx_len=15))
    assert torch.equal(found, expected[:3, :15])


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


def zipped(content):
    with zipfile.ZipFile("archive", "w") as archive:
        archive.writestr("inside", content)
    with open("archive", "rb") as file:
        return file.read()


def zstandardised(content):
    return pytest.importorskip("zstandard").compress(content)


PACKERS = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zip": zipped, ".zst": zstandardised,
}  # fmt: skip


def rows_as(ending, texts):
    """The contents of a file with this ending that has these rows."""
    separator = {".csv": ",", ".tsv": "\t"}.get(ending)
    if separator:
        return "".join(f"{a}{separator}{b}\n" for a, b in [("id", "text"), *enumerate(texts)]).encode()
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.mark.parametrize("named", ["file", "glob", "folder", "stream"])
@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".jsonlines", ".json", ".csv", ".tsv"])
def test_a_file_is_read_alike_however_it_is_packed_and_named(load, texts, expected, ending, packed, named):
    os.mkdir("all")
    with open(f"all/data{ending}{packed}", "wb") as file:
        file.write(PACKERS[packed](rows_as(ending, texts)))
    name = {"glob": f"all/*{packed or ending}", "folder": "all"}.get(named, f"all/data{ending}{packed}")
    assert torch.equal(everything(load(name, streaming=named == "stream")), expected)


@pytest.mark.parametrize("named", ["file", "glob", "folder", "stream"])
@pytest.mark.parametrize("packed", PACKERS)
def test_a_text_is_read_alike_however_it_is_packed_and_named(load, texts, packed, named):
    plain = everything(load(write_text(texts)))
    os.mkdir("all")
    with open(f"all/data.txt{packed}", "wb") as file:
        file.write(PACKERS[packed]("\n".join(texts).encode()))
    name = {"glob": f"all/*{packed or '.txt'}", "folder": "all"}.get(named, f"all/data.txt{packed}")
    assert torch.equal(everything(load(name, streaming=named == "stream")), plain)


@pytest.mark.parametrize("named", ["file", "glob", "folder"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ending", [".jsonl", ".txt", ".csv"])
def test_without_zstandard_a_zst_file_is_told_in_one_line(load, monkeypatch, ending, named, streaming):
    import datasets.utils.extract
    import fsspec

    known = [name for name in fsspec.available_compressions() if name != "zstd"]
    monkeypatch.setattr(fsspec, "available_compressions", lambda: known)
    monkeypatch.setattr(datasets.config, "ZSTANDARD_AVAILABLE", False)
    os.mkdir("all")
    with open(f"all/data{ending}.zst", "wb") as file:
        file.write(b"\x28\xb5\x2f\xfd" + bytes(60))
    name = {"glob": "all/*.zst", "folder": "all"}.get(named, f"all/data{ending}.zst")
    with pytest.raises(ValueError, match=r"reading .*data\.\w+\.zst needs the package zstandard; pip install") as told:
        everything(load(name, streaming=streaming))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ending", ["json", "parquet"])
def test_columns_that_nobody_asked_for_may_differ(load, texts, expected, ending, streaming):
    os.mkdir("all")
    parts = [{"text": texts[:70], "n": [1] * 70}, {"n": ["x"] * 70, "text": texts[70:140], "more": [[1.5]] * 70}]
    for number, columns in enumerate([*parts, {"text": texts[140:]}]):
        data = Dataset.from_dict(columns)
        data.to_json(f"all/{number}.jsonl") if ending == "json" else data.to_parquet(f"all/{number}.parquet")
    for name in ("all", "all/*"):
        assert torch.equal(everything(load(name, streaming=streaming)), expected)


def test_a_column_that_begins_late_does_not_matter(load, texts, expected):
    with open(write_jsonl(["w1"] * 2000), "a") as file:
        file.write(json.dumps({"text": "w1", "late": {"deep": [1]}}) + "\n")
    assert len(everything(load("data.jsonl"))) == (2001 * 2) // (CTX_LEN - 1)


def test_words_that_stand_for_nothing_elsewhere_are_text(load):
    with open("data.csv", "w") as file:
        file.write("text\n" + "NA\nnull\nNone\nnan\n" * 30)
    assert len(everything(load("data.csv"))) == (120 * 2) // (CTX_LEN - 1)


@pytest.mark.parametrize("content", ['[{"text": "w1 w2"}]', '{"text": ["w1 w2"]}', '{\n "text": ["w1 w2"]\n}'])
def test_a_json_file_may_be_one_list_or_one_object_of_columns(load, content):
    write("data.json", content)
    assert everything(load("data.json", ctx_len=4)).tolist() == [[2, 1, 6, 7]]


def test_a_text_that_is_not_utf_8_is_told_with_the_share(load, caplog):
    with open("latin.txt", "wb") as file:
        file.write("w1 w2 é w3\n".encode("latin-1") * 20)
    load("latin.txt")
    assert "latin.txt is not all UTF-8: 9.1 % of the characters" in caplog.text
    caplog.clear()
    load(write_text(["w1 w2 é"] * 20))
    assert "UTF-8" not in caplog.text


PADDED = [[5, 6, 0, 0], [7, 8, 9, 0], [5, 5, 5, 5], [6, 0, 0, 0]] * 6
MASK = [[int(token > 0) for token in row] for row in PADDED]
KEPT = [token for row in PADDED for token in row if token]


def padded(name, columns):
    data = Dataset.from_dict(columns)
    if name.endswith("jsonl"):
        data.to_json(name)
    elif name.endswith("parquet"):
        data.to_parquet(name)
    else:
        data.save_to_disk(name)
    return name


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["input_ids", "tokens"])
@pytest.mark.parametrize("name", ["ids.jsonl", "ids.parquet", "ids"])
def test_padding_is_left_out_where_a_mask_says_so(load, name, column, streaming):
    source = padded(name, {column: PADDED, "attention_mask": MASK})
    found = everything(load(source, ctx_len=4, tokenizer=None, streaming=streaming)).flatten().tolist()
    assert found == KEPT[: len(KEPT) // 4 * 4]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["ids.jsonl", "ids.parquet", "ids"])
def test_rows_that_are_null_are_passed_over(load, name, streaming):
    source = padded(name, {"input_ids": [[1, 2, 3, 4], None, [5, 6, 7, 8]]})
    assert everything(load(source, ctx_len=4, streaming=streaming)).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", ["input_ids", "tokens"])
@pytest.mark.parametrize("empty", [None, []])
def test_empty_rows_of_a_data_set_in_python_are_passed_over(name, place, empty):
    rows = [[1, 2, 3, 4], [5, 6, 7, 8]]
    data = Dataset.from_dict({name: [*rows[:place], empty, *rows[place:], None]})
    assert as_sequences(data).take([0, 1]).tolist() == rows and len(as_sequences(data)) == 2
    for stream in (data.to_iterable_dataset(), iter(list(data))):
        assert [row.tolist() for row in as_sequences(stream).read(3)] == rows


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("wrong", [[1.0, 2.0, 3.0, 4.0], [1, None, 3, 4]])
@pytest.mark.parametrize("name", ["ids.jsonl", "ids.parquet", "ids"])
def test_what_is_no_whole_number_is_refused_in_one_line(load, name, wrong, streaming):
    source = padded(name, {"input_ids": [wrong, wrong]})
    with pytest.raises(ValueError, match=r"(must hold lists|must be lists|must be one list) of whole numbers") as error:
        load(source, ctx_len=4, streaming=streaming)
    assert "\n" not in str(error.value) and "must be readable" not in str(error.value)


def test_a_mask_that_is_no_list_is_named_with_its_line(load):
    write("ids.jsonl", '{"input_ids": [1, 2], "attention_mask": 5}\n')
    with pytest.raises(
        ValueError, match=r"'attention_mask' must hold lists of whole numbers, got int in line 1 of ids"
    ):
        load("ids.jsonl")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("named", ["folder/data/*.parquet", "folder"])
@pytest.mark.parametrize("groups", [0, 1])
def test_a_parquet_file_without_rows_stands_in_nobodys_way(load, texts, expected, named, groups, streaming):
    write_folder(texts)
    os.remove("folder/data/test-00000-of-00001.parquet")
    with pq.ParquetWriter("folder/data/train-00000-of-00000.parquet", pa.schema([("text", pa.string())])) as empty:
        if groups:
            empty.write_table(empty.schema.empty_table())
    assert torch.equal(everything(load(named, streaming=streaming)), expected)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_saved_split_without_rows_stands_in_no_others_way(load, texts, expected, streaming):
    empty = Dataset.from_dict({"text": []})
    DatasetDict(test=empty, train=Dataset.from_dict({"text": texts})).save_to_disk("dict")
    assert torch.equal(everything(load("dict", streaming=streaming)), expected)
    with pytest.raises(ValueError, match="at least one row, got none in dict/test; choose another --split"):
        load("dict", split="test")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["chats.jsonl", "chats.parquet", "chats"])
def test_a_chat_data_set_is_read_without_being_told(load, make_tokenizer, name, streaming):
    turns = [[{"role": "user", "content": f"w{i}"}, {"role": "assistant", "content": "w1"}] for i in range(20)]
    tokenizer = make_tokenizer(chat_template="{% for m in messages %}{{ m['content'] }} {% endfor %}")
    source = padded(name, {"id": list(range(20)), "messages": turns})
    found = everything(load(source, tokenizer=tokenizer, ctx_len=3, streaming=streaming))
    assert found.tolist() == [[1, 5 + i, 6] for i in range(20)]


def test_text_of_arrows_newest_kind_is_text(load, texts, expected):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": pa.array(texts, pa.string_view())}), "data.parquet")
    assert torch.equal(everything(load("data.parquet")), expected)


@pytest.mark.parametrize("shape", [(-1,), (-1, 10), (-1, 16)])
def test_an_array_of_tokens_is_read_row_after_row(load, expected, shape):
    tokens = expected.flatten()[:160]
    np.save("tokens.npy", tokens.numpy().reshape(shape).astype(np.uint16))
    assert torch.equal(everything(load("tokens.npy", tokenizer=None)), tokens.view(-1, CTX_LEN))


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
    "unknown kind of file": ("odd.xyz", {}, r"one of \.txt, .*\.bin, \.npy, got \.xyz; convert"),
    "kind of file as a name": ("json", {}, r"got 'json', a kind of file; name the files"),
    "several token files": ("bins/*.bin", {}, "single .bin file, got 2 that match"),
    "missing column": ("near/data.jsonl", {"text_column": "body"}, r"columns \(text\), got 'body'; .*--text_column"),
    "missing column of a stream": (
        "near/data.jsonl", {"text_column": "body", "streaming": True}, r"columns \(text\), got 'body'"
    ),
    "column that is not text": ("numbers.jsonl", {"text_column": "n"}, "got int in line 1 of numbers.jsonl; mend"),
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
    "broken line": ("late.jsonl", {}, "got line 2 of late.jsonl, which is none; mend"),
    "column in one file only": ("some/*.jsonl", {}, r"column 'text' must be in every file, got none in some/b.jsonl"),
    "archive of several files": ("two.txt.zip", {}, "must hold one file, got 2 in two.txt.zip"),
    "input_ids that are not ids": ("not_ids", {}, "lists of whole numbers, got string"),
    "text without a tokenizer": ("near/data.jsonl", {"tokenizer": None}, "tokenizer must be given"),
    "broken file": ("broken.jsonl", {}, "got line 1 of broken.jsonl, which is none; mend"),
    "broken stream": ("broken.jsonl", {"streaming": True}, "got line 1 of broken.jsonl, which is none; mend"),
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
    write("late.jsonl", '{"text": "w1"}\n{{{\n')
    write("some/a.jsonl", '{"text": "w1"}\n')
    write("some/b.jsonl", '{"body": "w1"}\n')
    with zipfile.ZipFile("two.txt.zip", "w") as archive:
        archive.writestr("a.txt", "w1")
        archive.writestr("b.txt", "w1")
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
