"""The command line: `python -m sae MODEL DATASET [options]`, or `sae …`. Training is the default command."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sae.commands.parser import Groups, parse
from sae.config import CacheConfig, EvalConfig, RunConfig, SourceConfig, TextConfig

if TYPE_CHECKING:
    from sae.training.trainer import SaeTrainer

TRAIN_GROUPS = {
    "data": (
        "model", "dataset", "activations", "split", "text_column", "streaming", "ctx_len", "max_tokens",
        "exclude_tokens", "exclude_positions", "data_preprocessing_num_proc",
    ),
    "autoencoder": (
        "hookpoints", "layers", "layer_stride", "expansion_factor", "num_latents", "k", "selection", "prefixes",
        "budgets", "normalize_decoder", "finetune",
    ),
    "training": (
        "batch_size", "grad_acc_steps", "micro_acc_steps", "steps_per_batch", "loss_fn", "lr", "lr_warmup_steps",
        "auxk_alpha", "dead_feature_threshold", "recipe", "seed",
    ),
    "output": (
        "save_dir", "run_name", "resume", "resume_changed", "save_every", "keep_last", "save_best", "eval_every",
        "log_to_wandb",
        "wandb_log_frequency",
    ),
    "machine": (
        "device", "device_map", "dtype", "load_in_8bit", "attn_implementation", "compile_lm", "encode_in_8bit",
        "distribute_layers", "shard_latents", "revision", "hf_token",
    ),
}  # fmt: skip
"""Headings of --help, and under which each option stands."""

EVAL_GROUPS = {
    "what": ("checkpoint", "model", "dataset", "compare", "hookpoints"),
    "data": (
        "split", "text_column", "streaming", "ctx_len", "max_tokens", "exclude_tokens", "exclude_positions",
        "data_preprocessing_num_proc",
    ),
    "output": ("out",),
    "machine": ("batch_size", "device", "dtype", "load_in_8bit", "attn_implementation", "revision", "hf_token"),
}  # fmt: skip

CACHE_GROUPS = {
    "data": TRAIN_GROUPS["data"][:2] + TRAIN_GROUPS["data"][3:] + ("batch_size", "seed"),
    "cache": ("hookpoints", "layers", "layer_stride", "activations", "dtype", "shuffle"),
    "machine": ("device", "load_in_8bit", "attn_implementation", "compile_lm", "revision", "hf_token"),
}


class Command(NamedTuple):
    """One of the things that `sae` does: `sae NAME …` fills `config` and calls `run`, which returns the exit status."""

    run: Callable[[Any], int]
    config: type
    groups: Groups
    positional: tuple[str, ...]
    description: str
    """Its first line stands in the list of commands."""
    swept: tuple[str, ...] = ()
    """Options of which several values mean every combination."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 2 if the input was wrong, 130 if it was stopped by Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Threads that wait without spinning: with the cores busy elsewhere a step took 0.12 s instead of 0.6 s (2 cores,
    # 4608 latents, 2048 tokens). Read once, when PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Tensors of 2 MB and more in huge pages, where Linux has them: a tenth less time for a step (555 ms, not 612, at
    # 24,576 latents and 4096 tokens). Read once, when PyTorch makes its first one.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        command, cfg = read(arguments)
        return command.run(cfg)
    except BrokenPipeError:  # the reader of our output, such as head, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, FloatingPointError, OSError) as error:
        lines = [_speaker(error) + str(error), *getattr(error, "__notes__", [])]
        print("sae: error:", "; ".join(" ".join(line.split()) for line in lines), file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("sae: stopped;", *getattr(stop, "__notes__", ["nothing was written"]), file=sys.stderr)
        return 130


def _speaker(error: Exception) -> str:
    """Nothing, or which of several processes ends with this error."""
    if "RANK" not in os.environ:
        return ""
    from sae.parallel.world import tell_launcher

    return tell_launcher(error)


def read(arguments: Sequence[str]) -> tuple[Command, Any]:
    """The command that the arguments name, `train` if they name none, and its configuration."""
    named = bool(arguments[:1]) and arguments[0] in COMMANDS
    name = arguments[0] if named else DEFAULT
    command = COMMANDS[name]
    cfg: Any = parse(
        command.config,
        command.groups,
        arguments[named:],
        prog=f"sae {name}" if named else "sae",
        description=command.description if named else f"{command.description}\n\n{_list_of_commands()}",
        positional=command.positional,
        swept=command.swept,
    )
    return command, cfg


def _list_of_commands() -> str:
    lines = [f"  sae {name:<6} {command.description.splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join([f"Commands, each with its own --help; without one of these words it is {DEFAULT}:", *lines])


def train(cfg: RunConfig) -> int:
    """Load model and data, train, report. The cheap checks come first, each before the work that it would spoil."""
    from sae import lm
    from sae.activations.cache.read import ActivationCache
    from sae.activations.feed import adopted
    from sae.formats import eleuther
    from sae.ops import eight_bit
    from sae.parallel.world import World
    from sae.runs.folder import RunFolder, continue_after_restart
    from sae.runs.log import note
    from sae.training.run_plan import plan_saes
    from sae.training.trainer import SaeTrainer, check_processes

    world = World.from_environment(shard_latents=cfg.shard_latents)
    check_processes(cfg, world.size)
    devices = world.local_devices(lm.check_device(cfg.device))
    if cfg.encode_in_8bit:
        eight_bit.check_device(devices[0])
    if cfg.activations is not None:
        cache = ActivationCache(cfg.activations, device=devices[0])
        cfg = replace(cfg, **adopted(cfg, cache.header.options))
        return fit(SaeTrainer(cfg, cache))
    cfg = world.from_main(partial(continue_after_restart, cfg, restarted=world.restarted))
    world.from_main(partial(RunFolder.plan, cfg))
    skeleton, hookpoints = check_model(cfg)
    plan_saes(cfg, hookpoints)
    if cfg.finetune is not None:
        eleuther.find(eleuther.locate(cfg.finetune), hookpoints)
    with world.one_first(note, "prepared the data"):
        dataset = load_checked_text(cfg, skeleton)
    head = cfg.loss_fn != "fvu" or cfg.eval_every > 0
    return fit(SaeTrainer(cfg, dataset, load_language_model(cfg, devices[0], devices, head=head)))


def fit(trainer: "SaeTrainer") -> int:
    """Train, and return the exit status."""
    try:
        trainer.fit()
    except KeyboardInterrupt as stop:
        if trainer.folder.path.is_dir():
            stop.add_note(f"what was saved before is in {trainer.folder.path}")
        raise
    trainer.world.close()
    return 130 if trainer.stopped else 0


def evaluate(cfg: EvalConfig) -> int:
    """Load autoencoders, data and model, measure, report. The cheap checks come first."""
    from sae import lm
    from sae.activations.source import check_excluded
    from sae.evaluation.command import load_dictionaries, measure_plan
    from sae.evaluation.plan import plan_evaluation
    from sae.parallel.world import World
    from sae.report.evaluation import report_evaluation
    from sae.runs.folder import command, versions
    from sae.runs.log import note

    world = World.from_environment()
    access = {"revision": cfg.revision, "token": cfg.hf_token}
    (device, *_) = world.local_devices(lm.check_device(cfg.device))
    plan = plan_evaluation(cfg, context_limit=lambda model: lm.context_limit(lm.load_skeleton(model, **access)))
    skeleton = lm.load_skeleton(plan.text.model, revision=plan.text.revision, token=cfg.hf_token)
    lm.check_ctx_len(plan.text.ctx_len, skeleton)
    check_excluded(
        cfg.exclude_tokens or [],
        cfg.exclude_positions or [],
        vocab_size=lm.vocab_size(skeleton),
        ctx_len=plan.text.ctx_len,
    )
    for hookpoint in plan.hookpoints:
        lm.locate(skeleton, hookpoint)
    with world.one_first(note, "prepared the data"):
        dataset = load_text(plan.text, skeleton)
    dictionaries = load_dictionaries(plan, device)
    model = load_language_model(plan.text, device, head=True)
    evaluation, sentences = measure_plan(plan, model, dataset, dictionaries, batch_size=cfg.batch_size, ranks=world)
    world.close()
    if not world.is_main:
        return 0
    for sentence in sentences:
        note(sentence)
    about = {"command": " ".join(command()), "model": plan.text.model, "data": plan.text.dataset}
    about |= {"tokens": " ".join(sentences), "versions": ", ".join(f"{k} {v}" for k, v in versions().items())}
    report_evaluation(evaluation, plan.out, about)
    return 0


def cache(cfg: CacheConfig) -> int:
    """Write activations to the disk."""
    from sae import lm
    from sae.commands.cache import cache_activations, check_folder
    from sae.parallel.world import check_alone

    check_alone("sae cache")
    check_folder(cfg)
    device = lm.check_device(cfg.device)
    skeleton, _ = check_model(cfg)
    dataset = load_checked_text(cfg, skeleton)
    try:
        folder = cache_activations(cfg, dataset, load_language_model(cfg, device))
    except KeyboardInterrupt as stop:
        stop.add_note("what was written stays; the same command continues")
        raise
    print(f"activations {folder}")
    return 0


def check_model(cfg: RunConfig) -> tuple[Any, list[str]]:
    """The model's skeleton, and the hookpoints that are chosen in it."""
    from sae import lm
    from sae.activations.feed import check_exclusions

    access = {"revision": cfg.revision, "token": cfg.hf_token}
    skeleton = lm.load_skeleton(cfg.model, **access)
    lm.check_ctx_len(cfg.ctx_len, skeleton)
    check_exclusions(cfg, vocab_size=lm.vocab_size(skeleton), ctx_len=cfg.ctx_len)
    return skeleton, lm.resolve_hookpoints(
        skeleton, hookpoints=cfg.hookpoints, layers=cfg.layers, layer_stride=cfg.layer_stride
    )


def load_checked_text(cfg: RunConfig, skeleton: Any) -> Any:
    """The data, of which there is enough for a step."""
    from sae import lm
    from sae.activations.feed import count_steps, token_batches

    dataset = load_text(cfg, skeleton)
    count_steps(cfg, token_batches(cfg, dataset, vocab_size=lm.vocab_size(skeleton)))
    return dataset


def load_text(cfg: TextConfig, skeleton: Any) -> Any:
    """The data that the command line names, as token sequences for the model whose `skeleton` is given."""
    from sae import lm
    from sae.data import TokenizerNeededError, load_data

    try:
        tokenizer, why_none = lm.load_tokenizer(cfg.model, revision=cfg.revision, token=cfg.hf_token), None
    except ValueError as error:  # not needed where the data is tokens
        tokenizer, why_none = None, error
    try:
        return load_data(
            cfg.dataset,
            split=cfg.split,
            streaming=cfg.streaming,
            text_column=cfg.text_column,
            token=cfg.hf_token,
            tokenizer=tokenizer,
            ctx_len=cfg.ctx_len,
            num_proc=cfg.data_preprocessing_num_proc,
            vocab_size=lm.vocab_size(skeleton),
        )
    except TokenizerNeededError:
        raise why_none or AssertionError("a tokenizer was given") from None


def load_language_model(cfg: SourceConfig, device: Any, devices: Sequence[Any] = (), *, head: bool = False) -> Any:
    """The model that the command line names, with its weights, on `device`, or over all `devices` if it says so.

    It computes in what --dtype says, or else in what is fastest here; in float32 if it cannot.
    """
    import torch

    from sae import lm
    from sae.runs.log import note

    load = partial(
        lm.load_model,
        cfg.model,
        device=device,
        attn_implementation=cfg.attn_implementation,
        load_in_8bit=cfg.load_in_8bit,
        head=head,
        device_map=cfg.device_map,
        devices=devices,
        revision=cfg.revision,
        token=cfg.hf_token,
    )
    if cfg.lm_dtype is not None:
        return load(dtype=getattr(torch, cfg.lm_dtype))
    dtype = lm.compute_dtype(device)
    model = load(dtype=dtype)
    if dtype == torch.float32 or not (reason := lm.cannot_compute(model)):
        return model
    del model
    in_float32 = load(dtype=torch.float32)
    if lm.cannot_compute(in_float32):  # it is not for the type
        return load(dtype=dtype)
    note(f"the language model cannot compute in {str(dtype).removeprefix('torch.')} ({reason}); it runs in float32")
    return in_float32


DEFAULT = "train"
COMMANDS = {
    "train": Command(
        train,
        RunConfig,
        TRAIN_GROUPS,
        ("model", "dataset"),
        "Train a k-sparse autoencoder on the output of every layer of a language model, all at once.\n"
        "Example: sae EleutherAI/pythia-160m wikitext.jsonl --layers 3 7 --max_tokens 10000000\n"
        "--k, --expansion_factor, --num_latents, --lr and --seed take several values: every combination is trained.",
        ("k", "expansion_factor", "num_latents", "lr", "seed"),
    ),
    "eval": Command(
        evaluate,
        EvalConfig,
        EVAL_GROUPS,
        ("checkpoint", "model", "dataset"),
        "Measure dictionaries on tokens that training never saw: reconstruction, and grafted into the model.\n"
        "Example: sae eval checkpoints/my-run --compare checkpoints/other-run",
    ),
    "cache": Command(
        cache,
        CacheConfig,
        CACHE_GROUPS,
        ("model", "dataset"),
        "Write the activations of a language model to the disk, for sae --activations to train on.\n"
        "Example: sae cache EleutherAI/pythia-160m wikitext.jsonl --layers 3 7 --activations pythia-wikitext",
    ),
}


if __name__ == "__main__":
    sys.exit(main())
