# Sourced: $python has netcal, without Pyro, GPyTorch and TensorBoard, which its fits alone use.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" torch==2.13.0 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 matplotlib==3.11.2 tqdm==4.70.1
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps netcal==1.4.0; fi
