"""Hookpoints inside the blocks of tiny models, a model that changes its input in place, and how many hooks stay."""

from torch import Tensor, nn

INSIDE = {
    "gpt_neox": ["embed_in", "layers.1.attention", "layers.*.mlp.dense_h_to_4h", "layers.2.input"],
    "gpt2": ["wte", "drop", "h.1.attn", "h.*.mlp.c_fc", "h.2.input", "h.1.mlp.input"],
    "llama": ["embed_tokens", "layers.1.self_attn", "layers.*.mlp.up_proj", "layers.*.self_attn.input", "norm"],
    "gemma3": ["embed_tokens", "layers.1.self_attn", "layers.*.mlp.up_proj", "layers.*.self_attn.input", "norm"],
    "bert": ["embeddings", "encoder.layer.1.attention", "encoder.layer.*.intermediate", "encoder.layer.*.output.input"],
}


def num_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class InPlace(nn.Module):
    """A model that adds to its residual stream in place, runs one block twice and hands out strange shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.flat = nn.Flatten(0, 1)
        self.count = nn.Identity()
        self.unused = nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in (*self.blocks, self.blocks[0]):
            x += block(x)
        return self.flat(x) + self.count(tokens).sum()
