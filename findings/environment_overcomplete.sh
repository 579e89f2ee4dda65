# Sourced: $python has overcomplete, whose parts load without the package's own imports.
# Those are of models of images: they import torchvision, which does not load beside a torch for CPUs alone.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" torch==2.13.0 overcomplete==0.3.0
mkdir overcomplete
cat > overcomplete/__init__.py <<'PY'
from importlib.metadata import distribution

__path__ = [str(distribution("overcomplete").locate_file("overcomplete"))]
PY
