"""What of the site can be known without building it: `.ci/run` builds it, strictly."""

import importlib
import importlib.util
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from helpers import ROOT

from lightning_cfg import guidance
from lightning_cfg.__main__ import VERBS

DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
OWN_WORDS = ("sweep", "assets")  # verbs without keys of their own


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"site/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def as_markdown(monkeypatch):
    """The extension's function, where Griffe, of the extra `docs`, may be absent."""
    monkeypatch.setitem(sys.modules, "griffe", SimpleNamespace(Extension=object, Object=object))
    return script("docstrings").as_markdown


# the reference


def directives() -> list[str]:
    pages = [DOCS / page for page in PAGES if page.startswith("reference/")]
    return [name for page in pages for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)]


def test_what_the_reference_names_is_there():
    for name in directives():
        module, _, function = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), function), name


def test_the_reference_has_every_guidance_method_and_every_verb():
    named = {name.removeprefix("lightning_cfg.") for name in directives()}
    assert {f"guidance.{name}.{name}" for name in guidance.__all__} <= named
    assert {f"verbs.{verb}.{verb}" for verb in VERBS if verb not in OWN_WORDS} <= named


def test_the_modules_of_the_reference_say_what_is_public():
    """By `__all__`, which is what the pages of a whole module show."""
    for name in directives():
        if name.count(".") < 3 and "interfaces" not in name and ".verbs." not in name:
            assert importlib.import_module(name).__all__, name


# its pages


def test_every_page_is_in_the_navigation_or_linked_by_a_results_page():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def pages(nav: object) -> list[str]:
        if isinstance(nav, str):
            return [nav]
        values = nav if isinstance(nav, list) else nav.values()
        return [page for value in values for page in pages(value)]

    listed = pages(settings["nav"])
    assert len(listed) == len(set(listed))
    assert set(listed) <= set(PAGES)
    results = (DOCS / "results/README.md").read_text()
    others = set(PAGES) - set(listed)
    assert all(page.startswith("results/") for page in others)
    assert [page for page in others if page.removeprefix("results/") not in results] == []


@pytest.mark.parametrize("page", ["../README.md", *PAGES])
def test_links_lead_to_files(page):
    """On GitHub; those of the site are `mkdocs build --strict`'s."""
    place = (DOCS / page).resolve()
    text = re.sub(r"^```.*?^```", "", place.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", re.sub(r"`[^`\n]*`", "", text)):
        if not link.startswith("http"):
            assert (place.parent / link).exists(), link


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


# what is between


def test_a_list_below_a_line_of_text_is_one():
    pytest.importorskip("markdown")
    import markdown

    page = (
        "It has\n- a\n  and more\n- b\n\n| x | y |\n|--|--|\n| 1 | 2 |\nText\n| x |\n|--|\n| 3 |\n"
    )
    page += "```\nIt has\n- no list\n| no | table |\n```\n"
    read = script("github_markdown").on_page_markdown(page)
    extensions = ["markdown.extensions.tables", "markdown.extensions.fenced_code"]
    html = markdown.markdown(read, extensions=extensions)
    assert html.count("<li>") == 2
    assert html.count("<table>") == 2
    assert "<code>It has\n- no list\n| no | table |\n</code>" in html


def test_a_name_that_fills_its_column_is_a_key_too(as_markdown):
    text = "lr       its rate\nexponent of rho\n\nexponent of what\n"
    assert as_markdown(text) == (
        "\n- **`lr`**: its rate\n- **`exponent`**: of rho\n\nexponent of what"
    )


def test_docstrings_become_lists_of_keys(as_markdown):
    text = (
        "Sum of w * (x - D) * 2 for s < t, see `f(*x)`.\n\n"
        "lr     learning rate of (B, *shape),\n       and more\nbetas, eps  of the optimiser\n\n"
        "    x   a block\n"
    )
    assert as_markdown(text) == (
        "Sum of w \\* (x - D) \\* 2 for s &lt; t, see `f(*x)`.\n\n\n"
        "- **`lr`**: learning rate of (B, \\*shape),\n    and more\n"
        "- **`betas, eps`**: of the optimiser\n\n"
        "    x   a block"
    )
