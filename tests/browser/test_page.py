"""The page as a person uses it, in Chromium: no error on the console, no request to another machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import needs_chromium
from served import Served
from tiny_index import Made
from tiny_models import tiny_tokenizer

from sae.browser import Index
from sae.browser.export import write_pages
from sae.browser.live import LiveModel
from sae.browser.notes import Notes
from sae.browser.steering import Loaded

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
EVIL = "<img src=x onerror=\"document.title='owned'\">"


class Person:
    """A tab, and what went wrong in it."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.tab = browser.new_context(**options).new_page()
        self.problems: list[str] = []
        self.hosts: set[str] = set()
        self.tab.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.tab.set_default_timeout(10_000)
        self.tab.goto(address)

    def sees(self, text: str) -> None:
        self.tab.get_by_text(text).first.wait_for()


@pytest.fixture(scope="module")
def served(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    index = Index.open(made.folder)
    index.__dict__["vocabulary"] = [EVIL if at == 21 else text for at, text in enumerate(index.vocabulary)]
    live = LiveModel(lambda: Loaded(made.model, tiny_tokenizer(), made.reads), lambda name: index[name].column("max"))
    server = Served(index, tmp_path_factory.mktemp("run") / "notes.json", live)
    server.index = index  # type: ignore[attr-defined]
    yield server
    server.close()


@pytest.fixture
def person(chromium: Any, served: Served) -> Iterator[Person]:
    someone = Person(chromium, f"http://127.0.0.1:{served.port}/", viewport={"width": 1280, "height": 900})
    yield someone
    assert someone.problems == [] and someone.hosts <= {f"127.0.0.1:{served.port}"}
    assert someone.tab.title() != "owned"
    someone.tab.context.close()


def rows(person: Person) -> list[int]:
    person.tab.locator("a.line").first.wait_for()
    found = person.tab.locator("a.line .id").all_inner_texts()
    return [int(text.replace("★", "").strip()) for text in found]


def test_the_list_is_sorted_searched_and_filtered(person: Person, made: Made) -> None:
    place = made.index["layers.0"]
    alive = [latent.index for latent in place if "dead" not in latent.flags]
    by_density = sorted(alive, key=lambda latent: (-place.density[latent], latent))
    assert rows(person) == by_density[: len(rows(person))]
    person.tab.get_by_role("button", name="Max").click()
    by_max = sorted(alive, key=lambda latent: (-place.column("max")[latent], latent))
    assert rows(person)[:10] == by_max[:10]
    person.tab.get_by_role("button", name="Latent", exact=True).click()
    assert rows(person)[:10] == alive[:10]
    person.tab.get_by_label("which latents").select_option("dead")
    person.tab.wait_for_timeout(50)
    assert rows(person) == [latent.index for latent in place if "dead" in latent.flags]
    person.tab.get_by_label("which latents").select_option("all")
    person.tab.get_by_label("search in").select_option("number")
    person.tab.get_by_label("search", exact=True).fill("42")
    person.sees("1 of 90 latents")
    assert rows(person) == [42]


def test_a_text_is_searched_in_the_contexts(person: Person, served: Served) -> None:
    index: Index = served.index  # type: ignore[attr-defined]
    text = index.token(int(index.tokens[60])) + index.token(int(index.tokens[61]))
    person.tab.get_by_label("search in").select_option("text")
    person.tab.get_by_label("search", exact=True).fill(text)
    person.tab.get_by_label("search", exact=True).press("Enter")
    expected = [each.latent for each in index["layers.0"].search(text)]
    person.sees(f"{len(expected)} of 90 latents")
    assert rows(person)[:10] == expected[:10]


def test_a_latent_is_opened_paged_by_key_and_left_by_back(person: Person) -> None:
    first, second = rows(person)[:2]
    person.tab.locator("a.line").first.click()
    person.sees(f"Latent {first}")
    person.tab.keyboard.press("j")
    person.sees(f"Latent {second}")
    person.tab.keyboard.press("k")
    person.sees(f"Latent {first}")
    assert person.tab.url.endswith(f"#/0/{first}")
    person.tab.go_back(), person.tab.go_back(), person.tab.go_back()
    assert rows(person)[:2] == [first, second]
    for _ in range(40):  # the way back may draw the list once more, after which nothing has the focus
        person.tab.keyboard.press("/")
        if person.tab.evaluate("document.activeElement.type") == "search":
            return
        person.tab.wait_for_timeout(50)
    raise AssertionError("/ must lead to the search")


def test_a_page_that_is_overtaken_while_it_loads_has_no_say_in_what_keys_do(person: Person) -> None:
    latent = rows(person)[0]

    def late(route: Any) -> None:
        person.tab.wait_for_timeout(300)  # the notes of the first list come after the second list is drawn
        route.continue_()

    person.tab.evaluate(f"location.hash = '#/0/{latent}'")
    person.sees(f"Latent {latent}")
    person.tab.route("**/notes", late, times=1)
    person.tab.evaluate("location.hash = '#/0'; setTimeout(() => { location.hash = '#/0/'; }, 20)")
    person.tab.wait_for_timeout(800)
    person.tab.keyboard.press("/")
    assert person.tab.evaluate("document.activeElement.type") == "search"


def test_a_permalink_shows_contexts_with_their_activations(person: Person, made: Made) -> None:
    latent = made.index["layers.2"][5]
    person.tab.goto(person.tab.url.split("#")[0] + "#/1/5")
    person.sees("Latent 5")
    values = person.tab.locator(".context .value").all_inner_texts()
    expected = [context.activation for context in latent.top_contexts(24)]
    assert [float(value) for value in values] == pytest.approx(expected, rel=5e-3)
    hot = person.tab.locator(".context").first.locator("span.hot").count()
    assert hot == sum(value > 0 for value in latent.top_contexts(1)[0].activations)
    person.sees("Decoder points the same way")
    person.tab.get_by_role("tab", name="Weakest fifth").click()
    person.sees("Passages whose largest activation is between")
    person.tab.locator(".context span.hot").first.click()
    person.sees("Active on")


def test_a_latent_that_never_fires_and_one_that_is_not_there_say_so(person: Person) -> None:
    person.tab.goto(person.tab.url.split("#")[0] + "#/0/3")
    person.sees("It never fires on these")
    person.tab.goto(person.tab.url.split("#")[0] + "#/0/9999")
    person.sees("latents 0 to 89")
    person.problems.clear()  # the console tells of the 404


def test_a_hostile_text_is_shown_as_text(person: Person, served: Served) -> None:
    place = served.index["layers.0"]  # type: ignore[attr-defined]
    latent = next(each.index for each in place if any(21 in context.ids for context in each.top_contexts(5)))
    person.tab.goto(person.tab.url.split("#")[0] + f"#/0/{latent}")
    person.sees("onerror")
    assert person.tab.locator("main img").count() == 0


def test_a_note_and_a_bookmark_survive_a_restart(chromium: Any, made: Made, tmp_path: Path) -> None:
    live = LiveModel(lambda: Loaded(made.model, None, made.reads), lambda name: None)
    server = Served(made.index, tmp_path / "notes.json", live)
    someone = Person(chromium, f"http://127.0.0.1:{server.port}/#/0/7")
    someone.tab.get_by_label("Note", exact=True).fill("ends of lists")
    someone.sees("saved")
    someone.tab.keyboard.press("Escape")
    someone.tab.get_by_role("button", name="Bookmark").click()
    someone.sees("★ Bookmarked")
    someone.tab.wait_for_timeout(200)
    server.close()
    again = Served(made.index, tmp_path / "notes.json", live)
    someone = Person(chromium, f"http://127.0.0.1:{again.port}/#/0/7")
    someone.sees("★ Bookmarked")
    assert someone.tab.get_by_label("Note", exact=True).input_value() == "ends of lists"
    again.close()


def test_a_text_is_tried_and_steered(person: Person, made: Made) -> None:
    person.tab.get_by_role("link", name="Try").click()
    person.tab.get_by_label("text", exact=True).fill("The quick brown fox")
    person.tab.get_by_role("button", name="Show latents").click()
    person.sees("The strongest latent of each token")
    assert person.tab.locator(".panel").first.locator(".text > span").count() == len(
        tiny_tokenizer().encode("The quick brown fox")
    )
    person.tab.get_by_label("latent", exact=True).fill("11")
    person.tab.get_by_role("button", name="Compare").click()
    person.sees("How far the next-token predictions move")
    person.sees("Steered")


def test_static_pages_open_from_a_disk(chromium: Any, made: Made, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    write_pages(made.index, tmp_path / "site", Notes(tmp_path / "none.json"), [])
    someone = Person(chromium, (tmp_path / "site/index.html").as_uri())
    assert rows(someone)
    someone.tab.goto(someone.tab.url.split("#")[0] + "#/1/5")
    someone.sees("Latent 5")
    values = someone.tab.locator(".context .value").all_inner_texts()
    expected = [context.activation for context in made.index["layers.2"][5].top_contexts(12)]
    assert [float(value) for value in values] == pytest.approx(expected, rel=5e-3)
    someone.sees("Decoder points the same way")
    assert someone.problems == [] and someone.hosts == {""}
    bytes_of_data = sum(path.stat().st_size for path in (tmp_path / "site/data").glob("place?-*.js"))
    assert bytes_of_data / (3 * 90) < 15_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen(chromium: Any, served: Served, width: int, scheme: Any) -> None:
    for address in ("#/0", "#/1/5", "#/0/3", "#/1/try"):
        options = {"viewport": {"width": width, "height": 844}, "color_scheme": scheme}
        someone = Person(chromium, f"http://127.0.0.1:{served.port}/{address}", **options)
        someone.tab.locator("main h1").first.wait_for()
        someone.tab.wait_for_timeout(100)
        assert someone.tab.evaluate("document.documentElement.scrollWidth") <= width, address
        someone.tab.context.close()
