"""`sae eval CHECKPOINT`: measure dictionaries on tokens that training never saw."""

from functools import partial

from sae import lm
from sae.activations.source import check_excluded
from sae.commands.load import load_language_model, load_skeleton, load_text
from sae.config import EvalConfig, TextConfig
from sae.data.labelled import probing_tasks
from sae.data.spelling import spelling_prompts
from sae.dictionary.autoencoder import Sae
from sae.evaluation.absorption import autoencoders
from sae.evaluation.command import NO_CONCEPTS, Concepts, load_dictionaries, measure_plan
from sae.evaluation.plan import plan_evaluation, plan_stability
from sae.evaluation.stability import stabilities
from sae.evaluation.targets import places_of
from sae.parallel.world import World, check_alone
from sae.report.evaluation import report_evaluation
from sae.report.stability import report_stability
from sae.runs.folder import command, versions
from sae.runs.log import note


def run_eval(cfg: EvalConfig) -> int:
    """Load autoencoders, data and model, measure, report. The cheap checks come first."""
    if cfg.stability:
        return compare_latents(cfg)
    world = World.from_environment()
    for name, asked in {"probes": cfg.probes is not None, "absorption": cfg.absorption}.items():
        if asked:
            check_alone(f"sae eval --{name}")
    access = {"revision": cfg.revision, "token": cfg.hf_token}
    (device, *_) = world.local_devices(lm.check_device(cfg.device))
    plan = plan_evaluation(cfg, context_limit=lambda model: lm.context_limit(lm.load_skeleton(model, **access)))
    skeleton = load_skeleton(plan.text)
    lm.check_ctx_len(plan.text.ctx_len, skeleton)
    check_excluded(
        cfg.exclude_tokens or [],
        cfg.exclude_positions or [],
        vocab_size=lm.vocab_size(skeleton),
        ctx_len=plan.text.ctx_len,
    )
    dictionaries = load_dictionaries(plan, device)
    for hookpoint in places_of(dictionaries):
        lm.locate(skeleton, hookpoint)
    concepts = _concepts(cfg, plan.text, dictionaries, lm.context_limit(skeleton))
    with world.one_first(note, "prepared the data"):
        dataset = load_text(plan.text, skeleton)
    model = load_language_model(plan.text, device, head=True)
    evaluation, sentences = measure_plan(
        plan, model, dataset, dictionaries, batch_size=cfg.batch_size, ranks=world, concepts=concepts
    )
    world.close()
    if not world.is_main:
        return 0
    for sentence in sentences:
        note(sentence)
    about = {"command": " ".join(command()), "model": plan.text.model}
    about |= ({"model_b": plan.text.model_b} if plan.text.model_b else {}) | {"data": plan.text.dataset}
    about |= {"tokens": " ".join(sentences), "versions": ", ".join(f"{k} {v}" for k, v in versions().items())}
    report_evaluation(evaluation, plan.out, about)
    return 0


def _concepts(
    cfg: EvalConfig, text: TextConfig, dictionaries: dict[str, dict[str, Sae]], context_limit: int | None
) -> Concepts:
    """Questions about single latents, complete. Raises ValueError for what cannot be asked, in one line."""
    if cfg.probes is None and not cfg.absorption:
        return NO_CONCEPTS
    tokenizer = lm.load_tokenizer(text.model, revision=text.revision, token=cfg.hf_token)
    tasks = None if cfg.probes is None else probing_tasks(cfg.probes, cfg.probe_texts)
    if not cfg.absorption:
        return Concepts(tokenizer, tasks)
    autoencoders(dictionaries)
    words = spelling_prompts(tokenizer, lm.token_texts(tokenizer, len(tokenizer)), cfg.absorption_words)
    longest = max(map(len, words.ids))
    if context_limit is not None and longest > context_limit:
        raise ValueError(
            f"absorption needs a model that reads its prompts, {longest} tokens, and this one reads {context_limit}; "
            "leave --absorption out"
        )
    return Concepts(tokenizer, tasks, words)


def compare_latents(cfg: EvalConfig) -> int:
    """Pair the latents of several checkpoints, report. No model, no data."""
    check_alone("sae eval --stability")
    plan = plan_stability(cfg)
    load = {
        label: {hookpoint: partial(Sae.load_from_disk, folder) for hookpoint, folder in folders.items()}
        for label, folders in plan.folders.items()
    }
    found = stabilities(load, plan.first, tell=note)
    about = {"command": " ".join(command()), "versions": ", ".join(f"{k} {v}" for k, v in versions().items())}
    report_stability(found, plan.out, about)
    return 0
