"""Execute the notebooks, each in a folder of its own outside of the checkout, as they are.

    python .ci/run_notebooks.py [--out DIR] [NAME ...]

A cell that fails ends it. With --out the executed notebooks, with what they show, are written to
DIR. Without a network.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of notebooks; left out, all")
    parser.add_argument("--out", type=Path, help="where to write them with what they show")
    asked = parser.parse_args(words)
    for file in NOTEBOOKS:
        if asked.names and file.stem not in asked.names:
            continue
        notebook, began = nbformat.read(file, as_version=4), time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            NotebookClient(notebook, timeout=1800, resources=resources).execute()
        print(f"{file.stem}: {time.monotonic() - began:.0f} s", flush=True)
        if asked.out is not None:
            asked.out.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, asked.out / file.name)


if __name__ == "__main__":
    main(sys.argv[1:])
