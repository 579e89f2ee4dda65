# Sourced with names of packages: $python has them, in a temporary folder that goes at the end.
if [ -n "${FINDINGS_PYTHON:-}" ]; then FINDINGS_PYTHON=$(realpath -s "$FINDINGS_PYTHON"); fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
unset PYTHONPATH
export HF_HUB_OFFLINE=1 HF_HOME="$folder" TRANSFORMERS_VERBOSITY=error TQDM_DISABLE=1
if [ -n "${FINDINGS_PYTHON:-}" ]; then
    python=$FINDINGS_PYTHON
else
    python3 -m venv env
    env/bin/pip install --quiet "$@"
    python=$folder/env/bin/python
fi
