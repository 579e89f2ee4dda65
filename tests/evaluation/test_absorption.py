"""Absorption of first letters: the rule on codes made by hand, the probes against plain solvers, the prompts."""

import math
import random

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from torch.nn import functional as F

from sae import Sae, SaeConfig
from sae.data.spelling import LETTERS, Spelling, spelling_prompts
from sae.evaluation import absorption as rule
from sae.evaluation.absorption import (
    LinearProbes,
    absorbed_parts,
    absorption,
    autoencoders,
    f1,
    fit_balanced,
    l1_weights,
    letters,
    main_latents,
    sentences,
)
from sae.evaluation.logistic import fit_l2

P = torch.tensor([1.0, 0.0, 0.0]).double()
ROWS = F.normalize(torch.tensor([[1.0, 0, 0], [1, 1, 0], [0.05, 1, 0], [0, 0, 1], [-1, 0.2, 0]]).double(), dim=1)
"""Latents: the letter itself, one half along it, one hardly along it, one across, one against it."""


def parts(wanted: float, code: dict[int, float], main: list[int]) -> tuple[float, bool]:
    """The absorbed part and whether it is whole, for a word with ⟨x, p⟩ = wanted."""
    acts, indices = torch.tensor([list(code.values())]).double(), torch.tensor([list(code)])
    part, full = absorbed_parts(wanted * P[None], acts, indices, ROWS, P, main)
    return part.item(), bool(full)


@pytest.mark.parametrize(
    ("wanted", "code", "part", "full"),
    [
        (1.0, {0: 1.0, 3: 5.0}, 0.0, False),  # the letter's own latent holds all of it
        (1.0, {0: 1.5, 1: 2.0}, 0.0, False),  # and more
        (1.0, {0: 0.0, 1: 0.6}, 1.0, True),  # silent, and another holds 0.42 of it
        (1.0, {0: 0.0, 1: 0.5}, 0.0, False),  # which is below 0.4 of it
        (1.0, {0: 0.25, 1: 1.0}, 0.7071 / 0.9571, False),  # the own one fires: in part
        (1.0, {0: 0.6, 1: 2.0}, 0.4, False),  # no more is absorbed than is missing
        (1.0, {0: 0.0, 2: 10.0}, 0.0, True),  # a cosine of 0.05 counts alone, not as one of several
        (1.0, {0: 0.0, 3: 9.0}, 0.0, False),
        (-1.0, {0: 0.0, 1: 0.6}, 0.0, False),  # the probe does not see the letter
    ],
)
def test_the_rule_on_one_word(wanted: float, code: dict[int, float], part: float, full: bool) -> None:
    found = parts(wanted, code, main=[0])
    assert found == (pytest.approx(part, abs=1e-4), full)


def test_a_letter_without_a_latent_of_its_own_is_absorbed_by_others() -> None:
    assert parts(1.0, {1: 1.0}, main=[]) == (1.0, True)


def test_three_latents_absorb_together_and_no_more() -> None:
    rows = torch.tensor([[0.5, 1, 0]] * 5 + [[1.0, 0, 0]]).double()
    acts, indices = torch.full((1, 5), 0.25).double(), torch.arange(5)[None]
    part, full = absorbed_parts(P[None], acts, indices, rows, P, [5])
    assert part.item() == 0.0  # three times 0.125 are below 0.4, five times would not be
    part, _ = absorbed_parts(P[None], 1.2 * acts, indices, rows, P, [5])
    assert part.item() == 1.0 and not full


OF_A_LETTER = 10
"""Words of a letter that are so frequent that each has a latent of its own: too few for a part in the letter's F1."""


def world(absorbed: bool, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Sae]:
    """Words with the direction of their letter. A quarter of them are frequent ones, with a direction and a latent of
    their own. If `absorbed`, that latent holds the letter too, and the letter's own latent stays silent."""
    generator = torch.Generator().manual_seed(seed)
    words, letters, basis = 5200, 26, torch.eye(26 + 26 * OF_A_LETTER)
    labels = torch.randint(letters, (words,), generator=generator)
    which = labels * OF_A_LETTER + torch.randint(OF_A_LETTER, (words,), generator=generator)
    frequent = torch.rand(words, generator=generator) < 0.25
    x = 2 * basis[labels] + torch.where(frequent[:, None], 2 * basis[letters + which], 0.0)
    x = x + 0.01 * torch.randn(x.shape, generator=generator)
    sae = Sae(len(basis), SaeConfig(num_latents=len(basis), k=4))
    own, special = basis[:letters], basis[letters:]
    theirs = own.repeat_interleave(OF_A_LETTER, 0)
    with torch.no_grad():
        sae.b_dec.zero_(), sae.encoder.bias.fill_(-0.5)
        silenced = special.view(letters, OF_A_LETTER, -1).sum(1)
        sae.encoder.weight.copy_(torch.cat([own - 2 * silenced if absorbed else own, special]))
        sae.W_dec.copy_(F.normalize(torch.cat([own, special + theirs if absorbed else special]), dim=1))
    return x, F.one_hot(labels, letters).double(), sae


@pytest.mark.parametrize("absorbed", [False, True])
def test_a_dictionary_that_absorbs_is_told_from_one_that_does_not(absorbed: bool) -> None:
    x, y, sae = world(absorbed)
    found = letters(sae, x, y, LinearProbes.fit(x.double(), y))
    assert [each.first_letter for each in found] == list(LETTERS.lower())
    rate = float(np.mean([each.full_absorption_rate for each in found]))
    part = float(np.mean([each.mean_absorption_fraction for each in found]))
    if absorbed:
        assert 0.18 < rate < 0.32 and 0.18 < part < 0.32  # a quarter of the words is of the frequent kind
        return
    assert rate == part == 0.0
    assert [each.latents for each in found] == [[letter] for letter in range(26)]
    assert all(each.num_split_features == 0 and each.probe_f1 == 1.0 for each in found)


# Probes


def test_the_balanced_probe_is_the_one_that_newtons_method_finds() -> None:
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)).double()
    y = (x[:, :2] + 0.5 * torch.randn(300, 2, generator=torch.Generator().manual_seed(1)) > 0.8).double()
    weights, bias = fit_balanced(x, y, 1e-2)
    for column in range(2):
        labels = y[:, column].numpy()
        each = np.where(labels > 0, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
        expected = fit_l2(x.numpy(), labels, 1 / (1e-2 * 300), weights=each)
        np.testing.assert_allclose(weights[column], expected.weights[0], atol=2e-4)
        np.testing.assert_allclose(bias[column], expected.intercepts[0], atol=2e-4)


def test_the_sparse_probe_meets_the_conditions_of_its_optimum() -> None:
    generator = torch.Generator().manual_seed(0)
    indices = torch.stack([torch.randperm(12, generator=generator)[:4] for _ in range(400)])
    acts = torch.rand(400, 4, generator=generator).double() + 0.5
    dense = torch.zeros(400, 12).double().scatter(1, indices, acts) / acts.mean()
    y = (dense[:, :2] + 0.2 * dense[:, 3:5] > 0.9).double()
    weights = l1_weights(acts, indices, y, 12)
    balance = torch.where(y > 0, 0.5 / y.mean(0), 0.5 / (1 - y.mean(0)))

    def slope(bias: torch.Tensor) -> torch.Tensor:
        return balance * (torch.sigmoid(dense @ weights.T + bias) - y) / 400

    low, high = torch.full((2,), -50.0).double(), torch.full((2,), 50.0).double()
    for _ in range(80):  # the best intercept, where the slopes add up to 0
        middle = (low + high) / 2
        below = slope(middle).sum(0) < 0
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    gradient = (dense.T @ slope(low)).T
    active = weights != 0
    torch.testing.assert_close(gradient[active], -0.01 * weights[active].sign(), atol=5e-4, rtol=0)
    assert (gradient[~active].abs() <= 0.01 + 5e-4).all() and active.any() and not active.all()


def test_a_further_latent_is_a_main_one_if_it_raises_the_f1() -> None:
    words = 1000
    y = (torch.arange(words) % 4 == 0).double()
    first, second = (torch.arange(words) % 8 == 0).double(), (torch.arange(words) % 8 == 4).double()
    noise = (torch.arange(words) % 7 == 0).double()
    acts, indices = torch.stack([first, second, noise], 1), torch.arange(3).expand(words, 3)
    assert main_latents(acts, indices, y, torch.tensor([3.0, 2.0, 1.0]).double(), 800) == [0, 1]
    assert main_latents(acts, indices, y, torch.tensor([3.0, -1.0, 0.0]).double(), 800) == [0]
    assert main_latents(acts, indices, y, torch.zeros(3).double(), 800) == []


def test_f1() -> None:
    found, truth = torch.tensor([[1, 0], [1, 0], [0, 0]]) > 0, torch.tensor([[1, 0], [0, 0], [1, 0]]) > 0
    assert f1(found, truth).tolist() == [0.5, 0.0]


# Prompts


class Letterwise:
    """A tokenizer of words and single characters, with a BOS."""

    def __init__(self, words: list[str]) -> None:
        self.texts = ["<s>", *words, *[chr(code) for code in range(32, 127)], "\n"]
        self.all_special_ids = [0]

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [0, *self.encode(text)]}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [self.texts.index(character) for character in text]

    def __len__(self) -> int:
        return len(self.texts)


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> Letterwise:
    monkeypatch.setattr("sae.data.spelling.special_ends", lambda tokenizer: ((0,), ()))
    draw = random.Random(0)
    return Letterwise([" " + "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(700)])


def test_a_prompt_shows_ten_words_with_their_letters_and_then_asks(tokenizer: Letterwise) -> None:
    spelling = spelling_prompts(tokenizer, tokenizer.texts, 600)  # type: ignore[arg-type]
    assert len(spelling.words) == len(set(spelling.words)) == 600
    for word, letter, ids in zip(spelling.words, spelling.letters, spelling.ids, strict=True):
        assert ids[0] == 0 and tokenizer.texts[ids[-1 - spelling.behind]] == word
        *shown, asked = "".join(tokenizer.texts[token] for token in ids[1:]).split("\n")
        assert asked == f"{word} has the first letter:" and LETTERS[letter] == word.strip()[0].upper()
        assert len(shown) == 10 and not any(line.startswith(word) for line in shown)
        for line in shown:
            example, answer = line.split(" has the first letter: ")
            assert example.strip()[0].upper() == answer
    assert spelling == spelling_prompts(tokenizer, tokenizer.texts, 600)  # type: ignore[arg-type]


def test_a_tokenizer_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 500 tokens that are words of the letters A to Z, got 52"):
        spelling_prompts(Letterwise([]), Letterwise([]).texts, 600)  # type: ignore[arg-type]


# The whole


def test_the_activations_are_those_of_the_word_and_all_labels_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt_neox")
    vocabulary = tiny_tokenizer().vocab_size
    draw = random.Random(0)
    words = [draw.randrange(4, vocabulary) for _ in range(300)]
    ids = [[draw.randrange(4, vocabulary) for _ in range(draw.choice([3, 5]))] + [word, 1, 2] for word in words]
    spelling = Spelling([str(word) for word in words], [word % 26 for word in words], ids, 2)
    monkeypatch.setattr(rule, "LEAST_F1", 0.0)
    saes = {"a": {"layers.1": Sae(model.config.hidden_size, SaeConfig(num_latents=64, k=8))}}
    done: list[int] = []
    found = absorption(model, spelling, saes, batch_size=8, done=done.append)
    assert done[-1] == 300 == found.words
    assert list(found.by_letter) == [("a", "layers.1")]
    written = found.to_json()["results"]["a"]["layers.1"]
    assert set(written["mean"]) == {
        "mean_absorption_fraction_score", "mean_full_absorption_score", "mean_num_split_features",
        "std_dev_absorption_fraction_score", "std_dev_full_absorption_score", "std_dev_num_split_features",
    }  # fmt: skip
    assert all(0 <= each["mean_absorption_fraction"] <= 1 for each in written["letters"])
    doubts = sentences(found, 135_000_000)
    assert "absorption means something for models of about 1B parameters, and this one has 135,000,000" in doubts[0]


def test_what_cannot_be_measured_is_told() -> None:
    model = tiny_model("gpt_neox")
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = math.nan
    ids = [[4 + each % 3, 5, 6] for each in range(600)]
    ids[17][0] = 7
    spelling = Spelling(["a"] * 600, [each % 26 for each in range(600)], ids, 2)
    saes = {"": {"layers.1": Sae(model.config.hidden_size, SaeConfig(num_latents=64, k=8))}}
    found = absorption(model, spelling, saes, batch_size=8)
    assert found.by_letter == {("", "layers.1"): []}
    told = sentences(found, 10**10)
    assert told == ["absorption is not measured at layers.1, where activations of 1 words are not finite"]
    silent = rule.Letter("a", 1.0, 0.0, 0.0, 0, 9, 0, [])
    told = sentences(rule.Absorbed(9, {("run", "layers.1"): [silent] * 26}), 10**10)
    assert told == ["no latent stands for a letter in run at layers.1: 0 says nothing"]


def test_a_score_without_letters_is_no_number() -> None:
    found = rule.Absorbed(500, {("a", "layers.1"): []})
    assert math.isnan(found.mean(("a", "layers.1"), "mean_absorption_fraction_score")[0])
    assert "measured for 0 of 26 letters" in sentences(found, 10**10)[0]


def test_dictionaries_that_write_something_else_than_they_read_are_left_out() -> None:
    plain, other = (
        Sae(8, SaeConfig(num_latents=16, k=2)),
        Sae(8, SaeConfig(num_latents=16, k=2, transcode=True), d_out=8),
    )
    assert list(autoencoders({"a": {"layers.1": plain, "layers.1.mlp": other}})["a"]) == ["layers.1"]
    with pytest.raises(ValueError, match="needs autoencoders, got transcoders or crosscoders alone"):
        autoencoders({"a": {"layers.1.mlp": other}})


def test_what_is_left_out_of_several_dictionaries_is_told() -> None:
    model = tiny_model("gpt_neox")
    d, cfg = model.config.hidden_size, SaeConfig(num_latents=64, k=8)
    transcoder = Sae(d, SaeConfig(num_latents=64, k=8, transcode=True), d_out=d)
    spelling = Spelling(
        ["a"] * 600, [each % 26 for each in range(600)], [[4 + each % 3, 5, 6] for each in range(600)], 2
    )
    saes = {"a": {"layers.1": Sae(d, cfg), "layers.1.mlp": transcoder}, "b": {"layers.1.mlp": transcoder}}
    found = absorption(model, spelling, saes, batch_size=8)
    assert list(found.by_letter) == [("a", "layers.1")]
    told = sentences(found, 10**10)[0]
    assert told.endswith("write what they read, and leaves out layers.1.mlp of a, layers.1.mlp of b")
