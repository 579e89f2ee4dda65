"""The commands of `sae`: what each is called, which options it has and what it runs. Imports nothing that is heavy."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from sae.commands.parser import Groups, parse
from sae.config import (
    BrowseConfig,
    CacheConfig,
    ConvertConfig,
    EvalConfig,
    InfoConfig,
    PushConfig,
    RunConfig,
    SelftestConfig,
)

TRAIN_GROUPS = {
    "data": (
        "model", "dataset", "model_b", "activations", "split", "text_column", "streaming", "ctx_len", "max_tokens",
        "exclude_tokens", "exclude_positions", "data_preprocessing_num_proc",
    ),
    "autoencoder": (
        "hookpoints", "layers", "layer_stride", "expansion_factor", "num_latents", "k", "selection", "inference_l0",
        "prefixes", "budgets", "crosscode", "transcode", "cross_layer", "tie_decoders", "skip_connection",
        "normalize_decoder", "finetune",
    ),
    "training": (
        "batch_size", "grad_acc_steps", "micro_acc_steps", "steps_per_batch", "loss_fn", "reconstruct_first", "lr",
        "lr_warmup_steps", "auxk_alpha", "dead_feature_threshold", "recipe", "seed",
    ),
    "output": (
        "save_dir", "run_name", "resume", "resume_changed", "save_every", "keep_last", "save_best", "eval_every",
        "log_every", "log_to_wandb",
    ),
    "machine": (
        "device", "device_map", "dtype", "load_in_8bit", "attn_implementation", "compile_lm", "encode_in_8bit",
        "distribute_layers", "shard_latents", "revision", "revision_b", "hf_token",
    ),
}  # fmt: skip
"""Headings of --help, and under which each option stands."""

EVAL_GROUPS = {
    "what": ("checkpoint", "model", "dataset", "model_b", "compare", "hookpoints"),
    "latents": ("baselines", "probes", "probe_texts", "absorption", "absorption_words", "stability"),
    "data": (
        "split", "text_column", "streaming", "ctx_len", "max_tokens", "exclude_tokens", "exclude_positions",
        "data_preprocessing_num_proc",
    ),
    "output": ("out",),
    "machine": (
        "batch_size", "device", "dtype", "load_in_8bit", "attn_implementation", "revision", "revision_b", "hf_token",
    ),
}  # fmt: skip

BROWSE_GROUPS = {
    "what": ("checkpoint", "model", "dataset", "model_b", "hookpoints"),
    "data": ("activations", *EVAL_GROUPS["data"]),
    "page": ("port", "browser", "out", "export", "explain", "explainer", "latents"),
    "machine": EVAL_GROUPS["machine"],
}

CACHE_GROUPS = {
    "data": TRAIN_GROUPS["data"][:3] + TRAIN_GROUPS["data"][4:] + ("batch_size", "seed"),
    "cache": ("hookpoints", "layers", "layer_stride", "activations", "dtype", "shuffle"),
    "machine": ("device", "load_in_8bit", "attn_implementation", "compile_lm", "revision", "revision_b", "hf_token"),
}

SELFTEST_GROUPS = {
    "features": ("num_features", "width", "max_tokens"),
    "autoencoder": ("num_latents", "k", "selection", "inference_l0", "prefixes", "budgets", "normalize_decoder"),
    "training": (
        "batch_size", "grad_acc_steps", "steps_per_batch", "lr", "lr_warmup_steps", "auxk_alpha",
        "dead_feature_threshold", "recipe", "seed",
    ),
    "output": ("out",),
    "machine": ("device", "encode_in_8bit"),
}  # fmt: skip


RENAMED = {"wandb_log_frequency": "log_every"}
"""Options that had another name in the last release, which still works in this one."""


class Command(NamedTuple):
    """One of the things that `sae` does: `sae NAME …` fills `config` and calls `run`, which returns the exit status."""

    run: Callable[..., int]
    """Body of the command; it gets the configuration."""
    config: type
    groups: Groups
    positional: tuple[str, ...]
    description: str
    """Its first line stands in the list of commands."""
    swept: tuple[str, ...] = ()
    """Options that take several values, which mean every combination."""
    told_typed: bool = False
    """Whether the body also gets the names of the options that were typed."""

    def options(self) -> list[str]:
        """Names of all its options."""
        return [name for names in self.groups.values() for name in names]


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


def renamed(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments with the current names of options, and a sentence for each that was given by its old one."""
    words, sentences = [], []
    for word in arguments:
        name, is_set, value = word.removeprefix("--").partition("=")
        now = RENAMED.get(name.replace("-", "_")) if word.startswith("--") else None
        if now is not None:
            sentences.append(f"--{name} is now --{now}; the old name works in this release only")
        words.append(f"--{now}{is_set}{value}" if now is not None else word)
    return words, sentences


def _list_of_commands() -> str:
    lines = [f"  sae {name:<8} {command.description.splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join([f"Commands, each with its own --help; without one of these words it is {DEFAULT}:", *lines])


def _train(cfg: RunConfig, typed: Collection[str]) -> int:
    from sae.commands.train import train

    return train(cfg, typed)


def _evaluate(cfg: EvalConfig) -> int:
    from sae.commands.eval import run_eval

    return run_eval(cfg)


def _cache(cfg: CacheConfig) -> int:
    from sae.commands.cache import cache

    return cache(cfg)


def _browse(cfg: BrowseConfig) -> int:
    from sae.commands.browse import browse

    return browse(cfg)


def _convert(cfg: ConvertConfig) -> int:
    from sae.commands.convert import convert

    return convert(cfg)


def _push(cfg: PushConfig) -> int:
    from sae.commands.push import push

    return push(cfg)


def _info(cfg: InfoConfig) -> int:
    from sae.commands.convert import info

    return info(cfg)


def _selftest(cfg: SelftestConfig) -> int:
    from sae.commands.selftest import selftest

    return selftest(cfg)


DEFAULT = "train"
COMMANDS = {
    "train": Command(
        _train,
        RunConfig,
        TRAIN_GROUPS,
        ("model", "dataset"),
        "Train a k-sparse autoencoder on the output of every layer of a language model, all at once.\n"
        "Example: sae EleutherAI/pythia-160m wikitext.jsonl --layers 3 7 --max_tokens 10000000\n"
        "--k, --selection, --expansion_factor, --num_latents, --lr, --seed take several values: all combinations.",
        ("k", "selection", "expansion_factor", "num_latents", "lr", "seed"),
        told_typed=True,
    ),
    "eval": Command(
        _evaluate,
        EvalConfig,
        EVAL_GROUPS,
        ("checkpoint", "model", "dataset"),
        "Measure dictionaries on tokens that training never saw: reconstruction, and grafted into the model.\n"
        "Example: sae eval checkpoints/my-run --compare checkpoints/other-run",
    ),
    "browse": Command(
        _browse,
        BrowseConfig,
        BROWSE_GROUPS,
        ("checkpoint", "model", "dataset"),
        "Look at latents in the browser: what each fires on, what it does, and what changes when it is steered.\n"
        "Example: sae browse checkpoints/my-run --max_tokens 300000",
    ),
    "selftest": Command(
        _selftest,
        SelftestConfig,
        SELFTEST_GROUPS,
        (),
        "Train on synthetic activations of known features, and say how many of them are found: a minute on a CPU.\n"
        "Example: sae selftest --selection batchtopk --k 2 3\n"
        "--k, --selection, --num_latents, --lr and --seed take several values: every combination is trained.",
        ("k", "selection", "num_latents", "lr", "seed"),
    ),
    "cache": Command(
        _cache,
        CacheConfig,
        CACHE_GROUPS,
        ("model", "dataset"),
        "Write the activations of a language model to the disk, for sae --activations to train on.\n"
        "Example: sae cache EleutherAI/pythia-160m wikitext.jsonl --layers 3 7 --activations pythia-wikitext",
    ),
    "convert": Command(
        _convert,
        ConvertConfig,
        {"what": ("source", "target", "to", "hookpoints"), "thresholds": ("activations",)},
        ("source", "target"),
        "Write dictionaries in another library's format.\n"
        "Example: sae convert checkpoints/my-run my-run-saelens --to saelens",
    ),
    "push": Command(
        _push,
        PushConfig,
        {"what": ("source", "repository", "formats", "license", "private", "force", "dry_run"), "hub": ("hf_token",)},
        ("source", "repository"),
        "Put dictionaries on the hub, with a card, in one commit.\n"
        "Example: sae push checkpoints/my-run OWNER/NAME --formats saelens --dry_run",
    ),
    "info": Command(
        _info,
        InfoConfig,
        {"what": ("source",)},
        ("source",),
        "Say which dictionaries a folder, a file or a hub repository holds: format, widths, rule, type and size.\n"
        "Example: sae info google/gemma-scope-2b-pt-res",
    ),
}
