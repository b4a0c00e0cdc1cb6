"""The source `site-packages`: what of the installed packages is text, in which order, and when it is another."""

import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pytest

from lrtrain.data.documents import read_documents
from lrtrain.data.listing import list_sources
from lrtrain.data.manifest import Manifest
from lrtrain.data.preparation import prepare
from lrtrain.data.spec import PrepareSpec
from lrtrain.runtime.errors import UserError

ONE = {
    "one/__init__.py": b"",
    "one/core.py": "def compute():\n    return 'größer'\n".encode(),
    "one/README.md": b"# One\n\nComputes.\n",
    "one/tests/test_core.py": b"assert True\n",
    "one/old.py": "# -*- coding: latin-1 -*-\nname = 'größer'\n".encode("latin-1"),
    "one/data.txt": b"0 1 2\n",
    "one-1.0.dist-info/LICENSE.md": b"All rights.\n",
}
TWO = {
    "two/vendored/core.py": ONE["one/core.py"],
    "two/more.py": b"x = 1\n",
    **{f"two/many_{i}.py": f"value_{i} = {i} * {i}  # the square of {i}\n".encode() * 9 for i in range(60)},
}


def install(site: Path, name: str, version: str, files: Mapping[str, bytes]) -> None:
    """A package with its record, as an installer leaves it."""
    info = f"{name}-{version}.dist-info"
    for old in site.glob(f"{name}-*.dist-info"):
        shutil.rmtree(old)
    listed = {**files, f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()}
    for path, content in listed.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)
    (site / info / "RECORD").write_text(
        "".join(f"{path},,\n" for path in [*listed, f"../bin/{name}", f"{name}/gone.py"])
    )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with two packages, and ours."""
    folder = tmp_path / "env" / "site-packages"
    paths = {**sysconfig.get_paths(), "purelib": str(folder), "platlib": str(folder)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    install(folder, "Two", "2.0", TWO)
    install(folder, "one", "1.0", ONE)
    install(folder, "lrtrain", "0.1", {"lrtrain/ours.py": b"ours = True\n"})
    return folder


def test_sources_and_documentation_come_once_without_tests_and_metadata(site: Path) -> None:
    listing = list_sources(["site-packages"])
    assert {part.url.removeprefix(f"{site}/") for part in listing.parts} == {
        "one/core.py",
        "one/README.md",
        *(TWO.keys() - {"two/vendored/core.py"}),
    }
    assert {part.package for part in listing.parts} == {"one 1.0", "Two 2.0"}
    assert listing.remarks() == [
        f"Left out: 1 not in UTF-8 ({site}/one/old.py), 1 with the text of another ({site}/two/vendored/core.py)"
    ]
    names = [Path(part.url).name for part in listing.parts]
    assert names != sorted(names)
    assert names == [Path(part.url).name for part in list_sources(["site-packages"]).parts]
    texts = [document.text for part in listing.parts for document in read_documents(part)]
    assert "def compute():\n    return 'größer'\n" in texts


def test_the_manifest_names_packages_and_prepare_tells_another_version_from_a_fit(site: Path, tmp_path: Path) -> None:
    spec, out = PrepareSpec(source=["site-packages"], train_vocab_size=300, val_fraction=0.2), str(tmp_path / "data")
    made = prepare(spec, out)
    assert [name for name, *_ in Manifest.load(out).files] == ["site-packages: Two 2.0", "site-packages: one 1.0"]
    assert made.files[1][1] == len(ONE["one/core.py"]) + len(ONE["one/README.md"])
    assert made.train.documents + made.val.documents == len(TWO) - 1 + 2
    install(site, "one", "1.1", {**ONE, "one/new.py": b"new = 1\n"})
    with pytest.raises(UserError, match=r"site-packages: one 1\.1 is new, site-packages: one 1\.0 is gone"):
        prepare(spec, out)
    assert prepare(spec, out, ask_stores=False) == made
    install(site, "one", "1.0", {**ONE, "one/core.py": b"edited = 1\n"})
    with pytest.raises(UserError, match=r"site-packages: one 1\.0 has changed"):
        prepare(spec, out)


def test_an_environment_without_packages_gets_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {**sysconfig.get_paths(), "purelib": str(tmp_path), "platlib": str(tmp_path)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    with pytest.raises(UserError, match=rf"^source site-packages: no package is installed in {tmp_path}: give a path$"):
        list_sources(["site-packages"])
