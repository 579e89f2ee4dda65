"""Run by the Python of dictionary-learning: FOLDER. Trains its dictionaries there, and what they make of x."""

import sys
from pathlib import Path

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import trainSAE
from dictionary_learning.utils import load_dictionary
from safetensors.torch import save_file

torch.manual_seed(0)
D, M, K, STEPS = 8, 24, 3, 12
SPARSE = {"k": K, "threshold_start_step": 2, "warmup_steps": 2}
TRAINERS = {
    "topk": (TopKTrainer, SPARSE), "batchtopk": (BatchTopKTrainer, SPARSE),
    "matryoshka": (MatryoshkaBatchTopKTrainer, SPARSE | {"group_fractions": [0.25, 0.75]}),
    "jumprelu": (JumpReluTrainer, {"warmup_steps": 2, "sparsity_warmup_steps": 2, "lr": 0.1}),
    "gated": (GatedSAETrainer, {"warmup_steps": 2, "sparsity_warmup_steps": 2}),
    "standard": (StandardTrainer, {"warmup_steps": 2, "sparsity_warmup_steps": 2}),
    "standard_april": (StandardTrainerAprilUpdate, {"warmup_steps": 2, "sparsity_warmup_steps": 2}),
}  # fmt: skip
for kind, (trainer, options) in TRAINERS.items():
    data = [torch.randn(64, D) * 2 + 0.5 for _ in range(STEPS + 2)]
    config = {"trainer": trainer, "steps": STEPS, "activation_dim": D, "dict_size": M, "layer": 3, "lm_name": "pythia",
              "submodule_name": "resid_post_layer_3", "device": "cpu", "seed": 0, **options}  # fmt: skip
    target = Path(sys.argv[1]) / kind
    trainSAE(data, [config], steps=STEPS, save_dir=str(target), device="cpu", normalize_activations="topk" in kind)
    for file in (target / "trainer_0").iterdir():
        file.rename(target / file.name)
    (target / "trainer_0").rmdir()
    sae, _ = load_dictionary(str(target), device="cpu")
    x = torch.randn(16, D) * 2 + 0.5
    with torch.no_grad():
        save_file({"x": x, "recon": sae(x)}, target / "expected.safetensors")
