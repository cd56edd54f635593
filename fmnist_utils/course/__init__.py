"""What only the notebooks need: :func:`begin` in the set-up cell, and :func:`check` under each exercise."""

from fmnist_utils.course.checking import Verdict, check
from fmnist_utils.course.starting import begin

__all__ = ["Verdict", "begin", "check"]
