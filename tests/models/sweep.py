"""Every model type of transformers that reads tokens, tiny and random: is all that we promise true of it?

`python tests/models/sweep.py [TYPE …]` prints a line for each type, and without types writes docs/models.md.
"""

import copy
import inspect
import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from tiny_types import CTX_LEN, VOCAB_SIZE, tiny_config
from torch import Tensor, nn

import sae
from sae import lm

MORE_THAN_TOKENS = "must run on token ids alone"
REFUSED = {
    "canine": "4 vectors for 16 tokens",
    "blt": "has several stacks of blocks",
    "squeezebert": "was not reached",
    "funnel": "was not reached",
    "pi0": "has several stacks of blocks",
    "kyutai_speech_to_text": MORE_THAN_TOKENS,
    "step3p7": MORE_THAN_TOKENS,
}
"""Types that are refused, and the words in which."""
OTHER_STATES = {
    "mamba": "one earlier", "mamba2": "one earlier", "falcon_mamba": "one earlier", "rwkv": "one earlier",
    "deepseek_v4": "several streams", "gemma3n_text": "several streams", "glm5_next": "several streams",
    "glm5_next_text": "several streams", "reformer": "several streams", "hy_v4": "several streams",
    "sam3_lite_text_text_model": "none shown",
    "flava": "none shown", "tipsv2": "none shown", "xlstm": "none shown", "fastspeech2_conformer": "none shown",
    "florence2": "none shown",
}  # fmt: skip
"""Types whose hidden states, as transformers shows them, are not what the blocks put out, and in which way."""
SHAPES = "mat1 and mat2|split_with_sizes|must match the size|argument in the config"
"""What a forward says of a tiny model that does not fit together, and not of images that it lacks."""
UNBUILT = (
    "align bridgetower dots3_note evolla EvollaModel fast_vlm fun_asr_nano gemma3n granite4_vision inkling_mm_model "
    "layoutlmv2 musicgen musicgen_melody pe_audio_video pe_video perception_lm tvp"
).split()
"""Types of which no tiny model could be made; what they lack is in docs/models.md."""
SEQ, MOST_POSITIONS = 16, 4096
MOST_WEIGHTS = 20_000_000


class Finding(NamedTuple):
    """What came of one type."""

    model_type: str
    step: str
    """The step that failed or refused; "" if all is right."""
    refused: bool
    text: str
    notes: tuple[str, ...]
    seconds: float


def types() -> list[str]:
    """The types whose forward takes `input_ids`."""
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    found = []
    for name in CONFIG_MAPPING:
        try:
            cls = MODEL_MAPPING[CONFIG_MAPPING[name]]
            cls = cls[0] if isinstance(cls, tuple | list) else cls
            if "input_ids" in inspect.signature(cls.forward).parameters:
                found.append(name)
        except (KeyError, ImportError, ValueError):  # no model of its own, or one that needs a package
            continue
    return found


def whole_class(config: Any) -> Any:
    """The class in which such a model is published."""
    import transformers as t

    kind = type(config)
    for mapping, auto in (
        (t.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, t.AutoModelForImageTextToText),
        (t.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, t.AutoModelForSeq2SeqLM),
        (t.MODEL_FOR_MASKED_LM_MAPPING, t.AutoModelForMaskedLM),
        (t.MODEL_FOR_CAUSAL_LM_MAPPING, t.AutoModelForCausalLM),
    ):
        if kind in mapping:
            return auto
    return t.AutoModel


def build(model_type: str) -> nn.Module:
    config = tiny_config(model_type)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in whole_class(config).from_config(copy.deepcopy(config)).parameters())
    if size > MOST_WEIGHTS:
        raise NotImplementedError(f"{size:,} weights are too many for a tiny model")
    torch.manual_seed(0)
    model = whole_class(config).from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(5)
            if not weight.any():
                weight.normal_(0, 0.2)
    return model.eval()


def tokens_of(batch: int, seq: int, vocab_size: int = VOCAB_SIZE) -> Tensor:
    most = min(VOCAB_SIZE, vocab_size) - 9
    return torch.randint(4, most, (batch, seq), generator=torch.Generator().manual_seed(1))


@contextmanager
def replaced(
    module: nn.Module, replace: Callable[[Tensor], Tensor], *, call: int = 0, streams: int = 1, before: int = 0
) -> Iterator[None]:
    """By hand: the module's first tensor replaced in its run of that number, but for positions `before` the tokens.

    Of several `streams` as many first tensors are.
    """
    earlier = iter(range(call))
    done: list[bool] = []

    def in_its_shape(value: Tensor) -> Tensor:
        if value.ndim == 3:
            return replace(value)
        streams_first = value.shape[0] > 2  # the sweep has two sequences
        flat = torch.cat(list(value), -1) if streams_first else value.flatten(2)
        new = replace(flat)
        return torch.stack(new.chunk(len(value), -1)) if streams_first else new.view_as(value)

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if next(earlier, None) is not None or done:
            return output
        done.append(True)
        if streams > 1:
            new = replace(torch.cat(output[:streams], -1)).chunk(streams, -1)
            return type(output)(*new, *output[streams:])
        if before:
            new = torch.cat([output[0][:, :before], replace(output[0][:, before:])], 1)
            return (new, *output[1:])
        if isinstance(output, Tensor):
            return in_its_shape(output)
        if isinstance(output, dict):
            key = next(k for k, v in output.items() if isinstance(v, Tensor))
            output[key] = in_its_shape(output[key])
            return output
        return type(output)((in_its_shape(output[0]), *output[1:]))

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    with torch.no_grad():
        return model(input_ids=tokens, **options).logits.float()


def relation(mine: Tensor, states: Any, number: int) -> str:
    """What block `number` puts out, among the hidden states that transformers shows, the embeddings first."""
    states = [each for each in states or () if isinstance(each, Tensor)]
    if not states:
        return "none shown"
    if mine.shape[-1] > states[0].shape[-1]:
        return "several streams" if mine.shape[-1] % states[0].shape[-1] == 0 else "another width"
    near = [i - number for i, s in enumerate(states) if s.shape == mine.shape and torch.allclose(s, mine, atol=1e-5)]
    return "the same" if 1 in near else "one earlier" if 0 in near else "another"


class Sweep:
    def __init__(self, model_type: str, folder: str) -> None:
        self.type, self.folder, self.notes = model_type, folder, []

    def check(self) -> None:
        for name in ("build", "names", "base", "truth", "limit", "train", "bf16", "head", "graft", "evaluate"):
            self.step = name
            getattr(self, name)()
            if name == "head" and not self.has_head:
                return

    def build(self) -> None:
        whole = build(self.type)
        whole.save_pretrained(self.folder)
        self.whole = type(whole).__name__

    def tokens_of(self, batch: int, seq: int) -> Tensor:
        return tokens_of(batch, seq, lm.vocab_size(self.skeleton))

    def names(self) -> None:
        self.skeleton = lm.load_skeleton(self.folder)
        self.hookpoints = lm.resolve_hookpoints(self.skeleton)
        self.context = lm.context_limit(self.skeleton)
        self.tokens = self.tokens_of(2, SEQ)

    def base(self) -> None:
        self.base_model = lm.load_model(self.folder, device="cpu", dtype=torch.float32)
        self.widths = lm.widths(self.base_model, self.hookpoints, SEQ)
        self.found = lm.harvest(self.base_model, self.tokens, self.hookpoints)

    def truth(self) -> None:
        base = lm.base_model(self.base_model)
        encoder = getattr(base, "encoder", None)
        reader = encoder if base.config.is_encoder_decoder else base
        try:
            with torch.no_grad():
                shown = reader(input_ids=self.tokens, output_hidden_states=True)
                if "encoder_last_hidden_state" in shown:  # those are the decoder's, of something else
                    shown = base.encoder(input_ids=self.tokens, output_hidden_states=True) if encoder else shown
                states = shown.get("hidden_states") or shown.get("encoder_hidden_states")
        except Exception:
            states = None
        pairs = list(enumerate(self.hookpoints))[:-1]  # the last state has passed the final norm
        if not pairs:
            return
        found = {relation(self.found[name], states, number) for number, name in pairs}
        expected = {OTHER_STATES.get(self.type, "the same")}
        assert found == expected, f"hidden states: {found}, and not {expected}"
        if found != {"the same"}:
            self.notes.append(f"hidden states: {', '.join(found)}")

    def limit(self) -> None:
        base = lm.base_model(self.base_model)
        length = self.context or 2 * CTX_LEN + 2
        assert length <= MOST_POSITIONS, f"a limit of {length} positions is too many to try"
        try:
            lm.harvest(base, self.tokens_of(1, length), self.hookpoints)
        except ValueError as error:
            if "if the model pads" not in str(error):
                raise
            self.notes.append("pads")  # to its window, which is of 4 tokens here
            lm.harvest(base, self.tokens_of(1, length - length % 4), self.hookpoints)
        if self.context is None:
            self.notes.append("no limit")

    def train(self) -> None:
        cfg = sae.TrainConfig(
            sae.SaeConfig(num_latents=64, k=4),
            batch_size=4,
            max_tokens=16 * SEQ,
            save_dir=f"{self.folder}/runs",
            log_to_wandb=False,
            run_name="run",
        )
        rows = datasets.Dataset.from_dict({"input_ids": self.tokens_of(24, SEQ).tolist()})
        trainer = sae.SaeTrainer(cfg, rows, self.base_model)
        trainer.fit()
        self.saes = sae.Sae.load_many(f"{self.folder}/runs/run")
        if set(self.saes) != set(self.hookpoints):
            raise AssertionError(f"trained {list(self.saes)}, not {self.hookpoints}")

    def bf16(self) -> None:
        model = lm.load_model(self.folder, device="cpu", dtype=torch.bfloat16)
        if (reason := lm.cannot_compute(model)) and not lm.cannot_compute(self.base_model):
            self.notes.append(f"float32 only ({reason[:60]})")
            return
        found = lm.harvest(model, self.tokens, self.hookpoints)
        assert all(value.isfinite().all() for value in found.values()), "not finite"
        if not all(value.dtype == torch.bfloat16 for value in found.values()):
            self.notes.append("float32 only")

    def head(self) -> None:
        self.model = lm.load_model(self.folder, device="cpu", dtype=torch.float32, head=True)
        try:
            lm.find_head(self.model, SEQ)
            self.has_head = True
        except lm.NoHeadError as error:
            self.has_head = False
            self.notes.append(f"no KL: {error}")
        names = lm.resolve_hookpoints(self.model)
        assert names == self.hookpoints, f"with a head {names}, without {self.hookpoints}"
        found = lm.harvest(self.model, self.tokens, self.hookpoints)
        for name, value in found.items():
            assert torch.allclose(value, self.found[name], atol=1e-5), f"{name} differs with the head"

    def graft(self) -> None:
        clean = logits(self.model, self.tokens)
        with lm.graft(self.model, {name: lambda x: x.clone() for name in self.hookpoints}):
            same = logits(self.model, self.tokens)
        assert torch.equal(clean, same), f"identity changes logits by {(clean - same).abs().max()}"
        for name in self.hookpoints:
            with lm.graft(self.model, {name: lambda x: torch.linspace(-1, 1, x.shape[-1]).expand_as(x)}):
                other = logits(self.model, self.tokens)
            changed = (other - clean).abs().amax(-1) > 1e-6
            assert changed.all(), f"constant at {name} leaves {(~changed).sum()} of {changed.numel()} positions"

    def evaluate(self) -> None:
        found = sae.evaluate(self.model, self.tokens, self.saes, batch_size=2)
        clean = logits(self.model, self.tokens).log_softmax(-1)
        for name, one in self.saes.items():
            module, _, call = lm.locate(self.model, name)
            with replaced(
                module,
                lambda x, one=one: one(x).recon.to(x.dtype),
                call=call,
                streams=2 if self.type == "reformer" else 1,
                before=32 if self.type == "cpmant" else 0,
            ):
                other = logits(self.model, self.tokens).log_softmax(-1)
            true = (clean.exp() * (clean - other)).nansum(-1).mean().item()
            ours = found[name].metrics["kl_div_with_sae"]
            assert abs(ours - true) < 1e-4 + 1e-3 * abs(true), f"KL at {name} {ours:.6f}, by hand {true:.6f}"


def check(model_type: str) -> Finding:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(model_type, folder)
        try:
            sweep.check()
            return Finding(model_type, "", False, "", tuple(sweep.notes), time.perf_counter() - start)
        except Exception as error:
            if len(sys.argv) == 2:
                traceback.print_exc()
            text = " ".join(f"{type(error).__name__}: {error}".split())
            refused = isinstance(error, ValueError) and sweep.step != "build"
            return Finding(model_type, sweep.step, refused, text, tuple(sweep.notes), time.perf_counter() - start)


def word(found: Finding) -> str:
    """Whether it is as it must be: OK; REFUSED, for the reason in the table; UNBUILT; else FAIL."""
    if not found.step:
        return "OK" if found.model_type not in REFUSED else "FAIL"
    if found.step == "build":
        return "UNBUILT" if found.model_type in UNBUILT else "FAIL"
    if re.search(SHAPES, found.text) and found.model_type not in REFUSED:
        return "FAIL"
    expected = REFUSED.get(found.model_type, MORE_THAN_TOKENS if found.step in ("base", "names") else "nothing")
    return "REFUSED" if found.refused and re.search(expected, found.text) else "FAIL"


def quietly() -> None:
    """What a process that checks begins with."""
    warnings.filterwarnings("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


def findings() -> Iterator[Finding]:
    """Of the types that are named, or of all, in as many processes as there are cores."""
    if sys.argv[1:]:
        quietly()
        yield from map(check, sys.argv[1:])
        return
    with get_context("spawn").Pool(os.cpu_count(), quietly) as pool:
        yield from pool.imap(check, types())


def main() -> None:
    """Check, print what is found, and of all types write it down."""
    results = []
    for found in findings():
        name = found.model_type
        results.append((word(found), found))
        text = "; ".join([found.text[:300], *found.notes])
        print(f"{word(found):8} {name:26} {found.step:10}{found.seconds:5.1f} {text}", flush=True)
    if not sys.argv[1:]:
        Path(__file__).parents[2].joinpath("docs", "models.md").write_text(page(results), encoding="utf-8")
    sys.exit(any(each == "FAIL" for each, _ in results))


def page(results: list[tuple[str, Finding]]) -> str:
    """Text of docs/models.md: how many types are right, and why each other one is not."""
    import transformers

    kinds: dict[str, list[Finding]] = {kind: [] for kind in ("OK", "REFUSED", "UNBUILT", "FAIL")}
    for kind, found in results:
        kinds[kind].append(found)
    more = [found for found in kinds["REFUSED"] if re.search(MORE_THAN_TOKENS, found.text)]
    ours = [found for found in kinds["REFUSED"] if found not in more]
    text = len(kinds["OK"]) + len(ours) + len(kinds["FAIL"])
    float32 = [found.model_type for found in kinds["OK"] if any("float32 only" in note for note in found.notes)]
    states = [
        f"{found.model_type} ({OTHER_STATES[found.model_type]})"
        for found in kinds["OK"]
        if found.model_type in OTHER_STATES
    ]
    headless = [found.model_type for found in kinds["OK"] if any("no KL" in note for note in found.notes)]
    rows = [f"| `{found.model_type}` | {_cell(found.text)} |" for found in [*ours, *kinds["FAIL"]]]
    unbuilt = [f"| `{found.model_type}` | {_cell(found.text)} |" for found in kinds["UNBUILT"]]
    return f"""# Which models

Written by `python tests/models/sweep.py`, with transformers {transformers.__version__} and torch {torch.__version__}.

Every model type of transformers whose forward takes `input_ids` is built with random weights (two layers, width 32) \
and saved. Six promises of this project are then tested on it:

- Default training reads the output of every block, in each of its runs. \
That is the hidden state of transformers, except where a table \
says otherwise.
- The last position within the limit of context works.
- The identity grafted changes no logit; a constant in a block's place changes all.
- The KL of `sae.evaluate` is that of whole forwards with hooks made by hand.
- Names and activations are the same with and without the head.
- It runs in bfloat16, or says that it cannot.

**{len(kinds["OK"])} of {text} types that read text alone are right in all of it
({len(kinds["OK"]) / max(1, text):.1%}).** {len(ours)} are refused in one line, {len(kinds["FAIL"])} fail.
{len(more)} more need images, sound or boxes beside the tokens, and are refused in one line.
No tiny model of {len(kinds["UNBUILT"])} types could be made here; nothing is known about them.

## Refused

| type | what is said |
|---|---|
{chr(10).join(rows)}

## Right, with a remark

These run in float32 only, and say so: {_names(float32)}.

The hidden states that transformers shows for these are others, which is checked: {_names(states)}.

These have no language-modelling head that reads tokens alone. Their reconstructions are measured, KL and \
cross-entropy are not: {_names(headless)}.

## Right

{_names([found.model_type for found in kinds["OK"]])}.

## More than tokens

{_names([found.model_type for found in more])}.

## No tiny model

| type | why |
|---|---|
{chr(10).join(unbuilt)}
""".replace("\\\n", "")


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _cell(text: str) -> str:
    return re.sub(r"^\w+Error: ", "", text).replace("|", "/")[:300]


if __name__ == "__main__":
    main()
