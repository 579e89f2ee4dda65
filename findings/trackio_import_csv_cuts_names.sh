#!/usr/bin/env bash
# trackio's import_csv keeps ten letters and digits of a metric's name and numbers those that are then alike, by the order of the columns: layers cannot be told apart, and one name is of different metrics in two runs.
set -euo pipefail
source "$(dirname "$0")/environment.sh" trackio==0.43.0
TRACKIO_DIR=$folder/trackio "$python" -W ignore - 2>/dev/null <<'PY'
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import trackio
from trackio.sqlite_storage import SQLiteStorage

values = {"train/loss": 2.5, "fvu/layers.1.mlp": 0.1, "fvu/layers.2.mlp": 0.2, "fvu/layers.12.mlp": 0.3}
print(f"trackio {version('trackio')}: the same metrics, logged, and imported from two tables whose columns are in another order")
print(f"expected: {values}, each time")


def kept(project):
    """What trackio has of the one step of a project's one run."""
    (run,) = SQLiteStorage.get_runs(project)
    (row,) = SQLiteStorage.get_logs(project, run)
    return {name: value for name, value in row.items() if name not in ("step", "timestamp")}


def imported(project, names):
    Path(f"{project}.csv").write_text(",".join(["step", *names]) + "\n" + ",".join(str(x) for x in [0, *(values[name] for name in names)]) + "\n")
    trackio.import_csv(f"{project}.csv", project=project)
    return kept(project)


with redirect_stdout(StringIO()):
    trackio.init(project="logged", auto_log_gpu=False, auto_log_cpu=False)
    trackio.log(values, step=0)
    trackio.finish()
    came = {"logged": kept("logged"), "imported": imported("imported", list(values)), "imported, columns reversed": imported("again", list(values)[::-1])}
for name, row in came.items():
    print(f"seen: {name}: {row}")
logged, first, second = came.values()
cut = sorted(first) == sorted(second) == ["fvu/layers", "fvu/layers_1", "fvu/layers_2", "train/loss"]
raise SystemExit(not (logged == values and cut and first["fvu/layers"] == 0.1 and second["fvu/layers"] == 0.3))
PY
