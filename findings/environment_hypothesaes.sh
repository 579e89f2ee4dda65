# Sourced: $python has hypothesaes, whose parts load without the package's own imports.
# It asks for Jupyter and sentence-transformers, which embedding alone uses.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" torch==2.13.0 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 \
    scikit-learn==1.9.1 statsmodels==0.15.0 openai==3.57.0 tiktoken==0.14.0 tqdm==4.70.1
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps hypothesaes==2.0.1; fi
mkdir hypothesaes
cat > hypothesaes/__init__.py <<'PY'
from importlib.metadata import distribution

__path__ = [str(distribution("hypothesaes").locate_file("hypothesaes"))]
PY
