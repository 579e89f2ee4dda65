#!/usr/bin/env bash
# Set up, then train autoencoders on three layers of SmolLM2-135M: five minutes on two cores, no network after set-up.
# Options are passed on to the command line: ./demo.sh --k 64. Then ./demo.sh --browse shows the latents.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/setup.sh"
exec python scripts/demo.py "$@"
