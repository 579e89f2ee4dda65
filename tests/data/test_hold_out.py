"""What is held out: whole documents, of which nothing is trained on, as far as little data is lost for it."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from sae.data import TokenBatches, chunk_and_tokenize, load_data
from sae.data.hold_out import NGRAM, RUN, UNUSED, Documents, sharing_text, split
from sae.data.tokens import SampledSequences

CTX_LEN = 8


def documents_of(lengths, ctx_len=CTX_LEN):
    """The documents of the sequences into which documents of these lengths are cut."""
    owners = np.repeat(np.arange(len(lengths)), lengths)
    owners = owners[: len(owners) // ctx_len * ctx_len].reshape(-1, ctx_len)
    return Documents(owners[:, 0], owners[:, -1]), owners


LENGTHS = {
    "short": lambda i: 3,
    "as long as a sequence": lambda i: CTX_LEN,
    "mixed": lambda i: (1, 30, 7, 200, 2)[i % 5],
    "long": lambda i: 40 * CTX_LEN + i % 3,
}


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("count", [1, 7, 32])
def test_nothing_is_trained_on_of_the_documents_that_are_held_out(kind, count):
    lengths = [LENGTHS[kind](i) for i in range(20_000)]
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), 3200 * CTX_LEN)) + 1]
    documents, owners = documents_of(lengths)
    parts = split(len(owners), count, 3, documents)
    assert parts.num_shared == 0 and parts.by == "documents" and len(parts.held_out) == count
    held, trained = (set(owners[part.numpy()].flatten()) for part in (parts.held_out, parts.trained))
    assert not held & trained
    unused = len(owners) - len(parts.held_out) - len(parts.trained)
    assert unused <= len(owners) // UNUSED
    assert len(set(parts.held_out.tolist()) | set(parts.trained.tolist())) == len(owners) - unused


def test_a_share_of_each_long_document_is_held_out_so_that_there_are_several():
    documents, owners = documents_of([40 * CTX_LEN] * 200)
    parts = split(len(owners), 80, 0, documents)
    assert len(set(owners[parts.held_out.numpy()].flatten())) >= 4


def test_sequences_of_short_documents_are_held_out_a_few_side_by_side():
    documents, owners = documents_of([3] * 20_000)
    places = split(len(owners), 10 * RUN, 0, documents).held_out.sort().values
    assert (places.diff() > 1).sum() == 10 - 1


@pytest.mark.parametrize("lengths", [[100 * CTX_LEN], [50 * CTX_LEN] * 2, [1] * 9 * CTX_LEN])
def test_where_documents_are_too_few_single_sequences_are_held_out_as_ever(lengths):
    documents, owners = documents_of(lengths)
    parts = split(len(owners), 1, 5, documents)
    order = torch.randperm(len(owners), generator=torch.Generator().manual_seed(5))
    assert parts.by == "sequences" and parts.num_shared == 1
    assert torch.equal(parts.held_out, order[:1]) and torch.equal(parts.trained, order[1:])


def test_documents_that_are_not_in_order_are_not_known():
    first = np.arange(1000)[::-1].copy()
    parts, plain = (split(1000, 9, 5, documents) for documents in (Documents(first, first), None))
    assert parts.num_shared is None and torch.equal(parts.trained, plain.trained)


@pytest.fixture
def many_texts():
    """400 documents, each of words of its own number and that number's square."""
    return [" ".join(f"w{(i * j + i) % 100}" for j in range(i % 23 + 1)) for i in range(400)]


@pytest.mark.parametrize("streaming", [False, True])
def test_the_documents_of_a_data_set_are_told_by_its_rows(make_tokenizer, streaming, tmp_path):
    lines = [json.dumps({"text": f"w{i % 100} " * (i % 5 * 4 + 1)}) + "\n" for i in range(300)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(lines))
    sequences = load_data(
        str(path), tokenizer=make_tokenizer("plain"), ctx_len=CTX_LEN, vocab_size=1000, streaming=streaming
    )
    batches = TokenBatches(sequences, 1, seed=0, held_out=4)
    held = torch.cat(list(batches.held_out_batches())).flatten().tolist()
    assert batches.held_out_by == "documents" and len(held) == 4 * CTX_LEN
    trained = torch.cat(list(batches))
    if streaming:  # the document with which the held-out ones end does not go on in what is trained on
        assert held[-1] != trained[0, 0]
    else:
        assert len(trained) < len(sequences) - 4


def test_the_rest_of_a_streams_document_is_passed_over_and_only_that():
    rows = [{"input_ids": [i, i, i, i], "first_document": i // 3, "last_document": i // 3} for i in range(12)]
    batches = TokenBatches(iter(rows), 1, seed=0, held_out=4)
    assert torch.cat(list(batches.held_out_batches()))[:, 0].tolist() == [0, 1, 2, 3]
    assert torch.cat(list(batches))[:, 0].tolist() == [6, 7, 8, 9, 10, 11]
    single = TokenBatches(iter(rows), 1, seed=0, held_out=4, whole_documents=False)
    assert torch.cat(list(single))[:, 0].tolist() == list(range(4, 12))


@pytest.mark.parametrize("held_out", [1, 4])
def test_a_document_without_an_end_does_not_swallow_a_stream(held_out):
    rows = [{"input_ids": [i] * 4, "first_document": 0, "last_document": 0} for i in range(12)]
    trained = torch.cat(list(TokenBatches(iter(rows), 1, seed=0, held_out=held_out)))
    assert trained[:, 0].tolist() == list(range(2 * held_out, 12))


def packed(make_tokenizer, texts):
    return chunk_and_tokenize(Dataset.from_dict({"text": texts}), make_tokenizer("bos"), max_seq_len=CTX_LEN)


def test_packed_rows_of_a_data_set_know_their_documents_and_do_not_show_them(make_tokenizer, many_texts):
    tokenized = packed(make_tokenizer, many_texts)
    assert list(tokenized[0]) == ["input_ids"]
    assert TokenBatches(tokenized, 1, seed=0, held_out=5).held_out_by == "documents"
    assert TokenBatches(tokenized.shuffle(seed=1), 1, seed=0, held_out=5).held_out_by == "sequences"


def test_runs_that_held_out_single_sequences_still_do(make_tokenizer, many_texts):
    tokenized = packed(make_tokenizer, many_texts)
    tokens, order = (
        tokenized[:]["input_ids"],
        torch.randperm(len(tokenized), generator=torch.Generator().manual_seed(0)),
    )
    old = TokenBatches(tokenized, 1, seed=0, held_out=5, whole_documents=False)
    state = old.state_dict()
    assert state["kind"] == "shuffled"
    assert torch.equal(torch.cat(list(old.held_out_batches())), tokens[order[:5]])
    assert torch.equal(torch.cat(list(old)), tokens[order[5:]])
    with pytest.raises(ValueError, match="an earlier version held out single sequences; begin anew, or"):
        TokenBatches(tokenized, 1, seed=0, held_out=5).load_state_dict(state)


def test_evaluation_finds_the_sequences_that_a_run_held_out(make_tokenizer, many_texts):
    tokenized = packed(make_tokenizer, many_texts)
    batches = TokenBatches(tokenized, 1, seed=0, held_out=5)
    held = torch.cat(list(batches.held_out_batches()))
    for count in (2, 5):
        found = SampledSequences(tokenized, count * CTX_LEN, 2, seed=0, of_documents=5)
        assert found.num_tokens == count * CTX_LEN
        assert torch.equal(torch.cat(list(found)), held[:count])


def test_text_that_is_held_out_and_trained_on_is_counted():
    tokens = torch.randint(0, 50, (8, 110), generator=torch.Generator().manual_seed(0))
    trained = torch.randint(0, 50, (20, 110), generator=torch.Generator().manual_seed(1))
    assert sharing_text(tokens, trained.split(5)) == 0
    trained[3], trained[7, 10 : 10 + NGRAM] = tokens[2], tokens[5, 30 : 30 + NGRAM]
    trained[9, : NGRAM - 1], trained[9, NGRAM - 1] = tokens[6, : NGRAM - 1], 99
    assert sharing_text(tokens, trained.split(5)) == 2


@pytest.mark.parametrize("ctx_len", [17, 33])
def test_short_sequences_share_text_if_sixteen_tokens_in_a_row_are_the_same(ctx_len: int):
    tokens = torch.randint(0, 50, (8, ctx_len), generator=torch.Generator().manual_seed(0))
    trained = torch.randint(0, 50, (20, ctx_len), generator=torch.Generator().manual_seed(1))
    trained[3], trained[7, :16], trained[9, :15], trained[9, 15] = tokens[2], tokens[5, -16:], tokens[6, -15:], 99
    assert sharing_text(tokens, trained.split(5)) == 2
    assert sharing_text(tokens[:, :15], tokens[:, :15].split(5)) == 0


@pytest.mark.parametrize("ctx_len", [34, 35, 51, 52, 64, 101, 102, 103, 128])
@pytest.mark.parametrize("num_special", [0, 1, 2])
def test_a_text_written_twice_is_found_wherever_its_copy_is_cut(ctx_len: int, num_special: int):
    """The first copy is cut into whole sequences, one of which is held out; the second begins at any place of one."""
    body = ctx_len - num_special
    text, around = torch.randint(9, 999, (2, 3 * body), generator=torch.Generator().manual_seed(0))
    for offset in range(body):
        stream = torch.cat([around[:offset], text, around[: body - offset]]).view(-1, body)
        held_out, trained = (
            torch.nn.functional.pad(part, (num_special and 1, num_special // 2), value=1)
            for part in (text.view(-1, body)[1:2], stream)
        )
        assert sharing_text(held_out, [trained]) == 1, offset
        assert sharing_text(held_out, [torch.cat([trained[:1], trained[4:]])]) == 0


@pytest.mark.parametrize("count", [8, 40])
def test_rulers_and_empty_lines_are_not_text_that_is_shared(count: int):
    tokens = torch.tensor([[1, 2] * count])
    assert sharing_text(tokens, [tokens]) == 0


def test_data_that_repeats_itself_is_told():
    tokens = torch.randint(0, 99, (60, 102), generator=torch.Generator().manual_seed(0))
    (told,) = TokenBatches(tokens.repeat(2, 1), 1, seed=0, held_out=8).about_held_out()
    assert "of the 8 held-out sequences share 50 tokens in a row with the sequences that are trained on" in told
    assert TokenBatches(tokens, 1, seed=0, held_out=8).about_held_out() == []


def test_documents_that_are_too_long_to_be_held_out_are_told(make_tokenizer):
    tokenized = packed(make_tokenizer, [" ".join(f"w{i * i % 97}" for i in range(300))] * 2)
    (told,) = TokenBatches(tokenized, 1, seed=0, held_out=2).about_held_out()
    assert told.startswith("2 of the 2 held-out sequences are of documents that are trained on too")
