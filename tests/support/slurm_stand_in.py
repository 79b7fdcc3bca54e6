"""SLURM's commands where there is no SLURM: a job is a process that starts at once."""

import os

from tests.support.dask_processes import ROOT

SBATCH = """#!/bin/sh
# Stands in for SLURM: starts the job script as a process at once.
for last; do :; done
if [ "$1" = --test-only ]; then
  grep -q "#SBATCH -p nowhere" "$last" && { echo "sbatch: error: invalid partition: nowhere" >&2; exit 1; }
  exit 0
fi
ls -ld "${last%/*}" >"$JOBS/script_folder"
cp "$last" "$JOBS/script"
chmod +x "$JOBS/script"
setsid "$JOBS/script" >"$JOBS/log" 2>&1 &
echo $! >>"$JOBS/submitted"
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
echo "$1" >>"$JOBS/cancelled"
kill -TERM -- "-$1"
"""


def stand_in(folder, monkeypatch):
    """Put sbatch and scancel first on the PATH; in the folder, which is returned, they keep what they did."""
    (folder / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JOBS", str(folder))
    return folder
