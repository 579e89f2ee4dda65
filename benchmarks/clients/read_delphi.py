"""Run by the Python of eai-delphi: FOLDER KIND PLACE …. Caches the latents of a model of two blocks on random tokens.

The answer is the cache as dense latents, of the activations that its own hooks saw.
"""

import sys
from pathlib import Path

import torch
from delphi.latents import LatentCache
from delphi.latents.collect_activations import collect_activations
from delphi.sparse_coders.load_sparsify import load_sparsify_hooks
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

folder, kind, *places = sys.argv[1:]
torch.manual_seed(0)
d_in = load_file(f"{folder}/x.safetensors")["0"].shape[1]
model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=d_in, n_head=2, n_positions=16, vocab_size=64)).eval()
hookpoints = ["h.0.mlp", "h.1.mlp"] if "transcoder" in kind else ["h.0", "h.1"]
encoders, transcode = load_sparsify_hooks(model, f"{folder}/written/set", hookpoints)
tokens = torch.randint(0, 64, (8, 16))
cache = LatentCache(model, encoders, batch_size=4, transcode=transcode)
cache.run(tokens.numel(), tokens)
target = Path(folder) / "cache"
target.mkdir()
cache.save_splits(2, target)
answer = {}
for index, name in enumerate(encoders):
    places, acts = cache.cache.latent_locations[name].long(), cache.cache.latent_activations[name]
    dense = torch.zeros(*tokens.shape, cache.width)
    dense[places[:, 0], places[:, 1], places[:, 2]] = acts
    files = [load_file(path) for path in (target / name).glob("*.safetensors")]
    assert sum(len(file["activations"]) for file in files) == len(acts), "its files, in half precision, hold all of it"
    with torch.no_grad(), collect_activations(model, [name], transcode) as seen:
        model(tokens)
        x = seen[name]
    answer |= {f"x.{index}": x.flatten(0, 1).contiguous(), f"latents.{index}": dense.flatten(0, 1)}
save_file(answer, f"{folder}/answer.safetensors")
