"""Use 3, a student: smaller networks that predict what a finished one does, and what each of them costs.

python examples/distill_a_student.py MODEL [STEPS]       # e.g. runs/digits-quickstart/selftrain, a minute
"""

from __future__ import annotations

import sys
from pathlib import Path

import semisup
from semisup.pipeline.distill import distillation
from semisup.pipeline.students import compare_students, students_table

STUDENTS = ["cnn,width=16", "cnn,width=8", "cnn,width=4"]


def main(model: str, steps: str = "400") -> None:
    """Train students of a finished stage next to its run, compare them, and classify an image with the smallest."""
    teacher = Path(model)
    out = teacher.parent.with_name(f"{teacher.parent.name}-students")
    semisup.run(distillation(teacher, STUDENTS, steps=int(steps)).recipe, out=out)
    students = compare_students(out)
    print(students_table(students))
    smallest = semisup.load_predictor(out / students[-1].name)
    image = semisup.data.load_data(semisup.config.load_recipe(out / "recipe.yaml").data).x_test[0]
    print(f"{students[-1].name} says {smallest.classes[int(smallest.predict_proba(image).argmax())]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
