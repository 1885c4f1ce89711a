"""pyright's errors per folder against those in .ci/type_errors.json: more fail, fewer ask for less.

    python .ci/check_types.py           compare
    python .ci/check_types.py --write   record what is found now

Folders that are not in the file have none. The counts are those of one version of pyright, which
pyproject.toml names, with the newest torch. pyright's package holds the program, node is the
machine's or that of a wheel: nothing is downloaded here.
"""

import collections
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / ".ci/type_errors.json"


def found() -> dict[str, list[str]]:
    """{folder of the package, or a file that lies in none: a line for each error}"""
    words = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(f"pyright has not run: {done.stdout}{done.stderr}")
    errors = collections.defaultdict(list)
    for one in json.loads(done.stdout)["generalDiagnostics"]:
        if one["severity"] == "error":
            file = Path(one["file"]).relative_to(ROOT / "lightning_cfg")
            line = one["range"]["start"]["line"] + 1
            message = " ".join(one["message"].split())
            errors[file.parts[0]].append(f"lightning_cfg/{file}:{line}: {message}")
    return errors


def main(words: list[str]) -> int:
    errors = found()
    counts = {folder: len(lines) for folder, lines in sorted(errors.items())}
    if words == ["--write"]:
        RECORDED.write_text(json.dumps(counts, indent=1) + "\n")
    recorded = json.loads(RECORDED.read_text())
    worse = {folder for folder in counts if counts[folder] > recorded.get(folder, 0)}
    better = {folder for folder in recorded if counts.get(folder, 0) < recorded[folder]}
    for folder in sorted(worse):
        print(*errors[folder], sep="\n")
        print(f"{folder}: {counts[folder]} type errors, more than {recorded.get(folder, 0)}")
    for folder in sorted(better):
        print(f"{folder}: {counts.get(folder, 0)} type errors, fewer than {recorded[folder]}: "
              "record it by python .ci/check_types.py --write")  # fmt: skip
    print(f"type errors: {sum(counts.values())}, recorded {sum(recorded.values())}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
