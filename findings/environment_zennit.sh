# Sourced: $python has zennit, whose parts load without the package's own imports.
# Those take torchvision, which does not load beside a torch for CPUs alone.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" torch==2.13.0 numpy==2.4.6
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps zennit==0.5.1; fi
mkdir zennit
cat > zennit/__init__.py <<'PY'
from importlib.metadata import distribution

__path__ = [str(distribution("zennit").locate_file("zennit"))]
PY
