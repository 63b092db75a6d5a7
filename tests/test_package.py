"""What `pip install` puts on a machine: code, recipes, the typing marker and the command."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from semisup import __version__
from semisup.bench import shipped_suites
from semisup.config import shipped_recipes

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy of the sources (building leaves files next to them), made without a network."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("semisup", "recipes", "benchmarks/suites"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    done = subprocess.run([*command, "-w", str(folder / "wheels")], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "wheels").glob("*.whl")
    return path


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (found,) = [member for member in archive.namelist() if member.endswith(name)]
        return archive.read(found).decode()


def test_the_wheel_has_every_module_recipe_and_marker(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "semisup").rglob("*.py")}
    recipes = {f"semisup/recipes/{path.relative_to(ROOT / 'recipes')}" for path in (ROOT / "recipes").rglob("*.yaml")}
    suites_folder = ROOT / "benchmarks" / "suites"
    suites = {f"semisup/suites/{path.relative_to(suites_folder)}" for path in suites_folder.rglob("*.yaml")}
    assert len(recipes) == len(shipped_recipes()) > 0
    assert len(suites) == len(shipped_suites()) > 0
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "semisup").rglob("*.j2")}
    schemas = {"semisup/recipes/recipe.schema.json", "semisup/suites/suite.schema.json"}
    wanted = modules | recipes | suites | templates | schemas | {"semisup/py.typed"}
    assert wanted - names == set()
    extra = {name for name in names - wanted if ".dist-info/" not in name}
    assert extra == set(), "tests, caches or results in the wheel"


def test_the_wheel_names_command_version_license_and_needs(wheel: Path) -> None:
    assert "semisup = semisup.__main__:main" in read(wheel, "entry_points.txt")
    metadata = Parser().parsestr(read(wheel, "METADATA"))
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    needs = metadata.get_all("Requires-Dist") or []
    assert not [need for need in needs if "==" in need.split(";")[0]], "nothing is pinned, no build of torch chosen"
    assert {"torch>=2.6", "mlflow>=3.0"} <= set(needs)


def test_the_page_for_an_index_has_no_link_that_leads_nowhere(wheel: Path) -> None:
    metadata = Parser().parsestr(read(wheel, "METADATA"))
    assert metadata["Description-Content-Type"] == "text/markdown"
    page = str(metadata.get_payload())
    assert page.startswith("# semisup\n") and "more about each (`docs/reliability.md`)" in page
    assert [link for link in re.findall(r"\]\(([^)]*)\)", page) if not link.startswith("https://")] == []


def test_twine_finds_nothing_wrong_with_the_wheel(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", str(wheel)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_with_an_address_links_and_pictures_are_absolute() -> None:
    spec = importlib.util.spec_from_file_location("semisup_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.for_an_index(
        "[how](docs/a.md#b), ![run](docs/r.svg) and [there](https://x.org)", "https://github.com/n/s/blob/main/"
    )
    assert page == (
        "[how](https://github.com/n/s/blob/main/docs/a.md#b), ![run](https://github.com/n/s/raw/main/docs/r.svg) "
        "and [there](https://x.org)"
    )


def test_an_unpacked_wheel_finds_its_recipes_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    """As installed: without the checkout on the path, and in another folder."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import semisup, semisup.config as c, semisup.bench as b\n"
        "print(semisup.__file__); print(*c.shipped_recipes()); print(c.load_recipe('digits/quickstart').name)\n"
        "print(*b.shipped_suites()); print(b.load_suite('digits/budgets').name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    where, recipes, name, suites, suite = done.stdout.splitlines()
    assert where == str(tmp_path / "site" / "semisup" / "__init__.py")
    assert recipes.split() == shipped_recipes()
    assert name == "digits-quickstart"
    assert suites.split() == shipped_suites()
    assert suite == "digits-budgets"


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
