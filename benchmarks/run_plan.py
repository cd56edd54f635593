"""Runs one packet of ``gpu_plan.json``: its groups one after the other, the jobs of a group side by side."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start(job: dict) -> subprocess.Popen:
    """The job as a process group of its own, writing to ``runs/logs/NAME.log``."""
    log = ROOT / "runs" / "logs" / f"{job['name']}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | job.get("env", {})
    with log.open("w") as output:
        return subprocess.Popen(
            job["cmd"], shell=True, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip


def ended(job: dict, process: subprocess.Popen, began: float) -> int:
    """Its exit status; a job past its limit is ended, with what it has started."""
    try:
        status = process.wait(max(0.0, began + job["limit"] - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    print(f"{job['name']}: status {status} after {time.monotonic() - began:.0f} s", flush=True)
    return status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packet", type=int)
    parser.add_argument("--plan", type=Path, default=ROOT / "benchmarks" / "gpu_plan.json")
    asked = parser.parse_args()
    plan = json.loads(asked.plan.read_text(encoding="utf-8"))
    groups = [group for group in plan if group[0]["packet"] == asked.packet]
    if not groups:
        sys.exit(f"There is no packet {asked.packet} in {asked.plan.name}.")
    made = {path for group in groups for job in group for path in job.get("needs", [])}
    if missing := [path for path in sorted(made) if not (ROOT / path).exists()]:
        sys.exit(f"Packet {asked.packet} needs what earlier ones wrote: {', '.join(missing)}. Run or copy them first.")
    failed = []
    for group in groups:
        began = time.monotonic()
        processes = [start(job) for job in group]
        statuses = [ended(job, process, began) for job, process in zip(group, processes, strict=True)]
        failed += [job["name"] for job, status in zip(group, statuses, strict=True) if status]
    if failed:
        sys.exit(f"Failed, see runs/logs: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
