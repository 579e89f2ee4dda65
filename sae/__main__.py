"""The command line: `python -m sae MODEL DATASET [options]`, or `sae …`. Training is the default command."""

import ast
import contextlib
import dataclasses
import inspect
import io
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from sae.config import RunConfig, SaeConfig, TrainConfig

GROUPS = {
    "data": (
        "model", "dataset", "split", "text_column", "streaming", "ctx_len", "max_tokens", "exclude_tokens",
        "exclude_positions", "data_preprocessing_num_proc",
    ),
    "autoencoder": ("hookpoints", "layers", "layer_stride", "expansion_factor", "num_latents", "k", "normalize_decoder",
                    "finetune"),
    "training": (
        "batch_size", "grad_acc_steps", "micro_acc_steps", "lr", "lr_warmup_steps", "auxk_alpha",
        "dead_feature_threshold", "seed",
    ),
    "output": ("save_dir", "run_name", "resume", "save_every", "log_to_wandb", "wandb_log_frequency"),
    "machine": (
        "device", "load_in_8bit", "attn_implementation", "distribute_layers", "revision", "hf_token",
    ),
}  # fmt: skip
"""Headings of --help, and under which each option stands."""

LATER = ("eval", "cache")
"""Commands that are still to come: never the name of a model."""

_DESCRIPTION = """Train a k-sparse autoencoder on the output of every layer of a language model, all at once.
Example: sae EleutherAI/pythia-160m wikitext.jsonl --layers 3 7 --max_tokens 10000000"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 2 if the input was wrong, 130 if it was stopped by Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Threads that wait without spinning: with the cores busy elsewhere a step took 0.12 s instead of 0.6 s (2 cores,
    # 4608 latents, 2048 tokens). Read once, when PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if arguments[:1] and arguments[0] in LATER:
            raise ValueError(f"the command {arguments[0]!r} is not built yet; sae MODEL DATASET trains")
        return train(parse(arguments))
    except BrokenPipeError:  # the reader of our output, such as head, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, FloatingPointError, OSError) as error:
        lines = [str(error), *getattr(error, "__notes__", [])]
        print("sae: error:", "; ".join(" ".join(line.split()) for line in lines), file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("sae: stopped;", *getattr(stop, "__notes__", ["nothing was written"]), file=sys.stderr)
        return 130


def train(cfg: RunConfig) -> int:
    """Load model and data, train, report. The cheap checks come first, each before the work that it would spoil."""
    from sae import lm
    from sae.data import load_data
    from sae.distributed import World
    from sae.formats import eleuther
    from sae.run import RunFolder
    from sae.trainer import SaeTrainer, count_steps, token_batches

    World.from_environment(distribute_layers=cfg.distribute_layers)
    device = lm.check_device(cfg.device)
    RunFolder.plan(cfg)
    access = {"revision": cfg.revision, "token": cfg.hf_token}
    lm.check_ctx_len(cfg.ctx_len, lm.load_config(cfg.model, **access))
    skeleton = lm.load_skeleton(cfg.model, **access)
    hookpoints = lm.resolve_hookpoints(
        skeleton, hookpoints=cfg.hookpoints, layers=cfg.layers, layer_stride=cfg.layer_stride
    )
    if cfg.finetune is not None:
        eleuther.find(eleuther.locate(cfg.finetune), hookpoints)
    dataset = load_data(
        cfg.dataset,
        split=cfg.split,
        streaming=cfg.streaming,
        text_column=cfg.text_column,
        token=cfg.hf_token,
        tokenizer=lm.load_tokenizer(cfg.model, **access),
        ctx_len=cfg.ctx_len,
        num_proc=cfg.data_preprocessing_num_proc,
        vocab_size=lm.vocab_size(skeleton),
    )
    count_steps(cfg, token_batches(cfg, dataset, vocab_size=lm.vocab_size(skeleton)))
    model = lm.load_model(
        cfg.model,
        device=device,
        dtype=lm.compute_dtype(device),
        attn_implementation=cfg.attn_implementation,
        load_in_8bit=cfg.load_in_8bit,
        **access,
    )
    trainer = SaeTrainer(cfg, dataset, model)
    try:
        trainer.fit()
    except KeyboardInterrupt as stop:
        if trainer.folder.path.is_dir():
            stop.add_note(f"what was saved before is in {trainer.folder.path}")
        raise
    return 130 if trainer.stop else 0


def parse(arguments: Sequence[str]) -> RunConfig:
    """RunConfig from the command line. Raises ValueError, in one line, for an unknown option or a bad value."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            groups: Any = tyro.cli(
                _command_line(),
                args=list(arguments),
                prog="sae",
                description=_DESCRIPTION,
                use_underscores=True,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_unboxed(message.getvalue())) from None
    values = {name: value for group in vars(groups).values() for name, value in vars(group).items()}
    sae = {field.name: values.pop(field.name) for field in dataclasses.fields(SaeConfig) if field.name in values}
    for name, value in values.items():
        if value == [] and f"--{name}" in arguments:
            raise ValueError(
                f"{name} must be followed by at least one value, got none; leave out --{name} for the default"
            )
    return RunConfig(sae=SaeConfig(**sae), **values)


def _command_line() -> type:
    """A class with one field per heading of --help, whose fields are the options under it."""
    fields = {field.name: field for config in (SaeConfig, RunConfig) for field in dataclasses.fields(config)}
    docs = {name: doc for config in (SaeConfig, TrainConfig, RunConfig) for name, doc in field_docs(config).items()}
    groups = []
    for heading, names in GROUPS.items():
        members = [(name, _option(fields[name], docs[name]), _default(fields[name])) for name in names]
        group = dataclasses.make_dataclass(heading, members)
        groups.append((heading, group, dataclasses.field(default_factory=group)))
    return dataclasses.make_dataclass("CommandLine", groups)


def _option(field: dataclasses.Field[Any], doc: str) -> Any:
    kind: Any = field.type
    if field.name in ("model", "dataset"):
        kind = tyro.conf.Positional[Annotated[kind, tyro.conf.arg(metavar=field.name.upper())]]  # type: ignore[misc]
    return Annotated[kind, tyro.conf.arg(help=doc)]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is dataclasses.MISSING:
        return field.default
    return dataclasses.field(default_factory=field.default_factory)


def field_docs(config: type) -> dict[str, str]:
    """The string under each field of a dataclass: its documentation, and the help of its option."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for before, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                docs[before.target.id] = " ".join(str(after.value.value).split())
    return docs


def _unboxed(text: str) -> str:
    """The command-line parser's message without its frame, in one line."""
    frame = re.compile(r"[─-╿]+|^[|+]|[|+]$|-{4,}")
    lines = [" ".join(frame.sub(" ", line).split()) for line in text.splitlines()]
    # The first line is the frame's title, the second the message; then come options that were perhaps meant.
    meant = [line for line in lines if line.startswith("--")]
    message = next((line for line in lines[1:] if line), "the options cannot be read")
    # What stands beside an unknown option may be a secret that was meant for a known one.
    if message.startswith("Unrecognized options:") and (unknown := re.findall(r"--?[^\s,=]+", message)):
        message = f"there is no option {', '.join(unknown)}"
    perhaps = f"; perhaps you meant {' or '.join(meant)}" if meant and "no option" in message else ""
    return f"{message}{perhaps}; sae --help lists the options"


if __name__ == "__main__":
    sys.exit(main())
