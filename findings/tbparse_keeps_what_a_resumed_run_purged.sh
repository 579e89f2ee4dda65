#!/usr/bin/env bash
# tbparse on a run resumed with purge_step: TensorBoard drops the steps that were done again, tbparse keeps them beside the new ones, so a step has two values, and with pivot a list.
set -euo pipefail
source "$(dirname "$0")/environment.sh" tensorboardX==2.6.5 tbparse==0.0.9 tensorboard==2.21.0
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version
from time import sleep

from tbparse import SummaryReader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX import SummaryWriter


def write(folder, values, first, **options):
    writer = SummaryWriter(folder, **options)
    for step, value in enumerate(values, first):
        writer.add_scalar("loss", value, step)
    writer.close()


print(f"tbparse {version('tbparse')}, tensorboard {version('tensorboard')}: a run of 6 steps whose last three were not saved, resumed from step 3 on with purge_step=3")
write("run", [5.0, 4.0, 3.0, 90.0, 91.0, 92.0], 0)
sleep(1.1)
write("run", [2.0, 1.5, 1.0], 3, purge_step=3)
expected = [5.0, 4.0, 3.0, 2.0, 1.5, 1.0]
print(f"expected: {expected}, as TensorBoard shows it")
board = EventAccumulator("run").Reload()
shown = [event.value for event in board.Scalars("loss")]
print(f"seen: TensorBoard: {shown}")
rows = SummaryReader("run").scalars
print(f"seen: tbparse: {len(rows)} rows, of step 3: {sorted(rows[rows.step == 3].value)}; the mean of the last three steps is {rows[rows.step >= 3].value.mean():.2f} and not 1.50")
wide = [x if isinstance(x, list) else float(x) for x in SummaryReader("run", pivot=True).scalars["loss"]]
print(f"seen: tbparse, pivot=True: {wide}")
raise SystemExit(not (shown == expected and len(rows) == 9 and sorted(rows[rows.step == 3].value) == [2.0, 90.0] and wide[:3] == expected[:3] and sorted(wide[3]) == [2.0, 90.0]))
PY
