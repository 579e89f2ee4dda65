"""What can be chosen, and what each wrong choice is told: the name, the rule, the value, the way out."""

import math
from dataclasses import asdict, fields
from typing import Any

import pytest

from sae import RunConfig, SaeConfig, TrainConfig

POSITIVE = ("batch_size", "grad_acc_steps", "micro_acc_steps", "layer_stride", "dead_feature_threshold", "save_every",
            "log_every", "lr", "max_tokens", "steps_per_batch")  # fmt: skip
NOT_NEGATIVE = ("lr_warmup_steps", "auxk_alpha")
MAY_BE_NONE = ("lr", "max_tokens", "steps_per_batch", "lr_warmup_steps", "dead_feature_threshold")


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", [0, -1])
def test_amounts_are_positive(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be greater than 0, got {value}; set --{name} to a positive"):
        TrainConfig(**{name: value})
    assert getattr(TrainConfig(**{name: 1}), name) == 1


@pytest.mark.parametrize("name", NOT_NEGATIVE)
def test_weights_and_warm_up_may_be_0_and_not_less(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be 0 or more, got -1; leave --{name} out"):
        TrainConfig(**{name: -1})
    assert getattr(TrainConfig(**{name: 0}), name) == 0


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 2**63), ("seed", [1, -(2**63)]), ("dead_feature_threshold", 10**30)]
)
def test_numbers_that_pytorch_is_given_have_64_bits(name: str, value: int | list[int]) -> None:
    with pytest.raises(
        ValueError, match=f"{name} must be a number of 64 bits, got -?\\d+; give --{name} a smaller one"
    ):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("name", ["lr", "auxk_alpha"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_are_finite(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("name", MAY_BE_NONE)
def test_none_leaves_it_to_be_derived(name: str) -> None:
    assert getattr(TrainConfig(**{name: None}), name) is None


@pytest.mark.parametrize("name", ["layers", "exclude_tokens", "exclude_positions"])
def test_indices_count_from_0(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be 0 or more, got -2; count from the start, from 0"):
        TrainConfig(**{name: [3, -2, 0]})
    assert getattr(TrainConfig(**{name: [3, 0]}), name) == [3, 0]


@pytest.mark.parametrize("loss_fn", ["kl", "ce"])
def test_losses_of_the_whole_model_take_whole_sequences(loss_fn: str) -> None:
    assert TrainConfig(loss_fn=loss_fn, steps_per_batch=1).steps_per_batch == 1
    with pytest.raises(ValueError, match=f"steps_per_batch must be 1 with --loss_fn {loss_fn}, .*, got 2; leave it"):
        TrainConfig(loss_fn=loss_fn, steps_per_batch=2)


@pytest.mark.parametrize(
    "choice",
    [
        {"layers": [0], "layer_stride": 2},
        {"layers": [0], "hookpoints": ["layers.0"]},
        {"hookpoints": ["layers.0"], "layer_stride": 2},
    ],
)
def test_there_is_one_way_at_a_time_to_choose_where_to_train(choice: dict[str, Any]) -> None:
    first, second = sorted(choice, key=["hookpoints", "layers", "layer_stride"].index)
    with pytest.raises(ValueError, match=f"--{first} and --{second} both choose where to train; give one of them"):
        TrainConfig(**choice)
    for name, value in choice.items():
        TrainConfig(**{name: value})


@pytest.mark.parametrize("name", ["mine", "a/b", "2024-01-01", "run.1", "läufe", ".hidden"])
def test_a_run_name_is_a_path_inside_save_dir(name: str) -> None:
    assert TrainConfig(run_name=name).run_name == name


@pytest.mark.parametrize("name", ["", "/a", "..", "../a", "a/../b", "a//b", ".", "a/", "c:/a", "..\\a", "\\a"])
def test_a_run_name_does_not_lead_out_of_save_dir(name: str) -> None:
    with pytest.raises(ValueError, match="run_name must be a path inside save_dir, got .*--save_dir"):
        TrainConfig(run_name=name)


@pytest.mark.parametrize("name", ["k", "expansion_factor"])
@pytest.mark.parametrize("value", [0, -3])
def test_sizes_of_an_autoencoder_are_positive(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be greater than 0, got {value}"):
        SaeConfig(**{name: value})


@pytest.mark.parametrize("name", ["d_in", "num_latents"])
def test_a_size_of_0_is_derived_and_less_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be 0 or more, got -1; leave {name} out to have it derived"):
        SaeConfig(**{name: -1})
    assert getattr(SaeConfig(), name) == 0


def test_the_first_field_is_the_width_of_the_activations() -> None:
    """`SaeConfig(gpt.config.hidden_size)`, as the seed has it: a later library read an expansion factor there."""
    assert fields(SaeConfig)[0].name == "d_in"
    assert SaeConfig(768).latents_for(768) == 768 * 32


def test_the_number_of_latents_is_given_or_derived_from_the_width() -> None:
    assert SaeConfig(expansion_factor=4).latents_for(48) == 192
    assert SaeConfig(num_latents=100, expansion_factor=4).latents_for(48) == 100
    with pytest.raises(ValueError, match="d_in must be the width of the activations, 48, got 32; leave d_in out"):
        SaeConfig(32).latents_for(48)


@pytest.mark.parametrize("cfg", [{"num_latents": 31}, {"d_in": 2, "expansion_factor": 15}])
def test_more_latents_are_kept_than_there_are_is_found_as_soon_as_it_is_known(cfg: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"k must be between 1 and num_latents=3\d, got 32; lower --k or raise"):
        SaeConfig(**cfg)
    with pytest.raises(ValueError, match="between 1 and num_latents=8, got 9"):
        SaeConfig(k=9, expansion_factor=1).latents_for(8)
    assert SaeConfig(k=8, expansion_factor=1).latents_for(8) == 8


@pytest.mark.parametrize(("name", "value"), [("ctx_len", 0), ("data_preprocessing_num_proc", 0)])
def test_amounts_of_a_run_are_positive(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be greater than 0, got {value}"):
        RunConfig(**{name: value})


def test_a_stream_needs_an_end() -> None:
    with pytest.raises(ValueError, match="--streaming has no end .* give --max_tokens"):
        RunConfig(streaming=True)
    assert RunConfig(streaming=True, max_tokens=1).streaming


def test_every_message_is_one_line() -> None:
    for wrong in ({"batch_size": 0}, {"lr": math.inf}, {"run_name": ".."}, {"layers": [-1]}):
        with pytest.raises(ValueError) as refused:
            RunConfig(**wrong)
        assert "\n" not in str(refused.value)


def test_no_default_is_shared_between_two_configurations() -> None:
    one, other = TrainConfig(), TrainConfig()
    one.layers.append(1)
    one.sae.k = 1
    assert (other.layers, other.sae.k) == ([], 32)


def test_a_configuration_is_plain_data_that_makes_itself_again() -> None:
    cfg = RunConfig(sae=SaeConfig(k=5), layers=[1], lr=1e-3)
    data = asdict(cfg)
    assert RunConfig(**data | {"sae": SaeConfig(**data["sae"])}) == cfg


def test_the_token_does_not_show() -> None:
    assert "secret" not in repr(RunConfig(hf_token="secret"))


def test_the_seeds_call_reads_as_written() -> None:
    cfg = TrainConfig(SaeConfig(512), batch_size=16)
    assert (cfg.sae.d_in, cfg.batch_size, cfg.sae.k, cfg.sae.expansion_factor) == (512, 16, 32, 32)


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_some_steps_follow_those_that_reconstruct_first(share: float) -> None:
    assert TrainConfig(loss_fn="kl", reconstruct_first=0.0).reconstruct_first == 0
    with pytest.raises(ValueError, match=f"reconstruct_first must be 0 or more, and below 1, got {share}; leave it"):
        TrainConfig(loss_fn="kl", reconstruct_first=share)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "goes with --loss_fn kl or ce, got 0.5 with loss_fn fvu; leave out one of them"),
        ({"loss_fn": "kl", "finetune": "run"}, "goes with new dictionaries, got 0.5 with finetune; leave out one"),
    ],
)
def test_only_new_dictionaries_that_are_trained_end_to_end_reconstruct_first(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"reconstruct_first {message}"):
        TrainConfig(reconstruct_first=0.5, **options)


def test_one_seed_starts_from_weights_that_are_there() -> None:
    assert TrainConfig(finetune="run", seed=[3]).seed == [3]
    with pytest.raises(ValueError, match=r"seed must be one with finetune, .*, got 1 2; give one, or leave out"):
        TrainConfig(finetune="run", seed=[1, 2])


@pytest.mark.parametrize("loss_fn", ["ce", "kl"])
def test_candidates_in_8_bits_go_with_sparse_gradients_only(loss_fn: Any) -> None:
    with pytest.raises(ValueError, match=f"encode_in_8bit goes with --loss_fn fvu, .*got '{loss_fn}'; leave out one"):
        TrainConfig(loss_fn=loss_fn, encode_in_8bit=True)
