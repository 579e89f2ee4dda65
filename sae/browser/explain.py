"""Explanations of latents by a language model behind an OpenAI-compatible address, on this machine or elsewhere."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException
from typing import Any, NamedTuple

from sae.storage.damage import in_one_line

from .findings import Context
from .notes import Notes
from .store import Index, Latent, Place

TIMEOUT, TRIES = 300.0, 3
"""Seconds that an answer may take, and how often a service that is busy or silent is asked."""
PASSAGES, LOGITS = 8, 6
"""Passages and promoted tokens that an explanation is made from."""
_LONGEST, _MAX_ANSWER = 400, 2**20
_BUSY = (408, 429, 500, 502, 503, 504)
_TASK = (
    "You are shown where one latent of a sparse autoencoder fires in text. Firing tokens stand in «», followed by how "
    "strongly, from 1 to 9. Say what the latent stands for, in one plain phrase of at most fifteen words, as specific "
    "as the passages allow. Answer with that phrase alone."
)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: whoever it leads to would get the key."""

    def redirect_request(self, *anything: Any) -> None:
        """Follow nothing."""


class ServiceError(ValueError):
    """The address gives no explanation."""


class Explainer(NamedTuple):
    """A language model behind an address."""

    address: str
    """Base of its routes, mostly http://HOST:PORT/v1."""
    model: str
    wait: Callable[[float], None] = time.sleep

    @classmethod
    def at(cls, address: str, model: str = "", *, wait: Callable[[float], None] = time.sleep) -> "Explainer":
        """The model of that name, or the first that the address lists. Raises ServiceError if nothing answers."""
        found = cls(address.rstrip("/"), model, wait)
        if model:
            return found
        listed = found._answer("/models")
        try:
            return found._replace(model=str(listed["data"][0]["id"]))
        except (KeyError, IndexError, TypeError):
            raise ServiceError(f"{address} lists no model; name one with --explainer") from None

    def explain(self, latent: Latent) -> str:
        """What the latent stands for, as the model says. Raises ServiceError if it says nothing."""
        messages = [{"role": "system", "content": _TASK}, {"role": "user", "content": evidence(latent)}]
        asked = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 2000}
        answer = self._answer("/chat/completions", asked)
        try:
            text = answer["choices"][0]["message"]["content"]
            told = " ".join(text.rpartition("</think>")[2].split()).strip('"').strip()
        except (KeyError, IndexError, TypeError, AttributeError):
            told = ""
        if not told:
            raise ServiceError(f"{self.address} answered without a text; is {self.model} a model for chats?")
        return told[:_LONGEST]

    def _answer(self, route: str, asked: Any = None) -> Any:
        """The JSON that a route answers with."""
        for attempt in range(1, TRIES + 1):
            try:
                return json.loads(self._send(route, asked))
            except urllib.error.HTTPError as error:
                to = error.headers.get("Location")
                reason = f"{error.code} {error.reason}" + (f", look at {ascii(to)[:100]}" if to else "")
                again = error.code in _BUSY
            except (OSError, HTTPException) as error:
                cause = getattr(error, "reason", error)
                reason, again = str(cause) or type(cause).__name__, not isinstance(cause, ConnectionRefusedError)
            except (ValueError, RecursionError):
                reason, again = "no JSON", False
            if not again or attempt == TRIES:
                break
            self.wait(2.0**attempt)
        raise ServiceError(
            f"explain must name a service that speaks OpenAI's protocol, but {self.address}{route} answers: "
            f"{in_one_line(reason)}; give an address like http://127.0.0.1:8080/v1"
        )

    def _send(self, route: str, asked: Any) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "sae"}
        if key := os.environ.get("OPENAI_API_KEY", "").strip():  # a key from a file may end its line
            headers["Authorization"] = f"Bearer {key}"
        body = None if asked is None else json.dumps(asked).encode()
        request = urllib.request.Request(self.address + route, body, headers)
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT) as answer:
            return _all_of(answer, time.monotonic() + TIMEOUT)


def _all_of(answer: Any, until: float) -> bytes:
    """The whole answer. Raises OSError if it is not there at that time, ValueError if it is too long."""
    content = b""
    while part := answer.read1(_MAX_ANSWER):
        content += part
        if len(content) > _MAX_ANSWER:
            raise ValueError("the answer is too long")
        if time.monotonic() > until:
            raise TimeoutError(f"no whole answer within {TIMEOUT:g} seconds")
    return content


def evidence(latent: Latent) -> str:
    """Passages on which the latent fires, strong ones and some of each fifth, and the tokens that it promotes."""
    strong = latent.top_contexts(PASSAGES - 3)
    others = [group[0] for group in latent.fifths(1)[1:4] if group]
    seen = {each.position for each in strong}
    passages = [*strong, *(each for each in others if each.position not in seen)]
    lines = [f"{number}. {marked(each, latent.max)}" for number, each in enumerate(passages, 1)]
    promoted = [repr(each.token) for each in latent.promotes[:LOGITS]]
    said = [f"It makes these next tokens more likely: {', '.join(promoted)}"] if promoted else []
    return "\n".join([*lines, *said])


def marked(context: Context, largest: float) -> str:
    """A passage as one line, each token on which the latent fires in «» with its strength, 1 to 9."""
    parts = [
        f"«{token}»{max(1, min(9, round(9 * value / largest)))}" if value > 0 else token
        for token, value in zip(context.tokens, context.activations, strict=True)
    ]
    return " ".join("".join(parts).split())


def explain(
    wanted: Sequence[Latent], notes: Notes, explainer: Explainer, *, done: Callable[[], None] = lambda: None
) -> int:
    """Write an explanation of each of these latents that still has none; how many.

    Each explanation is on the disk before the next is asked for, so that the same call continues. Raises ServiceError
    if the service fails; what was written stays.
    """
    written = 0
    for latent in wanted:
        if not _is_explained(notes.of(latent.place.name), latent.index):  # by hand, or another process, meanwhile
            notes.put(latent.place.name, latent.index, {"explanation": explainer.explain(latent)})
            written += 1
        done()
    return written


def unexplained(index: Index, notes: Notes, latents: Sequence[int] = ()) -> list[Latent]:
    """The latents without an explanation that fire, place by place, the most frequent first.

    `latents` are those to look at, of each place; none: all. Raises ValueError for a number that no place has.
    """
    index.check_latents(latents)
    return [latent for place in index.places.values() for latent in _unexplained(place, notes, latents)]


def _unexplained(place: Place, notes: Notes, latents: Sequence[int]) -> Iterator[Latent]:
    counts, written = place.column("count"), notes.of(place.name)
    chosen = dict.fromkeys(latents) if latents else range(place.num_latents)
    for latent in sorted((at for at in chosen if at < place.num_latents), key=lambda at: -int(counts[at])):
        if counts[latent] and not _is_explained(written, latent):
            yield place[latent]


def _is_explained(notes: Mapping[str, Mapping[str, Any]], latent: int) -> bool:
    return bool(notes.get(str(latent), {}).get("explanation"))
