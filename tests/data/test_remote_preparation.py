"""`prepare --out s3://…`: whole or absent, resumed, one machine at a time, the data set of a local folder."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

import s3_server
from lrtrain.cli.main import main
from lrtrain.data import lease, remote_preparation
from lrtrain.data.datamodule import TokenDataModule
from lrtrain.data.manifest import Manifest
from lrtrain.data.preparation import PrepareSpec, prepare
from lrtrain.data.remote_preparation import staging_folder
from lrtrain.runtime import stores
from lrtrain.runtime.errors import TemporaryError, UserError
from token_streams import BLOCK, spec_of


@pytest.fixture(autouse=True)
def _environment(server: s3_server.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRTRAIN_STAGING", str(tmp_path / "staging"))
    monkeypatch.setenv("LITDATA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("LRTRAIN_STORE_WAIT", "1")
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return f"s3://bucket/{request.node.name}"


@pytest.fixture
def spec(prepared: Path) -> PrepareSpec:
    return spec_of(prepared.parent)


def test_it_is_the_data_set_of_a_local_folder_and_leaves_nothing_else(
    spec: PrepareSpec, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stores.write(f"{url}/notes.txt", b"of the user's own")
    made = prepare(spec, url)
    assert made == prepare(spec, str(tmp_path / "local")) == Manifest.load(url)
    local = {f.relative_to(tmp_path / "local").as_posix() for f in (tmp_path / "local").rglob("*") if f.is_file()}
    assert set(stores.stored(url)) - {"notes.txt"} == local - {".lock"}
    assert not [*(tmp_path / "staging").iterdir()]
    capsys.readouterr()
    assert prepare(spec, f"{url}/") == made
    assert capsys.readouterr().out == ""


def test_another_request_and_other_sources_are_refused(spec: PrepareSpec, url: str, tmp_path: Path) -> None:
    source = tmp_path / "x.jsonl"
    source.write_bytes(Path(spec.source[0]).read_bytes())
    spec = replace(spec, source=[str(source)])
    prepare(spec, url)
    with pytest.raises(UserError, match=rf"{url} holds a data set of another request, val_fraction is 0.2 there"):
        prepare(replace(spec, val_fraction=0.3), url)
    source.write_bytes(source.read_bytes() + b'{"text": "more"}\n')
    with pytest.raises(UserError, match=rf"{url} was made from other sources: x.jsonl has changed"):
        prepare(spec, url)
    prepare(spec, url, ask_stores=False)  # as `fit` does, which may run where the sources are not
    stores.write(f"{url}/foreign/train/chunk-00000.bin", b"")
    with pytest.raises(UserError, match=rf"{url}/foreign/train exists and is not from a preparation"):
        prepare(spec, f"{url}/foreign")


def test_an_upload_that_an_outage_ended_goes_on_where_it_stopped(
    server: s3_server.S3Server, spec: PrepareSpec, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrtrain.data.shards.CHUNK_TOKENS", 2**13)
    upload, sent = stores.upload, []

    def watched(file: Path, to: str) -> None:
        if len(sent) == 4:
            server.stop()
        upload(file, to)
        sent.append(to.removeprefix(f"{url}/"))

    monkeypatch.setattr(stores, "upload", watched)
    try:
        with pytest.raises(TemporaryError, match=rf"uploading {url}/train/chunk-\d+.bin failed for 1 s"):
            prepare(spec, url)
    finally:
        server.start()
    assert len(sent) == 4
    assert "manifest.json" not in stores.stored(url)
    with pytest.raises(UserError, match="holds no prepared data"):
        Manifest.load(url)
    changed = sent[2]
    stores.write(f"{url}/{changed}", b"of somebody else")
    before = [name for name in sent if name != changed]
    sent += [""] * 10  # the server stays
    made = prepare(spec, url)
    again = sent[14:]
    assert set(before) & set(again) == set()
    assert changed in again
    assert again[-1] == "manifest.json"
    for chunk in made.train.chunks:
        assert stores.stored(f"{url}/train")[chunk.file].size == chunk.bytes
    assert set(stores.stored(url)) & {".unfinished", ".preparing.json"} == set()


def test_a_killed_preparation_is_taken_over_by_the_same_command(
    server: s3_server.S3Server, spec: PrepareSpec, url: str, tmp_path: Path
) -> None:
    argv = ["prepare", "--out", url, "--source", *spec.source, "--train-vocab-size", "300", "--val-fraction", "0.2"]
    killed = subprocess.Popen([sys.executable, "-P", "-m", "lrtrain", *argv], stdout=subprocess.PIPE, text=True)
    for line in killed.stdout or []:
        if line.startswith("Uploading"):
            killed.send_signal(signal.SIGKILL)
            break
    assert killed.wait() == -signal.SIGKILL
    if killed.stdout:
        killed.stdout.close()
    assert ".preparing.json" in stores.stored(url)
    assert [*(tmp_path / "staging").iterdir()]
    assert main(argv) == 0
    assert Manifest.load(url) == prepare(spec, url)


def test_of_two_that_prepare_at_once_one_waits_and_takes_what_the_other_made(
    spec: PrepareSpec, url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"host": "elsewhere", "process": 1, "holder": "x"}
    beats = 0
    stores.write(f"{url}/.preparing.json", json.dumps({**other, "beats": beats}).encode())
    made: list[Manifest] = []
    waiting = threading.Thread(target=lambda: made.append(prepare(spec, url)))
    waiting.start()
    for beats in range(1, 20):
        stores.write(f"{url}/.preparing.json", json.dumps({**other, "beats": beats}).encode())
        time.sleep(0.15)
    assert set(stores.stored(url)) == {".preparing.json"}  # for longer than a silent holder is waited for
    waiting.join(60)  # now it is silent
    assert made == [Manifest.load(url)]
    said = capfd.readouterr().err
    assert f"Preparing {url} by process 1 on elsewhere: waiting for it" in said
    assert f"Preparing {url} was left by process 1 on elsewhere: taking over" in said


def test_a_process_that_is_not_in_this_container_is_not_taken_for_gone() -> None:
    mine = lease.Lease("s3://bucket/lease")
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = {**json.loads(mine._content()), "process": gone.pid}
    assert mine._was_here(json.dumps(left).encode())
    for other in ({"container": "pid:[1]"}, {"host": "elsewhere"}, {"process": os.getpid()}):
        assert not mine._was_here(json.dumps({**left, **other}).encode())


def test_one_that_was_taken_over_does_not_finish(spec: PrepareSpec, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = stores.upload

    def overtaken(file: Path, to: str) -> None:
        upload(file, to)
        stores.write(f"{url}/.preparing.json", json.dumps({"host": "b", "process": 1, "holder": "y"}).encode())

    monkeypatch.setattr(stores, "upload", overtaken)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 1000.0)  # no beat meets the other's first one
    with pytest.raises(UserError, match="was taken over by another machine"):
        prepare(spec, url)
    assert "manifest.json" not in stores.stored(url)
    assert json.loads(stores.read(f"{url}/.preparing.json"))["holder"] == "y"


def test_a_bucket_that_may_not_be_written_is_refused_before_anything_is_prepared(
    server: s3_server.S3Server, spec: PrepareSpec, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iam = server.client("iam")
    iam.create_user(UserName="reader")
    allowed = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=policy)
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    for name, value in server.environment(key["AccessKeyId"], key["SecretAccessKey"]).items():
        monkeypatch.setenv(name, value)
    with (
        server.checking_credentials(),
        pytest.raises(UserError, match=rf"writing {url}/.preparing.json: no permission: ask for it"),
    ):
        prepare(spec, url)
    assert not (tmp_path / "staging").exists()


def test_fit_prepares_at_a_url_and_reads_it(spec: PrepareSpec, url: str) -> None:
    data = TokenDataModule(url, BLOCK, batch_size=4, prepare=spec)
    data.prepare_data()
    data.setup("fit")
    assert next(iter(data.train_dataloader())).shape == (4, BLOCK + 1)
    data.teardown("fit")
    again = TokenDataModule(url, BLOCK, batch_size=4, prepare=replace(spec, val_fraction=0.3))
    with pytest.raises(UserError, match="another request"):
        again.prepare_data()


@pytest.mark.parametrize(
    "kind", ["parquet", "jsonl.zst", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("jsonl", "txt"))]
)
def test_sources_on_s3_are_read_through_an_outage(
    server: s3_server.S3Server, prepared: Path, url: str, kind: str, tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = (prepared.parent / "x.jsonl").read_bytes()
    if kind == "jsonl.zst":
        content = zstandard.compress(content)
    elif kind == "parquet":
        table = pa.Table.from_pylist([json.loads(line) for line in content.splitlines()])
        pq.write_table(table, written := io.BytesIO(), row_group_size=50)
        content = written.getvalue()
    (tmp_path / f"x.{kind}").write_bytes(content)
    stores.write(f"{url}/in/x.{kind}", content)
    stores.write(f"{url}/in/readme.unknown", b"")
    options: dict[str, Any] = {"train_vocab_size": 300, "val_fraction": 0.2}
    local = prepare(PrepareSpec([str(tmp_path / f"x.{kind}")], **options), str(tmp_path / "local"))
    monkeypatch.setenv("LRTRAIN_STORE_WAIT", "30")
    server.stop()
    back = threading.Timer(1.5, server.start)
    back.start()
    try:
        made = prepare(PrepareSpec([f"{url}/in"], **options), str(tmp_path / "out"))
    finally:
        back.join()
    assert (made.train.digest, made.val.digest) == (local.train.digest, local.val.digest)
    assert "trying again in" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"holds s3://bucket/.* itself"):
        prepare(PrepareSpec([url], **options), f"{url}/out")
    with pytest.raises(UserError, match="s3://no-bucket/x"):
        prepare(PrepareSpec(["s3://no-bucket/x"], **options), str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("entry", "holds"),
    [
        ("s3://b", True),
        ("s3://b/", True),
        ("s3://b/data/out", True),
        ("s3://b/da*", True),
        ("s3://b/**/*.jsonl", True),
        ("s3://b/*.jsonl", False),
        ("s3://b/data/*/x.jsonl", False),
        ("s3://b/da", False),
        ("s3://other", False),
        ("*", False),
    ],
)
def test_a_source_that_would_hold_the_data_set_itself_is_refused_and_no_other(entry: str, holds: bool) -> None:
    with pytest.raises(UserError, match="itself") if holds else nullcontext():
        remote_preparation._refuse_own_source(PrepareSpec(["a/*", entry]), "s3://b/data/out")


def test_the_staging_folder_is_named_after_the_url(tmp_path: Path) -> None:
    one, other = staging_folder("s3://a/data"), staging_folder("s3://b/data")
    assert one != other
    assert {one.parent, other.parent} == {Path(os.environ["LRTRAIN_STAGING"])}
    assert one.name.startswith("data-")
