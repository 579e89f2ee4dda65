"""Run by the Python of sae-lens: FILE. Writes there the releases that it lists, with the ends of each one's paths.

One release a line: the loader, the repository, how many dictionaries it has, the first path and the last.
"""

import json
import sys
from pathlib import Path

import sae_lens
import yaml

listed = yaml.safe_load((Path(sae_lens.__file__).parent / "pretrained_saes.yaml").read_text())
lines = []
for release in listed.values():
    paths = [str(each["path"]) for each in release["saes"]]
    lines.append([release.get("conversion_func") or "sae_lens", release["repo_id"], len(paths), paths[0], paths[-1]])
Path(sys.argv[1]).write_text("[\n" + ",\n".join(map(json.dumps, sorted(lines))) + "\n]\n")
