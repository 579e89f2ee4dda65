"""The recipe of a run: its options, the laws of its learning rate, and the schedules of the rate and of k."""

import math
from typing import NamedTuple

ENOUGH_STEPS, FEWEST_TOKENS = 1000, 2048
"""A run makes up to ENOUGH_STEPS steps, as long as each has FEWEST_TOKENS tokens: `steps_per_batch`."""

K_STAGES = 4
"""Number of different values of k where it grows: k / 4, k / 2, 3 k / 4 and k (`k_at`)."""
SMALLEST_K, WIDEST, FEWEST_FIRINGS = 8, 576, 1.75
"""Lower bounds of k where it grows: SMALLEST_K; one in WIDEST latents; what gives each latent FEWEST_FIRINGS `firings`.
With less, latents die (docs/notebook.md)."""

LEAST_SHARE, LEFT_OF_FLOOR = 0.2, 0.5
"""Upper bound of `Recipe.least_firings` as a share of the mean over latents; what is left of the bound at the end
(`floor_at`)."""


PEAK = 32.0
"""Peak learning rate of a run of up to 256 steps, in units of half the paper's (`peak_lr`)."""
FURTHER, FURTHER_END_TO_END = 0.15, 0.02
"""Factors on `PEAK` for a dictionary that is trained already: by its error, and by the loss of the whole model."""
FEW_STEPS = 8
"""Steps in which a dictionary that is trained already follows its whole rate. In fewer, as many of these, as the noise
of each is still that of one batch (docs/notebook.md)."""
RECONSTRUCT_FIRST = 0.9
"""Share of an end-to-end run's steps that train new dictionaries on the reconstruction's error first (Karvonen 2025,
arXiv:2503.17272; docs/notebook.md)."""


class Recipe(NamedTuple):
    """How one run is trained, beside its peak learning rate. The defaults are those of Gao et al. 2024."""

    beta1: float = 0.9
    """Adam's β₁."""
    beta2: float = 0.999
    """Adam's β₂."""
    encoder_rate: float = 1.0
    """Learning rate of W_enc, as a multiple of W_dec's."""
    bias_rate: float | None = None
    """Learning rate of the biases, as a multiple of W_dec's, in units of the activations' root mean square per
    dimension. None: W_dec's rate."""
    fit_encoder: bool = False
    """Start W_enc at the multiple of W_dec that reconstructs best, instead of at W_dec."""
    min_rare_rate: float = 1.0
    """Least factor on the encoder's learning rate of a latent that fires more rarely than average. Above it the factor
    is the latent's firing rate, as a share of the average one."""
    token_grad_limit_variances: float | None = None
    """Bound on ‖x − b_dec‖ ‖x̂ − x‖, in variances per token. A token above it counts with that share of its gradient
    that brings it to the bound (`gradients.token_shares`). None: no bound."""
    capped: bool = False
    """W_enc and W_dec are trained with `capped.CappedAdam`: the learning rate is the root mean square of a step."""
    encoder_follows: float = 0.0
    """Each step of a row of W_dec moves that of W_enc by this multiple of it, beside its own (with `capped`)."""
    row_length_rate: float | None = None
    """Learning rate for the logarithm of the length of W_enc's rows, beside that of their entries (with `capped`). Its
    unit is the length of a step of a row of W_dec. None: only the entries have one."""
    k_growth: float = 0.0
    """Share of the run in which k grows to what was asked for, mostly from a quarter of it (`k_at`). 0: it does not."""
    least_firings: float = 0.0
    """Lower bound, at first, of the tokens of a step on which a latent should fire (`floor_at`). The bias of a latent
    below it rises by up to the biases' learning rate a step (`SaeLearner`). 0: no bias is raised."""
    spare_massive: bool = False
    """Leave massive tokens out of the loss's normaliser, b_dec's start and AuxK, and reconstruct their mean exactly
    after each step (`massive_tokens`)."""

    @classmethod
    def named(cls, name: str, total_steps: int, firings: float) -> "Recipe":
        """The recipe of `--recipe`, for a run of this length and so many `firings` a step."""
        if name == "gao2024":
            return cls()
        decoder, encoder, rare = (short_run(total_steps, firings, at_256_steps=rate) for rate in (PEAK, 12.8, 2.56))
        return cls(
            beta1=0.7,
            beta2=min(0.999, max(0.9, 1 - 10 / total_steps)),
            encoder_rate=encoder / decoder,
            bias_rate=6.0,
            fit_encoder=True,
            min_rare_rate=rare / encoder,
            token_grad_limit_variances=1.0,
            capped=True,
            encoder_follows=0.3,
            row_length_rate=0.5,
            k_growth=0.2,
            least_firings=0.5,
            spare_massive=True,
        )


def steps_per_batch(batches: int, tokens: int) -> int:
    """Optimizer steps to make of the tokens of each batch: a power of two.

    A short run makes more than one, and learns more from more steps. They are not more than add up to `ENOUGH_STEPS`,
    and none has fewer than `FEWEST_TOKENS` tokens. With more steps it learns no more, and takes longer
    (docs/notebook.md).
    """
    steps = 1
    while 2 * steps * batches <= ENOUGH_STEPS and tokens % (2 * steps) == 0 and tokens >= 2 * steps * FEWEST_TOKENS:
        steps *= 2
    return steps


def peak_lr(
    num_latents: int,
    total_steps: int,
    firings: float,
    recipe: str = "default",
    *,
    peak: float = PEAK,
) -> float:
    """The peak learning rate of a run, which is that of W_dec.

    gao2024: 2e-4 / sqrt(num_latents / 2¹⁴), the scaling of the paper (sec. 3 and fig. 3). default: half of that, times
    `short_run`. Half, because it is the root mean square of a step, and with Adam about its bound. `short_run` is
    `peak` in a run of up to 256 steps with 7.1 `firings` in each, more with more of them, less with more steps.
    """
    paper = 2e-4 / math.sqrt(num_latents / 2**14)
    return paper if recipe == "gao2024" else paper / 2 * short_run(total_steps, firings, at_256_steps=peak)


def further_peak(total_steps: int, *, end_to_end: bool) -> float:
    """`PEAK` for a dictionary that is trained already: the steps of a new one would undo what was learned."""
    return PEAK * (FURTHER_END_TO_END if end_to_end else FURTHER) * min(1.0, total_steps / FEW_STEPS)


def short_run(total_steps: int, firings: float, *, at_256_steps: float) -> float:
    """Factor on the paper's learning rate, which is for some 300,000 steps, in a run of `total_steps`; at least 1.

    It falls with the root of the steps. So noisy gradients make a random walk of the same length, lr · sqrt(steps), in
    runs of any length. Below 256 steps it does not rise: there latents die. A row's gradient has less noise if it comes
    from more tokens: the factor rises with the fourth root of the `firings`. It is 1 at the 7.1 of 1024 tokens, 4608
    latents and k 32, and within √2 either way, as far as was measured (docs/notebook.md).
    """
    tokens: float = min(max(firings / (1024 * 32 / 4608), 0.25), 4.0) ** 0.25
    return max(1.0, at_256_steps * tokens * math.sqrt(256 / max(256, total_steps)))


def k_at(step: int, total_steps: int, k: int, *, num_latents: int, tokens_per_step: int, k_growth: float) -> int:
    """Number of latents that a token keeps at `step` (from 0): a quarter of k at first, k after `k_growth` of the run.

    In between there are `K_STAGES` values and no more, as a GPU compiles and records the step for each. The first are
    left out where they would be too few for the latents to live (`SMALLEST_K`).
    """
    grown = min(1.0, step / (k_growth * total_steps)) if k_growth else 1.0
    least = max(SMALLEST_K, num_latents / min(WIDEST, tokens_per_step / FEWEST_FIRINGS))
    first = min(K_STAGES, math.ceil(K_STAGES * least / k))
    stage = first + math.floor(grown * (K_STAGES - first))
    return round(k * stage / K_STAGES)


def floor_at(step: int, total_steps: int) -> float:
    """Factor on the lower bound of firings at `step` (from 0): 1 at first, linearly down to `LEFT_OF_FLOOR`.

    At first every latent has to live. A floor that stayed would cost FVU, as some features are rare (docs/notebook.md).
    """
    return 1 - (1 - LEFT_OF_FLOOR) * step / total_steps


def nearest_divisor(number: int, of: int, *, most: int) -> int:
    """Divisor of `of`, at most `most`, that is nearest to `number`; the smaller of two."""
    return min((d for d in range(1, most + 1) if of % d == 0), key=lambda d: (abs(d - number), d))


def firings(tokens_per_step: int, k: int, num_latents: int) -> float:
    """Tokens of a step on which a latent fires, in the mean over latents."""
    return tokens_per_step * k / num_latents


def warmup_steps(total_steps: int, chosen: int | None) -> int:
    """`chosen`, or else 1000 steps, or a twentieth of a run that is shorter than 20,000 steps."""
    return chosen if chosen is not None else min(1000, total_steps // 20)


def schedule(step: int, total_steps: int, warmup: int) -> float:
    """Factor on the peak learning rate at `step` (from 0): linear up over `warmup` steps, then linear down to 0.

    Never 0 at a step that is taken: the first has 1 / (warmup + 1), and 0 is reached after the last.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup))
