"""The server answers its own page on this machine, and nobody else; what it answers is what the index says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from served import Served
from tiny_index import Made
from tiny_models import tiny_tokenizer

from sae import lm
from sae.browser import Index
from sae.browser.live import LiveModel
from sae.browser.notes import Notes, read_explanations
from sae.browser.payload import LIST_COLUMNS, list_columns
from sae.browser.server import free_socket
from sae.browser.steering import Loaded


@pytest.fixture(scope="module")
def served(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    index = made.index
    live = LiveModel(lambda: Loaded(made.model, tiny_tokenizer(), made.reads), lambda name: index[name].column("max"))
    server = Served(index, tmp_path_factory.mktemp("run") / "browse/notes.json", live)
    yield server
    server.close()


def test_a_latents_page_is_what_the_index_says(made: Made, served: Served) -> None:
    about = served.json("/api/index")
    assert [place["name"] for place in about["places"]] == list(made.reads)
    latent, page = made.index["layers.2"][5], served.json("/api/place/1/latent/5")
    assert page["density"] == pytest.approx(latent.density, rel=1e-3)
    assert page["histogram"] == latent.histogram.tolist()
    assert page["logit_histogram"] == latent.logit_histogram[0].tolist() and sum(page["logit_histogram"]) == 320
    assert page["logit_range"] == pytest.approx(latent.logit_histogram[1][[0, -1]].tolist(), rel=1e-3)
    for shown, context in zip(page["top"], latent.top_contexts(24), strict=True):
        assert shown["at"] == context.position and shown["ids"] == context.ids
        values = np.zeros(len(context.ids))
        for at, value in shown["acts"]:
            values[at] = value
        assert values.tolist() == pytest.approx(context.activations, rel=1e-3)
    related = served.json("/api/place/1/latent/5/related")
    assert [each[1] for each in related["coactive"]] == [each.latent for each in latent.coactive(12)]
    active = served.json("/api/place/1/active/500")
    assert [tuple(each) for each in active] == [tuple(each) for each in made.index["layers.2"].active_at(500)]


def test_the_list_is_sent_as_numbers(made: Made, served: Served) -> None:
    _, content, _ = served.ask("/api/place/0/columns")
    at, kinds = 0, {"f32": "<f4", "u32": "<u4", "u8": "u1"}
    for name, values in list_columns(made.index["layers.0"]).items():
        found = np.frombuffer(content, kinds[LIST_COLUMNS[name]], len(values), at)
        assert np.array_equal(found, values, equal_nan=LIST_COLUMNS[name] == "f32")
        at += -(-found.nbytes // 4) * 4
    assert at == len(content)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:18765"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/index", "/api/place/0/latent/1"])
def test_other_sites_are_refused(served: Served, headers: dict[str, str], path: str) -> None:
    assert served.ask(path, **headers)[0] == 403


def test_other_sites_can_neither_steer_nor_write(served: Served) -> None:
    body = {"text": "a", "place": 0, "edits": [{"latent": 1, "strength": 1}], "new_tokens": 1}
    assert served.ask("/api/steer", "POST", body, Origin="http://evil.example")[0] == 403
    assert served.ask("/api/place/0/latent/1/note", "PUT", {"note": "x"}, Origin="http://evil.example")[0] == 403
    assert served.json("/api/place/0/notes") == {}


def test_a_tunnel_from_another_port_is_answered(served: Served) -> None:
    assert served.ask("/", Host="localhost:9999", Origin="http://localhost:9999")[0] == 200
    assert served.ask("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200


def test_every_answer_forbids_what_is_not_its_own(served: Served) -> None:
    for path in ("/", "/app.js", "/api/index", "/no-such-page", "/api/place/99/columns"):
        headers = served.ask(path)[2]
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "script-src 'self';" in policy
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    ["/../pyproject.toml", "/..%2f..%2fpyproject.toml", "/%2e%2e/server.py", "/server.py", "/api/place/9/latent/1",
     "/api/place/0/latent/90", "/api/place/0/active/99999999", "/api/place/0/latent/1/context/99999999",
     "/api/place/0/search?text=", "/api/place/-1/columns"],
)  # fmt: skip
def test_what_is_not_there_is_told_and_no_other_file_is_read(served: Served, path: str) -> None:
    status, content, _ = served.ask(path)
    assert status == 404 and b"import" not in content


BAD = [
    ("/api/try", "POST", b"{"), ("/api/try", "POST", {"text": ""}), ("/api/try", "POST", {"text": "a", "place": 9}),
    ("/api/try", "POST", {"text": 3, "place": 0}), ("/api/try", "POST", b"[" * 100_000),
    ("/api/steer", "POST", {"text": "a", "place": 0, "edits": [], "new_tokens": 1}),
    ("/api/steer", "POST", {"text": "a", "place": 0, "edits": [{"latent": 90, "strength": 1}], "new_tokens": 1}),
    ("/api/steer", "POST", {"text": "a", "place": 0, "edits": [{"latent": 1, "strength": "x"}], "new_tokens": 1}),
    ("/api/steer", "POST", {"text": "a", "place": 0, "edits": [{"latent": 1, "strength": 1}], "new_tokens": 9999}),
    ("/api/place/0/latent/1/note", "PUT", {"note": 5}), ("/api/place/0/latent/1/note", "PUT", []),
    ("/api/place/0/explanations", "POST", b"not json"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "method", "body"), BAD)
def test_bad_input_is_one_sentence(served: Served, path: str, method: str, body: Any) -> None:
    status, content, _ = served.ask(path, method, body)
    assert status == 400 and 5 < len(json.loads(content)["error"]) < 300


def test_try_says_which_latents_fire_on_each_token(made: Made, served: Served) -> None:
    text = "The quick brown fox"
    found = served.json("/api/try", "POST", {"text": text, "place": 1})
    ids = torch.tensor([tiny_tokenizer().encode(text)])
    assert found["ids"] == ids[0].tolist()
    x = lm.harvest(made.model, ids, ["layers.2"])["layers.2"][0]
    acts, indices = made.reads["layers.2"].dictionary.encode(x)
    for row, act, index in zip(found["latents"], acts.tolist(), indices.tolist(), strict=True):
        assert {latent: value for latent, value in row} == pytest.approx(
            {at: value for at, value in zip(index, act, strict=True) if value > 0}
        )
        assert [value for _, value in row] == sorted((value for _, value in row), reverse=True)


def test_steering_by_nothing_changes_nothing_and_kl_is_that_of_the_grafted_model(made: Made, served: Served) -> None:
    text = "Pack my box with five dozen"
    body = {"text": text, "place": 1, "new_tokens": 4, "edits": [{"latent": 11, "strength": 0}]}
    same = served.json("/api/steer", "POST", body)
    assert max(same["kl"]) < 1e-5 and same["clean"] == same["steered"] and len(same["clean"]) == 4
    found = served.json("/api/steer", "POST", body | {"edits": [{"latent": 11, "strength": 40}]})
    ids = torch.tensor([found["ids"]])
    sae, largest = made.reads["layers.2"].dictionary, made.index["layers.2"][11].max

    def add(x: torch.Tensor) -> torch.Tensor:
        return x + 40 * largest * sae.W_dec[11]

    with torch.no_grad():
        clean = made.model(ids).logits[0].double().log_softmax(-1)
        with lm.graft(made.model, {"layers.2": add}):
            changed = made.model(ids).logits[0].double().log_softmax(-1)
    expected = (clean.exp() * (clean - changed)).sum(-1)
    assert found["kl"] == pytest.approx(expected.tolist(), rel=1e-2, abs=1e-5) and max(found["kl"]) > 1e-3


def test_a_model_that_cannot_be_loaded_leaves_the_rest_working(made: Made, tmp_path: Path) -> None:
    def fail() -> Loaded:
        raise ValueError("it is too large for this machine")

    server = Served(made.index, tmp_path / "notes.json", LiveModel(fail, lambda name: None))
    try:
        status, content, _ = server.ask("/api/try", "POST", {"text": "a", "place": 0})
        assert status == 400 and b"too large" in content and b"only this box" in content
        assert "too large" in server.json("/api/live")["why_not"]
        assert server.json("/api/place/0/latent/5")["latent"] == 5
    finally:
        server.close()


def test_a_port_that_is_taken_gives_the_next_one() -> None:
    first = free_socket(28765)
    second = free_socket(first.getsockname()[1])
    assert second.getsockname()[1] == first.getsockname()[1] + 1
    assert first.getsockname()[0] == second.getsockname()[0] == "127.0.0.1"
    first.close(), second.close()


def test_notes_survive_a_restart_and_empty_ones_go(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "browse/notes.json")
    notes.put("layers.2", 7, {"note": "ends of <b>lists</b>", "bookmarked": True})
    notes.put("layers.2", 7, {"explanation": "lists"})
    again = Notes(tmp_path / "browse/notes.json")
    expected = {"note": "ends of <b>lists</b>", "bookmarked": True, "explanation": "lists"}
    assert again.of("layers.2") == {"7": expected}
    again.put("layers.2", 7, {"note": "", "bookmarked": False})
    assert Notes(tmp_path / "browse/notes.json").of("layers.2") == {"7": {"explanation": "lists"}}


def test_explanations_of_others_are_read_and_ours_are_read_back(served: Served) -> None:
    theirs = [{"index": "12", "description": "commas"}, {"latent": 13, "explanation": "digits"},
              {"feature": "layers.0_latent14", "explanation": "nouns"}]  # fmt: skip
    lines = "".join(json.dumps(each) + "\n" for each in theirs)
    assert served.json("/api/place/2/explanations", "POST", lines.encode()) == {"count": 3}
    written = served.ask("/api/place/2/explanations")[1].decode()
    assert list(read_explanations(written.splitlines())) == [(12, "commas"), (13, "digits"), (14, "nouns")]
    assert served.json("/api/place/2/notes")["14"] == {"explanation": "nouns"}


def test_half_a_surrogate_pair_of_a_stranger_is_sent_like_any_text(made: Made, tmp_path: Path) -> None:
    index = Index.open(made.folder)
    index.header.about["dataset"] = "caf\udce9.jsonl"  # as Python reads a file's name that is no UTF-8
    index.__dict__["vocabulary"] = ["\ud83d\x00\u2028</script>"] * 200
    server = Served(index, tmp_path / "notes.json", LiveModel(lambda: None, lambda name: None))
    try:
        assert server.json("/api/index")["about"]["dataset"] == "caf\udce9.jsonl"
        assert server.json("/api/vocabulary")[7] == "\ud83d\x00\u2028</script>"
        line = b'{"index": 4, "description": "half \\ud83d"}'
        assert server.json("/api/place/0/explanations", "POST", line) == {"count": 1}
        assert server.json("/api/place/0/notes")["4"] == {"explanation": "half \ud83d"}
        assert list(read_explanations(server.ask("/api/place/0/explanations")[1].decode().splitlines()))
        again = Notes(tmp_path / "notes.json")
        assert again.of("layers.0")["4"] == {"explanation": "half \ud83d"}
    finally:
        server.close()
