"""A GGUF file's header is read quickly, and to the same values as by the package gguf."""

from pathlib import Path

import pytest

from sae.lm.gguf import read_quickly

gguf = pytest.importorskip("gguf")

WORDS = [f"word {n}" for n in range(500)] + ["", "naïve", "日本", "\n\x00"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("gguf") / "header.gguf", gguf.GGUFEndian.LITTLE)


def written(path: Path, order: object) -> Path:
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    writer.add_name("a model")
    writer.add_token_list(WORDS)
    writer.add_token_types([n % 7 for n in range(500)])
    writer.add_array("numbers.floats", [0.5, -3.25, 1e30])
    writer.add_array("numbers.flags", [True, False, True])
    writer.add_array("numbers.one", [7])
    writer.add_block_count(3)
    writer.add_layer_norm_rms_eps(1e-5)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return path


def values(path: Path) -> dict[str, object]:
    """What transformers makes of all fields."""
    from transformers.modeling_gguf_pytorch_utils import read_field

    reader = gguf.GGUFReader(path)
    return {name: read_field(reader, name) for name in reader.fields}


def test_every_field_is_what_the_package_reads(file: Path) -> None:
    plain = values(file)
    with read_quickly():
        assert values(file) == plain
    assert plain["tokenizer.ggml.tokens"] == WORDS and plain["numbers.floats"][1] == -3.25


def test_a_file_of_the_other_byte_order_is_read_as_before(tmp_path: Path) -> None:
    path = written(tmp_path / "big.gguf", gguf.GGUFEndian.BIG)
    plain = values(path)
    with read_quickly():
        assert values(path) == plain


def test_the_work_does_not_grow_with_the_vocabulary_word_by_word(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    plain = gguf.GGUFReader._get

    def counted(self: object, *args: object, **kwargs: object) -> object:
        looks.append(1)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(gguf.GGUFReader, "_get", counted)
    with read_quickly():
        gguf.GGUFReader(file)
    assert 0 < len(looks) < len(WORDS)


def test_names_of_weights_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(gguf, "get_tensor_name_map", lambda arch, blocks: made.append(blocks) or {})
    with read_quickly():
        for _ in range(5):
            gguf.get_tensor_name_map("llama", 3)
    assert made == [3]


def test_the_package_is_as_before_also_after_an_error() -> None:
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with pytest.raises(ZeroDivisionError), read_quickly(), read_quickly():
        assert gguf.GGUFReader is not before[0]
        raise ZeroDivisionError
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_a_file_that_ends_anywhere_in_its_lists_is_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (300, 3000, whole.rindex(b"numbers.flags") + 30):
        cut.write_bytes(whole[:size])
        with read_quickly(), pytest.raises((ValueError, IndexError)):
            gguf.GGUFReader(cut)


@pytest.mark.parametrize("word", [b"tokenizer.ggml.tokens", b"tokenizer.ggml.token_type", b"numbers.floats"])
def test_a_list_that_says_it_is_huge_is_refused_at_once(file: Path, tmp_path: Path, word: bytes) -> None:
    content = bytearray(file.read_bytes())
    at = content.index(word) + len(word) + 8  # behind the field's type and the values'
    content[at : at + 8] = (2**60).to_bytes(8, "little")
    huge = tmp_path / "huge.gguf"
    huge.write_bytes(content)
    with read_quickly(), pytest.raises(ValueError, match="ends in its header, in a list of 1,152,921,504,606,846,976"):
        gguf.GGUFReader(huge)
