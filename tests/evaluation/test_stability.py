"""`sae eval --stability`: which latents two dictionaries share, from their weights alone."""

import json
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
import torch

import sae.__main__
from sae import Sae, SaeConfig
from sae.dictionary.spec import Spec
from sae.evaluation import matching
from sae.evaluation.stability import stabilities

D, LATENTS = 12, 6
Run = Callable[..., tuple[int, str, str]]


def dictionary(seed: int, latents: int = LATENTS, d: int = D) -> Sae:
    return Sae(d, SaeConfig(num_latents=latents, k=2), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in a folder with two seeds of two hookpoints, and others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("one", "two"):
        for layer in (0, 1):
            dictionary(3 + 10 * layer).save_to_disk(f"{name}/layers.{layer}")  # the same weights in both
    other = dictionary(7)
    with torch.no_grad():
        other.W_dec[:3] = -2 * dictionary(3).W_dec[[4, 0, 2]]
    other.save_to_disk("two/layers.0")
    dictionary(1, d=16).save_to_disk("wide/layers.0")
    dictionary(1).save_to_disk("elsewhere/layers.9")

    def run_command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sae", "eval", *arguments])
        return (sae.__main__.main(), *capsys.readouterr())

    return run_command


def test_the_numbers_are_those_of_the_best_of_all_pairings(run: Run) -> None:
    assert run("one", "--stability", "two", "--out", "out")[0] == 0
    measured = json.loads(Path("out/eval.json").read_text())["stability"]
    assert [(each["checkpoint"], each["other"], each["hookpoint"]) for each in measured] == [
        ("one", "two", "layers.0"),
        ("one", "two", "layers.1"),
    ]
    for each in measured:
        a, b = (Sae.load_from_disk(f"{name}/{each['hookpoint']}").W_dec.detach().double() for name in ("one", "two"))
        cosines = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1).abs()
        pairs = max(
            (cosines[range(LATENTS), list(order)] for order in permutations(range(LATENTS))),
            key=lambda each: each.sum().item(),
        )
        assert each["pw_mcc"] == pytest.approx(pairs.mean().item(), abs=1e-6)
        assert each["shared"] == {f"{least}": (pairs >= least - 1e-6).double().mean().item() for least in (0.7, 0.9)}
        assert each["histogram"] == torch.histc(pairs.float().clamp_max(1), 20, 0, 1).tolist()
        assert each["latents"] == [LATENTS, LATENTS] and each["matching"] == "optimal"
    assert measured[0]["shared"]["0.9"] == 0.5 and measured[1]["pw_mcc"] == pytest.approx(1, abs=1e-6)


def test_the_report_holds_what_the_table_says(run: Run) -> None:
    status, out, err = run("one", "--stability", "two", "--out", "out")
    assert (status, err) == (0, "")
    page = Path("out/report.html").read_text()
    for each in json.loads(Path("out/eval.json").read_text())["stability"]:
        assert f"{each['pw_mcc']:.4f}" in out and f"{each['pw_mcc']:.4f}" in page
    assert "data:image/png;base64," in page and Path("out/stability.png").read_bytes()[:4] == b"\x89PNG"
    assert "numbers     out/eval.json" in out


def test_a_run_of_several_seeds_is_compared_with_itself_each_pair_once(run: Run) -> None:
    for seed in (1, 2, 3):
        dictionary(seed).save_to_disk(f"seeds/seed{seed}/layers.0")
    assert run("seeds", "--stability", "seeds", "--out", "out")[0] == 0
    measured = json.loads(Path("out/eval.json").read_text())["stability"]
    assert [(each["checkpoint"], each["other"]) for each in measured] == [
        ("seeds/seed1", "seeds/seed2"),
        ("seeds/seed1", "seeds/seed3"),
        ("seeds/seed2", "seeds/seed3"),
    ]


def test_a_greedy_pairing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "LARGEST_OPTIMAL", 5)
    told: list[str] = []
    load = {name: {"layers.0": lambda seed=seed: dictionary(seed, 8)} for seed, name in enumerate("ab")}
    (found,) = stabilities(load, {"a"}, tell=told.append)
    assert found.matching == "greedy" and "paired greedily" in told[0]


BAD = [
    (["one", "--stability", "wide"], "dictionaries of one width, got 12 in one and 16 in wide at layers.0"),
    (["one", "--stability", "elsewhere"], "at a hookpoint that both have, got none: one has layers.0, layers.1"),
    (["one", "--stability", "one"], "name another checkpoint than this one"),
    (["one", "--stability", "nowhere/at/all"], "nowhere/at/all"),
    (["one", "--stability", "two", "--compare", "two"], "give one of --stability and --compare"),
    (["one", "--stability", "two", "--baselines", "pca"], "give one of --stability and --baselines"),
    (["one", "--stability"], "stability must be followed by at least one value"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_and_writes_nothing(run: Run, arguments: list[str], words: str) -> None:
    before = sorted(Path().rglob("*"))
    status, out, err = run(*arguments)
    (line,) = [line for line in err.splitlines() if line.startswith("sae: error:")]
    assert status == 2 and out == "" and words in line and sorted(Path().rglob("*")) == before


def test_what_has_no_partner_is_told(run: Run) -> None:
    status, out, err = run("one", "--stability", "elsewhere", "two", "--hookpoints", "layers.*", "--out", "out")
    assert status == 0 and "layers.1" in out
    assert "without a partner at the same hookpoint, and so left out: layers.9 of elsewhere" in err


@pytest.mark.parametrize("kind", ["crosscode", "cross_layer"])
def test_dictionaries_of_several_hookpoints_are_compared_only_where_these_are_the_same(kind: str) -> None:
    def write(*writes: str) -> Sae:
        cfg, reads = SaeConfig(num_latents=LATENTS, k=2, **{kind: True}), ("a.input",) if kind == "cross_layer" else ()
        return Sae(D, cfg, d_out=D, spec=Spec(cfg, D, D, LATENTS, reads=reads, writes=writes, widths=(D // 2, D // 2)))

    load = {"one": {"x": lambda: write("a", "b")}, "two": {"x": lambda: write("a", "b")}}
    assert stabilities(load, {"one"})[0].latents == (LATENTS, LATENTS)
    load["two"] = {"x": lambda: write("a", "c")}
    with pytest.raises(
        ValueError, match="that write the same, got a, b in one and a, c in two at x; give checkpoints of"
    ):
        stabilities(load, {"one"})
