"""Pictures for README and docs: what a run prints, as SVG by rich, and its report, as PNG by headless Chromium.

    semisup run digits/quickstart
    python benchmarks/pictures.py                # writes docs/pictures/run.svg and docs/pictures/report.png

The command is run once more to be pictured, which shows its finished stages as reused and their results.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

OUT = Path(__file__).parent.parent / "docs" / "pictures"
WIDTH = 136
"""Columns of the terminal."""


def terminal(words: list[str], out: Path) -> None:
    """Run a command of semisup as in a terminal, and write what it prints as an SVG that asks no network for fonts."""
    told = {"COLUMNS": str(WIDTH), "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    code = "import sys; from semisup.cli.app import main; sys.argv = ['semisup', *sys.argv[1:]]; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=os.environ | told, capture_output=True, text=True, check=True
    )
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    said = done.stdout.replace(str(Path.cwd()), "/home/you")
    console.print(Text.from_ansi(f"$ semisup {' '.join(words)}\n{said}"))
    plain = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    out.write_text(
        console.export_svg(title="semisup", code_format=plain.replace("Fira Code", "Menlo, DejaVu Sans Mono"))
    )


def page(report: Path, out: Path, *, width: int = 1100, height: int = 1250) -> None:
    """Write the upper part of a page as a PNG of few colors."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("needs Chromium (Debian: chromium)")
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"]
        shot = Path(folder) / "shot.png"
        words = [*flags, f"--window-size={width},{height}", f"--screenshot={shot}", report.absolute().as_uri()]
        subprocess.run([chromium, *words], check=True, capture_output=True, timeout=120)
        with Image.open(shot) as image:
            image.convert("RGB").quantize(192, dither=Image.Dither.NONE).save(out, optimize=True)


def main() -> None:
    """Make both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits/quickstart")
    parser.add_argument("--run", type=Path, default=Path("runs/digits-quickstart"), help="where it was run")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    default = given.run == Path("runs/digits-quickstart")
    terminal(["run", given.recipe, *([] if default else ["--out", str(given.run)])], given.out / "run.svg")
    page(given.run / "report.html", given.out / "report.png")


if __name__ == "__main__":
    main()
