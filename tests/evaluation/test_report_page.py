"""report.html in a real browser: no word is broken, nothing is cut, and nothing is said in every row."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chromium import needs_chromium

from sae.evaluation.evaluate import Evaluation
from sae.evaluation.metrics import Quality
from sae.report.evaluation import page, report_evaluation
from sae.report.html import facts, table

LABELS = ("checkpoints/a-run-with-a-long-name/k16_x8", "checkpoints/a-run-with-a-long-name/k32_x8")
BROKEN = """() => {
  const broken = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode())
    for (const found of node.data.matchAll(/[^\\s/]+/g)) {
      const range = document.createRange();
      range.setStart(node, found.index);
      range.setEnd(node, found.index + found[0].length);
      if (new Set([...range.getClientRects()].map(each => Math.round(each.top))).size > 1) broken.push(found[0]);
    }
  return broken;
}"""
"""The words that stand on two lines."""


def evaluation() -> Evaluation:
    names = ("layers.3.mlp.down_proj", "layers.10.mlp.down_proj", "all")
    metrics = {"cossim": 0.9, "ce_loss_without_sae": 3.25, "ce_loss_with_sae": 3.5, "ce_loss_score_mean": 0.9}
    qualities = {
        (label, name): Quality(
            metrics | {"fvu": 0.1 * at, "l0": 31.5, "kl_div_with_sae": 0.01 * at, "unused_fraction": 0.2, "top1": 0.5},
            {"fvu": (0.1, 0.2), "kl_div_with_sae": (0.1, 0.2)}, {"0": {"fvu": 0.5}}, [1] * 28,
        )
        for at, (label, name) in enumerate((label, name) for label in LABELS for name in names)
    }  # fmt: skip
    variance = {name: {"top_1_percent_of_tokens": 0.5, "top_1_percent_of_dimensions": 0.5} for name in names[:2]}
    return Evaluation(qualities, variance, 65_536, 256, 256, has_head=True, causal=True)


ABOUT = {
    "command": f"sae eval {LABELS[0]} --compare {LABELS[1]} --exclude_positions 0 " + "--hookpoints layers.3 " * 20,
    "versions": "python 3.11, sae 0.1.0, torch 2.13.0, transformers 5.23.0, datasets 5.2.0",
}


@pytest.mark.browser
@needs_chromium
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_word_is_broken_and_nothing_is_cut(chromium: Any, tmp_path: Path, width: int, scheme: str) -> None:
    (tmp_path / "report.html").write_text(page(evaluation(), ABOUT, {}))
    tab = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    tab.goto((tmp_path / "report.html").as_uri())
    assert tab.evaluate(BROKEN) == []
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    cut = "[...document.querySelectorAll('td, th')].filter(each => each.scrollWidth > each.clientWidth + 1).length"
    assert tab.evaluate(cut) == 0
    text = tab.locator("body").inner_text()
    assert text.count("--hookpoints") == 20  # of the whole command
    colors = tab.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    light, dark = ["rgb(34, 34, 34)", "rgb(255, 255, 255)"], ["rgb(221, 221, 221)", "rgb(24, 26, 31)"]
    assert colors == (light if scheme == "light" else dark)


def test_what_all_rows_share_is_said_once() -> None:
    text = page(evaluation(), ABOUT, {})
    assert "In all rows: cosine <span class=word>0.9000</span>" in text and "<th>cosine</th>" not in text
    assert text.count("3.2500") == 1 and "<th>FVU</th>" in text
    one = table(["checkpoint", "FVU"], [["run", "0.1"], ["run", "0.2"]], names=1)
    assert one.count("run") == 1 and "<td>0.1</td>" in one


def test_prefixes_budgets_and_what_has_no_skip_connection_stand_in_the_table_and_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluation()
    for (_, name), quality in found.qualities.items():
        quality.metrics.update({"fvu/first 512": 0.4321, "fvu/without skip": 0.8765} if name != "all" else {})
    report_evaluation(found, tmp_path / "both", {})
    assert len(re.findall(r"^\s+first 512 +0\.4321\s*$", capsys.readouterr().out, re.MULTILINE)) == 4
    alone = replace(found, qualities={key: each for key, each in found.qualities.items() if key[0] == LABELS[0]})
    report_evaluation(alone, tmp_path / "one", {})
    printed = capsys.readouterr().out
    assert printed.count("first 512") == printed.count("without skip") == printed.count("0.8765") == 2
    text = page(found, ABOUT, {})
    assert "Parts that reconstruct by themselves" in text and "Parts" not in page(evaluation(), ABOUT, {})
    assert text.count("<td>0.4321</td>") == text.count("<td>0.8765</td>") == 4


def test_a_single_row_and_rows_that_are_all_the_same_stay_tables() -> None:
    assert "In all rows" not in table(["checkpoint", "FVU"], [["run", "0.1"]], names=1)
    assert table(["checkpoint"], [["run"], ["run"]], names=1).count("<td class=name>run</td>") == 2
    counts = table(["hookpoint", "to 50%"], [["a", "0"], ["b", "0"]], names=1, numbers=["to 50%"])
    assert counts.count("<td>0</td>") == 2


def test_a_text_breaks_at_spaces_and_slashes_and_is_escaped() -> None:
    text = facts({"command": "sae a/b <i>"})
    assert "<span class=word>a/</span><wbr><span class=word>b</span> <span class=word>&lt;i&gt;</span>" in text
