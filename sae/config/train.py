"""How dictionaries are trained, whatever gives the activations."""

import math
from dataclasses import dataclass, field
from typing import Literal

from .checks import check, check_positive, several
from .dictionary import SaeConfig


@dataclass
class TrainConfig:
    """How sparse autoencoders are trained. A *step* is an optimizer step."""

    sae: SaeConfig | list[SaeConfig] = field(default_factory=SaeConfig)
    """Shape of the dictionary at every hookpoint, or several: each is trained, with each value of `lr` and `seed`."""

    batch_size: int = 8
    """Sequences per forward pass of the language model. Those at the end of the data that do not fill one are left
    out."""

    grad_acc_steps: int = 1
    """Forward passes whose gradients are summed into one step."""

    steps_per_batch: int | None = None
    """Optimizer steps made of the tokens that come at once: batch_size * grad_acc_steps sequences on each process.
    None: 1. In short runs with the default recipe 2, 4 or more: up to 1000 steps in all, each of 2048 tokens or more.
    """

    micro_acc_steps: int = 1
    """Parts into which the tokens of a forward pass are split for the autoencoders, to save memory."""

    max_tokens: int | None = None
    """Stop after this many tokens of the data. None: one pass over all of it."""

    lr: float | list[float | None] | None = None
    """Peak learning rate, of W_dec. None: derived from the number of latents and the length of the run, and printed at
    the start (docs/recipe.md). It is not that of the steps that reconstruct_first says, whose rate is derived."""

    lr_warmup_steps: int | None = None
    """Steps of linear warm-up. None: 1000, or a twentieth of a shorter run."""

    loss_fn: Literal["fvu", "ce", "kl"] = "fvu"
    """Loss to minimise. fvu: the reconstruction's error. kl: end to end, the divergence of the model's predictions from
    the untouched model's, with all autoencoders in it at once. ce: end to end, the cross-entropy of its predictions."""

    reconstruct_first: float | None = None
    """Share of the steps of an end-to-end run that train on the reconstruction's error, before the others follow
    loss_fn. None: 0.9 for new dictionaries with the default recipe, else 0. From the start alone, end to end learns
    slowly."""

    auxk_alpha: float = 1 / 32
    """Weight of the AuxK loss, which is to revive dead latents. 0 turns it off."""

    dead_feature_threshold: int | None = None
    """Tokens without firing after which a latent is dead, for AuxK and in reports. None: 10 million for AuxK, which in
    shorter runs kills more than it revives. Reports then count from a twentieth of a shorter run."""

    recipe: Literal["default", "gao2024"] = "default"
    """gao2024: train as Gao et al. 2024 do, with plain Adam at 2e-4 / sqrt(num_latents / 2**14) for all parameters,
    whatever the length of the run. docs/recipe.md has both recipes."""

    hookpoints: list[str] = field(default_factory=list)
    """Module paths of the base model whose outputs to train on, with globs ('layers.*.mlp'). A trailing '.input' names
    a module's input; with transcode 'A->B' names two. None: the output of every block."""

    layers: list[int] = field(default_factory=list)
    """Indices of the blocks whose outputs to train on, from 0. None: all."""

    layer_stride: int = 1
    """Train on every layer_stride-th block."""

    exclude_tokens: list[int] = field(default_factory=list)
    """Token ids whose activations are left out of training and evaluation."""

    exclude_positions: list[int] = field(default_factory=list)
    """Positions in the sequence, from 0, whose activations are left out: 0 for models whose first token is an
    attention sink with enormous activations."""

    encode_in_8bit: bool | None = None
    """Find candidates for the k largest latents with 8-bit products: int8 on CPUs with AVX512-VNNI or AVX-VNNI, fp8 on
    GPUs from Ada on. They are scored exactly in float32, and the metric `recall` is the share of the k largest that was
    found. None: on such CPUs without AMX, from 4096 latents and 2**22 pre-activations a forward pass on. There it is
    faster; without a C compiler only from 8192 latents and 2048 tokens on."""

    compile_lm: bool = False
    """Compile the language model's blocks with torch.compile when they first run, which takes some seconds and changes
    activations by rounding. For GPUs; on a CPU it gains nothing. Blocks with a hookpoint inside stay as they are."""

    distribute_layers: bool = False
    """Give each process some of the autoencoders, with all tokens, instead of a copy of all."""

    shard_latents: int = 1
    """Processes over which the latents of each autoencoder are split, for one that is too wide for one device."""

    finetune: str | None = None
    """Folder of a checkpoint, or hub id, whose autoencoders to start from."""

    seed: int | list[int] = 42
    """Seed of the initial weights, the order of the data and the shuffling of tokens. With several seeds, each has
    initial weights of its own. All train on the same tokens, in the order of the first."""

    save_every: int = 1000
    """Steps between checkpoints. The last step is always saved."""

    keep_last: int | None = None
    """Newest checkpoints to keep; older ones are removed, but never the best. None: all, if they take no more than half
    of the free disk, else 3, which a line at the start says."""

    save_best: bool = False
    """Measure the held-out FVU at every checkpoint, and keep the one with the least mean over hookpoints. best.json
    names it, and RUN/best loads it."""

    save_dir: str = "checkpoints"
    """Folder that holds the runs."""

    run_name: str | None = None
    """Folder of this run inside save_dir, and its name in Weights & Biases. None: named after model and data."""

    resume: bool = False
    """Continue the run of this name from its newest undamaged checkpoint, as if it had not stopped. With run_name None,
    the last run of this model and data."""

    resume_changed: list[str] = field(default_factory=list)
    """Options that are meant to differ from those of the run that is resumed, such as lr and max_tokens. Others that
    differ are refused. docs/reliability.md says which can change, and with what effect."""

    log_to_wandb: bool = True
    """Log to Weights & Biases too, where it is installed and configured."""

    eval_every: int = 0
    """Steps between two measurements on up to 16,384 held-out tokens, as sae eval makes them: with the autoencoders
    grafted into the model. 0: none."""

    log_every: int = 1
    """Steps between two records of the metrics, in metrics.jsonl and Weights & Biases."""

    def __post_init__(self) -> None:
        check_positive(self, "batch_size", "grad_acc_steps", "micro_acc_steps", "layer_stride")
        check_positive(self, "shard_latents", "save_every", "log_every")
        for name in ("max_tokens", "steps_per_batch", "keep_last", "dead_feature_threshold"):
            if getattr(self, name) is not None:
                check_positive(self, name)
        for name in ("lr_warmup_steps", "auxk_alpha"):
            value = getattr(self, name)
            check(name, value, value is None or value >= 0, "0 or more", f"leave --{name} out for the default")
        for name in ("seed", "dead_feature_threshold"):
            for number in several(getattr(self, name)):
                fits = number is None or abs(number) < 2**63
                check(name, number, fits, "a number of 64 bits", f"give --{name} a smaller one")
        for lr in several(self.lr):
            check("lr", lr, lr is None or lr > 0, "greater than 0", "set --lr to a positive number")
        for name in ("lr", "auxk_alpha"):
            for value in several(getattr(self, name)):
                check(name, value, value is None or value < math.inf, "finite", f"leave --{name} out for the default")
        for name in ("sae", "lr", "seed"):
            check(name, getattr(self, name), getattr(self, name) != [], "one or several", f"leave {name} out")
        for name in ("layers", "exclude_tokens", "exclude_positions"):
            lowest = min(getattr(self, name), default=0)
            check(name, lowest, lowest >= 0, "0 or more", "count from the start, from 0")
        if self.recipe not in ("default", "gao2024"):
            raise ValueError(
                f"recipe must be default or gao2024, got {self.recipe!r}; leave --recipe out for the default"
            )
        if self.encode_in_8bit and self.loss_fn != "fvu":
            raise ValueError(
                f"encode_in_8bit goes with --loss_fn fvu, whose gradient is sparse, got {self.loss_fn!r}; "
                "leave out one of them"
            )
        self._check_reconstruct_first()
        self._check_kinds()
        if (self.steps_per_batch or 1) > 1 and self.loss_fn != "fvu":
            raise ValueError(
                f"steps_per_batch must be 1 with --loss_fn {self.loss_fn}, whose steps take whole sequences, got "
                f"{self.steps_per_batch}; leave it out, and lower --batch_size for more steps"
            )
        if self.resume_changed and not self.resume:
            raise ValueError(
                f"resume_changed must come with resume, got {' '.join(self.resume_changed)} without; add --resume"
            )
        given = [name for name in ("hookpoints", "layers") if getattr(self, name)]
        given += ["layer_stride"] * (self.layer_stride != 1)
        if len(given) > 1:
            raise ValueError(f"--{given[0]} and --{given[1]} both choose where to train; give one of them")
        if self.run_name is not None and not _is_plain_name(self.run_name):
            raise ValueError(
                f"run_name must be a path inside save_dir, got {self.run_name!r}; "
                "leave out '..' and a leading '/', and choose the place with --save_dir"
            )

    def _check_reconstruct_first(self) -> None:
        """Raise ValueError for a share of the steps that is none, or that no step follows."""
        share = self.reconstruct_first
        if share is None:
            return
        check("reconstruct_first", share, 0 <= share < 1, "0 or more, and below 1", "leave it out for the default")
        if self.loss_fn == "fvu" or self.finetune is not None:
            what = "new dictionaries" if self.finetune is not None else "--loss_fn kl or ce"
            raise ValueError(
                f"reconstruct_first goes with {what}, got {share} with "
                f"{'finetune' if self.finetune is not None else 'loss_fn fvu'}; leave out one of them"
            )

    def _check_kinds(self) -> None:
        """Raise ValueError for a kind of dictionary, or a start, that cannot be trained in this way."""
        if self.finetune is not None and len(seeds := several(self.seed)) > 1:
            raise ValueError(
                f"seed must be one with finetune, whose weights all would start from, got {' '.join(map(str, seeds))}; "
                "give one, or leave out --finetune"
            )
        for sae in several(self.sae):
            if self.loss_fn != "fvu" and (kind := sae.needs_reconstruction):
                raise ValueError(
                    f"loss_fn must be fvu with {kind}, which is trained on reconstruction, got {self.loss_fn!r}; "
                    "leave out one of them"
                )
            if self.encode_in_8bit and not sae.keeps_largest:
                raise ValueError(
                    f"encode_in_8bit finds the largest latents of all, got selection {sae.selection}, which keeps "
                    "others too; leave out one of them"
                )
            if self.shard_latents > 1 and sae.tied_by_target:
                raise ValueError(
                    f"shard_latents must be 1 with tie_decoders target, whose factors are of layers and latents, got "
                    f"{self.shard_latents}; leave out one of them, or give --tie_decoders source or --distribute_layers"
                )

    @property
    def transcodes(self) -> bool:
        """Whether some of the dictionaries are transcoders."""
        return any(sae.transcode for sae in several(self.sae))

    @property
    def data_seed(self) -> int:
        """The seed of the data's order: the first, so that the autoencoders of all seeds see the same."""
        first: int = several(self.seed)[0]
        return first


def _is_plain_name(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return all(part not in ("", ".", "..") for part in parts) and ":" not in parts[0]
