"""The hub, as far as it can be had on a loopback port: what loads, and what is said about the rest."""

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import fake_hub

from sae.data.files import DataError
from sae.data.hub import choose_converted, data_errors_explained, explain

ROOT = Path(__file__).parents[2]
SECRET = "hf_secret"
CARD = "---\nconfigs:\n- config_name: en\n  data_files: en.parquet\n- config_name: de\n  data_files: de.parquet\n---\n"

PROGRAM = f"""
import json, sys
from sae.data import load_data
from sae.data.hub import open_repository
for line in sys.stdin:
    name, options = json.loads(line)
    if "config" in options:
        print(json.dumps([row["text"] for row in open_repository(name, **options)]))
        continue
    try:
        found = load_data(name, tokenizer=None, ctx_len=4, vocab_size=100, token={SECRET!r} + "\\n", **options)
        rows = found.take(list(range(len(found)))) if hasattr(found, "take") else found.read(100)
        print(json.dumps([row.tolist() for row in rows]))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


def parquet(token, num_rows=3):
    file = io.BytesIO()
    pq.write_table(pa.table({"input_ids": [[token] * 4] * num_rows}), file)
    return file.getvalue()


def lines(token, num_rows, **more):
    return (json.dumps({"input_ids": [token] * 4, **more}) + "\n").encode() * num_rows


REPOS = {
    "a/plain": {"main": {"data/train-00000-of-00001.parquet": parquet(1), "README.md": b"words"}},
    "a/configs": {"main": {"README.md": CARD.encode(), "en.parquet": parquet(2), "de.parquet": parquet(3)}},
    "a/script": {
        "main": {"script.py": b"", "README.md": b"words"},
        "refs/convert/parquet": {"default/partial-train/0.parquet": parquet(4), "default/test/0.parquet": parquet(5)},
    },
    "a/old": {"main": {"old.py": b"", "README.md": b"words"}},
    "a/lines": {
        "main": {"data/train-0.jsonl": lines(6, 2), "data/train-1.jsonl.gz": gzip.compress(lines(6, 1, n="x"))}
    },
    "a/private": {"main": {"train.txt": b"one\ntwo\n"}},
    "a/other": {"main": {"weights.bin": b"", "README.md": b"words"}},
}

STREAM = {"streaming": True}
AS_TEXT = {"config": None, "split": "train", "revision": None, "token": "x", "num_proc": None, "text_column": "text"}
TEXT = ["a/private", AS_TEXT | {"streaming": False}]
STREAMED_TEXT = ["a/private", AS_TEXT | {"streaming": True}]
CASES = [
    ("a/plain", {}, 1),
    ("a/plain", STREAM, 1),
    ("a/plain", {"split": "train[:0]"}, "got 'a/plain': ValueError: Instruction \"train[:0]\" corresponds to no data"),
    ("a/plain", {"split": "test"}, "split must be one of train, got test"),
    ("a/plain", {"revision": "v9"}, "revision must exist on the hub, got one that 'a/plain' does not have"),
    ("a/configs:de", {}, 3),
    ("a/configs", {}, "configuration of 'a/configs' must be one of en, de, got none; name it after a colon"),
    ("a/configs:fr", STREAM, "configuration of 'a/configs' must be one of en, de, got fr"),
    ("a/script", {}, 4),
    ("a/script", {"split": "test"}, 5),  # the second time, when `datasets` finds its own cache of the first
    ("a/script", STREAM, 4),
    ("a/script", {"split": "validation"}, "split must be one of train, test, got validation"),
    ("a/old", {}, "must not need a loading script, got 'a/old', which has one and no parquet conversion"),
    ("a/lines", {}, 6),
    ("a/lines", STREAM, 6),
    ("a/private", {}, "tokenizer must be given for text (column 'text')"),
    ("a/other", {}, "must hold data files"),
    ("a/gated", {}, "got 'a/gated', which the hub refuses; ask for access on its page, then pass --hf_token"),
    ("a/nothing", {}, "got 'a/nothing', which is neither here nor on the hub; check the spelling"),
]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> "subprocess.CompletedProcess[str]":
    """What one process says of all CASES, and of TEXT as it is and as a stream."""
    requests = [[name, options] for name, options, _ in CASES] + [TEXT, STREAMED_TEXT]
    with fake_hub(REPOS, gated="a/gated") as endpoint:
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {"HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT)}
        environment |= {"HF_HOME": str(tmp_path_factory.mktemp("home"))}
        return subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input="".join(json.dumps(request) + "\n" for request in requests),
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )


def test_a_text_of_a_hub_is_one_text_as_it_is_here(said):
    assert said.stdout.splitlines()[len(CASES) :] == ['["one\\ntwo\\n"]'] * 2, said.stderr


def test_data_sets_of_a_hub_load_or_say_why_not(said):
    answers = [json.loads(line) for line in said.stdout.splitlines()[: len(CASES)]]
    assert len(answers) == len(CASES), said.stderr
    for (name, options, expected), answer in zip(CASES, answers, strict=True):
        if isinstance(expected, int):
            assert answer == [[expected] * 4] * 3, (name, options)
        else:
            assert expected in answer and "\n" not in answer, (name, options)
    assert "a/script needs a loading script, which is not run; reading the hub's parquet conversion" in said.stderr
    assert SECRET not in said.stdout + said.stderr


FILES = [
    "en/train/0.parquet",
    "en/train/1.parquet",
    "en/partial-test/0.parquet",
    "de/train/0.parquet",
    ".gitattributes",
]


@pytest.mark.parametrize(
    ("config", "split", "chosen"),
    [
        ("de", "train", {"train": ["de/train/0.parquet"]}),
        ("en", "train[:5]", {"train": ["en/train/0.parquet", "en/train/1.parquet"]}),
        ("en", "test", {"test": ["en/partial-test/0.parquet"]}),
        ("de", "all", {"train": ["de/train/0.parquet"]}),
    ],
)
def test_only_the_files_of_the_configuration_and_split_are_taken(config, split, chosen):
    assert choose_converted("a/b", FILES, config=config, split=split) == chosen


def test_one_of_several_configurations_must_be_named():
    with pytest.raises(DataError, match="configuration of 'a/b' must be one of de, en, got none; .* a/b:de"):
        choose_converted("a/b", FILES, config=None, split="train")
    assert choose_converted("a/b", FILES[3:], config=None, split="train") == {"train": ["de/train/0.parquet"]}


def test_a_librarys_message_is_cut_to_one_line_without_the_token():
    error = RuntimeError("outer")
    error.__cause__ = OSError(f"bad header {SECRET}" + "x" * 1000 + "\nsecond line")
    message = str(explain(error, "a/b", SECRET))
    assert "OSError: bad header ***xxx" in message and "second line" not in message and len(message) < 300


def test_a_librarys_error_is_not_chained_because_it_may_quote_the_token():
    with pytest.raises(DataError) as raised, data_errors_explained("a/b", SECRET):
        raise OSError(SECRET)
    assert raised.value.__suppress_context__ and raised.value.__cause__ is None


def test_an_unreachable_hub_is_told_from_offline_mode(monkeypatch):
    for offline, reason in {True: "HF_HUB_OFFLINE is set", False: "cannot be reached"}.items():
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        assert reason in str(explain(ConnectionError("no route"), "a/b", None))
