"""eai-sparsify's transcoder on given pairs of activations, in a process: `benchmarks.peers.sparsify_transcoder JOB`.

JOB is JSON: `pairs`, a file of X, Y (training, in order) and HX, HY (held out), each (tokens, d); `expansion_factor`,
`k`, `skip_connection`, and `lr` (null: its default). Its own `Trainer.fit` trains with batches of 2048 tokens; the last
line printed is JSON with FVU and unused latents on the held-out tokens, and tokens a second of the training alone.
"""

import json
import sys
import tempfile
import time
from typing import Any

import torch
from sparsify import SaeConfig, TrainConfig, Trainer
from torch import Tensor, nn

ROW, BATCH = 256, 8


class Written(nn.Module):
    """A module whose output is looked up."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs, self.ids = outputs, torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs[self.ids].view(x.shape)


class GivenModel(nn.Module):
    """A model of one module, which is given its inputs and its outputs by the number of the token."""

    def __init__(self, X: Tensor, Y: Tensor) -> None:
        super().__init__()
        self.written, self.inputs, self.weight = Written(Y), X, nn.Parameter(torch.zeros(1))
        self.begun: list[float] = []
        """When each batch was asked for."""
        self.config = type("Config", (), {"hidden_size": X.shape[1], "is_encoder_decoder": False, "use_cache": False})()

    device = property(lambda self: self.weight.device)
    dtype = property(lambda self: self.inputs.dtype)
    base_model = property(lambda self: self)
    dummy_inputs = property(lambda self: {"input_ids": torch.arange(4).view(1, 4)})

    def forward(self, input_ids: Tensor, **options: Any) -> Tensor:
        self.begun.append(time.perf_counter())
        self.written.ids = input_ids.flatten()
        self.written(self.inputs[self.written.ids].view(*input_ids.shape, -1))
        return input_ids


class Numbers:
    """Rows of the numbers of tokens."""

    def __init__(self, tokens: int) -> None:
        self._rows = torch.arange(tokens // ROW * ROW).view(-1, ROW)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._rows[index]}


@torch.no_grad()
def measured(sae: Any, HX: Tensor, HY: Tensor) -> dict[str, float]:
    """FVU of what is written, and the share of latents that fire on no token."""
    out = sae(HX.to(sae.dtype), HY.to(sae.dtype))
    error = (out.sae_out.float() - HY).square().sum()
    fired = torch.zeros(sae.num_latents)
    fired.index_add_(0, out.latent_indices.flatten(), (out.latent_acts.flatten() > 0).float())
    fvu = error / (HY - HY.mean(0)).square().sum()
    return {"fvu": fvu.item(), "unused_fraction": (fired == 0).float().mean().item()}


def main() -> None:
    """Train as the job says."""
    job = json.loads(sys.argv[1])
    X, Y, HX, HY = (t.float() for t in torch.load(job["pairs"], weights_only=True))
    shape = SaeConfig(
        expansion_factor=job["expansion_factor"], k=job["k"], transcode=True, skip_connection=job["skip_connection"]
    )
    with tempfile.TemporaryDirectory() as folder:
        options = {"hookpoints": ["written"], "log_to_wandb": False, "save_every": 10**9, "save_dir": folder}
        cfg = TrainConfig(shape, batch_size=BATCH, lr=job["lr"], **options)
        model = GivenModel(X, Y)
        trainer = Trainer(cfg, Numbers(len(X)), model)
        trainer.fit()
    begun = model.begun[-(len(X) // (ROW * BATCH)) :]  # those before are its look at the shapes
    speed = (len(begun) - 1) * ROW * BATCH / (begun[-1] - begun[0])
    print(json.dumps({"tokens_per_second": speed} | measured(next(iter(trainer.saes.values())), HX, HY)))


if __name__ == "__main__":
    main()
