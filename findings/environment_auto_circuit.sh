# Sourced: $python has auto-circuit, beside the last transformer-lens that it can be imported with; that one asks for numpy below 2.
# Tracr, which its tasks import, takes any jax and dm-haiku, and pyarrow any numpy: later ones than these do not load beside numpy 1.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" torch==2.13.0 numpy==1.26.4 transformers==4.56.2 transformer-lens==2.17.0 \
    pyarrow==21.0.0 jax==0.5.3 attrs==25.4.0 auto-circuit==1.0.1
