"""Killed at any moment, short of disk, run twice at once, run for long: nothing is lost and nothing lies around.

FMNIST_KILLS=20 kills that many trainings instead of 3.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from fmnist_utils.cache import cache_features
from fmnist_utils.checkpoints import load_model, save_model
from fmnist_utils.data import write_csv
from fmnist_utils.models import build_model
from fmnist_utils.results import save_result
from fmnist_utils.sources.files import replacing
from fmnist_utils.train import fit

KILLS = int(os.environ.get("FMNIST_KILLS", 3))

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork, signals and limits of Unix")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


def small_cnn():
    return build_model("small_cnn", weights=None, image_size=12)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def in_a_process(work) -> int:
    """Starts `work()` in a copy of this process, whose exit status is 0 where it came to its end; the copy's number."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


# ------------------------------------------------------------------------------------------------------------ killed


def test_killed_training_ends_with_the_same_weights(tiny, tiny_val, tmp_path):
    def train(folder):
        settings = {"epochs": 6, "batch_size": 32, "ema": 0.9, "progress": False}
        fit(small_cnn(), tiny, tiny_val, checkpoint=folder / "model", **settings)

    whole, began = tmp_path / "whole", time.perf_counter()
    assert os.waitpid(in_a_process(lambda: train(whole)), 0)[1] == 0
    seconds, rng, unfinished = time.perf_counter() - began, np.random.default_rng(0), 0
    expected = (whole / "model.safetensors").read_bytes()
    for number in range(KILLS):
        folder = tmp_path / f"killed-{number}"
        child = in_a_process(lambda folder=folder: train(folder))
        time.sleep(rng.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        unfinished += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        progress = folder / "model.resume.pt"
        if progress.is_file():
            assert torch.load(progress, weights_only=True)["rows"]
        if (folder / "model.json").is_file():
            load_model(folder / "model")
        assert os.waitpid(in_a_process(lambda folder=folder: train(folder)), 0)[1] == 0
        assert (folder / "model.safetensors").read_bytes() == expected
        assert names_in(folder) == ["model.json", "model.safetensors"]
    print(f"{unfinished} of {KILLS} trainings were killed before their end")
    assert unfinished > KILLS / 2


def test_what_a_killed_process_was_writing_is_removed_by_the_next(tmp_path):
    def half_written():
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(in_a_process(half_written), 0)
    (orphan,) = names_in(tmp_path)
    number, machine, _ = orphan[1:].split("-")
    others = {
        f".{os.getppid()}-{machine}-file",  # of a process that lives
        f".{number}-000000-file",  # of another machine, whose processes nobody here knows
        f".{number}-{machine}-another file",
    }
    for name in others:
        (tmp_path / name).write_text("half")
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    assert set(names_in(tmp_path)) == others | {"file"} and (tmp_path / "file").read_text() == "whole"


# --------------------------------------------------------------------------------------------------------- disk full


@contextlib.contextmanager
def full_after(size: int):
    """Within it no file can grow beyond `size` bytes, as on a disk that is full then."""
    import resource

    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, earlier[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)


def write_table(folder, data):
    write_csv(data, folder / "few.csv")


def write_model(folder, data):
    save_model(small_cnn(), folder / "model")


def write_result(folder, data):
    history = pd.DataFrame({"val_accuracy": [0.5]})
    metrics, seconds = {"test_accuracy": 0.5, "macro_f1": 0.5}, {"total": 1.0}
    facts = {"train_images": 1, "history": history, "metrics": metrics, "seconds": seconds}
    save_result("mine", small_cnn(), folder=folder, predictions={"test": np.full((500, 10), 0.1)}, **facts)


def write_checkpoint(folder, data):
    def stop(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        fit(small_cnn(), data, data, epochs=3, checkpoint=folder / "model", progress=False, on_epoch=stop)


def write_features(folder, data):
    model = build_model("vgg16", cut_after="block1", image_size=16, head="linear")
    cache_features(model, data, folder=folder, verbose=False)


@pytest.mark.parametrize("write", [write_table, write_model, write_result, write_checkpoint, write_features])
def test_full_disk_leaves_the_earlier_file_and_says_so(write, tiny, tmp_path):
    few = tiny.select(range(20))
    write(tmp_path, few)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert before
    if write is write_features:  # features that are there are not written again
        few = tiny.select(range(21))
    with full_after(500), pytest.raises(OSError, match=r"could not be written \(File too large\): make room"):
        write(tmp_path, few)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# ------------------------------------------------------------------------------------------------------------- caches


def test_two_processes_may_compute_the_same_features_at_once(tiny, tmp_path, small_vgg):
    def compute():
        cache_features(small_vgg(), tiny, folder=tmp_path, batch_size=8, verbose=False)

    children = [in_a_process(compute) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    found = cache_features(small_vgg(), tiny, folder=tmp_path, verbose=False)
    assert found.report.reused
    expected = cache_features(small_vgg(), tiny, batch_size=8, verbose=False)
    assert torch.equal(found.features, expected.features)
    assert names_in(tmp_path) == [f"{found.key}.json", f"{found.key}.npy"]


def flip_one_bit(file, report):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_one_bit,
        lambda file, report: file.write_bytes(file.read_bytes()[:-100]),
        lambda file, report: file.write_bytes(b""),
        lambda file, report: report.write_text('{"images": 1'),
        lambda file, report: report.write_text("[]"),
        lambda file, report: report.write_bytes(b"\xff\xfe"),
        lambda file, report: report.write_text(report.read_text().replace('"engine"', '"engines"')),
    ],
    ids=[
        "bit",
        "cut off",
        "empty",
        "report cut off",
        "another report",
        "report is no text",
        "report of others",
    ],
)
def test_damaged_features_are_noticed_and_computed_anew(damage, tiny, tmp_path, small_vgg, capsys):
    first = cache_features(small_vgg(), tiny, folder=tmp_path, verbose=False)
    expected = first.features.clone()
    file, report = tmp_path / f"{first.key}.npy", tmp_path / f"{first.key}.json"
    del first
    damage(file, report)
    again = cache_features(small_vgg(), tiny, folder=tmp_path, verbose=False)
    assert not again.report.reused and torch.equal(again.features, expected)
    assert (
        f"{file.name} is damaged, or of an earlier version: its features are computed anew" in capsys.readouterr().out
    )
    assert cache_features(small_vgg(), tiny, folder=tmp_path, verbose=False).report.reused


# ----------------------------------------------------------------------------------------------------------- for long


def test_fifty_epochs_take_no_more_memory_than_ten(tiny, tiny_val, tmp_path):
    megabytes = []
    fit(
        small_cnn(), tiny, tiny_val, epochs=50, batch_size=32, ema=0.9, checkpoint=tmp_path / "model", progress=False,
        on_epoch=lambda row: megabytes.append(psutil.Process().memory_info().rss / 1e6),
    )  # fmt: skip
    print(f"memory in MB after 10, 30 and 50 epochs: {megabytes[9]:.0f}, {megabytes[29]:.0f}, {megabytes[49]:.0f}")
    assert megabytes[49] - megabytes[9] < 10
