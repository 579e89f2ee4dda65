"""One autoencoder in training: its optimizer, dead latents, normaliser and meters. It knows neither files nor ranks."""

import math
import weakref
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import sae.ops.kernels as kernels
from sae import ops
from sae.dictionary.autoencoder import Encoded, Sae
from sae.dictionary.gradients import (
    Code,
    Gradients,
    JointPull,
    Objective,
    Reconstruction,
    Weights,
    add_auxk_gradients_,
    encoded,
    is_rectangular,
    pullback,
    pullback_with_others,
    token_shares,
    written,
)
from sae.dictionary.levels import Levels, level_weights
from sae.dictionary.losses import Ordinary, spread
from sae.dictionary.selection import agreement, selection, width
from sae.dictionary.shards import WHOLE, LatentShards
from sae.dictionary.shared_decoder import SharedPull, pullback_shared
from sae.dictionary.spec import PER_LATENT
from sae.ops import eight_bit
from sae.ops.encode import Encode
from sae.training.adam import Adam, Gradient, Tangent
from sae.training.calibration import Calibration, Thresholds
from sae.training.capped_adam import CappedAdam
from sae.training.cuda_graphs import StepRecording
from sae.training.dead_latents import DeadLatents
from sae.training.firing_rates import FiringRates
from sae.training.initial import AddUp, balance_, best_encoder_scale, start_transcoder_
from sae.training.layer_scale import LayerScale
from sae.training.massive_tokens import MassiveTokens
from sae.training.meters import Meters, Metrics
from sae.training.normaliser import Normaliser
from sae.training.recipe import Recipe, firings, k_at, nearest_divisor

GAO2024 = Recipe()
FIRST_TOKENS = 4096
"""Tokens on which the length of a new encoder's rows is chosen."""
_LOG_LENGTH = "encoder.log_length"
"""Optimizer's name for the logarithm of the length of W_enc's rows."""
_PROBE = 16
"""Tokens on which the recall of 8-bit candidates is measured."""


class SaeLearner:
    """Trains `sae` on micro-batches of activations: `initialise` once, then per step `accumulate`… and `update`."""

    def __init__(
        self,
        sae: Sae,
        *,
        tokens_per_step: int,
        auxk_alpha: float,
        dead_feature_threshold: int,
        report_dead_after: int | None = None,
        compute_dtype: torch.dtype,
        recipe: Recipe = GAO2024,
        encode_in_8bit: bool | None = False,
        tokens_per_pass: int = 0,
        shards: LatentShards = WHOLE,
    ) -> None:
        """`tokens_per_step` is nominal: it scales the loss, so that the loss is linear in the tokens.

        AuxK acts on latents that did not fire for `dead_feature_threshold` tokens; `dead_fraction` counts those that
        did not for `report_dead_after` (None: the same).

        The encoder product runs in `compute_dtype`, or finds candidates in 8 bits, whose scores are then float32. None:
        in 8 bits where that is known to be faster for `tokens_per_pass`, the usual number of tokens in `accumulate`.
        `sae` holds all latents, or a part of them while learners among the `shards` hold the others. Raises ValueError
        for 8 bits on a device that has no such product.
        """
        self.sae, self._shards = sae, shards
        self._all_latents = shards.total(sae.num_latents)
        self.dead = DeadLatents(sae.num_latents, dead_feature_threshold, sae.device)
        self._report_dead_after = dead_feature_threshold if report_dead_after is None else report_dead_after
        if encode_in_8bit is None and sae.cfg.keeps_largest:
            encode_in_8bit = eight_bit.pays(sae.num_latents, tokens_per_pass, sae.device)
        if encode_in_8bit:
            eight_bit.check_has_product(sae.device)
        self._tokens_per_step, self._auxk_alpha = tokens_per_step, auxk_alpha
        self._product_dtype = compute_dtype
        self._compute_dtype = sae.dtype if encode_in_8bit else compute_dtype
        self._encode_in_8bit = bool(encode_in_8bit)
        """Whether candidates for the largest latents come from a product in 8 bits."""
        self._probe: Tensor | None = None
        """A few of the last tokens, on which the recall of these candidates is measured."""
        self._thresholds = Thresholds.of(sae)
        self._agree = agreement(sae.cfg, shards)
        self._is_autoencoder = sae.spec.is_autoencoder
        me = weakref.proxy(self)  # so that only its users keep the learner
        self._recording = StepRecording((lambda x: me._differentiate(x)), (lambda: me._take_step()))
        self._set_k(sae.cfg.k)
        self._grads: Gradients | None = None
        self._set_recipe(recipe)
        self._set_weights()
        self._rates = FiringRates(sae.num_latents, sae.device)
        self._tokens = torch.zeros((), dtype=torch.int64)  # on the CPU, where it is asked for
        self._layer_scale = None if sae.layer_scale is None else LayerScale(sae.layer_scale.detach())
        self._massive = MassiveTokens(sae.d_out, sae.device)
        self._lr = torch.zeros((), device=sae.device)
        self._own = sae.spec.own_width
        """Leading dimensions of the output, which are this layer's own: b_dec covers these alone."""
        self._normaliser = Normaliser(self._own, sae.device)
        self._meters = Meters(self._own, sae.device, sae.spec.parts if sae.spec.is_autoencoder else {})
        self.constant: list[str] = []
        """Written hookpoints, where there are several, at which the first tokens are all the same."""

    # The start and the end

    def initialise(
        self,
        x: Float[Tensor, "tokens d_in"],
        y: Float[Tensor, "tokens d_out"] | None = None,
        *,
        new: bool = True,
        fit_on: Float[Tensor, "some d_in"] | None = None,
        fit_to: Float[Tensor, "some d_out"] | None = None,
        add_up: AddUp = lambda sums: None,
    ) -> None:
        """Measure mean and variance per token of y, and fix the loss's normaliser and which tokens are massive.

        `y` is what is to be written; None: x. A `new` autoencoder's b_dec starts at the mean. If the recipe says so,
        its W_enc starts at the multiple of W_dec that reconstructs the tokens `fit_on` best (None: the first of x). A
        transcoder starts as `start_transcoder_` says, with `fit_on` and their outputs `fit_to`; with its own layer's
        where it writes several. Where there are several hookpoints, their scales come first. Raises ValueError for no
        tokens.
        """
        read = x[:FIRST_TOKENS] if fit_on is None else fit_on
        few = read if y is None else y[:FIRST_TOKENS] if fit_to is None else fit_to
        target = x if y is None else y
        if len(self.sae.spec.parts) > 1:
            if new:
                self.constant = balance_(self.sae, target, few, add_up, spare_massive=self._recipe.spare_massive)
            target, few = self.sae.scaled(target), self.sae.scaled(few)
        target, few = target[:, : self._own], few[:, : self._own]
        found = spread(target, few, add_up)
        self._normaliser.set(found, spare_massive=self._recipe.spare_massive)
        ordinary = found.rule.counts(few) > 0
        if y is not None:
            self._normaliser.set_read(x, add_up)
            if new:
                start_transcoder_(self.sae, read[ordinary], few[ordinary], add_up)
        elif new:
            self.sae.b_dec.data.copy_(self._normaliser.mean)
        self._set_rates()
        if new and self._recipe.fit_encoder and y is None:
            self.sae.encoder.weight.data.copy_(self.sae.W_dec)
        if new and (self._recipe.fit_encoder or y is not None):
            self._read_weights(read, add_up)
            if self._thresholds is not None:
                self._thresholds.select_as_trained(self.sae.cfg.k)
            to_write = None if y is None else few[ordinary]
            scale = best_encoder_scale(self.sae, read[ordinary], to_write, add_up)
            self.sae.encoder.weight.data.mul_(scale)
            self.sae.encoder.bias.data.mul_(scale)
        self._read_weights(read, add_up)

    def _read_weights(self, x: Float[Tensor, "tokens d_in"], add_up: AddUp) -> None:
        """Read the parameters anew, and find batchtopk's threshold for them."""
        self._set_weights()
        if self._thresholds is None:
            return
        self._thresholds.histogram.counts.zero_()
        self._thresholds.add(self._code(x).acts)
        add_up([self._thresholds.histogram.step_counts])
        self._thresholds.end_step(self._k, self._shards)

    def _set_recipe(self, recipe: Recipe) -> None:
        """Train by this recipe, from the start of the optimizer."""
        # The rows of W_enc follow those of W_dec where both are directions of the same activations.
        self._recipe = recipe if self._is_autoencoder else recipe._replace(encoder_follows=0.0)
        self._optimizer = _optimizer(self.sae, self._recipe, self._product_dtype, self._shards)

    def _set_weights(self) -> None:
        """Read the parameters anew, after they were set."""
        self._weights = Weights.of(self.sae, self._compute_dtype)
        self._optimizer.copies = self._weights.copies()
        self._recording.drop()

    def _set_k(self, k: int) -> None:
        """Let so many latents of each token stay."""
        cfg = self.sae.cfg
        thresholds = self._thresholds
        threshold = None if thresholds is None else thresholds.of_steps
        self._k, self._select = k, selection(cfg, k=k, threshold=threshold, shards=self._shards)
        most = width(cfg, k, self.sae.num_latents)
        self._candidates = self._select if thresholds is None else partial(ops.topk, k=most)
        """Latents that stay before batchtopk's threshold, which is found among them."""
        if thresholds is not None:
            thresholds.set(k)
        self._levels = Levels.of(cfg, self._all_latents, k)
        self._encode: Encode = partial(eight_bit.encode, k=most) if self._encode_in_8bit else ops.encode
        self._recording.drop()

    def _set_rates(self) -> None:
        """Give W_enc and the biases their learning rates. Waits for the device."""
        rates = self._optimizer.rates
        d_in, own = self.sae.d_in, self._own
        # What is read and what is written have units of their own; of an autoencoder they are the same.
        ratio = (
            1.0 if self._is_autoencoder else math.sqrt(self.variance * own / (self._normaliser.read[0].item() * d_in))
        )
        rates["encoder.weight"] = self._recipe.encoder_rate * ratio
        rates["W_skip"] = ratio
        rates[_LOG_LENGTH] = (self._recipe.row_length_rate or 0.0) * math.sqrt(self.sae.d_out)
        tie = "target" if self.sae.cfg.tied_by_target else "source"
        rates["layer_scale"] = LayerScale.RATES[tie] * rates[_LOG_LENGTH] or 1.0
        if self._recipe.bias_rate is not None:
            rates["encoder.bias"] = rates["b_dec"] = self._recipe.bias_rate * math.sqrt(self.variance / own)

    def calibration(self) -> Calibration:
        """The calibration of batchtopk's threshold on other tokens than the steps': for the end of training.

        To go on training after it, load a `state_dict` first.
        """
        return Calibration(self.sae, self._candidates, self._agree, self.rule)

    def follow(self, recipe: Recipe, *, anew: bool) -> None:
        """Train by another recipe with the same parameters from now on; `anew` with an optimizer that knows nothing."""
        state = self._optimizer.state_dict()
        self._set_recipe(recipe)
        if not anew:
            for name, tensor in self._optimizer.state_dict().items():
                tensor.copy_(state[name])
        self._set_rates()
        self._set_weights()

    @property
    def rule(self) -> Ordinary:
        """Rule of which tokens are ordinary, as `initialise` found it; within a step distances are from b_dec."""
        return self._normaliser.rule

    @property
    def variance(self) -> float:
        """Total variance per token of the activations that `initialise` saw. Waits for the device."""
        return self._normaliser.variance.item()

    # One step

    def begin_step(self, step: int, total_steps: int) -> None:
        """Keep as many latents of each token as the recipe says for `step` (from 0), and ask each for as many firings.

        Without a call all k are kept, and the most firings asked for.
        """
        self._rates.begin_step(step, total_steps)
        k = k_at(
            step,
            total_steps,
            self.sae.cfg.k,
            num_latents=self._all_latents,
            tokens_per_step=self._tokens_per_step,
            k_growth=self._recipe.k_growth,
        )
        if self.sae.cfg.selection == "groupmax":  # k equal groups
            k = nearest_divisor(k, self._all_latents, most=self.sae.cfg.k)
        if k != self._k:
            self._set_k(k)

    def accumulate(self, x: Float[Tensor, "tokens d_in"], y: Float[Tensor, "tokens d_out"] | None = None) -> None:
        """Add the gradients of the loss on these tokens, and the sums that are reported. `y` as of `initialise`."""
        if len(x) == 0:
            return
        into = self._recording.begin(x) if self._can_be_recorded() else None
        self._collect(*(self._differentiate(x, y) if into is None else into()))

    def _can_be_recorded(self) -> bool:
        """Whether a step's shapes are known before: not for sharded latents, nor for later parts of a step."""
        if not kernels.usable(self._weights.W_dec) or self._shards is not WHOLE or self._grads is not None:
            return False
        ragged, alike = self._thresholds is not None, self._is_autoencoder
        return is_rectangular(self._levels, ragged=ragged, writes_what_it_reads=alike)

    def _differentiate(
        self, x: Float[Tensor, "tokens d_in"], y: Float[Tensor, "tokens d_out"] | None = None
    ) -> tuple[Gradients, Reconstruction]:
        code, by_threshold = self.encode(x), self._thresholds is not None
        objective = Objective(self._scale(), self._limit(), self._normaliser.longest, self._levels)
        grads, recon = pullback(self._weights, code, y, objective, ragged=by_threshold, shards=self._shards)
        if self._recipe.spare_massive and self._is_autoencoder:
            assert recon.ordinary is not None
            self._massive.add(recon.centred, self._weights.b_dec, 1 - recon.ordinary)
        self._note(recon)
        return grads, recon

    def encode(self, x: Float[Tensor, "tokens d_in"]) -> Code:
        """The code of a step's tokens, which counts for batchtopk's threshold."""
        code = self._code(x)
        if self._thresholds is not None:
            self._thresholds.add(code.acts)
            code = code._replace(acts=code.acts * (code.acts > self._thresholds.of_steps))
        return code

    def _code(self, x: Float[Tensor, "tokens d_in"]) -> Code:
        """The code before batchtopk's threshold."""
        return encoded(self._weights, x, self._candidates, encode=self._encode, agree=self._agree)

    def encode_in_graph(self, x: Float[Tensor, "*batch d_in"], counted: Bool[Tensor, "*batch"]) -> Encoded:
        """The code of tokens in a forward that autograd follows. For batchtopk's threshold those count that are
        `counted`."""
        if self._thresholds is None:
            return self.sae.encode(x)
        acts, indices = self.sae.encode_by(x, self._candidates)
        self._thresholds.add(acts.detach()[counted])
        return Encoded(acts * (acts.detach() > self._thresholds.of_steps), indices)

    def _limit(self) -> Tensor | None:
        """Bound of ‖what is read‖ ‖residual‖ above which a token's gradient is cut; None: no bound."""
        if (variances := self._recipe.token_grad_limit_variances) is None:
            return None
        return self._normaliser.limit(variances, reads_what_it_writes=self._is_autoencoder).to(self.sae.dtype)

    def _scale(self) -> Tensor:
        """Factor that makes a squared error this step's share of the loss."""
        return self._normaliser.scale(self._tokens_per_step).to(self.sae.dtype)

    def _note(self, recon: Reconstruction, target: Tensor | None = None) -> None:
        """Add these tokens to the step's sums, as if AuxK had left all of the error.

        `target` is what was to be written, centred; None: what was encoded.
        """
        self._rates.count(recon.top_indices, recon.fired)
        shift = self.sae.b_dec.detach()[: self._own] - self._normaliser.mean
        fired = self._shards.sum_(recon.fired.sum().double())
        self._meters.add(recon.variance.shifted_by(shift), recon.squared_error, fired)
        self._meters.at.add(recon if target is None else recon._replace(centred=target), shift)

    def _collect(self, grads: Gradients, recon: Reconstruction, residual: Tensor | None = None) -> None:
        """Add AuxK's gradients, and these to the step's. `residual` is that of all places, if there are several."""
        if self._auxk_alpha and (num_dead := self._shards.total(len(self.dead.indices))):
            error = recon.squared_error
            if residual is not None:
                recon = recon._replace(residual=residual)
                error = torch.linalg.vector_norm(residual, dim=1).square()
                error = error.sum() if recon.ordinary is None else recon.ordinary.dot(error)
            auxk_error = add_auxk_gradients_(
                grads,
                self._weights,
                recon,
                self.dead.indices,
                scale=self._scale() * self._auxk_alpha,
                spare_massive=self._recipe.spare_massive,
                dtype=self._product_dtype,
                shards=self._shards,
                num_dead=num_dead,
            )
            self._meters.add_auxk(auxk_error.double() - error.double())
        self._tokens += len(recon.residual)
        if self._grads is None:
            self._grads = grads
        else:  # whichever is smaller is kept: the matrices, or the tokens that they are computed from
            lazily = not isinstance(grads.W_enc, Tensor) and int(self._tokens) <= self.sae.num_latents
            self._grads = self._grads.plus(grads, lazily=lazily)
        if self._encode_in_8bit:
            self._probe = recon.centred[:_PROBE].clone()

    def add(self, grads: Gradients, recon: Reconstruction, residual: Tensor | None = None) -> None:
        """Add gradients that were computed elsewhere, AuxK's gradients, and the sums that are reported.

        `residual` is that of all places, if there are several.
        """
        self._note(recon)
        self._collect(grads, recon, residual)

    def sums(self) -> list[Tensor]:
        """Sums over the step's tokens so far. Others may add theirs in place before `update`."""
        if self._grads is None:
            self._grads = Gradients.zeros_like(self._weights)
        self._grads = self._grads.densified()
        dense = self._grads.dense()
        massive = [self._massive.step_total] if self._recipe.spare_massive else []
        counts = [] if self._thresholds is None else [self._thresholds.histogram.step_counts]
        later = [] if self._layer_scale is None else [self._layer_scale.grad]
        return [*dense, self._rates.step_counts, self._tokens, *massive, *counts, *later, *self._meters.of_step()]

    def update(self, lr: float) -> None:
        """Take one optimizer step with what was accumulated. A step whose sums are not finite changes nothing."""
        tokens, descend = int(self._tokens), self._recording.end() or self._take_step
        if self._grads is not None and tokens:
            self._lr.fill_(lr)
            self._rates.set_average(firings(tokens, self._k, self._all_latents))
            descend()
        else:
            self._meters.count_step()
        self._grads = None
        self.dead.update(self._rates.step_counts > 0, tokens)
        self._rates.end_step()
        self._tokens.zero_()
        if self._layer_scale is not None:
            self._layer_scale.end_step()
        if self._thresholds is not None:
            self._thresholds.end_step(self._k, self._shards)
        if self._recipe.spare_massive and self._is_autoencoder:
            self._reconstruct_massive()

    def _take_step(self) -> None:
        assert self._grads is not None
        self._meters.count_step()
        self._rates.follow()
        self._set_row_rates()
        self._descend(self._grads)

    def _descend(self, grads: Gradients) -> None:
        by_name: dict[str, Gradient] = {**grads.by_parameter()}
        if self._layer_scale is not None:
            by_name["layer_scale"] = self._layer_scale.grad.flatten()
        if self.sae.cfg.normalize_decoder:
            by_name["W_dec"] = Tangent(grads.W_dec, grads.radial, self.sae.W_dec.detach())
        if self._recipe.row_length_rate is not None:
            # ⟨W_dec gradient, W_dec⟩ and ⟨W_enc gradient, W_enc⟩ + b_enc · its gradient: both Σ activation · gradient.
            by_activation = grads.radial if grads.by_activation is None else grads.by_activation
            by_name[_LOG_LENGTH] = by_activation - self._weights.b_enc * grads.b_enc
        # A gradient that is not finite shows in these, which are sums of the same terms: 0 times it is NaN.
        self._meters.check(grads.b_enc.sum(), grads.b_dec.sum(), grads.radial.sum())
        skip = (~self._meters.finite()).float()
        self._optimizer.step(by_name, self._lr if self._lr.is_cuda else self._lr.item(), skip=skip)
        if self._recipe.least_firings:
            step = self._lr * (1 - skip) * self._optimizer.rates.get("encoder.bias", 1.0)
            self._rates.raise_silent_(self._weights.b_enc, step, self._recipe.least_firings)

    def _set_row_rates(self) -> None:
        """Lower the learning rate of the rows of latents that fire rarely."""
        if self._layer_scale is not None:
            self._optimizer.row_rates["layer_scale"] = self._layer_scale.rates()
        if self._recipe.min_rare_rate < 1:
            rates = self._rates.learning_rates(self.dead.mask(), self._recipe.min_rare_rate)
            self._optimizer.row_rates |= dict.fromkeys(("encoder.weight", "encoder.bias", _LOG_LENGTH), rates)

    def _reconstruct_massive(self) -> None:
        """Let the step's massive tokens count, and reconstruct their mean, if the step was finite for all shards.

        They see the same tokens, but a gradient may overflow for one of them alone, who would then be waited for.
        """
        count = self._massive.some() and not self._shards.total(int(not self._meters.finite()))
        self._massive.end_step(count=count)
        if count:
            unit_norm = self.sae.cfg.normalize_decoder
            self._massive.reconstruct_(
                self._weights, self._select, agree=self._agree, unit_norm=unit_norm, shards=self._shards
            )

    # One step of several that write the same places

    def accumulate_with_others(self, code: Code, y: Float[Tensor, "tokens own"], joint: JointPull | SharedPull) -> None:
        """Accumulate for a code of `encode`, where others write too: `joint` is what all leave of y, both scaled."""
        objective = Objective(self._scale(), longest=self._normaliser.longest)
        target = y - self._weights.b_dec[: self._own]
        if isinstance(joint, JointPull):
            grads, recon = pullback_with_others(self._weights, code, target, objective, joint)
        else:
            grads, recon = pullback_shared(self._weights, code, target, objective, joint)
        self._note(recon, target)
        self._collect(grads, recon, joint.residual if self._own < self.sae.d_out else None)

    def shares(self, code: Code, pull_norms: Float[Tensor, "tokens"], *, places: int = 1) -> Float[Tensor, "tokens"]:
        """The share of each token's gradient that is followed (`token_shares`), by the length of its pull.

        That grows with the number of `places` that are written.
        """
        limit = self._limit()
        return (
            torch.ones_like(pull_norms)
            if limit is None
            else token_shares(code.centred, pull_norms.unsqueeze(1), limit * math.sqrt(places))
        )

    def add_layer_scale_gradient(
        self, products: Float[Tensor, "later *latents"], units: Float[Tensor, "later"]
    ) -> None:
        """Add the gradient of the factors on what later layers get; see `LayerScale.add`."""
        assert self._layer_scale is not None
        self._layer_scale.add(products, units, self._scale())

    def add_layer_scale_gradient_of(
        self, gradient: Float[Tensor, "layers *latents"], units: Float[Tensor, "later"]
    ) -> None:
        """Add a gradient of the factors that was computed elsewhere; `units` are those of `LayerScale.add`."""
        assert self._layer_scale is not None
        self._layer_scale.add_gradient(gradient[1:], units.to(gradient))

    def bags(self, code: Code) -> ops.Bags:
        """Entries of a code that fired, by level of nested reconstructions."""
        level = self.level(code.acts, code.indices)
        return ops.Bags.of(code.acts, code.indices, level, len(self.level_weights))

    def level(
        self, acts: Float[Tensor, "tokens width"], indices: Int[Tensor, "tokens width"]
    ) -> Int[Tensor, "tokens width"] | None:
        """Level of each entry of a code. None: there is one reconstruction."""
        return None if self._levels is None else self._levels.at(acts, indices, self._shards)

    @property
    def level_weights(self) -> tuple[float, ...]:
        """Weight of each nested reconstruction in the loss."""
        return level_weights(self._levels)

    def written(self, code: Code, bags: ops.Bags) -> Float[Tensor, "bags d_out"]:
        """What the dictionary writes of a code, whose entries are `bags`, beside b_dec, scaled. Of all shards."""
        return written(self._weights, code, bags, self._shards)

    @property
    def decoder(self) -> Float[Tensor, "latents d_out"]:
        """W_dec."""
        return self._weights.W_dec

    @property
    def bias(self) -> Float[Tensor, "own"]:
        """b_dec of its own place, scaled."""
        return self._weights.b_dec[: self._own]

    @property
    def own_scale(self) -> Float[Tensor, "own"] | float:
        """Factors that make what is written at its own place of an activation there; 1 without any."""
        return 1.0 if self.sae.scale is None else self.sae.scale[: self._own]

    @property
    def loss_scale(self) -> Float[Tensor, ""]:
        """Factor that makes a squared error at its own place its share of a step's loss."""
        return self._scale()

    # Meters

    def read_metrics(self) -> Metrics:
        """The metrics since the last call, which starts them anew. Waits for the device.

        Raises FloatingPointError if a loss was not finite; the weights are those before that step.
        """
        silent = self._shards.total(self.dead.silent_for(self._report_dead_after))
        return self._meters.read(dead_fraction=silent / self._all_latents)

    def metrics_are_read(self) -> bool:
        """Whether there was no step since `read_metrics`. Waits for the device."""
        return self._meters.are_read()

    def read_by_hookpoint(self) -> dict[str, float]:
        """The FVU since the last call at each hookpoint of a crosscoder; empty for others. Waits for the device."""
        return self._meters.at.read()

    def read_recall(self) -> float | None:
        """Share of the true k largest among the 8-bit candidates, on a few of the last tokens; else None. Waits."""
        if self._probe is None:
            return None
        return eight_bit.recall(self._probe, self._weights.W_enc, self._weights.b_enc, self._k).item()

    # State

    def state_dict(self) -> dict[str, Tensor]:
        """Everything beside the weights that survives a restart, between steps."""
        state = {f"dead.{name}": t for name, t in self.dead.state_dict().items()}
        state |= {
            "firing_rate": self._rates.rates,
            "massive": self._massive.total,
        }
        state |= self._normaliser.state_dict(of_read=not self._is_autoencoder)
        if self._thresholds is not None:
            state["threshold.counts"] = self._thresholds.histogram.counts
        state |= {f"meters.{name}": t for name, t in self._meters.state_dict().items()}
        state |= {f"adam.{name}": t for name, t in self._optimizer.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state_dict`; the weights are loaded into `sae` beforehand.

        Raises ValueError for one of another recipe or version, and then changes nothing.
        """
        own = self.state_dict()
        if unlike := sorted(name for name, t in own.items() if name not in state or state[name].shape != t.shape):
            raise ValueError(
                f"the checkpoint's state of an autoencoder must hold {unlike[0]} of shape "
                f"{tuple(own[unlike[0]].shape)}, and does not: it was written with "
                "another --recipe or by another version of sae; resume with those, or start a new run with --run_name"
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self.dead.load_state_dict({"tokens_since_fired": state["dead.tokens_since_fired"]})
        self._set_rates()
        self._set_weights()
        if self._thresholds is not None:
            self._thresholds.resume(self._k)


def _optimizer(sae: Sae, recipe: Recipe, product_dtype: torch.dtype, shards: LatentShards) -> Adam:
    parameters: dict[str, Tensor] = dict(sae.named_parameters())
    if sae.layer_scale is not None:  # numbers, not a matrix of rows
        parameters["layer_scale"] = sae.layer_scale.detach().view(-1)
    betas = {"beta1": recipe.beta1, "beta2": recipe.beta2}
    unit_rows = {"W_dec"} if sae.cfg.normalize_decoder else set()
    if not recipe.capped:
        return Adam(parameters, **betas, unit_rows=unit_rows)
    first = {"W_dec": parameters.pop("W_dec")}  # W_enc's step comes after those that move it
    log_lengths = {}
    if recipe.row_length_rate is not None:
        first[_LOG_LENGTH] = torch.zeros(sae.num_latents, dtype=sae.dtype, device=sae.device)
        log_lengths["encoder.weight"] = _LOG_LENGTH
    return CappedAdam(
        first | parameters,
        **betas,
        unit_rows=unit_rows,
        followers={"W_dec": ("encoder.weight", recipe.encoder_follows)} if recipe.encoder_follows else {},
        log_lengths=log_lengths,
        product_dtype=product_dtype,
        shards=shards,
        whole={"W_skip"},
    )


def is_per_latent(name: str) -> bool:
    """Whether a tensor of the state_dict of an autoencoder or of its learner has a row for each latent."""
    if not name.startswith("adam."):
        return name in (*PER_LATENT, "dead.tokens_since_fired", "firing_rate")
    parameter, _, moment = name.removeprefix("adam.").rpartition(".")
    return moment in ("exp_avg", "exp_avg_sq") and parameter in (*PER_LATENT, _LOG_LENGTH)
