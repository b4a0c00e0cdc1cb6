"""The documentation site: built as `make docs` builds it, without a network, whole, and with every field's unit."""

import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from torch.nn.parallel import DistributedDataParallel

import lrtrain.constraints
import lrtrain.nn
import lrtrain.optim
from lrtrain.cli.main import COMMANDS
from lrtrain.config.recipes import names

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """The anchors, links and loaded files of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.add(given["href"])
        if tag in ("script", "img", "iframe", "source", "video", "object") and (given.get("src") or given.get("data")):
            self.loaded.add(given.get("src") or given["data"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    blocked = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | blocked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.resolve(): Page(path) for path in folder.rglob("*.html")}


def test_every_link_leads_to_a_page_and_an_anchor(site: dict[Path, Page]) -> None:
    wrong = []
    for page in site.values():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or not (parts.path or parts.fragment) or page.path.name == "404.html":
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path.resolve()
            anchors = site[target].anchors | {"__skip"} if target in site else None
            if not target.is_file() or (parts.fragment and anchors is not None and parts.fragment not in anchors):
                wrong.append(f"{page.path.name}: {link}")
    assert not wrong


def test_nothing_is_loaded_from_elsewhere(site: dict[Path, Page]) -> None:
    folder = next(path for path in site if path.name == "404.html").parent
    for page in site.values():
        for place in page.loaded:
            parts = urlsplit(place)
            assert parts.scheme in ("", "data"), f"{page.path.name} loads {place}"
            if page.path.name != "404.html" and not parts.scheme:
                assert (page.path.parent / parts.path).is_file(), f"{page.path.name} loads {place}"
    for sheet in folder.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?https?:|@import", sheet.read_text(encoding="utf-8")), sheet.name


def test_every_formula_and_figure_is_drawn(site: dict[Path, Page]) -> None:
    formulas = figures = 0
    for path in site:
        text = path.read_text(encoding="utf-8")
        assert "arithmatex" not in text
        assert "data-draw" not in text
        formulas += text.count('class="math"')
        figures += text.count('class="drawn"')
    assert formulas > 50
    assert figures >= 10


def page_named(site: dict[Path, Page], name: str) -> Page:
    return next(page for path, page in site.items() if path.as_posix().endswith(f"/{name}.html"))


def test_the_reference_has_every_class_that_the_library_exports_for_a_yaml(site: dict[Path, Page]) -> None:
    text = page_named(site, "reference/classes").path.read_text(encoding="utf-8")
    given_by_the_code = {
        *("Projection", "FactorizedProjection"),  # bases
        *("Constraint", "ConstrainedOptimizer", "CombinedOptimizer"),
        *("NothingToHoldError", "UnstatedError", "StatedOptimizer", "Slot", "Optimizers"),
        *("Continuation", "Decoder", "Factorization", "KVCache", "RopeScaling", "Sampling", "TextStream"),
    }
    for package in (lrtrain.nn, lrtrain.optim, lrtrain.constraints):
        for name in package.__all__:
            if isinstance(getattr(package, name), type) and name not in given_by_the_code:
                assert f"{package.__name__}.{name}" in text, name


def test_the_reference_has_every_key_of_the_recipes(site: dict[Path, Page]) -> None:
    rows = ""
    for name in ("configuration", "classes", "trainer"):
        rows += page_named(site, f"reference/{name}").path.read_text(encoding="utf-8")
    known = set(re.findall(r"<td><code>(\w+)</code></td>", rows)) | {"class_path", "init_args"}
    known |= set(inspect.signature(DistributedDataParallel).parameters)  # the strategy hands them on
    groups = set(re.findall(r'<h[23] id="[\w-]+">([\w.]+)<', rows))

    def keys(content: object) -> set[str]:
        if isinstance(content, list):
            return set().union(*map(keys, content))
        if not isinstance(content, dict):
            return set()
        own = set() if "overrides" in content else {str(key).removesuffix("+") for key in content}
        return own.union(*(keys(value) for key, value in content.items() if key not in ("dict_kwargs", "overrides")))

    for name in names():
        content = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text(encoding="utf-8"))
        assert keys(content) <= known | groups, name


def test_the_reference_has_every_command(site: dict[Path, Page]) -> None:
    assert {*COMMANDS} <= page_named(site, "reference/commands").anchors
