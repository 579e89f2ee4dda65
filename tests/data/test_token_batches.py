"""Token batches: each sequence once, in an order that depends on the seed alone, from a place that can be saved."""

import copy
import itertools
import json
import re

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, load_dataset
from transformers import BatchEncoding

from sae.data import MemmapTokens, TokenBatches, as_sequences, chunk_and_tokenize
from sae.data.pack import ChunkLayout, PackedStream
from sae.data.sequences import PiecedSequences, TensorSequences
from sae.data.stream import SequenceStream
from sae.data.tokens import held_out_count

TOKENS = torch.arange(1, 37 * 4 + 1).view(37, 4)  # every token tells where it came from
ROWS = [{"input_ids": row} for row in TOKENS.tolist()]


def memmap(path):
    (path / "tokens.bin").write_bytes(TOKENS.numpy().astype("<u2").tobytes())
    return MemmapTokens(path / "tokens.bin", 4, 1000)


def jsonl_stream(path):
    for part in range(2):
        lines = [json.dumps(row) + "\n" for row in ROWS[20 * part : 20 + 20 * part]]
        (path / f"{part}.jsonl").write_text("".join(lines))
    files = [str(path / f"{part}.jsonl") for part in range(2)]
    return load_dataset("json", data_files=files, split="train", streaming=True)


RANDOM_ACCESS = {
    "tensor": lambda path: TOKENS,
    "array": lambda path: TOKENS.numpy(),
    "data set": lambda path: Dataset.from_list(ROWS),
    "data set of tensors": lambda path: Dataset.from_list(ROWS).with_format("torch"),
    "list of rows": lambda path: [{"input_ids": row} for row in TOKENS],
    "memmap": memmap,
}
STREAMS = {
    "iterable data set": lambda path: Dataset.from_list(ROWS).to_iterable_dataset(num_shards=3),
    "jsonl stream": jsonl_stream,
    "generator": lambda path: iter(ROWS),
    "iterable of rows": lambda path: _Rows(),
}
SOURCES = RANDOM_ACCESS | STREAMS


class _Rows:
    def __iter__(self):
        return iter(ROWS)


@pytest.fixture(params=SOURCES)
def make(request, tmp_path):
    """Makes the same batches anew, as after a restart."""
    return lambda batch_size=4, seed=0, **options: TokenBatches(
        SOURCES[request.param](tmp_path), batch_size, seed=seed, **options
    )


def test_held_out_and_trained_sequences_are_disjoint_and_together_everything(make):
    batches = make(held_out=5)
    trained, held_out = torch.cat(list(batches)), torch.cat(list(batches.held_out_batches()))
    assert trained.shape == (32, 4) and trained.dtype == torch.int64 and held_out.shape == (5, 4)
    assert torch.equal(torch.cat([trained, held_out]).sort(dim=0).values, TOKENS)


def test_an_incomplete_last_batch_is_dropped(make):
    batches = make(batch_size=10, held_out=3)
    assert [len(batch) for batch in batches] == [10, 10, 10]
    assert [len(batch) for batch in make(batch_size=2, held_out=3).held_out_batches()] == [2, 1]


def test_the_order_does_not_depend_on_the_batch_size(make):
    assert torch.equal(torch.cat(list(make(batch_size=8))), torch.cat(list(make(batch_size=4)))[:32])


@pytest.mark.parametrize("stop", [0, 1, 4, 8])
def test_stopping_and_resuming_equals_not_stopping(make, stop):
    whole, stopped, resumed = list(make(held_out=3)), make(held_out=3), make(held_out=3)
    begun = [next(stopped) for _ in range(stop)]
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert torch.equal(torch.cat([*begun, *resumed]), torch.cat(whole))
    expected = torch.cat(list(make(held_out=3).held_out_batches()))
    assert torch.equal(torch.cat(list(resumed.held_out_batches())), expected)


def test_resuming_with_another_batch_size_continues_at_the_same_sequence(make):
    stopped, resumed = make(batch_size=4), make(batch_size=3)
    begun = [next(stopped), next(stopped)]
    resumed.load_state_dict(stopped.state_dict())
    assert torch.equal(torch.cat([*begun, next(resumed)]), torch.cat(list(make(batch_size=1)))[:11])


def test_a_place_after_the_last_batch_keeps_the_sequences_that_filled_none(make):
    finished, resumed = make(batch_size=10), make(batch_size=1)
    assert len(list(finished)) == 3
    resumed.load_state_dict(finished.state_dict())
    assert len(list(resumed)) == 7


def test_max_batches_counts_from_the_start_of_the_data(make):
    stopped, resumed = make(max_batches=3), make(max_batches=3)
    next(stopped)
    resumed.load_state_dict(stopped.state_dict())
    assert len(list(stopped)) == len(list(resumed)) == 2
    assert stopped.num_batches == 3


def test_a_token_outside_the_vocabulary_is_found_in_its_sequence(make):
    with pytest.raises(ValueError) as error:
        list(make(vocab_size=50))
    found = re.search(r"below the vocabulary size 50, got (\d+) in sequence (\d+);", str(error.value))
    token, sequence = int(found[1]), int(found[2])
    assert token in TOKENS[sequence] and token >= 50


def test_less_data_than_one_batch_is_an_error(make):
    with pytest.raises(ValueError, match="at least one batch of batch_size=35 .* after the 3 held out, got 34"):
        next(make(batch_size=35, held_out=3))


def test_a_state_of_other_data_is_an_error(make):
    state = make(held_out=3).state_dict()
    with pytest.raises(ValueError, match=r"held_out .* saved \(3\), got 2"):
        make(held_out=2).load_state_dict(state)


@pytest.mark.parametrize("name", RANDOM_ACCESS)
def test_every_random_access_source_gives_the_same_batches(tmp_path, name):
    batches = TokenBatches(SOURCES[name](tmp_path), 4, seed=1, held_out=2)
    assert batches.num_batches == 8 and batches.ctx_len == 4
    assert torch.equal(torch.cat(list(batches)), torch.cat(list(TokenBatches(TOKENS, 4, seed=1, held_out=2))))


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_read_in_its_own_order(tmp_path, name):
    batches = TokenBatches(SOURCES[name](tmp_path), 4, seed=1, held_out=2)
    assert batches.num_batches is None and batches.ctx_len == 4
    assert torch.equal(torch.cat([*batches.held_out_batches(), *batches]), TOKENS[:34])


def test_random_access_is_shuffled_by_the_seed():
    def first_tokens(seed):
        return [batch[0, 0].item() for batch in TokenBatches(TOKENS, 1, seed=seed)]

    assert first_tokens(0) == first_tokens(0) != first_tokens(1)
    assert sorted(first_tokens(0)) == TOKENS[:, 0].tolist() != first_tokens(0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: TokenBatches(TOKENS, 4, seed=1), r"seed .* saved \(0\), got 1; resume with .*--seed"),
        (lambda: TokenBatches(TOKENS[:30], 4, seed=0), r"num_sequences .* saved \(37\), got 30"),
        (lambda: TokenBatches(TOKENS[:, :3], 4, seed=0), r"ctx_len .* saved \(4\), got 3"),
        (lambda: TokenBatches(iter(ROWS), 4, seed=0), r"kind .* saved \('shuffled'\), got stream"),
    ],
)
def test_a_state_is_only_loaded_into_the_same_data(other, message):
    with pytest.raises(ValueError, match=message):
        other().load_state_dict(TokenBatches(TOKENS, 4, seed=0).state_dict())


def test_a_long_value_in_a_state_is_quoted_in_one_short_line(make):
    with pytest.raises(ValueError, match=r"kind .* saved \('x+\.\.\.x+'\), got (shuffled|stream);") as error:
        make().load_state_dict({**make().state_dict(), "kind": "x" * 3000})
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_resuming_twice_from_one_stream_starts_at_the_right_place_both_times():
    stream = Dataset.from_list(ROWS).to_iterable_dataset()
    whole = TokenBatches(stream, 4, seed=0, held_out=2)
    expected = list(whole)
    for stop in (3, 1):
        stopped = TokenBatches(stream, 4, seed=0, held_out=2)
        begun = [next(stopped) for _ in range(stop)]
        resumed = TokenBatches(stream, 4, seed=0, held_out=2)
        resumed.load_state_dict(stopped.state_dict())
        assert torch.equal(torch.cat([*begun, *resumed]), torch.cat(expected))


def test_a_stream_of_text_resumes_without_the_text_before(make_tokenizer, texts):
    def make(data):
        stream = chunk_and_tokenize(data, make_tokenizer("bos"), max_seq_len=16)
        return TokenBatches(stream, 4, seed=0, held_out=2)

    def from_text(start):
        return Dataset.from_dict({"text": ["w0"] * start + texts[start:]}).to_iterable_dataset()

    stopped = make(from_text(0))
    begun = [next(stopped) for _ in range(15)]
    resumed = make(from_text(0))
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert torch.equal(torch.cat([*begun, *resumed]), torch.cat(list(make(from_text(0)))))
    # 62 rows were read: the first batch of 64 documents is behind the place, so what it says no longer matters
    elsewhere = make(from_text(64))
    elsewhere.load_state_dict(stopped.state_dict())
    assert torch.equal(torch.cat([*begun, *elsewhere]), torch.cat(list(make(from_text(0)))))


def test_a_stream_without_a_state_only_goes_forward():
    start = TokenBatches(iter(ROWS), 4, seed=0).state_dict()
    batches = TokenBatches(iter(ROWS), 4, seed=0)
    next(batches)
    with pytest.raises(ValueError, match="can only go forward, got a way back to sequence 0"):
        batches.load_state_dict(start)


@pytest.mark.parametrize("stream", [False, True])
def test_a_shorter_last_row_is_left_out_and_any_other_length_is_an_error(stream):
    def source(lengths):
        rows = Dataset.from_list([{"input_ids": [1] * length} for length in lengths])
        return rows.to_iterable_dataset() if stream else rows

    assert len(torch.cat(list(TokenBatches(source([4, 4, 4, 3]), 1, seed=0)))) == 3
    for lengths in ([4, 3, 4], [4, 5, 4], [4, 5]):
        with pytest.raises(ValueError, match=r"all rows of input_ids must be 4 tokens .* got [35] in row 1"):
            list(TokenBatches(source(lengths), 1, seed=0))


@pytest.mark.parametrize("ctx_len", [1, 2, 3, 4])
def test_pieces_of_rows_are_the_rows_cut(ctx_len):
    pieces = PiecedSequences(TensorSequences(TOKENS), ctx_len)
    expected = torch.cat([row[: 4 // ctx_len * ctx_len].view(-1, ctx_len) for row in TOKENS])
    order = torch.randperm(len(expected)).tolist()
    assert len(pieces) == len(expected) and torch.equal(pieces.take(order), expected[order])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Dataset.from_dict({"text": ["a"], "id": [1]}), "column input_ids, got text, id; call chunk_and_tokenize"),
        (Dataset.from_dict({"text": ["a"]}).to_iterable_dataset(), "column input_ids, got text; call"),
        (DatasetDict(train=Dataset.from_list(ROWS)), r"must be one split, got several \(train\)"),
        (Dataset.from_dict({"input_ids": []}), "at least one row, got none"),
        ([TOKENS[0]], "rows must look like .* got Tensor"),
        ([{"input_ids": [0.5]}], "one list of whole numbers per row, got float64"),
        (torch.ones(3, 4), r"whole numbers, not empty, got \(3, 4\) of torch.float32"),
        (np.zeros((0, 4), int), r"got \(0, 4\)"),
        ("wikitext", "must hold token sequences, got str"),
        (7, "must hold token sequences, got int"),
    ],
)
def test_what_holds_no_sequences_is_an_error_that_says_why(dataset, message):
    with pytest.raises(ValueError, match=message):
        as_sequences(dataset)


def test_the_batch_size_is_positive():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        TokenBatches(TOKENS, 0, seed=0)


PADDED = {
    "input_ids": [[5, 6, 0, 0], [7, 8, 9, 0], [1, 2, 3, 4]],
    "attention_mask": [[1, 1, 0, 0], [1, 1, 1, 0], [1] * 4],
}


@pytest.mark.parametrize(
    "make",
    [
        Dataset.from_dict,
        lambda columns: Dataset.from_dict(columns).with_format("torch"),
        lambda columns: BatchEncoding(columns, tensor_type="pt"),
        BatchEncoding,
    ],
)
def test_padding_that_a_mask_leaves_out_is_not_trained_on(make):
    sequences = as_sequences(make(PADDED))
    assert sequences.take([0, 1]).tolist() == [[5, 6, 7, 8], [9, 1, 2, 3]] and len(sequences) == 2


@pytest.mark.parametrize("make", [list, iter])
def test_padding_where_rows_cannot_be_joined_is_an_error(make):
    rows = [dict(zip(PADDED, row, strict=True)) for row in zip(*PADDED.values(), strict=True)]
    with pytest.raises(ValueError, match="without padding, got 2 tokens in one whose attention_mask is 0"):
        list(TokenBatches(make(rows), 1, seed=0))


@pytest.mark.parametrize("mask", [[None, 1, 1], [0.0, 1.0, 1.0]])
def test_a_mask_that_is_none_is_named(mask):
    rows = Dataset.from_list([{"input_ids": [3, 4, 5], "attention_mask": mask}] * 4)
    with pytest.raises(ValueError, match="attention_mask must be lists of whole numbers, got (null in one|double)"):
        as_sequences(rows)


def test_a_mask_that_leaves_nothing_out_changes_nothing():
    rows = Dataset.from_list([row | {"attention_mask": [1] * 4} for row in ROWS])
    assert torch.equal(as_sequences(rows).take(range(37)), TOKENS)


@pytest.mark.parametrize("batch_size", [1, 8, 64])
@pytest.mark.parametrize("ctx_len", [1, 256, 2048, 1 << 20])
def test_the_held_out_set_is_small_and_never_empty(batch_size, ctx_len):
    for num_sequences in (1, 9, 10, 100, 5000, 10**7):
        count = held_out_count(num_sequences, batch_size, ctx_len)
        assert 1 <= count <= max(1, num_sequences // 10) and count * ctx_len <= max(65536, ctx_len)
    assert held_out_count(None, batch_size, ctx_len) == max(1, 16384 // ctx_len)


def test_the_held_out_set_is_a_hundredth_and_a_batch():
    assert held_out_count(5000, 8, 256) == 50
    assert held_out_count(500, 8, 256) == 8
    assert held_out_count(40, 8, 256) == 4


@pytest.mark.parametrize("buffer_size", [None, 1, 5])
@pytest.mark.parametrize("packed", [False, True])
def test_a_position_brings_its_epoch_to_a_stream_of_another(buffer_size: int | None, packed: bool) -> None:
    def stream(epoch: int) -> SequenceStream:
        rows = Dataset.from_dict({"input_ids": [[n, n] for n in range(20)]}).to_iterable_dataset(num_shards=4)
        if buffer_size is not None:
            rows = rows.shuffle(seed=1, buffer_size=buffer_size)
        rows.set_epoch(epoch)
        if not packed:
            return SequenceStream(rows)
        return SequenceStream(PackedStream(rows, lambda batch: [row["input_ids"] for row in batch], ChunkLayout(2)))

    def read(rows: SequenceStream, count: int) -> list[int]:
        return [int(ids[0]) for ids in rows.read(count)]

    for of_state, of_stream, already in itertools.product(range(3), range(3), (0, 3, 10)):
        before, resumed = stream(of_state), stream(of_stream)
        begun = read(before, 7)
        state = copy.deepcopy(before.state_dict())
        read(resumed, already)
        resumed.load_state_dict(state)
        rest = read(resumed, 100)
        assert rest == read(before, 100) and sorted(begun + rest) == list(range(20))
