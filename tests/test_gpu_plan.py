"""`benchmarks/gpu_plan.json`, the runs that want a GPU: every command is one that the project understands."""

import json
import re
import runpy
import shlex
import subprocess
import sys

import pytest

from fmnist_utils import ROOT
from fmnist_utils.recipes import ADDITIONS, RECIPES

PLAN = json.loads((ROOT / "benchmarks" / "gpu_plan.json").read_text(encoding="utf-8"))
JOBS = [job for group in PLAN for job in group]
RUNNER = ROOT / "benchmarks" / "run_plan.py"


def words(command: str) -> list[str]:
    """The command as the shell would pass it on, had two additions been chosen."""
    command = re.sub(r"\$\(echo [^)]*\$\([^)]*\)[^)]*\)", "wide-resnet-best-with-cutmix-with-more-decay", command)
    command = re.sub(r"\$\(python3 benchmarks/ingredients.py --chosen\)", "cutmix more-decay", command)
    assert "$" not in command
    return shlex.split(command)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["name"])
def test_the_project_understands_every_command(job, monkeypatch, capsys):
    python, *arguments = words(job["cmd"])
    assert python == "python3" and job["env"]["FMNIST_PROFILE"] == "full" and "--record" in arguments
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    # Whatever stands before it has been read by the time help is printed, and a mistake in it ends with another status.
    module = arguments.pop(0) == "-m"
    name = arguments.pop(0) if module else job["cmd"].split()[1]
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__") if module else runpy.run_path(ROOT / name, run_name="__main__")
    assert ended.value.code == 0, capsys.readouterr().err


def test_a_command_with_a_mistake_would_be_noticed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipes", "wide-resnet-best", "--with", "cutmx", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("fmnist_utils.recipes", run_name="__main__")
    assert ended.value.code == 2


def test_every_packet_fits_a_quarter_of_an_hour():
    packets = [{job["packet"] for job in group} for group in PLAN]
    assert all(len(numbers) == 1 for numbers in packets)
    order = [numbers.pop() for numbers in packets]
    assert order == sorted(order) and set(order) == set(range(1, max(order) + 1))
    assert len({job["name"] for job in JOBS}) == len(JOBS)
    for packet in set(order):
        limits = [max(job["limit"] for job in group) for group in PLAN if group[0]["packet"] == packet]
        assert sum(limits) <= 15 * 60 - 120, f"packet {packet}, with two minutes to start a machine"


def test_nothing_is_needed_that_no_earlier_packet_makes():
    for number, group in enumerate(PLAN):
        earlier = " ".join(job["cmd"] for before in PLAN[:number] for job in before)
        for path in (path for job in group for path in job.get("needs", [])):
            made = re.search(r"([\w-]+)-full", path)
            assert (ROOT / path).exists() or made and made[1].rpartition("/")[2] in earlier, path


def test_the_plan_names_what_waits_for_a_gpu():
    commands = [words(job["cmd"]) for job in JOBS]
    alone = {"resnet50-fine-tuned", "vgg16-fine-tuned-longer", "wide-resnet-best"}
    assert alone <= RECIPES.keys() & {command[3] for command in commands if command[1] == "-m"}
    scripts = {command[1] for command in commands}
    for name in ("training_throughput", "speed_run", "usual_loop", "unfreezing"):
        assert f"benchmarks/{name}.py" in scripts
    only = {command[3] for command in commands if command[1:3] == ["benchmarks/ingredients.py", "--only"]}
    assert only == {"plain", "together", *ADDITIONS} - {"all-images"}
    assert any("all-images" in command for command in commands) and any("--teachers" in command for command in commands)


@pytest.mark.skipif(sys.platform == "win32", reason="starts a POSIX shell")
def test_a_packet_runs_in_order_side_by_side_and_within_its_limits(tmp_path):
    def python(code: str) -> str:
        return shlex.join([sys.executable, "-c", code])

    wait = f"import pathlib, time\nwhile not pathlib.Path({str(tmp_path / 'b')!r}).exists(): time.sleep(0.05)"
    write = "import os, pathlib; pathlib.Path({!r}).write_text(os.environ['WORD'])"
    group = [  # the first ends once the second has run, so they run at the same time
        {"name": "test-waits", "cmd": python(wait), "limit": 120},
        {"name": "test-writes", "cmd": python(write.format(str(tmp_path / "b"))), "env": {"WORD": "b"}, "limit": 120},
    ]
    late = [{"name": "test-late", "cmd": f"{python('import time; time.sleep(600)')}; true", "limit": 1}]
    other = [
        {"name": "test-other", "cmd": python(write.format(str(tmp_path / "c"))), "env": {"WORD": "c"}, "limit": 60}
    ]
    needing = [{"name": "test-needing", "cmd": "true", "limit": 60, "needs": ["no/such/file"]}]
    plan = [[job | {"packet": number} for job in jobs] for number, jobs in ((1, group), (1, late), (2, other))]
    plan += [[job | {"packet": 3} for job in needing]]
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    def run(packet: int):
        command = [sys.executable, RUNNER, str(packet), "--plan", tmp_path / "plan.json"]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    try:
        done = run(1)
        assert (tmp_path / "b").read_text() == "b" and not (tmp_path / "c").exists()
        assert "test-waits: status 0" in done.stdout and "test-late: status -9" in done.stdout
        assert done.returncode == 1 and "Failed, see runs/logs: test-late." in done.stderr
        assert run(2).returncode == 0 and (tmp_path / "c").read_text() == "c"
        assert "needs what earlier ones wrote: no/such/file" in run(3).stderr
        assert "There is no packet 4" in run(4).stderr
    finally:
        for log in (ROOT / "runs" / "logs").glob("test-*.log"):
            log.unlink()
