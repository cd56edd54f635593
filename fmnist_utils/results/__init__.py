"""The files under ``results/`` (recorded) and ``runs/`` (your own): writing, reading, tables.

``python -m fmnist_utils.results`` brings the tables of README, TEACHING and their like up to date; nothing else does.
"""

from fmnist_utils.results.machine import hardware, peak_memory_mb, versions, where_and_when
from fmnist_utils.results.reading import load_predictions, load_results
from fmnist_utils.results.schema import Result, read_record
from fmnist_utils.results.tables import benchmarks_table, results_table, times_table, update_pages, with_tables
from fmnist_utils.results.writing import (
    check_writable,
    default_folder,
    save_benchmark,
    save_figure,
    save_result,
    write_record,
    write_text,
)

__all__ = [
    "Result",
    "benchmarks_table",
    "check_writable",
    "default_folder",
    "hardware",
    "load_predictions",
    "load_results",
    "peak_memory_mb",
    "read_record",
    "results_table",
    "save_benchmark",
    "save_figure",
    "save_result",
    "times_table",
    "update_pages",
    "versions",
    "where_and_when",
    "with_tables",
    "write_record",
    "write_text",
]
