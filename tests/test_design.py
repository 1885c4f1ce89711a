"""docs/design.md has every file of the package once, in the folders' order of import."""

import re
from pathlib import Path

from helpers.layers import ORDER, VERBS

import lightning_cfg

PACKAGE = Path(lightning_cfg.__file__).parent
DESIGN = Path(__file__).parent.parent / "docs/design.md"


def in_the_table() -> list[str]:
    """Files as the table has them, below the folder that stands in bold above them."""
    text = DESIGN.read_text().split("## Where things are")[1].split("\n## ")[0]
    found, folder = [], ""
    for line in text.splitlines():
        cell = line.split("|")[1] if line.startswith("|") else ""
        if bold := re.search(r"\*\*`(\w+)/`\*\*", cell):
            folder = bold[1]
        for name in re.findall(r"`([\w.]+\.py)`", cell):
            top = (PACKAGE / name).is_file() and not (PACKAGE / folder / name).is_file()
            found.append(name if top else f"{folder}/{name}".lstrip("/"))
    return found


def test_every_file_stands_in_the_table_once():
    files = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" and not (path.parent == PACKAGE and path.stem in VERBS)
    }
    found = in_the_table()
    assert sorted(found) == sorted(files)


def test_the_folders_stand_in_the_order_of_import():
    level = {name: i for i, names in enumerate(ORDER) for name in names}
    folders = re.findall(r"\*\*`(\w+)/`\*\*", DESIGN.read_text())
    assert sorted(folders) == sorted(
        p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()
    )
    assert [level[name] for name in folders] == sorted(level[name] for name in folders)
