"""Use 1, a recipe: pretrain on all images, fine-tune on the labels there are, self-train, distill a small student.

python examples/run_a_recipe.py [OUT [KEY=VALUE...]]     # a minute; OUT is runs/digits-quickstart
"""

from __future__ import annotations

import sys

import semisup


def main(out: str = "runs/digits-quickstart", *overrides: str) -> None:
    """Run the quickstart's recipe, and print what every stage is worth."""
    result = semisup.run("digits/quickstart", ["tracking.mlflow=false", *overrides], out=out)
    print(result.to_frame()[["method", "steps", "parameters", "test/accuracy"]])
    print(f"the whole story: {out}/report.html")


if __name__ == "__main__":
    main(*sys.argv[1:])
