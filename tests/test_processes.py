"""The same training in one process and in two (gloo, on the CPU), started by torchrun as a reader would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

SCRIPT = Path(__file__).with_name("several_processes.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(command: list, folder: Path, *tasks: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"} | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    arguments = [*command, str(SCRIPT), str(folder), *tasks]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)


def run(command: list, folder: Path, *tasks: str) -> Path:
    folder.mkdir(exist_ok=True)
    done = start(command, folder, *tasks)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """(folder of one process, folder of two), both tasks run in each: starting processes takes longer than they do."""
    folder, tasks = tmp_path_factory.mktemp("processes"), ("images", "features")
    return run([sys.executable], folder / "one", *tasks), run(TORCHRUN, folder / "two", *tasks)


def history_of(folder: Path, name: str, process: int = 0) -> pd.DataFrame:
    return pd.DataFrame(json.loads((folder / f"{name}-{process}.json").read_text())["history"])


def assert_close(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_allclose(second[key], first[key], rtol=1e-7, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("task", ["images", "features"])
def test_two_processes_give_the_result_of_one(folders, task):
    one, two = folders
    assert [json.loads((two / f"{task}-{i}.json").read_text())["processes"] for i in (0, 1)] == [2, 2]
    expected = history_of(one, task)
    for process in (0, 1):
        # With 203 and 257 images, an image counted twice or not at all would change every mean.
        pd.testing.assert_frame_equal(history_of(two, task, process), expected, rtol=1e-8)
        assert_close(*(load_file(f / f"{task}-{i}.safetensors") for f, i in ((one, 0), (two, process))))
        assert_close(*(load_file(f / f"{task}-{i}-predictions.safetensors") for f, i in ((one, 0), (two, process))))
    accuracy = expected.train_accuracy.to_numpy() * 203
    np.testing.assert_allclose(accuracy, accuracy.round(), atol=1e-9)


def test_features_computed_in_parts_are_those_of_one_process(folders):
    one, two = folders
    expected = load_file(one / "cache-0.safetensors")["features"]
    assert expected.shape[:2] == (2, 203)
    assert not np.array_equal(expected[0], expected[1])
    for process in (0, 1):
        found = load_file(two / f"cache-{process}.safetensors")["features"]
        np.testing.assert_array_equal(found, expected)
    names = sorted(path.suffix for path in (two / "cache").iterdir())
    assert names == [".json", ".npy"]  # no part of a file is left behind


def test_only_the_first_process_writes_the_checkpoint(folders):
    one, two = folders
    alone, first, second = (json.loads((f / f"files-{i}.json").read_text()) for f, i in ((one, 0), (two, 0), (two, 1)))
    assert second == []
    assert len(first) == len(alone) > 0
    assert not list(two.glob("*.resume.pt"))


def test_killed_process_ends_the_run_and_the_run_is_resumed(folders, tmp_path):
    done = start(TORCHRUN, tmp_path, "killed")
    assert done.returncode != 0
    assert "Signal 9" in done.stderr
    assert "rank: 1" in " ".join(done.stderr.split())  # torchrun says who
    assert (tmp_path / "checkpoint.resume.pt").is_file()
    assert not (tmp_path / "checkpoint.safetensors").exists()
    run(TORCHRUN, tmp_path, "images")
    expected = history_of(folders[0], "images")
    pd.testing.assert_frame_equal(history_of(tmp_path, "images"), expected, rtol=1e-8)


def test_batch_smaller_than_the_number_of_processes_is_refused(small_vgg, tiny, tiny_val, monkeypatch):
    from fmnist_utils import settings, train

    monkeypatch.setattr(settings, "rank_and_count", lambda: (0, 4))
    with pytest.raises(ValueError, match="batch_size=3 is too small for 4 processes"):
        train.fit(small_vgg(), tiny, tiny_val, epochs=1, batch_size=3)
