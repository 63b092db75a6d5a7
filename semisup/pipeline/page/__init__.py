"""A run as one web page: what was done, how it went, what its classifier gets wrong, how to use it."""

from __future__ import annotations

from semisup.pipeline.page.write import PAGE, report, write_page

__all__ = ["PAGE", "report", "write_page"]
