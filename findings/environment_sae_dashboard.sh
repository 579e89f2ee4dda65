# Sourced: $python has sae-dashboard; tiny.py a model of one block, an SAE of its residual stream, and their dashboards.
# It asks for numpy below 2, which later versions of pyarrow do not load beside.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" torch==2.13.0 transformers==4.56.2 transformer-lens==2.17.0 sae-lens==6.54.12 pyarrow==21.0.0 sae-dashboard==0.8.0
# torchvision and torchaudio come with it, unused here, and do not load beside a torch for CPUs alone.
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip uninstall --quiet --yes torchvision torchaudio; fi
cat > tiny.py <<'PY'
import torch
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import HookedSAETransformer, StandardSAE, StandardSAEConfig
from transformer_lens import HookedTransformerConfig

HOOK, WIDTH, LATENTS = "blocks.0.hook_resid_post", 16, 4
torch.manual_seed(0)
model = HookedSAETransformer(HookedTransformerConfig(n_layers=1, d_model=WIDTH, n_ctx=32, d_head=8, n_heads=2, d_vocab=50, act_fn="gelu", device="cpu", seed=0))
sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=32, dtype="float32", device="cpu"))
for name in ("W_enc", "W_dec"):
    torch.nn.init.normal_(getattr(sae, name))


def latents(tokens):
    """The first latents of each token, as the SAE is now."""
    with torch.no_grad():
        return sae.encode(model.run_with_cache(tokens)[1][HOOK])[..., :LATENTS]


def dashboards(tokens, **options):
    config = SaeVisConfig(hook_point=HOOK, features=list(range(LATENTS)), minibatch_size_tokens=8, **options)
    return SaeVisRunner(config).run(sae, model, tokens)
PY
