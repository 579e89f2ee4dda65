"""Indexes of dictionaries that write several hookpoints: crosscoders, cross-layer transcoders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import needs_chromium
from command_inputs import text
from served import Served
from tiny_index import tokens
from tiny_models import VOCAB_SIZE, save_tiny, tiny_model, tiny_tokenizer
from torch import Tensor

import sae.__main__
from sae import Sae, SaeConfig, lm
from sae.browser import Index
from sae.browser.collect import collect
from sae.browser.live import LiveModel
from sae.browser.neuronpedia import write as write_neuronpedia
from sae.browser.notes import Notes
from sae.browser.reading import LiveText
from sae.browser.reads import reads_of
from sae.browser.steering import Loaded, read, steer
from sae.data.tokens import SampledSequences
from sae.dictionary.autoencoder import Encoded
from sae.dictionary.cross_layer import Together, members
from sae.dictionary.spec import Spec
from sae.evaluation.relative_norms import relative_norms

LAYERS = ("layers.0", "layers.2")
MLPS = ("layers.0.mlp", "layers.1.mlp", "layers.2.mlp")
PLACES = ("a:layers.0", "a:layers.2", "b:layers.0", "b:layers.2")
LATENTS, K = 90, 5


def moved(sae: Sae, seed: int) -> Sae:
    """In general position: scales, decoder, biases and factors differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        if sae.scale is not None:
            sae.scale.copy_(torch.linspace(0.5, 2, len(sae.scale)))
        if sae.layer_scale is not None:
            sae.layer_scale[0] = 1
    return sae


def crosscoder(places: tuple[str, ...]) -> dict[str, Sae]:
    d = 32 * len(places)
    cfg = SaeConfig(num_latents=LATENTS, k=K, crosscode=True)
    spec = Spec(cfg, d, d, LATENTS, writes=places, widths=(32,) * len(places))
    return {"crosscoder": moved(Sae(d, cfg, spec=spec), 1)}


def cross_layer(ties: Any) -> dict[str, Sae]:
    found = {}
    for index, name in enumerate(MLPS):
        cfg = SaeConfig(num_latents=LATENTS, k=K, cross_layer=True, tie_decoders=ties or False)
        writes = MLPS[index:]
        known = () if ties else (32,) * len(writes)
        d_out = 32 if ties else 32 * len(writes)
        spec = Spec(cfg, 32, d_out, LATENTS, writes=writes, reads=(f"{name}.input",), widths=known)
        found[name] = moved(Sae(32, cfg, d_out=d_out, spec=spec), index)
    return found


def model_of(places: tuple[str, ...] = LAYERS) -> Any:
    one = tiny_model("gpt_neox", causal_lm=True)
    return lm.ModelPair(one, tiny_model("gpt_neox", seed=1, causal_lm=True)) if places is PLACES else one


def index_of(folder: Path, model: Any, dictionaries: dict[str, Sae]) -> Index:
    sample = SampledSequences(tokens(), None, 4, seed=0)
    texts = lm.token_texts(tiny_tokenizer(), VOCAB_SIZE)
    collect(folder, LiveText(model, sample), reads_of(dictionaries), texts, model=model, about={"model": "tiny"})
    return Index.open(folder)


def events_of(index: Index, name: str) -> np.ndarray:
    """(tokens, latents): what the index holds."""
    code = np.zeros((index.num_tokens, LATENTS))
    for latent in index[name]:
        positions, values = latent.activations()
        code[positions, latent.index] = values
    return code


def dense(sae: Sae, x: Tensor) -> np.ndarray:
    """(tokens, latents) in float64, by the formula."""
    x = x.double() if sae.scale is None or sae.reads_input else x.double() * sae.scale.double()
    pre = (x if sae.reads_input else x - sae.b_dec.double()) @ sae.encoder.weight.double().T + sae.encoder.bias.double()
    top = pre.relu().topk(K, dim=1)
    found: np.ndarray = torch.zeros_like(pre).scatter_(1, top.indices, top.values).detach().numpy()
    return found


def check_promoted(index: Index, name: str, written: Tensor, head: Tensor) -> None:
    """`promotes` and `suppresses` are the extremes of what each latent writes (latents, d), seen by this head."""
    effects = written.detach().double() @ head.double().T
    for latent in index[name]:
        own = effects[latent.index]
        for found, expected in ((latent.promotes, own.topk(10)), (latent.suppresses, (-own).topk(10))):
            values = [each.logit for each in found]
            assert np.allclose(np.abs(values), expected.values.abs(), rtol=0.02, atol=0.02)
            assert np.allclose([float(own[each.id]) for each in found], values, rtol=0.02, atol=0.02)


def head_of(model: Any) -> Tensor:
    return lm.find_unembedding(model).matrix(torch.device("cpu"))


def one_hot(latent: int | None) -> Encoded:
    return Encoded(torch.tensor([[0.0 if latent is None else 1.0]]), torch.tensor([[latent or 0]]))


@pytest.mark.parametrize("places", [LAYERS, PLACES], ids=["one model", "two models"])
def test_a_crosscoder_is_indexed_by_its_code_of_all_hookpoints(tmp_path: Path, places: tuple[str, ...]) -> None:
    model, dictionaries = model_of(places), crosscoder(places)
    sae, index = dictionaries["crosscoder"], index_of(tmp_path, model, dictionaries)
    batches = list(SampledSequences(tokens(), None, 4, seed=0))
    x = torch.cat([torch.cat(list(lm.harvest(model, b, list(places)).values()), -1).flatten(0, 1) for b in batches])
    exact, found = dense(sae, x), events_of(index, "crosscoder")
    assert ((found > 0) == (exact > 0)).mean() > 0.999
    assert np.allclose(found, exact, rtol=2e-3, atol=1e-3)
    place = index["crosscoder"]
    assert place.header.ends == list(places) and place.header.path == "direct"
    assert np.allclose(place.relative_norms, relative_norms(sae).T, atol=1e-6)
    assert place[7].relative_norms == pytest.approx(dict(zip(places, relative_norms(sae)[:, 7].tolist(), strict=True)))
    assert place.last_share == pytest.approx(place.relative_norms[:, len(places) // 2 :].sum(1))


def test_the_effect_of_a_crosscoder_is_that_of_its_last_hookpoint(tmp_path: Path) -> None:
    model, dictionaries = model_of(), crosscoder(LAYERS)
    sae, index = dictionaries["crosscoder"], index_of(tmp_path, model, dictionaries)
    nothing = sae.decode(*one_hot(None))
    written = torch.cat([sae.decode(*one_hot(latent)) - nothing for latent in range(LATENTS)])
    check_promoted(index, "crosscoder", written[:, 32:], head_of(model))


def test_of_two_models_the_effect_is_in_that_where_a_latent_has_more(tmp_path: Path) -> None:
    model, dictionaries = model_of(PLACES), crosscoder(PLACES)
    sae = dictionaries["crosscoder"]
    with torch.no_grad():
        sae.W_dec[:40, :64] = 0  # b alone
        sae.W_dec[40:, 64:] *= 0.1
    index = index_of(tmp_path, model, dictionaries)
    nothing = sae.decode(*one_hot(None))
    written = torch.cat([sae.decode(*one_hot(latent)) - nothing for latent in range(LATENTS)]).detach()
    heads = [head_of(one).double() for one in (model.a, model.b)]
    for latent in (0, 39, 40, 89):
        own = written[latent, 96:] if latent < 40 else written[latent, 32:64]
        effects = own.double() @ heads[latent < 40].T
        (best, *_) = index["crosscoder"][latent].promotes
        assert best.logit == pytest.approx(effects.max().item(), rel=0.02, abs=0.02)
    assert (index["crosscoder"].last_share[:40] > 0.999).all() and (index["crosscoder"].last_share[40:] < 0.5).all()


@pytest.mark.parametrize("ties", ["", "source", "target"])
def test_a_cross_layer_transcoder_is_indexed_by_layer_with_all_that_it_writes(tmp_path: Path, ties: str) -> None:
    model, dictionaries = model_of(), cross_layer(ties)
    index = index_of(tmp_path, model, dictionaries)
    assert list(index) == list(MLPS)
    (whole,) = members(dictionaries).values()
    together, xs = Together.whole(whole), [torch.zeros(1, 32)] * 3
    for at, name in enumerate(MLPS):
        batches = list(SampledSequences(tokens(), None, 4, seed=0))
        x = torch.cat([lm.harvest(model, b, [f"{name}.input"])[f"{name}.input"].flatten(0, 1) for b in batches])
        assert np.allclose(events_of(index, name), dense(dictionaries[name], x), rtol=2e-3, atol=1e-3)

        def of(latent: int | None, at: int = at) -> Tensor:
            return together._decoded([one_hot(latent if each == at else None) for each in range(3)], xs)

        written = torch.cat([of(latent) - of(None) for latent in range(LATENTS)]).view(LATENTS, 3, 32)
        check_promoted(index, name, written.sum(1), head_of(model))
        assert index[name].header.ends == (list(MLPS[at:]) if at < 2 else [])
        if ties and at < 2:
            norms = written[:, at:].norm(dim=2)
            assert np.allclose(index[name].relative_norms, (norms / norms.sum(1, keepdim=True)).detach(), atol=1e-5)


def test_shared_decoders_must_all_be_there_and_a_crosscoder_must_say_its_hookpoints() -> None:
    with pytest.raises(ValueError, match="must be whole"):
        reads_of({MLPS[1]: cross_layer("target")[MLPS[1]]})
    assert [end.hookpoint for end in reads_of({MLPS[1]: cross_layer("")[MLPS[1]]})[MLPS[1]].ends] == list(MLPS[1:])
    cfg = SaeConfig(num_latents=LATENTS, k=K, crosscode=True)
    with pytest.raises(ValueError, match="crosscoder x must know its hookpoints to be shown"):
        reads_of({"x": Sae(64, cfg)})


def test_a_text_is_read_and_a_crosscoder_says_why_it_does_not_steer() -> None:
    model, dictionaries = model_of(PLACES), crosscoder(PLACES)
    loaded = Loaded(model, tiny_tokenizer(), reads_of(dictionaries))
    found = read(loaded, "the quick brown fox", "crosscoder")
    assert len(found["latents"]) == len(found["ids"]) and all(0 < len(each) <= K for each in found["latents"])
    with pytest.raises(ValueError, match="the crosscoder crosscoder say what 4 hookpoints hold"):
        steer(loaded, "the quick", "crosscoder", [{"latent": 1, "strength": 2.0}], np.ones(LATENTS), 3)


@pytest.mark.parametrize("ties", ["", "source", "target"])
def test_steering_a_latent_of_a_cross_layer_transcoder_adds_to_all_that_it_writes(ties: str) -> None:
    model, dictionaries = model_of(), cross_layer(ties)
    loaded = Loaded(model, tiny_tokenizer(), reads_of(dictionaries))
    latent, name, maxima = 11, MLPS[0], np.full(LATENTS, 1.5)
    found = steer(loaded, "the quick brown fox", name, [{"latent": latent, "strength": 2.0}], maxima, 3)
    (whole,) = members(dictionaries).values()
    together, xs = Together.whole(whole), [torch.zeros(1, 32)] * 3
    codes = [[one_hot(each if at == 0 else None) for at in range(3)] for each in (latent, None)]
    written = (together._decoded(codes[0], xs) - together._decoded(codes[1], xs)).view(3, 32)
    ids = torch.tensor([found["ids"]])
    with torch.no_grad():
        clean = model(ids).logits[0].log_softmax(-1)
        handles = [
            lm.locate(model, mlp).module.register_forward_hook(lambda m, a, out, row=row: out + 3.0 * row)
            for mlp, row in zip(MLPS, written, strict=True)
        ]
        moved = model(ids).logits[0].log_softmax(-1)
        for handle in handles:
            handle.remove()
    kl = (clean.exp() * (clean - moved)).sum(-1)
    assert found["kl"] == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-6) and kl.max() > 1e-3
    ablated = steer(loaded, "the quick brown fox", name, [{"latent": latent, "strength": None}], maxima, 3)
    fires = any(
        latent == each for of_token in read(loaded, "the quick brown fox", name)["latents"] for each, _ in of_token
    )
    assert (max(ablated["kl"]) > 1e-9) == fires


TRAINING = ["--ctx_len", "16", "--batch_size", "4", "--max_tokens", "512", "--num_latents", "64", "--k", "4"]
TRAINING += ["--no_log_to_wandb", "--device", "cpu"]
KINDS = {
    "crosscoder": ["--crosscode", "--layers", "0", "2"],
    "pair": ["--crosscode", "--layers", "1", "--model_b", "other"],
    "cross-layer": ["--cross_layer", "--hookpoints", "layers.*.mlp", "--tie_decoders", "target"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_shows_each_kind_and_opens_its_index_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sae.report.training.draw_curves", lambda records, path: None)
    model, data = text(tmp_path)
    if kind == "pair":
        save_tiny(tmp_path / "other", "gpt_neox", seed=1)
    assert sae.__main__.main([model, data, *TRAINING, *KINDS[kind], "--save_dir", "runs", "--run_name", "r"]) == 0
    command = ["browse", "runs/r", "--export", "site", "--no_browser", "--device", "cpu"]
    assert sae.__main__.main(command) == 0
    (made,) = (path.parent for path in Path("runs/r/browse").glob("*/manifest.json"))
    index, before = Index.open("runs/r"), made.stat().st_mtime_ns
    expected = list(MLPS) if kind == "cross-layer" else ["crosscoder"]
    assert list(index) == expected and all(place.events > 0 for place in index.places.values())
    assert "relative_norms" in next(iter(index.places.values()))._files
    assert (Path("site") / "index.html").is_file()
    write_neuronpedia(index, tmp_path / "neuronpedia", Notes(tmp_path / "notes.json"), [])
    capsys.readouterr()
    assert sae.__main__.main([*command[:3], "again", *command[4:]]) == 0
    assert made.stat().st_mtime_ns == before and "reading" not in capsys.readouterr().err


@pytest.mark.browser
@needs_chromium
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_page_says_where_a_latent_writes_and_sorts_by_it(tmp_path: Path, chromium: Any) -> None:
    model, dictionaries = model_of(PLACES), crosscoder(PLACES)
    index = index_of(tmp_path / "index", model, dictionaries)
    loaded = Loaded(model, tiny_tokenizer(), reads_of(dictionaries))
    live = LiveModel(lambda: loaded, lambda name: index[name].column("max"))
    server, problems = Served(index, tmp_path / "notes.json", live), []
    tab = chromium.new_context(viewport={"width": 1280, "height": 900}).new_page()
    tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    try:
        tab.goto(f"http://127.0.0.1:{server.port}/")
        tab.get_by_role("button", name="In b").click()
        alive = np.flatnonzero(index["crosscoder"].column("count"))
        most = int(alive[index["crosscoder"].last_share[alive].argmax()])
        tab.locator(f'a.line[href="#/0/{most}"]').wait_for()
        tab.locator("a.line").first.click()
        tab.get_by_text("Where it writes").wait_for()
        assert tab.locator("meter").count() == 4 and tab.url.endswith(f"#/0/{most}")
        shares = [float(each.get_attribute("value")) for each in tab.locator("meter").all()]
        assert shares == pytest.approx(index["crosscoder"].relative_norms[most], rel=1e-3)
        tab.goto(f"http://127.0.0.1:{server.port}/#/0/try")
        tab.get_by_label("text").fill("the quick brown fox")
        tab.get_by_text("Show latents").click()
        tab.get_by_text("The strongest latent of each token").wait_for()
        assert tab.get_by_text("Steer: add").count() == 0 and tab.get_by_text("and not be steered").count() == 1
    finally:
        server.close()
    assert not problems


def test_a_cache_of_two_models_is_indexed_where_both_lie_elsewhere_by_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sae.report.training.draw_curves", lambda records, path: None)
    model, data = text(tmp_path)
    save_tiny(tmp_path / "other", "gpt_neox", seed=1)
    reading = ["--ctx_len", "16", "--batch_size", "4", "--layers", "1", "--max_tokens", "512", "--device", "cpu"]
    assert sae.__main__.main(["cache", model, data, *reading, "--model_b", "other", "--activations", "cache"]) == 0
    train = ["--activations", "cache", "--crosscode", "--num_latents", "64", "--k", "4", "--batch_size", "4"]
    train += ["--no_log_to_wandb", "--device", "cpu", "--save_dir", "runs", "--run_name", "r"]
    assert sae.__main__.main(train) == 0
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("model", "other"):
        (tmp_path / name).rename(moved / name)
    command = ["browse", "runs/r", "moved/model", "--model_b", "moved/other", "--activations", "cache"]
    assert sae.__main__.main([*command, "--export", "site", "--no_browser", "--device", "cpu"]) == 0
    index = Index.open("runs/r")
    assert index["crosscoder"].header.ends == ["a:layers.1", "b:layers.1"] and index["crosscoder"][0].promotes
    capsys.readouterr()
    command[4] = "moved/model"
    assert sae.__main__.main([*command, "--export", "again", "--no_browser", "--device", "cpu"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    write = ["browse", "runs/r", "moved/model", "--model_b", "moved/other", "--activations", "cache"]
    assert sae.__main__.main([*write, "--export", "circuit-tracer", "--no_browser", "--device", "cpu"]) == 2
    assert "circuit-tracer shows transcoders by layer, got the crosscoder crosscoder" in capsys.readouterr().err
