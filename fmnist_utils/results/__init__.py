"""The files under ``results/``: writing them, reading them, README's tables made of them, and where they were measured.

``python -m fmnist_utils.results`` brings README's tables up to date.
"""

from fmnist_utils.results.machine import hardware, peak_memory_mb, versions
from fmnist_utils.results.reading import load_predictions, load_results
from fmnist_utils.results.tables import benchmarks_table, results_table, update_readme, with_tables, write_text
from fmnist_utils.results.writing import save_benchmark, save_result

__all__ = [
    "benchmarks_table",
    "hardware",
    "load_predictions",
    "load_results",
    "peak_memory_mb",
    "results_table",
    "save_benchmark",
    "save_result",
    "update_readme",
    "versions",
    "with_tables",
    "write_text",
]
