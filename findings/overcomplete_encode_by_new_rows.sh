#!/usr/bin/env bash
# overcomplete's ConvexNMF and ArchetypalAnalysis: encode builds its dictionary of the rows it is given; decode has that of the rows of fit.
set -euo pipefail
source "$(dirname "$0")/environment_overcomplete.sh"
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from overcomplete.optimization import ConvexNMF
from overcomplete.optimization.archetypal_analysis import ArchetypalAnalysis

torch.manual_seed(0)
ROWS, WIDTH, ATOMS = 60, 8, 5
print(f"overcomplete {version('overcomplete')}\nexpected: encode looks for codes of the dictionary that get_dictionary() gives, for any number of rows")
fitted, other = torch.rand(ROWS, WIDTH), torch.rand(ROWS, WIDTH)
seen = {}
for kind in (ConvexNMF, ArchetypalAnalysis):
    model = kind(ATOMS)
    model.fit(fitted)
    codes = {}
    for name, dictionary in (("before", model.D.clone()), ("after", torch.randn_like(model.D))):
        model.D.copy_(dictionary)
        torch.manual_seed(1)
        codes[name] = model.encode(other)
    unread = torch.equal(codes["before"], codes["after"])
    torch.manual_seed(1)
    expected, _ = model.solver_fn(other, model.init_random_z(other), model.W, update_W=False, max_iter=300, tol=model.tol)
    of_new_rows = torch.equal(codes["before"], expected)
    try:
        model.encode(other[:7])
        error = None
    except RuntimeError as raised:
        error = raised
    print(f"seen: {kind.__name__}: codes of {ROWS} new rows with another dictionary in its place: the same {unread}; "
          f"they are for the weights times the new rows: {of_new_rows}")
    print(f"seen: {kind.__name__}: codes of 7 rows: {type(error).__name__}: {error}")
    seen[kind.__name__] = unread, of_new_rows, error is not None
raise SystemExit(set(seen.values()) != {(True, True, True)})
PY
