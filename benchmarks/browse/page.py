"""How fast an index is shown: by the server alone, and in Chromium, where it is installed with playwright.

`benchmarks.browse.page FOLDER` prints the figures; `… FOLDER serve` serves it as `sae browse` does.
"""

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from sae.browser import Index
from sae.browser.live import LiveModel
from sae.browser.notes import Notes
from sae.browser.server import free_socket, make_app, serve

LATENTS = 200
"""Latents whose pages are asked for: one in so many of all, and the densest ones."""
DRAWN = """async (latent) => {
  const start = performance.now();
  location.hash = `#/0/${latent}`;
  const there = () => document.querySelector("h1")?.textContent.includes(`Latent ${latent}`)
    && document.querySelector(".context");
  while (!there()) await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return performance.now() - start;
}"""
SCROLLED = """async (pixels) => {
  const table = document.querySelector(".table"), times = [], paints = [], idle = [];
  let last = await new Promise(requestAnimationFrame);
  for (let frame = 0; frame < 240; frame += 1) {
    table.scrollTop += pixels;
    const now = await new Promise(requestAnimationFrame);
    times.push(now - last);
    last = now;
  }
  for (let frame = 0; frame < 120; frame += 1) {
    const now = await new Promise(requestAnimationFrame);
    idle.push(now - last);
    last = now;
  }
  for (let at = 0; at < 50; at += 1) {
    table.scrollTop = at * 36 * 1000;
    const start = performance.now();
    table.onscroll?.();
    table.dispatchEvent(new Event("scroll"));
    paints.push(performance.now() - start);
  }
  return [times, idle, paints];
}"""
"""Scroll by so many pixels a frame: milliseconds from frame to frame, those of a page at rest, of painting the rows."""


def measure(folder: Path) -> dict[str, Any]:
    """Milliseconds of the server, and of Chromium."""
    with served(folder) as address:
        found: dict[str, Any] = {"server": by_server(address, Index.open(folder))}
        if shutil.which("chromium"):
            found["chromium"] = by_chromium(address, Index.open(folder))
        else:
            print("chromium is not installed: apt-get install chromium", file=sys.stderr)
    return found


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the page, served by a process of its own."""
    command = [sys.executable, "-m", "benchmarks.browse.page", str(folder), "serve"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def chosen(index: Index) -> list[int]:
    """The densest latents, and others from the first to the last."""
    counts = next(iter(index.places.values())).column("count")
    dense = counts.argsort()[::-1][: LATENTS // 10].tolist()
    return dense + list(range(0, len(counts), max(1, len(counts) // LATENTS)))


def by_server(address: str, index: Index) -> dict[str, float]:
    """Milliseconds of the answers."""
    found: dict[str, float] = {}
    for path in ("api/index", "api/vocabulary", "api/place/0/columns"):
        found[path] = _asked(address + path)
    latents = chosen(index)
    pages = [_asked(f"{address}api/place/0/latent/{latent}") for latent in latents]
    again = [_asked(f"{address}api/place/0/latent/{latent}") for latent in latents]
    related = [_asked(f"{address}api/place/0/latent/{latent}/related") for latent in latents[::10]]
    for name, times in (("latent", pages), ("latent again", again), ("related", related)):
        found |= {f"{name}, median": statistics.median(times), f"{name}, largest": max(times)}
    return found


def _asked(address: str) -> float:
    start = time.perf_counter()
    urlopen(address).read()
    return 1000 * (time.perf_counter() - start)


def by_chromium(address: str, index: Index) -> dict[str, Any]:
    """Milliseconds until a latent is drawn, and from frame to frame while the list scrolls."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        start = time.perf_counter()
        tab.goto(address)
        tab.locator("a.line").first.wait_for()
        opened = 1000 * (time.perf_counter() - start)
        scrolled = {name: _frames(*tab.evaluate(SCROLLED, pixels)) for name, pixels in (("slow", 40), ("fast", 2000))}
        drawn = []
        for latent in chosen(index)[::5]:
            tab.wait_for_load_state("networkidle")  # what goes with the latent before is there
            drawn.append(tab.evaluate(DRAWN, latent))
        browser.close()
    return {"list opened": opened, "latent drawn, median": statistics.median(drawn),
            "latent drawn, largest": max(drawn),
            "scrolled": scrolled}  # fmt: skip


def _frames(times: list[float], idle: list[float], paints: list[float]) -> dict[str, float]:
    late, late_at_rest = (sum(time > 25 for time in each) / len(each) for each in (times, idle))
    return {
        "frame, median": statistics.median(times), "frame, 95 %": sorted(times)[int(0.95 * len(times))],
        "share of frames missed": late, "at rest": late_at_rest, "rows painted, median": statistics.median(paints),
        "rows painted, largest": max(paints),
    }  # fmt: skip


def main() -> None:
    """Serve the index of a folder, or measure how it is shown."""
    folder = Path(sys.argv[1])
    if sys.argv[2:] != ["serve"]:
        print(json.dumps(measure(folder), indent=1))
        return

    def no_model() -> Any:
        raise ValueError("a made-up index has no language model")

    bound = free_socket(8765)
    print(f"http://127.0.0.1:{bound.getsockname()[1]}/", flush=True)
    index = Index.open(folder)
    serve(
        make_app(index, Notes(folder / "notes.json"), LiveModel(no_model, lambda name: index[name].column("max"))),
        bound,
    )


if __name__ == "__main__":
    main()
