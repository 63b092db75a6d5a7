"""Accuracy against bytes, FLOPs and latency of a run with a teacher and students, e.g. of digits/students.

    semisup run digits/students
    python benchmarks/students.py runs/digits-students

Prints a table and writes students.md and students.png into the run's folder, or to --out and a PNG of that name.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from semisup.pipeline.students import compare_students, students_figure, students_table


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--out", type=Path, help="Markdown file; default: students.md in the run's folder")
    given = parser.parse_args()
    torch.set_num_threads(1)
    students = compare_students(given.run)
    out = given.out or given.run / "students.md"
    table = students_table(students)
    out.write_text(table)
    students_figure(students, out.with_suffix(".png"))
    print(table)


if __name__ == "__main__":
    main()
