"""Colab: what the first cell of each notebook does there, and the repository's address in all of them.

``python notebooks/colab.py https://github.com/you/course`` writes the address into badge and first cell of every
notebook, once for all; after that, and a push, a reader's click on the badge is enough. Without an address it only
makes all first cells alike. Standard library alone: in Colab it runs before anything is installed.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Colab has them, and whatever else is there was built for them: never changed.
KEPT = ("torch", "torchvision", "numpy")
FIRST_CELL = """import subprocess
import sys
from pathlib import Path

REPO = "{address}"  # only for Colab: the address of your copy of this repository
if "google.colab" in sys.modules:  # everywhere else the course is installed already
    assert REPO, "Set REPO above to the repository's address, then run this cell again."
    if not Path("/content/course").exists():
        clone = ["git", "clone", "--depth=1", REPO, "/content/course"]
        subprocess.run(clone, check=True)
    sys.path[:0] = ["/content/course", "/content/course/notebooks"]
    from colab import prepare

    prepare({extras})  # installs what is missing, and says so"""
#: What in a notebook's code says that it needs an extra of pyproject.toml.
NEEDED_BY = {
    "explain": r"fmnist_utils\.explain|captum|cleanlab|fmnist_utils\.app",
    "tune": r"fmnist_utils\.tune|optuna",
    "export": r"fmnist_utils\.export|onnx",
    "app": r"fmnist_utils\.app",
}


def requirements(extras: tuple[str, ...]) -> list[str]:
    """What pyproject.toml lists as dependencies and for ``extras``, the extras within them included."""
    import tomllib  # Python 3.11; Colab has it

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = list(project["dependencies"])
    for extra in extras:
        for line in project["optional-dependencies"][extra]:
            inner = re.fullmatch(r"fmnist-utils\[([\w,]+)\]", line)
            found += requirements(tuple(inner[1].split(","))) if inner else [line]
    return list(dict.fromkeys(found))


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def unmet(lines: list[str]) -> list[str]:
    """Those requirements (such as ``dash>=4``) that the installed packages do not meet."""
    missing = []
    for line in lines:
        name, _, least = line.partition(">=")
        have = installed(name)
        numbers = [[int(part) for part in re.findall(r"\d+", text)] for text in (have or "", least)]
        there, needed = ((found + [0, 0, 0])[:3] for found in numbers)
        if have is None or there < needed:
            missing.append(line)
    return missing


def prepare(*extras: str) -> None:
    """Make Colab ready: install what is missing, leave torch as it is, say what was done, go to ``notebooks/``.

    Raises ``subprocess.CalledProcessError`` where pip cannot install something, after pip has said why.
    """
    missing = unmet(requirements(extras))
    have = {name: installed(name) for name in KEPT}
    kept = [line for line in missing if have.get(line.partition(">=")[0])]
    wanted = [line for line in missing if line not in kept]
    older = [line for line in wanted if installed(line.partition(">=")[0])]
    if wanted:
        pins = "".join(f"{name}=={number}\n" for name, number in have.items() if number)
        with tempfile.TemporaryDirectory() as folder:
            constraints = Path(folder) / "constraints.txt"
            constraints.write_text(pins, encoding="utf-8")
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--constraint",
                str(constraints),
                *wanted,
            ]
            subprocess.run(command, check=True)
        importlib.invalidate_caches()
    print("installed:", ", ".join(wanted) if wanted else "nothing, all packages are there")
    print(
        "left as they are:",
        ", ".join(f"{name} {number}" for name, number in have.items() if number),
    )
    if older:
        print(
            "choose Runtime > Restart session if an import fails now: there was an older",
            ", ".join(older),
        )
    for line in kept:
        print(f"this course asks for {line}, and Colab has an older one: what needs it may fail")
    os.environ["PYTHONPATH"] = str(ROOT)  # for programs that a notebook starts
    os.chdir(ROOT / "notebooks")


def with_address(notebook: dict, name: str, address: str | None, branch: str = "main") -> dict:
    """``notebook`` with its first code cell as it should be; its badge opens ``name`` if there is a new ``address``."""
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    first, others = codes[0], "".join("".join(cell["source"]) for cell in codes[1:])
    old = re.search(r'REPO = "([^"]*)"', "".join(first["source"]))
    extras = ", ".join(f'"{extra}"' for extra, pattern in NEEDED_BY.items() if re.search(pattern, others))
    source = FIRST_CELL.format(address=old[1] if address is None else address, extras=extras)
    first["source"] = source.splitlines(keepends=True)
    if address is not None:
        start = "https://colab.research.google.com/github/"
        on_github = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", address)
        link = f"{start}{on_github[1]}/blob/{branch}/notebooks/{name}" if on_github else start
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
        for cell in cells:
            text = re.sub(rf"{start}[^)]*", link, "".join(cell["source"]))
            cell["source"] = text.splitlines(keepends=True)
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "address",
        nargs="?",
        help="such as https://github.com/you/course; '' takes it out again",
    )
    parser.add_argument("--branch", default="main", help="that the badges open")
    given = parser.parse_args()
    folder = ROOT / "notebooks"
    for path in sorted([*folder.glob("*.ipynb"), *folder.glob("[!.]*/*.ipynb")]):
        before = path.read_text(encoding="utf-8")
        made = with_address(
            json.loads(before),
            path.relative_to(folder).as_posix(),
            given.address,
            given.branch,
        )
        after = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8", newline="\n")
            print(path.relative_to(ROOT).as_posix())


if __name__ == "__main__":
    main()
