"""The image without CUDA, built and run: as any user, read-only, stopped, compiled in, and as compose has it."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from containers import PROGRAMS, USER, Buildah, Image, done

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHORT = ["--trainer.max_steps=5", "--trainer.limit_val_batches=2"]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]


def pip_setting(name: str) -> str | None:
    found = re.search(rf"^\S*\.{name}='(.*)'$", done([sys.executable, "-m", "pip", "config", "list"]), re.M)
    return found.group(1) if found else None


def cpu_torch(folder: Path) -> tuple[str, str | None]:
    """The URL, inside the build, of an index with torch's CPU build, and its version if it may not be the pinned one.

    TORCH_INDEX names an index; else pip's own find-links may hold a wheel, of which one is made in the folder.
    """
    if index := os.environ.get("TORCH_INDEX"):
        return index, None
    places = (pip_setting("find-links") or "").split()
    wheels = [wheel for place in places for wheel in Path(place).glob("torch-*+cpu-cp311-*.whl")]
    if not wheels:
        pytest.skip("TORCH_INDEX names no package index with PyTorch's CPU builds")
    (folder / "torch").mkdir(parents=True)
    shutil.copy(wheels[0], folder / "torch")
    (folder / "torch/index.html").write_text(f'<a href="{quote(wheels[0].name)}">{wheels[0].name}</a>')
    return "file:///torch-index", wheels[0].name.split("-")[1].partition("+")[0]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        pytest.skip(f"{', '.join(missing)}: not installed")
    folder = tmp_path_factory.mktemp("image")
    context, index, settings = folder / "context", folder / "index", folder / "pip.conf"
    url, version = cpu_torch(index)
    for name in done(["git", "ls-files"], cwd=ROOT).splitlines():
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, context / name)
    if version is not None:  # torchvision's version goes with torch's
        pins = (ROOT / "constraints.txt").read_text()
        pins = re.sub(r"^torch(vision)?==.*\n", "", pins, flags=re.M)
        (context / "constraints.txt").write_text(f"{pins}torch=={version}\n")
    volumes = {settings: "/etc/pip.conf"}
    lines = ["[global]", "timeout = 180"]
    if certificates := pip_setting("cert"):
        volumes[Path(certificates)] = "/certificates"
        lines.append("cert = /certificates")
    if mirror := pip_setting("index-url"):
        lines.append(f"index-url = {mirror}")
    settings.write_text("\n".join(lines) + "\n")
    if index.exists():
        volumes[index] = "/torch-index"
    buildah = Buildah(folder / "store")
    try:
        buildah.stand_in_base(context / "Dockerfile", folder)
        buildah.build("lrtrain", context, volumes, COMMIT=COMMIT, TORCH_INDEX=url)
        yield Image(buildah, "lrtrain", folder / "containers")
    finally:
        buildah.clear()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def trained(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The volumes of a container that trained quickstart for five steps."""
    volumes = tmp_path_factory.mktemp("trained")
    code, said = image.run(["fit", "--config", "quickstart", *SHORT], volumes)
    assert code == 0, said
    return volumes


def test_it_has_no_library_of_cuda_and_says_its_size(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    found = [path for path in (image.root / "opt").rglob("*") if re.match(r"libcud|libnccl|nvidia$|triton$", path.name)]
    assert not found
    size = int(done(["du", "--summarize", "--block-size=1M", image.root]).split()[0])
    with capsys.disabled():
        print(f"\nimage without CUDA: {size:,} MiB, of which packages {_mebibytes(image.root / 'opt'):,}")
    assert size < 3500


def test_no_cache_is_left(image: Image) -> None:
    for folder in ("var/lib/apt/lists", "var/cache/apt/archives", "root/.cache", "home/lrtrain/.cache", "tmp"):
        path = image.root / folder
        assert not path.exists() or not [file for file in path.rglob("*") if file.is_file() and file.name != "lock"]


def test_its_labels_say_the_commit_and_it_is_no_root(image: Image) -> None:
    assert image.config["Labels"]["org.opencontainers.image.revision"] == COMMIT
    assert image.config["User"] == "1000:0"
    assert image.config["Entrypoint"] == ["lrtrain"]


def test_help_comes_at_once(image: Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        code, said = image.run(["--help"], tmp_path)
        seconds.append(time.monotonic() - began)
        assert (code, "usage: lrtrain" in said) == (0, True)
    with capsys.disabled():
        print(f"\nlrtrain --help in a container: {min(seconds):.2f} to {max(seconds):.2f} s")
    assert min(seconds) < 10


def test_any_user_trains_quickstart_with_a_read_only_root(image: Image, trained: Path, tmp_path: Path) -> None:
    (checkpoint,) = (trained / "workspace/runs/quickstart/0001/checkpoints").iterdir()
    assert checkpoint.name == "step-00000005.ckpt"
    assert (checkpoint.stat().st_uid, checkpoint.stat().st_gid) == USER
    code, said = image.run(["-c", "touch /opt/lrtrain/new"], tmp_path, entrypoint=["sh"])
    assert (code, "Read-only file system" in said) == (1, True)


def test_the_run_records_the_commit_of_the_image(trained: Path) -> None:
    assert _tag(trained / "workspace/runs/mlflow.db", "git.commit") == COMMIT


def test_a_resumed_container_goes_on_with_the_run(image: Image, trained: Path) -> None:
    more = ["--ckpt_path", "last", "--trainer.max_steps=6", SHORT[1]]
    code, said = image.run(["fit", "--config", "quickstart", *more], trained)
    assert code == 0, said
    assert "resuming from runs/quickstart/0001/checkpoints/step-00000005.ckpt" in said
    assert (trained / "workspace/runs/quickstart/0001/checkpoints/step-00000006.ckpt").exists()


@pytest.mark.parametrize("command", [["fit", "--config", "quickstart"], ["prepare", "--out", "data/other"]])
def test_a_container_that_is_stopped_before_it_trains_ends_at_once(
    image: Image, tmp_path: Path, command: list[str]
) -> None:
    container = image.start(command, tmp_path)
    assert container.stdout is not None
    container.stdout.readline()  # the first word of a command comes before its imports
    image.kill("TERM")
    began = time.monotonic()
    container.communicate(timeout=120)
    assert container.returncode == 128 + 15
    assert time.monotonic() - began < 30


def test_there_is_a_compiler_for_what_is_compiled_when_it_runs(image: Image, trained: Path) -> None:
    small = ["--model.decoder.depth=1", "--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--name=compiled"]
    code, said = image.run(["fit", "--config", "quickstart", "--model.compile=true", *small], trained)
    assert code == 0, said
    assert list((trained / "tmp").rglob("*.so"))


@pytest.fixture
def network() -> Iterator[str]:
    name = f"lrtrain-{os.getpid()}"
    done(["ip", "netns", "add", name])
    done(["ip", "-n", name, "link", "set", "lo", "up"])
    yield name
    done(["ip", "netns", "delete", name])


def test_the_services_of_compose_work_together(image: Image, network: str, tmp_path: Path) -> None:
    server, fit = COMPOSE["mlflow"], COMPOSE["fit"]
    log = open(tmp_path / "server.log", "w")  # noqa: SIM115
    running = image.start(
        server["command"],
        tmp_path / "server",
        server["environment"],
        server["entrypoint"],
        network,
        stdout=log,
    )
    kind, *check = server["healthcheck"]["test"]
    assert kind == "CMD"
    try:
        until(lambda: image.run(check, tmp_path / "check", entrypoint=[], network=network)[0] == 0)
        code, said = image.run(
            [*fit["command"], *SHORT], tmp_path / "fit", environment=fit["environment"], network=network
        )
        assert code == 0, said
    finally:
        running.terminate()
        running.wait(60)
        log.close()
    assert "at http://mlflow:5000" not in said  # what a record that waits would say
    assert _tag(tmp_path / "server/workspace/mlflow.db", "git.commit") == COMMIT
    assert list((tmp_path / "server/workspace/artifacts").rglob("config.yaml"))


def until(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(1)


def _tag(database: Path, key: str) -> str | None:
    with sqlite3.connect(database) as connection:
        row = connection.execute("select value from tags where key = ?", [key]).fetchone()
    return row[0] if row else None


def _mebibytes(folder: Path) -> int:
    return int(subprocess.run(["du", "-sm", folder], capture_output=True, text=True, check=True).stdout.split()[0])
