"""Explanations from a service that speaks OpenAI's protocol, here one on a loopback port."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from tiny_index import Made

from sae.browser import explain as explaining
from sae.browser.explain import Explainer, ServiceError, _all_of, evidence, explain, marked, unexplained
from sae.browser.notes import Notes
from sae.browser.plan import BrowsePlan
from sae.commands.browse import write_explanations
from sae.config import BrowseConfig


class Service:
    """Answers in turn what it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.location = ""
        self.answers: list[tuple[int, bytes]] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.keys.append(self.headers["Authorization"])
                self._send(200, json.dumps({"object": "list", "data": [{"id": "tiny-explainer"}]}).encode())

            def do_POST(self) -> None:
                service.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                service.keys.append(self.headers["Authorization"])
                self._send(*(service.answers.pop(0) if service.answers else said("the word fox")))

            def _send(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                if status // 100 == 3:
                    self.send_header("Location", service.location)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *anything: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"
        Thread(target=self.server.serve_forever, daemon=True).start()


def said(text: Any) -> tuple[int, bytes]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def no_waiting(seconds: float) -> None:
    assert 0 < seconds < 60


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_the_most_frequent_latents_come_first_and_only_those_without_an_explanation(
    made: Made, service: Service, tmp_path: Path
) -> None:
    index, notes = made.index, Notes(tmp_path / "notes.json")
    place = index["layers.0"]
    order = [each.index for each in unexplained(index, notes) if each.place.name == "layers.0"]
    counts = place.column("count")
    assert [counts[at] for at in order] == sorted((c for c in counts if c), reverse=True)
    first, second = order[:2]
    notes.put("layers.0", first, {"explanation": "mine", "note": "kept"})
    explainer = Explainer.at(service.address, wait=no_waiting)
    assert explainer.model == "tiny-explainer"
    elsewhere = [index[name][at] for name in ("layers.2", "layers.1.mlp") for at in (first, second)]
    assert explain(unexplained(index, notes, [first, second]), notes, explainer) == 1 + sum(
        each.count > 0 for each in elsewhere
    )
    found = Notes(tmp_path / "notes.json").of("layers.0")
    assert found[str(first)] == {"explanation": "mine", "note": "kept"}
    assert found[str(second)] == {"explanation": "the word fox"}
    with pytest.raises(ValueError, match="latents must be below 90, got 90"):
        unexplained(index, notes, [90])
    assert service.asked[0]["messages"][1]["content"] == evidence(place[second])
    assert service.asked[0]["model"] == "tiny-explainer" and unexplained(index, notes, [second]) == []


def test_the_evidence_shows_what_fires_how_strongly(made: Made) -> None:
    latent = next(each for each in made.index["layers.2"] if each.contexts > 8)
    strongest = latent.top_contexts(1)[0]
    line = marked(strongest, latent.max)
    assert f"«{strongest.token}»9" in line or f"« {strongest.token.strip()}»9" in line
    assert line.count("«") == sum(value > 0 for value in strongest.activations) and "\n" not in line
    text = evidence(latent)
    assert f"1. {line}" in text and repr(latent.promotes[0].token) in text


def test_a_busy_service_is_asked_again_and_a_broken_one_is_one_line(made: Made, service: Service) -> None:
    latent = next(each for each in made.index["layers.2"] if each.count)
    explainer = Explainer.at(service.address, "some-model", wait=no_waiting)
    service.answers = [(503, b"busy"), (429, b"wait"), said('<think>long</think> "A  phrase\n of two lines"')]
    assert explainer.explain(latent) == "A phrase of two lines"
    for answers in (
        [(401, b"no")], [(200, b"<html>")], [said("")], [said(None)], [(200, b"[]")], [(200, b'{"choices": []}')],
        [(200, b"[" * 10**5)], [(500, b"")] * 3, [said("x" * 2**21)],
    ):  # fmt: skip
        service.answers = list(answers)
        with pytest.raises(ServiceError) as error:
            explainer.explain(latent)
        assert "\n" not in str(error.value) and service.address in str(error.value)
        assert not service.answers
    service.answers = [said("y" * 5000)]
    assert len(explainer.explain(latent)) == 400


def test_an_answer_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dripping:
        def read1(self, size: int) -> bytes:
            time.sleep(0.02)
            return b"x"

    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="no whole answer within 300 seconds"):
        _all_of(Dripping(), begun + 0.2)
    assert time.monotonic() - begun < 2


def test_two_processes_write_notes_at_the_same_moment_and_none_is_lost(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sae.browser.notes import Notes; notes = Notes(Path(sys.argv[1]))\n"
        "for at in range(40): notes.put('place', 2 * at + int(sys.argv[2]), {'note': 'mine'})"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "browse/notes.json")]
    running = [subprocess.Popen([*command, which]) for which in "01"]
    assert [each.wait(60) for each in running] == [0, 0]
    assert len(Notes(tmp_path / "browse/notes.json").of("place")) == 80


def test_the_key_is_sent_and_written_nowhere(
    made: Made, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    latent = next(each for each in made.index["layers.2"] if each.count)
    notes = Notes(tmp_path / "notes.json")
    wanted = unexplained(made.index, notes, [latent.index])
    explain(wanted, notes, Explainer.at(service.address, wait=no_waiting))
    assert service.keys[0] == "Bearer secret" and "secret" not in (tmp_path / "notes.json").read_text()


def test_what_was_explained_before_the_service_failed_stays(made: Made, service: Service, tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.json")
    service.answers = [said("first"), said("second"), (401, b"")]
    explainer = Explainer.at(service.address, wait=no_waiting)
    with pytest.raises(ServiceError, match="401"):
        explain(unexplained(made.index, notes), notes, explainer)
    kept = Notes(tmp_path / "notes.json")
    told = [note["explanation"] for note in kept.of("layers.0").values()]
    assert told == ["first", "second"]


def test_an_address_where_nobody_answers_is_one_line() -> None:
    with pytest.raises(
        ServiceError, match=r"explain must name a service that speaks OpenAI's protocol, but http://127"
    ):
        Explainer.at("http://127.0.0.1:9/v1", wait=no_waiting)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_as_the_key_would_go_with_it(
    status: int, made: Made, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Service()
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret\n")  # as a file holds it
    service.location, service.answers = f"{other.address}/chat/completions", [(status, b"")]
    latent = next(each for each in made.index["layers.2"] if each.count)
    with pytest.raises(ServiceError, match=f"{status} .*, look at '{other.address}"):
        Explainer.at(service.address, "some-model", wait=no_waiting).explain(latent)
    assert service.keys == ["Bearer a-secret"] and not other.keys
    other.server.shutdown()
    other.server.server_close()


def test_what_is_written_on_the_page_meanwhile_stays(made: Made, service: Service, tmp_path: Path) -> None:
    ours, page = Notes(tmp_path / "notes.json"), Notes(tmp_path / "notes.json")
    first, second, third = (each.index for each in unexplained(made.index, ours)[:3])

    def write() -> None:
        if not service.answers:
            return
        service.answers.clear()
        page.put("layers.0", second, {"explanation": "mine", "note": "by hand"})

    service.answers = [said("first"), said("never asked")]
    wanted = unexplained(made.index, ours, [first, second, third])
    explain(wanted, ours, Explainer.at(service.address, wait=no_waiting), done=write)
    page.put("layers.0", 0, {"bookmarked": True})
    found = Notes(tmp_path / "notes.json").of("layers.0")
    assert found[str(second)] == {"explanation": "mine", "note": "by hand"} and found["0"]["bookmarked"]
    assert found[str(first)]["explanation"] == "first" and found[str(third)]["explanation"] == "the word fox"


def test_the_command_lists_the_latents_once_and_tells_how_many_it_explained(
    made: Made, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks: list[str] = []
    plain = explaining._unexplained
    monkeypatch.setattr(
        explaining, "_unexplained", lambda place, *rest: looks.append(place.name) or plain(place, *rest)
    )
    first = unexplained(made.index, Notes(tmp_path / "none.json"))[0].index
    looks.clear()
    plan = BrowsePlan(tmp_path, "index", None)
    cfg = BrowseConfig(checkpoint="run", explain=service.address, latents=[first])
    write_explanations(service.address, cfg, plan, made.index)
    assert looks == list(made.index.places)
    written = sum("explanation" in Notes(plan.notes).of(name).get(str(first), {}) for name in made.index.places)
    assert f"explained {written} latents" in capsys.readouterr().out and written >= 1
