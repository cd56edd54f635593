"""The website that ``sphinx-build -c docs . site`` makes: its links, and that nothing is loaded from elsewhere.

FMNIST_SITE=site keeps it in that folder.
"""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from fmnist_utils import ROOT

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("furo", "myst_nb", "sphinx"))), reason='the website needs pip install -e ".[site]"'
)
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


class Page(HTMLParser):
    """Of an HTML page: ids, links that a reader follows, and files that the browser loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids, self.links, self.loaded, self.images = set(), [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list) -> None:
        given = dict(attributes)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("index", "search", "next", "prev"):
            self.loaded.append(given.get("href") or "")
        elif given.get("src"):
            self.loaded.append(given["src"])
        if tag == "img":
            self.images.append(given)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = Path(os.environ.get("FMNIST_SITE") or tmp_path_factory.mktemp("site")).absolute()
    command = [sys.executable, "-m", "sphinx", "-q", "-E", "-c", "docs", ".", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONUTF8": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert "WARNING" not in done.stderr and "ERROR" not in done.stderr, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_link_within_the_site_leads_somewhere(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loaded:
            if urlsplit(link).scheme:
                continue
            name, fragment = urldefrag(link)
            target = path.parent / unquote(urlsplit(name).path) if name else path
            target = Path(os.path.normpath(target))
            known = pages[target].ids if target in pages else None
            if not target.is_file() or (fragment and known is not None and unquote(fragment) not in known):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert len(pages) > 20 and broken == []


def test_nothing_is_loaded_from_another_place(site, pages):
    loaded = {address for page in pages.values() for address in page.loaded}
    assert {address for address in loaded if re.match(r"(https?:)?//", address)} == set()
    assert any(address.partition("?")[0].endswith(".js") for address in loaded)
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", path.read_text(encoding="utf-8")), path.name


def test_the_first_page_has_a_card_for_each_notebook(site, pages):
    index = pages[site / "index.html"]
    text = (site / "index.html").read_text(encoding="utf-8")
    assert text.count('class="card"') == len(NOTEBOOKS)
    for name in NOTEBOOKS:
        assert f"notebooks/{name}.html" in index.links and f"_static/cards/{name}.png" in index.loaded
    assert "82.1%" in text, "the promise of notebook 01"


def test_notebooks_lead_to_their_neighbours_and_can_be_searched(site, pages):
    for before, after in zip(NOTEBOOKS, NOTEBOOKS[1:], strict=False):
        assert f"{after}.html" in pages[site / "notebooks" / f"{before}.html"].links
        assert f"{before}.html" in pages[site / "notebooks" / f"{after}.html"].links
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert "perplex" in index and "mcnemar" in index and all(f"notebooks/{name}" in index for name in NOTEBOOKS)


def test_figures_keep_their_text_and_functions_their_docstrings(site, pages):
    figures = [
        image for image in pages[site / "notebooks" / "01_exploration.html"].images if "_images/" in image["src"]
    ]
    assert len(figures) >= 5 and all(len(image.get("alt", "")) >= 20 for image in figures)
    assert {"fmnist_utils.train.fit", "fmnist_utils.data.load"} <= pages[site / "docs" / "api.html"].ids


def test_no_path_of_this_machine_is_published(site):
    for path in [*site.rglob("*.html"), *site.rglob("*.js")]:
        assert str(ROOT) not in path.read_text(encoding="utf-8"), path.relative_to(site)
