"""What a user can choose. Plain dataclasses; every rule that needs no file, model or device is checked here."""

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal


def _check(name: str, value: Any, holds: bool, rule: str, way_out: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {rule}, got {value}; {way_out}")


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _check(name, value, value > 0, "greater than 0", f"set --{name} to a positive number")


@dataclass
class SaeConfig:
    """The shape of one sparse autoencoder."""

    d_in: int = 0
    """Width of the activations. 0: taken from the model at each hookpoint."""

    expansion_factor: int = 32
    """Latents per dimension of the activations; used when num_latents is 0."""

    normalize_decoder: bool = True
    """Keep every row of W_dec at unit length."""

    num_latents: int = 0
    """Number of latents. 0: expansion_factor times the width of the activations."""

    k: int = 32
    """Latents kept per token; with batchtopk in the mean over tokens."""

    selection: Literal["topk", "batchtopk", "groupmax"] = "topk"
    """Rule that keeps latents. topk: the k largest of each token. batchtopk: those above a threshold; k in the mean
    over tokens, at most 4 k of one token. groupmax: the largest latent of each of k equal groups."""

    prefixes: list[int] = field(default_factory=list)
    """Matryoshka: sizes of nested dictionaries. A size n means the first n latents, which reconstruct by themselves
    too, with equal weight in the loss. The whole dictionary is always the last."""

    budgets: list[int] = field(default_factory=list)
    """Hierarchical: numbers of latents. With a number n, the n largest of a token reconstruct by themselves too. One
    dictionary then serves every k among them. k is always the last, and counts twice in the loss."""

    crosscode: bool = False
    """Crosscoder: one dictionary that reads all chosen hookpoints and reconstructs all of them. Each hookpoint counts
    equally: it is divided by its standard deviation. expansion_factor multiplies the widest hookpoint."""

    transcode: bool = False
    """Transcoder: read the input of each hookpoint, which is a module, and reconstruct its output. With 'A->B' read A
    and reconstruct B."""

    cross_layer: bool = False
    """Cross-layer transcoder: transcode each hookpoint, which is a module, to its own output and those of all chosen
    modules after it. The dictionaries up to a module reconstruct its output together. For L modules L (L + 1) / 2
    decoders."""

    tie_decoders: bool | Literal["source", "target"] = False
    """With cross_layer: one decoder for each module; for L modules L, and all must be equally wide. source, or nothing:
    later modules get what a dictionary writes for its own, times one learned number each. target: a module's decoder
    also decodes the latents of earlier ones, each times a learned number of its own."""

    skip_connection: bool = False
    """Add a linear map of what is read to what is reconstructed; for transcoders."""

    def __post_init__(self) -> None:
        _check_positive(self, "expansion_factor", "k")
        if self.selection not in ("topk", "batchtopk", "groupmax"):
            raise ValueError(
                f"selection must be topk, batchtopk or groupmax, got {self.selection!r}; choose one of them"
            )
        for name in ("prefixes", "budgets"):
            ends = getattr(self, name)
            rising = all(a < b for a, b in zip([0, *ends], ends, strict=False))
            _check(name, ends, rising, "increasing positive numbers", f"leave --{name} out for one reconstruction")
        if self.prefixes and self.budgets:
            raise ValueError("prefixes and budgets both nest reconstructions; give one of --prefixes and --budgets")
        if self.budgets and self.selection != "topk":
            raise ValueError(
                f"budgets must go with the selection topk, whose latents a token ranks, got {self.selection}; "
                "leave out one of them"
            )
        _check("budgets", self.budgets, max(self.budgets, default=0) <= self.k, f"at most k={self.k}", "raise --k")
        if self.cross_layer:
            self.transcode = True
        if self.tie_decoders not in (False, True, "source", "target"):
            raise ValueError(
                f"tie_decoders must be source or target, got {self.tie_decoders!r}; choose one of them, or leave it out"
            )
        self.tie_decoders = "target" if self.tie_decoders == "target" else bool(self.tie_decoders)
        if self.tie_decoders and not self.cross_layer:
            raise ValueError(
                "tie_decoders must come with cross_layer, whose dictionaries write several modules; add --cross_layer, "
                "or leave out --tie_decoders"
            )
        if self.skip_connection and not self.transcode:
            raise ValueError(
                "skip_connection must come with transcode: an autoencoder would copy what it reads; "
                "add --transcode, or leave out --skip_connection"
            )
        if self.crosscode and self.transcode:
            raise ValueError(
                "crosscode reconstructs what is read and transcode something else, got both; leave out one of them"
            )
        for name in ("d_in", "num_latents"):
            value = getattr(self, name)
            _check(name, value, value >= 0, "0 or more", f"leave {name} out to have it derived")
        if self.num_latents or self.d_in:
            self.check_k(self.num_latents or self.d_in * self.expansion_factor)

    def check_k(self, num_latents: int) -> None:
        """Refuse a k that does not fit a dictionary.

        Args:
            num_latents: Latents of the dictionary.

        Raises:
            ValueError: Names k, and the way out.
        """
        if self.k > num_latents:
            raise ValueError(
                f"k must be between 1 and num_latents={num_latents}, got {self.k}; "
                "lower --k or raise --num_latents or --expansion_factor"
            )
        if self.selection == "groupmax" and num_latents % self.k:
            raise ValueError(
                f"k must divide num_latents={num_latents} into equal groups for the selection groupmax, got {self.k}; "
                "choose a divisor for --k, or another --num_latents"
            )
        if self.prefixes and self.prefixes[-1] > num_latents:
            raise ValueError(
                f"prefixes must be at most num_latents={num_latents}, got {self.prefixes[-1]}; "
                "leave it out, or raise --num_latents or --expansion_factor"
            )

    def latents_for(self, d_in: int) -> int:
        """Number of latents of a dictionary.

        Args:
            d_in: Width of the activations.

        Returns:
            `num_latents`, or `expansion_factor` times the width.

        Raises:
            ValueError: If the width is another than `d_in`, or k does not fit.
        """
        if self.d_in and self.d_in != d_in:
            raise ValueError(f"d_in must be the width of the activations, {d_in}, got {self.d_in}; leave d_in out")
        num_latents = self.num_latents or d_in * self.expansion_factor
        self.check_k(num_latents)
        return num_latents

    @property
    def tied_by_target(self) -> bool:
        """Whether a module's decoder decodes for all dictionaries that write it; `tie_decoders` else ties by source."""
        return self.tie_decoders == "target"

    @property
    def needs_reconstruction(self) -> str:
        """The option of this shape that cannot be trained end to end; empty if there is none."""
        kinds = {"selection batchtopk": self.selection == "batchtopk", "prefixes": self.prefixes,
                 "budgets": self.budgets, "crosscode": self.crosscode, "cross_layer": self.cross_layer,
                 "transcode": self.transcode}  # fmt: skip
        return next((kind for kind, there in kinds.items() if there), "")

    @property
    def needs_all_latents(self) -> str:
        """The option of this shape that keeps its latents from being split over processes; empty if there is none."""
        kinds = {"selection groupmax": self.selection == "groupmax", "prefixes": self.prefixes,
                 "budgets": self.budgets, "cross_layer": self.cross_layer, "transcode": self.transcode}  # fmt: skip
        return next((kind for kind, there in kinds.items() if there), "")

    def levels_for(self, num_latents: int) -> list[int]:
        """Ends of the nested reconstructions.

        Args:
            num_latents: Latents of the dictionary.

        Returns:
            Ends in latents (prefixes) or ranks (budgets), the whole code last; empty for one reconstruction.
        """
        ends = self.prefixes or self.budgets
        whole = num_latents if self.prefixes else self.k
        return [*ends, whole] if ends and ends[-1] != whole else ends if len(ends) > 1 else []


@dataclass
class TrainConfig:
    """How sparse autoencoders are trained. A *step* is an optimizer step."""

    sae: SaeConfig | list[SaeConfig] = field(default_factory=SaeConfig)
    """Shape of the dictionary at every hookpoint, or several: each is trained, with each value of `lr` and `seed`."""

    batch_size: int = 8
    """Sequences per forward pass of the language model."""

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
    the start (docs/recipe.md)."""

    lr_warmup_steps: int | None = None
    """Steps of linear warm-up. None: 1000, or a twentieth of a shorter run."""

    loss_fn: Literal["fvu", "ce", "kl"] = "fvu"
    """Loss to minimise. fvu: the reconstruction's error. kl: end to end, the divergence of the model's predictions from
    the untouched model's, with all autoencoders in it at once. ce: end to end, the cross-entropy of its predictions."""

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
        _check_positive(self, "batch_size", "grad_acc_steps", "micro_acc_steps", "layer_stride")
        _check_positive(self, "shard_latents", "save_every", "log_every")
        for name in ("max_tokens", "steps_per_batch", "keep_last", "dead_feature_threshold"):
            if getattr(self, name) is not None:
                _check_positive(self, name)
        for name in ("lr_warmup_steps", "auxk_alpha"):
            value = getattr(self, name)
            _check(name, value, value is None or value >= 0, "0 or more", f"leave --{name} out for the default")
        for name in ("seed", "dead_feature_threshold"):
            for number in several(getattr(self, name)):
                fits = number is None or abs(number) < 2**63
                _check(name, number, fits, "a number of 64 bits", f"give --{name} a smaller one")
        for lr in several(self.lr):
            _check("lr", lr, lr is None or lr > 0, "greater than 0", "set --lr to a positive number")
        for name in ("lr", "auxk_alpha"):
            for value in several(getattr(self, name)):
                _check(name, value, value is None or value < math.inf, "finite", f"leave --{name} out for the default")
        for name in ("sae", "lr", "seed"):
            _check(name, getattr(self, name), getattr(self, name) != [], "one or several", f"leave {name} out")
        for name in ("layers", "exclude_tokens", "exclude_positions"):
            lowest = min(getattr(self, name), default=0)
            _check(name, lowest, lowest >= 0, "0 or more", "count from the start, from 0")
        if self.recipe not in ("default", "gao2024"):
            raise ValueError(
                f"recipe must be default or gao2024, got {self.recipe!r}; leave --recipe out for the default"
            )
        if self.encode_in_8bit and self.loss_fn != "fvu":
            raise ValueError(
                f"encode_in_8bit goes with --loss_fn fvu, whose gradient is sparse, got {self.loss_fn!r}; "
                "leave out one of them"
            )
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

    def _check_kinds(self) -> None:
        """Raise ValueError for a kind of dictionary that cannot be trained in this way."""
        for sae in several(self.sae):
            if self.loss_fn != "fvu" and (kind := sae.needs_reconstruction):
                raise ValueError(
                    f"loss_fn must be fvu with {kind}, which is trained on reconstruction, got {self.loss_fn!r}; "
                    "leave out one of them"
                )
            if self.encode_in_8bit and sae.selection == "groupmax":
                raise ValueError(
                    "encode_in_8bit finds the largest latents of all, got selection groupmax, which takes one of each "
                    "group; leave out one of them"
                )
            if self.shard_latents > 1 and (kind := sae.needs_all_latents):
                raise ValueError(
                    f"shard_latents must be 1 with {kind}, which needs all latents of a token in one place, got "
                    f"{self.shard_latents}; leave out one of them"
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


def several(value: Any) -> list[Any]:
    """The values of an option as a list; one value is a list of one."""
    return value if isinstance(value, list) else [value]


def _is_plain_name(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return all(part not in ("", ".", "..") for part in parts) and ":" not in parts[0]


@dataclass
class SelftestSaeConfig(SaeConfig):
    """The shape of a dictionary that is trained on known features."""

    num_latents: int = 0
    """Number of latents. 0: one for each feature."""

    k: int = 2
    """Latents kept per token; with batchtopk in the mean over tokens. 2.1 features of a token fire in the mean."""


@dataclass
class SelftestConfig(TrainConfig):
    """Which recipe to try on synthetic activations of known features, and how hard these are."""

    sae: SelftestSaeConfig | list[SelftestSaeConfig] = field(default_factory=SelftestSaeConfig)  # type: ignore[assignment]
    """Shape of the dictionary, or several shapes: each is trained."""

    num_features: int = 1000
    """Features that make the activations: Zipf-distributed, hierarchical and correlated."""

    width: int = 64
    """Dimensions of the activations, which the features share."""

    max_tokens: int | None = 2_000_000
    """Tokens to train on."""

    batch_size: int = 8
    """Sequences of 256 tokens that are drawn at a time."""

    device: str = "auto"
    """Where to compute: cuda, cuda:1, cpu, ... auto: cuda if there is one."""

    out: str | None = None
    """New file to write the numbers into, as JSON. None: they are only printed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("width", self.width, self.width >= 2, "at least 2", "raise --width")
        fewest, most = 20, 100_000
        _check(
            "num_features", self.num_features, fewest <= self.num_features <= most,
            f"between {fewest} and {most}", "choose another --num_features",
        )  # fmt: skip
        held = [self._with_latents(sae) for sae in several(self.sae)]
        self.sae = held if isinstance(self.sae, list) else held[0]

    def _with_latents(self, sae: SelftestSaeConfig) -> SelftestSaeConfig:
        """A shape with as many latents as features, unless it says how many."""
        return sae if sae.num_latents else replace(sae, num_latents=self.num_features)

    @property
    def num_tokens(self) -> int:
        """Tokens to train on."""
        return self.max_tokens or 2_000_000


@dataclass
class SourceConfig:
    """Which language model, which data, on what machine."""

    model: str = "EleutherAI/pythia-160m"
    """Language model: a hub id, a local folder, or a .gguf file."""

    dataset: str = "togethercomputer/RedPajama-Data-1T-Sample"
    """Text or tokens: a hub id, a folder, files or globs. Files of text are .txt .jsonl .csv .tsv .parquet, compressed
    (.gz, .zst, ...) or not; files of tokens are .bin or .npy."""

    revision: str | None = None
    """Branch, tag or commit of the model on the hub."""

    model_b: str | None = None
    """Second language model, or another checkpoint of the first, for a crosscoder of both: a hub id, a local folder, or
    a .gguf file. It reads the same tokens. Its hookpoints are called b:…, those of MODEL a:…."""

    revision_b: str | None = None
    """Branch, tag or commit of model_b on the hub."""

    hf_token: str | None = field(default=None, repr=False)
    """Token for gated models and data on the hub. Never written anywhere. Also read from HF_TOKEN."""

    load_in_8bit: bool = False
    """Load the language model in 8 bits, through bitsandbytes."""

    attn_implementation: str | None = None
    """Attention of the language model: eager, sdpa, flash_attention_2, ... None: what transformers chooses."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type in which the language model computes. auto: bfloat16 where the hardware multiplies it and the model can,
    else float32."""

    data_preprocessing_num_proc: int | None = None
    """Processes that tokenise. None: half of the cores."""

    device: str = "auto"
    """Where to compute: cuda, cuda:1, cpu, ... auto: cuda if there is one."""

    device_map: str | None = None
    """Lay a language model that is too large for one device over all GPUs of the process: auto, balanced,
    balanced_low_0 (which leaves room for the autoencoders on the first) or sequential. None: one device."""

    def __post_init__(self) -> None:
        maps = ("auto", "balanced", "balanced_low_0", "sequential")
        if self.device_map is not None and self.device_map not in maps:
            raise ValueError(
                f"device_map must be one of {', '.join(maps)}, got {self.device_map!r}; "
                "leave out --device_map for a model that fits on one device"
            )
        if self.data_preprocessing_num_proc is not None:
            _check_positive(self, "data_preprocessing_num_proc")
        if self.revision_b is not None and self.model_b is None:
            raise ValueError(
                f"revision_b must come with model_b, got {self.revision_b} alone; add --model_b, which may be MODEL "
                "again"
            )

    @property
    def lm_dtype(self) -> str | None:
        """Type in which the language model is told to compute; None: the fastest that works."""
        return None if self.dtype == "auto" else self.dtype


@dataclass
class TextConfig(SourceConfig):
    """How the data becomes sequences of tokens."""

    split: str = "train"
    """Split of the data set."""

    text_column: str = "text"
    """Column that holds the text."""

    streaming: bool = False
    """Read the data set as a stream, for data that does not fit on the disk. Needs max_tokens."""

    ctx_len: int = 2048
    """Tokens per sequence."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "ctx_len")


@dataclass
class RunConfig(TrainConfig, TextConfig):
    """A training run from the command line: which model, which text, and how to train."""

    activations: str | None = None
    """Train on the activations in this folder or behind this address, which sae cache wrote, without the language
    model. The cache fixes MODEL, DATASET and how they are read; leave these options out."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        TextConfig.__post_init__(self)
        from_cache = self.activations is not None and not isinstance(self, CacheConfig)
        if self.model_b is not None and not isinstance(self, CacheConfig):
            self._check_crosscoders()
        if self.streaming and self.max_tokens is None and not from_cache:
            raise ValueError(
                "--streaming has no end that is known beforehand, and the learning rate decays over the "
                "whole run; give --max_tokens"
            )

    def _check_crosscoders(self) -> None:
        """Raise ValueError for dictionaries of two models that are no crosscoders of them."""
        if not all(sae.crosscode for sae in several(self.sae)):
            raise ValueError(
                f"model_b must come with crosscode, whose dictionary reads both models, got {self.model_b} without; "
                "add --crosscode, or train on each model by itself"
            )


@dataclass
class EvalConfig(SourceConfig):
    """Which autoencoders to measure, on what."""

    model: str = ""
    """Language model: a hub id, a local folder, or a .gguf file. Left out: the one of the run."""

    dataset: str = ""
    """Text or tokens: a hub id, a folder, local files or globs, or a .bin file of tokens. Left out: the run's held-out
    tokens."""

    model_b: str | None = None
    """Second language model, of a crosscoder of two: a hub id, a local folder, or a .gguf file. None: the one of the
    run."""

    checkpoint: str = ""
    """Folder of a run, of one of its steps or of one autoencoder, or hub id."""

    compare: list[str] = field(default_factory=list)
    """Further checkpoints, measured on the same tokens."""

    baselines: list[Literal["random", "pca"]] = field(default_factory=list)
    """Measure dictionaries that nobody trained beside the checkpoint's, with its L0. random: as many random unit rows;
    pca: the principal components, of which each token keeps its largest."""

    probes: list[str] | None = field(default=None, metadata={"alone": True})
    """Measure k-sparse probes too: how well few latents tell two classes of texts apart, beside --baselines and raw
    activations. Name data sets of the package sae-probes, or CSV files with the columns text and label. Without a name,
    as the last argument: all 113 data sets. None: no probes."""

    probe_texts: int | None = None
    """Texts of each probing task, the first of both classes. None: all, 5000 at most."""

    absorption: bool = False
    """Measure too how much of a word's first letter its latents have taken over from the letter's own, beside
    --baselines. It means something for models of about 1B parameters or more."""

    absorption_words: int = 5000
    """Words of the vocabulary that --absorption asks about."""

    stability: list[str] = field(default_factory=list)
    """Say how many latents the checkpoint shares with these, such as runs of other seeds, and nothing else. Only
    weights are read, no model and no data. To compare the seeds of one run, name the run itself."""

    hookpoints: list[str] = field(default_factory=list)
    """Measure only these hookpoints, with globs. None: all that the checkpoint has."""

    split: str | None = None
    """Split of the data set. None: as in the run, or else train."""

    text_column: str | None = None
    """Column that holds the text. None: as in the run, or else text."""

    streaming: bool | None = None
    """Read the data set as a stream. None: as in the run, or else not."""

    ctx_len: int | None = None
    """Tokens per sequence. None: as in the run, or else 2048 or what the model can read."""

    max_tokens: int | None = None
    """Measure on this many tokens. None: on all that the run held out, or on 65,536 of other data."""

    exclude_tokens: list[int] | None = None
    """Token ids that are left out of all metrics and keep their activations. None: as in the run."""

    exclude_positions: list[int] | None = None
    """Positions in the sequence, from 0, that are left out of all metrics and keep their activations. None: as in the
    run."""

    batch_size: int = 8
    """Sequences per forward pass of the language model."""

    out: str | None = None
    """Folder for eval.json, the pictures and report.html. None: eval in the run's folder, or eval-NAME here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.checkpoint:
            raise ValueError("CHECKPOINT must be given: the folder of a run, or a hub id; sae eval CHECKPOINT")
        others = [name for name in ("compare", "baselines") if getattr(self, name)]
        others += ["probes"] * (self.probes is not None) + ["absorption"] * self.absorption
        if self.stability and others:
            raise ValueError(
                f"stability reads weights alone, and {others[0]} measures on data; give one of --stability and "
                f"--{others[0]}"
            )
        _check_positive(self, "batch_size")
        for name in ("ctx_len", "max_tokens"):
            if getattr(self, name) is not None:
                _check_positive(self, name)
        if self.probe_texts is not None:
            if self.probes is None:
                raise ValueError("probe_texts must come with probes, got it without; add --probes")
            _check("probe_texts", self.probe_texts, self.probe_texts >= 40, "at least 40", "leave --probe_texts out")
        if self.absorption_words != EvalConfig.absorption_words and not self.absorption:
            raise ValueError("absorption_words must come with absorption, got it without; add --absorption")
        _check("absorption_words", self.absorption_words, self.absorption_words >= 500, "at least 500", "leave it out")
        for name in ("exclude_tokens", "exclude_positions"):
            lowest = min(getattr(self, name) or [], default=0)
            _check(name, lowest, lowest >= 0, "0 or more", "count from the start, from 0")


@dataclass
class BrowseConfig(EvalConfig):
    """Which autoencoders to look at, on what they fire, and how it is shown."""

    dataset: str = ""
    """Text or tokens: a hub id, a folder, local files or globs, or a .bin file of tokens. Left out: the data of the
    run."""

    hookpoints: list[str] = field(default_factory=list)
    """Look at only these hookpoints, with globs. None: all that the checkpoint has."""

    max_tokens: int | None = None
    """Tokens to index, the run's held-out ones first. None: a million, or all that there are."""

    exclude_tokens: list[int] | None = None
    """Token ids on which no latent is looked at. None: as in the run."""

    exclude_positions: list[int] | None = None
    """Positions in the sequence, from 0, at which no latent is looked at. None: as in the run."""

    activations: str | None = None
    """Index the activations in this folder or behind this address, which sae cache wrote, instead of running the
    language model. The cache fixes the data and how they are read."""

    out: str | None = None
    """Folder of the index and the notes. None: browse in the run's folder, or browse-NAME here."""

    port: int = 8765
    """Port of the page, on this machine alone; the next free one if it is taken."""

    browser: bool = True
    """Open the page in the browser."""

    export: str | None = None
    """Write instead of serving: a new folder of static pages, which open without a server. neuronpedia or
    circuit-tracer: a folder of that name beside the index, for them to import."""

    explain: str | None = None
    """Address of a service that speaks OpenAI's protocol, as http://127.0.0.1:8080/v1. Its model writes an explanation
    of each latent that has none, the most frequent first. The key is read from OPENAI_API_KEY."""

    explainer: str = ""
    """Name of the model that explains. Left out: the first that the service lists."""

    latents: list[int] = field(default_factory=list)
    """Export or explain only these latents of each hookpoint. None: all."""

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise ValueError("CHECKPOINT must be given: the folder of a run, or a hub id; sae browse CHECKPOINT")
        super().__post_init__()
        _check("port", self.port, 0 < self.port < 2**16, "between 1 and 65535", "leave --port out for 8765")
        lowest = min(self.latents, default=0)
        _check("latents", lowest, lowest >= 0, "0 or more", "count from the start, from 0")
        if self.latents and self.export is None and self.explain is None:
            raise ValueError("latents must come with export or explain; add --export FOLDER or --explain ADDRESS")
        if self.explainer and self.explain is None:
            raise ValueError(f"explainer must come with explain, got {self.explainer} alone; add --explain ADDRESS")
        if self.explain is not None and not self.explain.startswith(("http://", "https://")):
            raise ValueError(
                f"explain must begin with http:// or https://, got {self.explain}; give an address like "
                "http://127.0.0.1:8080/v1"
            )


@dataclass
class CacheConfig(RunConfig):
    """Activations to write to the disk: of which model, at which hookpoints, on which data."""

    activations: str | None = None
    """Folder to write, or an address such as s3://bucket/folder. None: activations/ and the names of model and data."""

    dtype: Literal["bfloat16", "float16", "float32", "int8"] = "bfloat16"  # type: ignore[assignment]
    """Type of a stored number. int8 halves the size: one scale a token, the largest of its activations / 127."""

    shuffle: bool = True
    """Mix the tokens of the whole data set. Otherwise they stay in the order of a training run with these options.
    Training on them then repeats that run bit for bit, if dtype is the model's."""

    @property
    def lm_dtype(self) -> None:
        """None: the fastest type that works. `dtype` is the type of a stored number."""
        return None


@dataclass
class ConvertConfig:
    """Which dictionaries to write in another library's format."""

    source: str = ""
    """Folder of a run, of one of its steps or of one dictionary, of any format that is known, a file, or hub id."""

    target: str = ""
    """New folder to write into: one folder for each hookpoint, as the format has it."""

    to: str = "saelens"
    """Format to write: saelens, eleuther, dictionary-learning, circuit-tracer, llamascopium or gemma-scope-2."""

    hookpoints: list[str] = field(default_factory=list)
    """Convert only these hookpoints, with globs. None: all that the source has."""

    activations: str | None = None
    """Folder or address that sae cache wrote. For a library that has no TopK, a threshold is fitted on its held-out
    tokens, so that as many latents fire in the mean. L0 and FVU before and after are printed."""

    def __post_init__(self) -> None:
        for name in ("source", "target"):
            if not getattr(self, name):
                raise ValueError(f"{name.upper()} must be given; sae convert SOURCE TARGET --to saelens")


@dataclass
class PushConfig:
    """Which dictionaries to put on the hub, and where."""

    source: str = ""
    """Folder of a run, of one of its steps or of one dictionary, of any format that is known."""

    repository: str = ""
    """Repository on the hub, as OWNER/NAME. It is created if need be."""

    formats: list[str] = field(default_factory=list)
    """Other libraries' formats to add, each in a folder of its name: saelens, dictionary-learning, circuit-tracer,
    llamascopium, gemma-scope-2. EleutherAI's, our own, is always there; SAELens's in its place for dictionaries with a
    layer norm, which it cannot say."""

    private: bool = False
    """Create the repository as a private one."""

    license: str = "mit"
    """Licence that the card names."""

    force: bool = False
    """Add a commit to a repository that holds other files already."""

    dry_run: bool = False
    """List what would be sent, and send nothing."""

    hf_token: str | None = field(default=None, repr=False)
    """Token that may write. Never written anywhere. Also read from HF_TOKEN."""

    def __post_init__(self) -> None:
        if not self.source or not self.repository:
            raise ValueError("SOURCE and OWNER/NAME must be given; sae push checkpoints/my-run OWNER/NAME")
        parts = self.repository.split("/")
        if len(parts) != 2 or not all(re.fullmatch(r"[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?", part) for part in parts):
            raise ValueError(
                f"the repository must be OWNER/NAME, got {self.repository!r}; give both, of letters, digits, -, _ and ."
            )


@dataclass
class InfoConfig:
    """Which dictionaries to describe."""

    source: str = ""
    """Folder of a run, of one of its steps or of one dictionary, of any format that is known, a file, or hub id."""

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("SOURCE must be given: a folder, a file, or a hub id; sae info SOURCE")
