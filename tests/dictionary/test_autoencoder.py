"""The autoencoder as a user holds it: any leading shape, any type, differentiable, and what the formula says."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from default_types import default_dtype
from oracle import dense_code, make_sae

from sae import Sae, SaeConfig
from sae.dictionary.losses import VarianceSums, fvu

SHAPES = [(48,), (1, 48), (37, 48), (2, 5, 48), (2, 3, 4, 48), (0, 48), (3, 0, 48)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_leading_shape_gives_the_published_formula(shape: tuple[int, ...]) -> None:
    sae, x = make_sae(), torch.randn(shape, dtype=torch.float64)
    out = sae(x)
    dense = dense_code(x, sae.encoder.weight, sae.encoder.bias, sae.b_dec, 5)
    torch.testing.assert_close(out.recon, dense @ sae.W_dec + sae.b_dec)
    assert out.top_acts.shape == out.top_indices.shape == (*shape[:-1], 5)
    torch.testing.assert_close(torch.zeros_like(dense).scatter(-1, out.top_indices, out.top_acts), dense)


def test_forward_backpropagates_to_the_input_and_every_parameter() -> None:
    sae, x = make_sae(), torch.randn(2, 5, 48, dtype=torch.float64, requires_grad=True)
    leaves = [x, sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec]
    code = dense_code(x, sae.encoder.weight, sae.encoder.bias, sae.b_dec, 5)
    expected = torch.autograd.grad((code @ sae.W_dec + sae.b_dec).sin().sum(), leaves)
    for one, other in zip(torch.autograd.grad(sae(x).recon.sin().sum(), leaves), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_fvu_of_forward_is_the_definition_and_differentiable() -> None:
    sae, x = make_sae(), torch.randn(37, 48, dtype=torch.float64) + 3
    out = sae(x)
    torch.testing.assert_close(out.fvu, (x - out.recon).square().sum() / (x - x.mean(0)).square().sum())
    out.fvu.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in sae.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_activations_of_any_type_are_accepted(dtype: torch.dtype) -> None:
    sae, x = make_sae(dtype=torch.float32), torch.randn(37, 48).to(dtype)
    torch.testing.assert_close(sae(x).recon, sae(x.float()).recon)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_an_autoencoder_of_any_type_encodes_and_backpropagates(dtype: torch.dtype) -> None:
    sae, x = make_sae(dtype=torch.float32).to(dtype), torch.randn(64, 48)
    out = sae(x)
    assert out.recon.dtype == dtype
    out.recon.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in sae.parameters())


def test_new_weights_are_tied_unit_rows_and_depend_on_the_seed_alone() -> None:
    one, two = (Sae(48, SaeConfig(k=4), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert one.num_latents == 48 * 32
    assert torch.equal(one.encoder.weight, one.W_dec) and torch.equal(one.W_dec, two.W_dec)
    torch.testing.assert_close(one.W_dec.norm(dim=1), torch.ones(one.num_latents))


def test_permuting_latents_leaves_the_reconstruction_alone() -> None:
    sae, x, order = make_sae(), torch.randn(37, 48, dtype=torch.float64), torch.randperm(96)
    before = sae(x).recon
    with torch.no_grad():
        for parameter in (sae.encoder.weight, sae.encoder.bias, sae.W_dec):
            parameter.copy_(parameter[order].clone())
    torch.testing.assert_close(sae(x).recon, before)


def test_a_selected_latent_with_value_zero_passes_no_gradient() -> None:
    sae, x = make_sae(), torch.randn(37, 48, dtype=torch.float64)
    with torch.no_grad():
        sae.encoder.bias.fill_(-1000.0)
    out = sae(x)
    assert out.top_acts.max() == 0 and torch.equal(out.recon, sae.b_dec.expand(37, 48))
    out.recon.square().sum().backward()
    assert sae.encoder.weight.grad is not None and sae.encoder.weight.grad.abs().max() == 0


def test_the_wrong_width_is_refused_with_both_widths() -> None:
    with pytest.raises(ValueError, match=r"d_in=48 wide, got shape \(3, 47\)"):
        make_sae().encode(torch.zeros(3, 47, dtype=torch.float64))


def test_fvu_agrees_with_merged_sums() -> None:
    sae, x = make_sae(), torch.randn(37, 48, dtype=torch.float64)
    parts = [x[:10], x[10:]]
    error = torch.stack([(p - sae(p).recon).square().sum() for p in parts]).sum()
    variance = VarianceSums.of(parts[0]).merge(VarianceSums.of(parts[1])).total_variance()
    torch.testing.assert_close(fvu(error, variance), sae(x).fvu)


@pytest.mark.parametrize("d_in", [32, 5])
def test_the_parts_of_an_autoencoder_begin_as_the_whole(d_in: int) -> None:
    cfg = SaeConfig(num_latents=24, k=4)
    whole = Sae(d_in, cfg, generator=torch.Generator().manual_seed(3))
    parts = [Sae(d_in, cfg, generator=torch.Generator().manual_seed(3), part=part, parts=3) for part in range(3)]
    for name in ("W_dec", "encoder.weight", "encoder.bias"):
        assert torch.equal(torch.cat([part.state_dict()[name] for part in parts]), whole.state_dict()[name])


def test_parts_must_be_equal_and_hold_k_latents() -> None:
    for parts in (5, 12):
        with pytest.raises(ValueError, match=f"shard_latents must divide num_latents=24 .* k=4, got {parts}"):
            Sae(8, SaeConfig(num_latents=24, k=4), parts=parts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fvu_of_a_dictionary_in_half_precision_is_that_of_what_it_reconstructs(dtype: torch.dtype) -> None:
    sae, x = make_sae(dtype=torch.float32).to(dtype), 300 * torch.randn(500, 48)
    out = sae(x)
    assert out.recon.dtype == dtype and out.fvu.dtype == torch.float32
    expected = (x - out.recon.float()).square().sum() / (x - x.mean(0)).square().sum()
    torch.testing.assert_close(out.fvu, expected)


def test_fvu_is_exact_where_b_dec_is_far_from_the_mean_and_infinite_without_variance() -> None:
    sae = make_sae(dtype=torch.float32)
    with torch.no_grad():
        sae.b_dec.fill_(1e3)
    x = 0.01 * torch.randn(37, 48)
    out = sae(x)
    exact = (x - out.recon).double().square().sum() / (x.double() - x.double().mean(0)).square().sum()
    torch.testing.assert_close(out.fvu.double(), exact, rtol=1e-4, atol=0)
    assert sae(x[:1]).fvu == sae(x[:1].expand(9, 48)).fvu == torch.inf


def test_a_token_without_latents_is_b_dec() -> None:
    sae = make_sae()
    nothing = torch.zeros(2, 5, 0, dtype=torch.float64)
    assert torch.equal(sae.decode(nothing, nothing.long()), sae.b_dec.expand(2, 5, -1))


# What a program has set around


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "bfloat16": partial(default_dtype, torch.bfloat16),
    "float64": partial(default_dtype, torch.float64),
    "device": partial(torch.device, "meta"),
    "autocast": partial(torch.autocast, "cpu", dtype=torch.bfloat16),
    "inference": torch.inference_mode,
}
MEMBERS = {
    "topk": SaeConfig(num_latents=96, k=4),
    "batchtopk": SaeConfig(num_latents=96, k=4, selection="batchtopk"),
    "transcoder": SaeConfig(num_latents=96, k=4, transcode=True),
    "skip": SaeConfig(num_latents=96, k=4, transcode=True, skip_connection=True),
}
FORMATS = ("eleuther", "saelens", "dictionary-learning", "gemma-scope-2", "llamascopium")


def drawn(cfg: SaeConfig) -> Sae:
    return Sae(48, cfg, d_out=20 if cfg.transcode else None, generator=torch.Generator().manual_seed(3))


def whole(sae: Sae) -> dict[str, tuple[torch.dtype, str, bytes]]:
    """Types, devices and bits."""
    return {name: (t.dtype, t.device.type, t.numpy().tobytes()) for name, t in sae.state_dict().items()}


def trained(cfg: SaeConfig) -> Sae:
    """One whose every parameter is something else than at the start."""
    sae, generator = drawn(cfg), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        if sae.threshold is not None:
            sae.threshold.fill_(0.5)
    return sae


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("cfg", MEMBERS.values(), ids=MEMBERS)
def test_what_a_program_has_set_around_changes_no_dictionary(
    tmp_path: Path, cfg: SaeConfig, around: Callable[[], AbstractContextManager[Any]]
) -> None:
    """Default type and device, autocast and inference mode: drawn, used, written and read it has the same bits."""
    sae, x = trained(cfg), torch.randn(7, 48)
    expected, fresh = sae(x), whole(drawn(cfg))
    with around():
        found, new = sae(x), drawn(cfg)
    assert whole(new) == fresh
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
    for name in FORMATS:
        try:
            sae.save_to_disk(tmp_path / "as-usual" / name, format=name)
        except ValueError:  # what the format cannot say
            continue
        with around():
            sae.save_to_disk(tmp_path / "around" / name, format=name)
            read = Sae.load_from_disk(tmp_path / "around" / name)
        assert whole(read) == whole(Sae.load_from_disk(tmp_path / "as-usual" / name)), name
        read(x).recon.sum().backward()  # also of what was read in inference mode
