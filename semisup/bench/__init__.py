"""The label-budget benchmark: a suite of methods, budgets and draws, run on Dask, compared with statistics."""

from __future__ import annotations

from semisup.bench.suites.suite import Suite, find_suite, load_suite, shipped_suites

__all__ = ["Suite", "find_suite", "load_suite", "shipped_suites"]
