"""Where the packages lie, and the page for a package index; the rest of the distribution stands in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ADDRESS = ""
"""Where the repository's files are seen, as https://github.com/NAME/semisup/blob/main/; empty while nowhere."""


def for_an_index(readme: str, address: str) -> str:
    """Return the README as a package index shows it, which has no file next to it.

    Args:
        readme: Markdown, with links relative to the repository.
        address: as `ADDRESS`. Empty: a link becomes its words and the file's name, and a picture is left out.
    """

    def link(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        if not address:
            return "" if picture else f"{words} (`{target}`)"
        place = address.replace("/blob/", "/raw/") if picture else address
        return f"{picture}[{words}]({place}{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?:)([^)]+)\)", link, readme)


if __name__ == "__main__":
    # Recipes and benchmark suites stay where a reader looks for them, and travel in the wheel as the package data of
    # `semisup.recipes` and `semisup.suites`.
    setup(
        packages=[*find_packages(include=["semisup", "semisup.*"]), "semisup.recipes", "semisup.suites"],
        package_dir={"semisup": "semisup", "semisup.recipes": "recipes", "semisup.suites": "benchmarks/suites"},
        long_description=for_an_index(Path(__file__).with_name("README.md").read_text(encoding="utf-8"), ADDRESS),
        long_description_content_type="text/markdown",
        package_data={
            "semisup": ["py.typed"],
            "semisup.bench.pages": ["*.j2"],
            "semisup.labeling": ["*.j2"],
            "semisup.pipeline": ["*.j2", "page/*.j2"],
            "semisup.recipes": ["*/*.yaml", "*.json"],
            "semisup.suites": ["*/*.yaml", "*.json"],
        },
    )
