#!/usr/bin/env bash
# dictionary_learning: a dictionary that its April-update trainer makes of AutoEncoderNew is not opened by load_dictionary.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 dictionary-learning==0.1.0
# It is pulled in, not needed, and does not load beside a torch for CPUs alone.
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip uninstall --quiet --yes torchvision; fi
"$python" - <<'PY'
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew
from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate
from dictionary_learning.utils import load_dictionary

print(f"dictionary-learning {version('dictionary-learning')}\nexpected: what a trainer writes with its own config opens again")
seen = {}
for kind in (AutoEncoder, AutoEncoderNew):
    sizes = {"steps": 9000, "activation_dim": 8, "dict_size": 16, "layer": 0, "lm_name": "none", "device": "cpu"}
    trainer = StandardTrainerAprilUpdate(**sizes, dict_class=kind)
    folder = Path(tempfile.mkdtemp())
    torch.save(trainer.ae.state_dict(), folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer.config}))
    try:
        load_dictionary(str(folder), "cpu")
        seen[kind.__name__] = "opens"
    except RuntimeError as error:
        seen[kind.__name__] = " ".join(str(error).split())[:110]
    print(f"seen: dict_class={kind.__name__}: config says {trainer.config['dict_class']}; {seen[kind.__name__]}")
raise SystemExit(not (seen["AutoEncoder"] == "opens" and "Missing key" in seen["AutoEncoderNew"]))
PY
