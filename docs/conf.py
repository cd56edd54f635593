"""The website: ``sphinx-build -c docs . site`` makes it of the Markdown pages, the saved notebooks and the docstrings.

Nothing in it is loaded from elsewhere, so a copy of the folder ``site`` works without a network.
"""

import base64
import html
import json
import re
import struct
from pathlib import Path

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

project = "Fashion-MNIST transfer learning"
author = "the authors of the course"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc = "README"
include_patterns = [
    "*.md",
    "benchmarks/*.md",
    "data/*/README.md",
    "docs/*",
    "notebooks/*.ipynb",
    "notebooks/*/*.ipynb",
    "results/*.md",
]
exclude_patterns = ["**/.ipynb_checkpoints"]
nb_execution_mode = "off"  # the saved outputs are shown
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
viewcode_follow_imported_members = False
autodoc_preserve_defaults = True  # as in the source, without the paths of the machine that builds
html_theme = "furo"
html_title = project
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = html_copy_source = False
suppress_warnings = ["misc.highlighting_failure"]  # of cells with magics, such as %timeit

CONTENTS = """

```{{toctree}}
:hidden:
:caption: Course

{notebooks}
notebooks/project/your_own_photographs
docs/glossary
TEACHING
```

```{{toctree}}
:hidden:
:caption: Solutions

{solutions}
```

```{{toctree}}
:hidden:
:caption: Reference

docs/guide
results/README
benchmarks/README
benchmarks/SCALING
docs/api
data/models/README
data/weights/README
data/fashion-mnist/README
CONTRIBUTING
CHANGELOG
```
"""


def text_of(cell: dict) -> str:
    return "".join(cell["source"])


def facts(path: Path) -> tuple[str, str, bytes]:
    """Title, promise and a picture of a notebook: the one whose shape fits best on a card."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    title, _, rest = text_of(cells[0]).partition("\n")
    bold = re.search(r"^\*\*(?!Run time)(.+)\*\*$", rest, re.MULTILINE)
    promise = bold[1] if bold else rest.strip().split("\n\n")[0]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    pictures = [base64.b64decode("".join(data["image/png"])) for data in outputs if "image/png" in data]
    shapes = {picture: struct.unpack(">2I", picture[16:24]) for picture in pictures}  # from the PNG's header
    picture = min(pictures, key=lambda picture: abs(shapes[picture][0] / shapes[picture][1] - 1.6))
    return title.removeprefix("# "), re.sub(r"[*`]", "", promise), picture


def cards(folder: Path) -> str:
    """HTML of a card per notebook, with its promise, minutes and picture; the pictures are written to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    times = json.loads((ROOT / "results/benchmarks/notebook_times-cpu.json").read_text(encoding="utf-8"))["notebooks"]
    found = []
    for path in NOTEBOOKS:
        title, promise, picture = facts(path)
        (folder / f"{path.stem}.png").write_bytes(picture)
        minutes = max(1, round(times[path.stem]["seconds"] / 60)) if path.stem in times else None
        time = f'<span class="time">about {minutes} min on two CPU cores</span>' if minutes else ""
        found.append(
            f'<a class="card" href="notebooks/{path.stem}.html"><img src="_static/cards/{path.stem}.png" alt="">'
            f"<strong>{html.escape(title)}</strong><span>{html.escape(promise)}</span>{time}</a>"
        )
    return '<div class="cards">' + "".join(found) + "</div>"


def read_source(app, name: str, source: list[str]) -> None:
    """README gets cards for its table, and the contents; notebooks lose Colab's badge, a picture from elsewhere."""
    if name == root_doc:
        made = cards(Path(app.outdir) / "_static" / "cards")
        text = re.sub(r"<!-- notebooks:start.*<!-- notebooks:end -->", lambda _: made, source[0], flags=re.DOTALL)
        lists = {"notebooks": [], "solutions": []}
        for path in NOTEBOOKS:
            lists["notebooks"].append(f"notebooks/{path.stem}")
            lists["solutions"].append(f"notebooks/solutions/{path.stem}_solutions")
        source[0] = text + CONTENTS.format(**{kind: "\n".join(names) for kind, names in lists.items()})
    elif Path(app.env.doc2path(name)).suffix == ".ipynb":
        notebook = json.loads(source[0])
        for cell in notebook["cells"]:
            cell["source"] = re.sub(r"\[!\[Open in Colab\][^\n]*\n\n", "", text_of(cell))
            for output in cell.get("outputs", []):  # the text that plots.show(figure, text) has stored
                if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                    cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
        source[0] = json.dumps(notebook)


def write_math(visitor, node) -> None:
    """Formulas as MathML, which browsers draw by themselves."""
    visitor.body.append(tex2mathml(node.astext(), as_block=node.tagname == "math_block"))
    raise SkipNode


def finish(app, error) -> None:
    """README is the first page."""
    if not error:
        (Path(app.outdir) / "index.html").write_bytes((Path(app.outdir) / "README.html").read_bytes())


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    app.connect("source-read", read_source)
    app.connect("build-finished", finish)
