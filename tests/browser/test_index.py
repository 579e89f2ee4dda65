"""Every number of an index is that of a dense computation in float64 on the same activations."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from tiny_index import CTX_LEN, HOOKPOINTS, Made, dense, make
from tiny_models import VOCAB_SIZE, tiny_tokenizer

from sae import lm
from sae.activations.workers import OneWorker
from sae.browser import Index, layout, store
from sae.browser.layout import DamagedError
from sae.evaluation.metrics import RARE

PASSAGE = layout.CONTEXT


def places(made: Made) -> list[str]:
    return list(made.reads)


@pytest.mark.parametrize("name", HOOKPOINTS)
def test_the_events_are_the_code_of_every_token_that_counts(made: Made, name: str) -> None:
    found = dense(made, name)
    assert ((found.code > 0) == (found.exact > 0)).all()
    assert np.allclose(found.code, found.exact, rtol=1e-3, atol=1e-30)
    assert (made.index.counted > 0).tolist() == found.counted.tolist()
    ids = torch.cat([batch.flatten() for batch in made.sample])
    assert made.index.tokens.tolist() == ids.tolist()


@pytest.mark.parametrize("name", HOOKPOINTS)
def test_numbers_of_a_latent_are_of_the_ordinary_tokens(made: Made, name: str) -> None:
    found, place = dense(made, name), made.index[name]
    code = np.where(found.massive[:, None], 0, found.code)
    fires, ordinary = code > 0, found.counted & ~found.massive
    assert place.num_ordinary == ordinary.sum()
    assert place.column("count").tolist() == fires.sum(0).tolist()
    assert place.column("massive_count").tolist() == (found.code > 0)[found.massive].sum(0).tolist()
    assert np.allclose(place.density, fires.sum(0) / ordinary.sum())
    assert np.allclose(place.column("max"), code.max(0))
    assert np.allclose(place.column("mean"), code.sum(0) / np.maximum(fires.sum(0), 1))
    for latent in place:
        where = np.flatnonzero(fires[:, latent.index]) % CTX_LEN
        assert latent.positions == ((where.min(), where.max()) if where.size else None)
        if where.size:
            values = code[fires[:, latent.index], latent.index]
            bins = np.minimum((values / values.max() * layout.BINS).astype(int), layout.BINS - 1)
            # a value at the edge of two bins may round into either
            assert np.abs(latent.histogram - np.bincount(bins, minlength=layout.BINS)).sum() <= 2
        assert latent.histogram.sum() == where.size


def test_massive_tokens_are_found_counted_and_in_no_context(made: Made) -> None:
    place = made.index["layers.0"]
    found = np.flatnonzero(place.massive)
    assert found.size and (made.index.tokens[found] == 4).all()
    assert place.column("massive_count").sum() == len(found) * 5
    assert not set(place.column("top").ravel()) & set(found)
    assert not set(place.column("fifths").ravel()) & set(found)
    assert place[5].max < dense(made, "layers.0").code.max() / 10


def strongest(code: np.ndarray) -> list[tuple[float, int]]:
    """(activation, position) of the strongest token of each passage in which a latent fires, from strong to weak."""
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for position in np.flatnonzero(code):
        passage = (position // CTX_LEN, position % CTX_LEN // PASSAGE)
        value = float(code[position])
        if passage not in best or value > best[passage][0]:
            best[passage] = (value, int(position))
    return sorted(best.values(), key=lambda each: -each[0])


def ending(tokens: np.ndarray, position: int) -> tuple[int, ...]:
    return tuple(tokens[max(position - position % CTX_LEN, position - 7) : position + 1].tolist())


@pytest.mark.parametrize("name", HOOKPOINTS)
def test_top_contexts_are_the_strongest_passages_of_the_whole_width_each_text_once(made: Made, name: str) -> None:
    found, index = dense(made, name), made.index
    code = np.where(found.massive[:, None], 0, found.code)
    repeated = 0
    for latent in index[name]:
        expected, seen = [], set()
        for value, position in strongest(code[:, latent.index]):
            end = ending(index.tokens, position)
            repeated += end in seen
            if end not in seen:
                expected.append(value)
            seen.add(end)
        for number in (5, layout.TOP, 1000):
            top = latent.top_contexts(number)
            assert [each.activation for each in top] == pytest.approx(expected[:number])
            assert all(code[each.position, latent.index] == each.activation for each in top)
        assert latent.contexts == len(strongest(code[:, latent.index]))
    assert repeated > 0


@pytest.mark.parametrize("name", HOOKPOINTS)
def test_each_fifth_of_the_contexts_is_shown_by_some_of_it(made: Made, name: str) -> None:
    found, place = dense(made, name), made.index[name]
    code = np.where(found.massive[:, None], 0, found.code)
    for latent in place:
        ranked = [value for value, _ in strongest(code[:, latent.index])]
        groups = latent.fifths(6)
        edges = [len(ranked) * at // 5 for at in range(6)]
        for low, high, group in zip(edges, edges[1:], groups, strict=False):
            values = [each.activation for each in group]
            assert len(values) == min(6, high - low)
            assert len({each.position for each in group}) == len(group)
            assert all(value in ranked[low:high] for value in values)
        if ranked:
            assert latent.edges[0] == pytest.approx(ranked[0]) and latent.edges[-1] == pytest.approx(ranked[-1])


def test_a_context_shows_the_latents_activation_on_every_token_of_its_sequence(made: Made) -> None:
    found, index = dense(made, "layers.2"), made.index
    for latent in list(index["layers.2"])[:30]:
        for context in latent.top_contexts(5, before=10, after=60):
            start = context.position - context.peak
            assert start // CTX_LEN == context.sequence == (start + len(context.tokens) - 1) // CTX_LEN
            shown = found.code[start : start + len(context.tokens), latent.index]
            assert context.activations == pytest.approx(shown.tolist())
            assert context.ids == index.tokens[start : start + len(context.ids)].tolist()
            assert context.text == "".join(index.token(each) for each in context.ids)


def test_tokens_that_a_latent_fires_on(made: Made) -> None:
    for name in HOOKPOINTS:
        found, index = dense(made, name), made.index
        code = np.where(found.massive[:, None], 0, found.code)
        often = Counter(index.tokens[found.counted & ~found.massive].tolist())
        for latent in index[name]:
            column = code[:, latent.index]
            times = Counter(index.tokens[column > 0].tolist())
            shares = sorted((count / latent.count for count in times.values()), reverse=True)
            by_share = latent.fires_on()
            assert [each.value for each in by_share] == pytest.approx(shares[: layout.FIRES_ON])
            assert all(each.value == pytest.approx(times[each.id] / latent.count) for each in by_share)
            sums = {token: column[index.tokens == token].sum() for token in times}
            means = sorted((sums[t] / often[t] for t in times if often[t] >= 3), reverse=True)
            by_mean = latent.fires_on(by="mean")
            assert [each.value for each in by_mean] == pytest.approx(means[: layout.FIRES_ON], rel=1e-5)


@pytest.mark.parametrize(("tokens", "enough"), [(2**20, 100), (600, 0), (600, 20)])
def test_coactive_latents_are_those_whose_firing_correlates_most_on_the_first_tokens(
    made: Made, monkeypatch: pytest.MonkeyPatch, tokens: int, enough: int
) -> None:
    monkeypatch.setattr("sae.browser.store.TOKENS", tokens)
    monkeypatch.setattr("sae.browser.store.ENOUGH", enough)
    monkeypatch.setattr("sae.browser.together._EVENTS_AT_ONCE", 300)  # several parts
    whole = 0
    for name in HOOKPOINTS:
        found, place = dense(made, name), made.index[name]
        ordinary, fired = found.counted & ~found.massive, found.code > 0
        for latent in (0, 3, 5, 17, 44):
            few = fired[:tokens][ordinary[:tokens]][:, latent].sum() < enough
            whole += few
            end = len(fired) if few else tokens
            fires = fired[:end][ordinary[:end]].astype(float)
            with np.errstate(invalid="ignore", divide="ignore"):
                correlations = np.nan_to_num(np.corrcoef(fires.T))
            np.fill_diagonal(correlations, -1)
            expected = np.sort(correlations[latent])[::-1]
            together = place[latent].coactive(10)
            assert [each.correlation for each in together] == pytest.approx(
                [value for value in expected[:10] if value > 0][: len(together)], abs=1e-9
            )
            for each in together:
                assert each.both == (fires[:, latent] * fires[:, each.latent]).sum()
        assert place[3].coactive() == []
    assert whole if enough else not whole


def test_neighbours_are_the_largest_cosines_of_decoder_rows_across_hookpoints(made: Made) -> None:
    rows = {name: read.dictionary.W_dec.detach().double().numpy() for name, read in made.reads.items()}
    rows = {name: W / np.linalg.norm(W, axis=1, keepdims=True) for name, W in rows.items()}
    every = np.concatenate(list(rows.values()))
    for latent in (0, 41):
        cosines = np.sort(every @ rows["layers.2"][latent])[::-1]
        found = made.index["layers.2"][latent].neighbours(7)
        assert [each.cosine for each in found] == pytest.approx(cosines[1:8].tolist(), abs=1e-3)
        for each in found:
            assert each.cosine == pytest.approx(rows[each.place][each.latent] @ rows["layers.2"][latent], abs=1e-3)
        own = made.index["layers.2"][latent].neighbours(3, across=False)
        assert {each.place for each in own} == {"layers.2"}


def test_logit_effects_are_decoder_times_final_norm_times_output_matrix(made: Made) -> None:
    model = made.model
    with torch.no_grad():
        weight, norm = model.get_output_embeddings().weight.double(), model.gpt_neox.final_layer_norm
        for name, read in made.reads.items():
            W = read.dictionary.W_dec.double()
            effects = ((W - W.mean(1, keepdim=True)) * norm.weight.double()) @ weight.T  # a LayerNorm centres
            for latent in (0, 3, 77):
                up = made.index[name][latent].promotes
                assert [each.logit for each in up] == pytest.approx(effects[latent].topk(10).values.tolist(), rel=1e-4)
                down = made.index[name][latent].suppresses
                assert [each.id for each in down] == effects[latent].topk(10, largest=False).indices.tolist()
                values = effects[latent].numpy()
                counts, edges = made.index[name][latent].logit_histogram
                assert counts.sum() == len(values)
                assert edges[[0, -1]].tolist() == pytest.approx([values.min(), values.max()], rel=1e-4)
                # a value at the edge of two bins may round into either
                assert np.abs(np.cumsum(counts - np.histogram(values, layout.BINS)[0])).max() <= 2
    paths = {name: made.index[name].header.path for name in made.reads}
    assert paths == {"layers.0": "direct", "layers.2": "direct", "layers.1.mlp": "direct path only"}


def test_alignment_is_the_cosine_of_encoder_and_decoder(made: Made) -> None:
    for name, read in made.reads.items():
        encoder, decoder = read.dictionary.encoder.weight.double(), read.dictionary.W_dec.double()
        expected = torch.nn.functional.cosine_similarity(encoder, decoder, dim=1)
        assert made.index[name].column("alignment").tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_flags_say_what_is_odd(made: Made) -> None:
    assert store.RARE == RARE
    index = made.index
    assert index["layers.0"][3].flags == ["dead"] and index["layers.0"][3].top_contexts() == []
    assert "dense" in index["layers.2"][5].flags
    found = dense(made, "layers.0")
    fires, ordinary = found.code > 0, found.code[~found.massive] > 0
    for latent in index["layers.0"]:
        ever, usually = fires[:, latent.index].any(), ordinary[:, latent.index].any()
        assert ("dead" in latent.flags) == (not ever)
        assert ("massive only" in latent.flags) == (ever and not usually)


def test_latents_of_one_token_are_its_code(made: Made) -> None:
    found, place = dense(made, "layers.2"), made.index["layers.2"]
    for position in (0, 1, 500, len(found.code) - 1):
        active = place.active_at(position)
        assert {each.latent: each.activation for each in active} == {
            at: pytest.approx(found.code[position, at]) for at in np.flatnonzero(found.code[position])
        }
        assert [each.activation for each in active] == sorted((each.activation for each in active), reverse=True)


def test_search_finds_the_latents_that_fire_where_a_text_stands(made: Made) -> None:
    index, found = made.index, dense(made, "layers.2")
    whole = "".join(index.token(token) for token in index.tokens.tolist())
    text = index.token(int(index.tokens[60])) + index.token(int(index.tokens[61]))
    marked = np.zeros(index.num_tokens, bool)
    ends = np.cumsum([len(index.token(token)) for token in index.tokens.tolist()])
    at = whole.lower().find(text.lower())
    while at >= 0:
        marked[(ends > at) & (ends - [len(index.token(t)) for t in index.tokens.tolist()] < at + len(text))] = True
        at = whole.lower().find(text.lower(), at + 1)
    assert set(index.positions_of(text)) == set(np.flatnonzero(marked))
    marked &= ~found.massive
    score = found.code[marked].sum(0) / np.maximum(index["layers.2"].column("max"), 1e-30) / marked.sum()
    best = index["layers.2"].search(text)
    assert [each.score for each in best] == pytest.approx(np.sort(score)[::-1][: len(best)].tolist(), rel=1e-5)
    assert index["layers.2"].search("no such text stands there") == []


def test_results_are_tables(made: Made) -> None:
    latent = made.index["layers.2"][5]
    table = pandas.DataFrame(latent.top_contexts(4))
    assert table.shape[0] == 4 and {"activation", "text", "position"} <= set(table.columns)
    assert set(pandas.DataFrame(latent.promotes).columns) == {"token", "logit", "id"}
    assert latent.to_dict()["density"] == latent.density


def test_a_card_shows_texts_as_texts(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    index = made.index
    evil = "<img src=x onerror=alert(1)>"
    index.__dict__["vocabulary"] = [evil] * VOCAB_SIZE
    card = index["layers.2"][5]._repr_html_()
    assert "<img" not in card and "&lt;img" in card
    assert "never fires" in index["layers.2"][3]._repr_html_()


def test_token_texts_join_to_the_text() -> None:
    tokenizer = tiny_tokenizer()
    texts = lm.token_texts(tokenizer, VOCAB_SIZE)
    sentence = " The quick brown fox jumps over 12 jugs."
    assert "".join(texts[token] for token in tokenizer.encode(sentence)) == sentence
    assert len(texts) == VOCAB_SIZE and "�" not in "".join(texts)
    assert lm.token_texts(None, 3) == ["⟨0⟩", "⟨1⟩", "⟨2⟩"]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3, 6, 40])
def test_an_index_that_was_stopped_anywhere_is_continued_to_the_same_bits(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr("sae.browser.collect._CHUNK_BYTES", 2**17)
    monkeypatch.setattr("sae.browser.chunks.EVENTS_AT_ONCE", 700)
    left = [after]
    replace = Path.replace

    def dying(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Stop):
            make(tmp_path / "index")
    with pytest.raises(ValueError, match="must hold an index|must be a JSON"):
        Index.open(tmp_path / "index")
    make(tmp_path / "index")
    assert contents(tmp_path / "index") == contents(made.folder)


class OneOfThree(OneWorker):
    """A rank that makes its chunks; the main one comes last, and finds those of the others."""

    size = 3

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def from_main(self, make: Callable[[], Any]) -> Any:
        return make() if self.rank == 0 else None


def test_an_index_of_three_processes_is_that_of_one(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae.browser.collect._CHUNK_BYTES", 2**17)
    monkeypatch.setattr("sae.browser.chunks.EVENTS_AT_ONCE", 700)
    for rank in (2, 1, 0):
        make(tmp_path / "index", workers=OneOfThree(rank))
    assert contents(tmp_path / "index") == contents(made.folder)


def test_a_full_disk_leaves_what_was_there(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.browser.collect._CHUNK_BYTES", 2**17)

    def full(self: layout.Writer, values: np.ndarray) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(layout.Writer, "write", full)
        with pytest.raises(OSError, match="No space"):
            make(tmp_path / "index")
    assert len(list((tmp_path / "index/chunks").iterdir())) > 1
    make(tmp_path / "index")
    assert Index.open(tmp_path / "index")["layers.0"][5].top_contexts()


FILES = ["manifest.json", "vocabulary.json", "tokens.u32", "places/1/values.f16", "places/1/positions.u32",
         "places/1/starts.i64", "places/1/top.u32", "places/1/decoder.f16", "places/1/values.f16.crc"]  # fmt: skip


def read_all(folder: Path) -> None:
    index = Index.open(folder)
    index.positions_of("a")
    for place in index.places.values():
        for latent in (0, 5):
            place[latent].top_contexts(), place[latent].neighbours(), place[latent].coactive()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_index_is_named_and_never_shown(made: Made, tmp_path: Path, name: str, how: str) -> None:
    folder = tmp_path / "index"
    shutil.copytree(made.folder, folder)
    read_all(folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 4
    if how == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content if how == "flipped" else content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"damaged|must (hold|have|be)"):
        read_all(folder)


def test_an_index_of_another_version_is_refused(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    shutil.copytree(made.folder, folder)
    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(document | {"version": 99}))
    with pytest.raises(DamagedError, match=f"must be of version {layout.VERSION}, got 99; index again"):
        Index.open(folder)


def test_what_is_not_there_is_named(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold an index, but has none; make it with sae browse"):
        Index.open(tmp_path)
    with pytest.raises(KeyError, match="layers.9 was not indexed; what was: layers.0"):
        made.index["layers.9"]
    with pytest.raises(IndexError, match="between 0 and 89, got 90"):
        made.index["layers.0"][90]
