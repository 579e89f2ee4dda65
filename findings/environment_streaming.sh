# Sourced: $python has mosaicml-streaming, whose parts load without the package's own imports.
# Those take torchvision, which does not load beside a torch for CPUs alone.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" torch==2.13.0 numpy==2.1.3 transformers==4.57.6 matplotlib==3.11.2 \
    brotli==1.2.1 python-snappy==0.7.3 zstd==1.5.7.2 catalogue==2.0.10 xxhash==3.8.2
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps mosaicml-streaming==0.13.0; fi
mkdir streaming
cat > streaming/__init__.py <<'PY'
from importlib.metadata import distribution

__path__ = [str(distribution("mosaicml-streaming").locate_file("streaming"))]
PY
