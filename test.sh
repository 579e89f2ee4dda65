#!/usr/bin/env bash
# Set up, then run all tests. Arguments go to pytest instead: ./test.sh tests/ops -k topk
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/setup.sh"
if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi
if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then
    echo "test: the page's tests are skipped without Chromium; on Debian and Ubuntu: apt install chromium" >&2
fi
exec python -m pytest -n 2 --dist worksteal --durations 25  # neighbours stay together: they share fixtures
