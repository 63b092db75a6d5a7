"""Logged terms between two reports, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Window"]


class Window:
    """Terms since the last report: for each its sum, its count and its first bad step.

    Nothing waits for the device until they are read.
    """

    def __init__(self) -> None:
        self.tables: dict[tuple[str, ...], Tensor] = {}
        """Names -> (3, number of names): terms that come together are added together, in a handful of kernels."""

    def add(self, step: int, values: dict[str, Tensor], *, may_be_nan: bool = False) -> None:
        """Count 0-d terms of one update; one that `may_be_nan` is left out where there was nothing to measure."""
        if not values:
            return
        row = torch.stack([value.detach().float() for value in values.values()])
        finite = row.isfinite()
        first_bad = torch.full_like(row, torch.inf) if may_be_nan else torch.where(finite, torch.inf, float(step))
        new = torch.stack([torch.where(finite, row, 0.0), finite.float(), first_bad])
        table = self.tables.get(names := tuple(values))
        if table is None:
            self.tables[names] = new
        else:
            table[:2] += new[:2]
            table[2] = torch.minimum(table[2], first_bad)

    def read(self) -> tuple[dict[str, float], dict[str, int]]:
        """Return means of what was measured, and term -> first bad step. Here the host waits for the device."""
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        bad: dict[str, int] = {}
        for names, table in self.tables.items():
            for name, (total, count, first) in zip(names, table.T.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + total
                counts[name] = counts.get(name, 0.0) + count
                if first != float("inf"):
                    bad[name] = min(int(first), bad.get(name, int(first)))
        return {name: total / counts[name] for name, total in sums.items() if counts[name]}, bad

    def clear(self) -> None:
        """Begin the next window."""
        self.tables = {}
