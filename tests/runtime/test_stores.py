"""Objects behind URLs, on S3 (moto on loopback) and file systems of fsspec: whole or absent, outages, mistakes."""

import random
import re
import threading
import time
from pathlib import Path

import fsspec
import pytest

import s3_server
from lrtrain.runtime import s3, stores
from lrtrain.runtime.errors import TemporaryError, UserError


@pytest.fixture(autouse=True)
def _environment(server: s3_server.S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRTRAIN_STORE_WAIT", "20")


@pytest.fixture(params=["s3", "memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    roots = {"s3": "s3://bucket", "memory": "memory://bucket", "file": f"file://{tmp_path}"}
    return f"{roots[request.param]}/{request.node.name}"


def test_objects_are_written_read_listed_and_deleted(url: str) -> None:
    stores.write(f"{url}/a/b", b"first")
    stores.write(f"{url}/a/b", b"second")
    stores.write(f"{url}/a-b", b"")
    assert stores.read(f"{url}/a/b") == b"second"
    assert {name: stored.size for name, stored in stores.stored(url).items()} == {"a/b": 6, "a-b": 0}
    assert [stores.exists(f"{url}/{name}") for name in ("a/b", "a", "b")] == [True, True, False]
    stores.delete(f"{url}/a/b")
    stores.delete(f"{url}/a/b")
    assert set(stores.stored(url)) == {"a-b"}
    assert stores.stored(f"{url}/none") == {}
    with pytest.raises(FileNotFoundError):
        stores.read(f"{url}/a/b")


def test_of_many_that_create_an_object_one_does(url: str) -> None:
    made: list[bool] = []
    threads = [threading.Thread(target=lambda: made.append(stores.create(f"{url}/one", b"x"))) for _ in range(4)]
    for thread in threads:
        thread.start()
        if not url.startswith("s3"):
            thread.join()  # fsspec looks and then writes
    for thread in threads:
        thread.join()
    assert sorted(made) == [False, False, False, True]


def test_the_version_of_an_object_changes_with_its_content(url: str) -> None:
    versions = []
    for content in (b"first", b"other"):
        stores.write(f"{url}/x", content)
        versions.append(stores.stored(url)["x"].version)
        time.sleep(0.02)
    assert versions[0] != versions[1]


def test_a_large_file_goes_there_and_back(url: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 2**18  # 64 MiB: several parts
    (tmp_path / "large").write_bytes(content)
    stores.upload(tmp_path / "large", f"{url}/large")
    stores.download(f"{url}/large", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == content
    assert sorted(file.name for file in tmp_path.glob("*again*")) == ["again"]
    with pytest.raises(FileNotFoundError):
        stores.download(f"{url}/none", tmp_path / "none")
    assert not [*tmp_path.glob("*none*")]


def test_a_folder_appears_with_its_marker_and_replaces_what_was_there(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    for name in ("z", "below/a", "marker"):
        (folder / name).write_text(name)
    stores.write(f"{url}/to/stale", b"of an upload that was killed")
    stores.write(f"{url}/to/marker", b"old")
    seen: list[tuple[str, bool]] = []
    upload = stores.upload

    def watched(file: Path, to: str) -> None:
        seen.append((to.removeprefix(f"{url}/to/"), stores.exists(f"{url}/to/marker")))
        upload(file, to)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stores, "upload", watched)
        stores.upload_folder(folder, f"{url}/to", "marker")
    assert seen == [("below/a", False), ("z", False), ("marker", False)]
    assert set(stores.stored(f"{url}/to")) == {"below/a", "z", "marker"}


def test_parts_of_a_killed_upload_are_dropped(server: s3_server.S3Server, tmp_path: Path) -> None:
    s3 = server.client()
    for key in ("killed/large", "killed-not/large"):
        upload = s3.create_multipart_upload(Bucket="bucket", Key=key)
        s3.upload_part(Bucket="bucket", Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"x")
    assert not stores.exists("s3://bucket/killed/large")
    (tmp_path / "marker").write_text("")
    stores.upload_folder(tmp_path, "s3://bucket/killed", "marker")
    left = s3.list_multipart_uploads(Bucket="bucket")["Uploads"]
    assert [upload["Key"] for upload in left] == ["killed-not/large"]


def test_an_outage_is_waited_for_with_a_line_a_try(
    server: s3_server.S3Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    server.stop()
    back = threading.Timer(2.5, server.start)
    back.start()
    try:
        stores.upload(tmp_path / "file", "s3://bucket/outage")
    finally:
        back.join()
    assert stores.read("s3://bucket/outage") == b"content"
    lines = capfd.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("uploading s3://bucket/outage: Could not connect") for line in lines)
    assert re.search(r"; trying again in [\d.]+ s \(for (20|1\d) s more\)$", lines[0])


@pytest.mark.parametrize("protocol", ["http", "https"])
def test_an_outage_that_lasts_ends_as_a_temporary_error(
    server: s3_server.S3Server, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LRTRAIN_STORE_WAIT", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url.replace("http", protocol))
    with server.away(), pytest.raises(TemporaryError, match=r"reading s3://bucket/a failed for 1 s \(LRTRAIN_STORE_"):
        stores.read("s3://bucket/a")


def test_a_store_that_takes_connections_and_answers_none_is_an_outage(
    server: s3_server.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "ANSWER_SECONDS", 1)
    monkeypatch.setenv("LRTRAIN_STORE_WAIT", "1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # another client, with that patience
    with server.frozen(), pytest.raises(TemporaryError, match="Read timeout on endpoint URL"):
        stores.read("s3://bucket/a")


def test_requests_draw_no_random_numbers_that_a_run_draws_too(server: s3_server.S3Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10**6))
    random.seed(0)
    before = random.getstate()
    stores.upload(tmp_path / "file", "s3://bucket/random")
    stores.download("s3://bucket/random", tmp_path / "again")
    threading.Timer(0.5, server.start).start()
    server.stop()
    assert len(stores.read("s3://bucket/random")) == 10**6
    assert random.getstate() == before


def test_a_mistake_is_one_line_at_once(server: s3_server.S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()
    for call in (stores.read, stores.stored, stores.exists, lambda url: stores.write(url, b"")):
        with pytest.raises(UserError, match="s3://no-bucket/a: there is no such bucket"):
            call("s3://no-bucket/a")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=r"reading s3://bucket/a: no credentials: set AWS_ACCESS_KEY_ID"):
        stores.read("s3://bucket/a")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(UserError, match=r"reading s3://bucket/a: no credentials: set AWS_ACCESS_KEY_ID"):
        stores.read("s3://bucket/a")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match=r"nobody"):
        stores.read("s3://bucket/a")
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    with pytest.raises(UserError, match=r"AWS_"):
        stores.read("s3://bucket/a")
    with pytest.raises(UserError, match="s3:///a names no bucket"):
        stores.read("s3:///a")
    with pytest.raises(UserError, match="s3:/bucket/a: a URL has two slashes"):
        stores.is_remote("s3:/bucket/a")
    with pytest.raises(UserError, match="nosuch://a/b is no URL"):
        stores.read("nosuch://a/b")
    monkeypatch.setenv("LRTRAIN_STORE_WAIT", "5m")
    with pytest.raises(UserError, match="LRTRAIN_STORE_WAIT is 5m: give seconds"):
        stores.read("s3://bucket/a")
    assert time.monotonic() - begun < 60


def test_credentials_and_endpoint_come_from_a_profile(
    server: s3_server.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        f"[profile minio]\naws_access_key_id = a\naws_secret_access_key = b\nendpoint_url = {server.url}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "minio")
    stores.write("s3://bucket/by-profile", b"x")
    assert stores.read("s3://bucket/by-profile") == b"x"


def test_fsspec_reads_s3_by_the_same_way(tmp_path: Path) -> None:
    stores.write("s3://bucket/folder/a.txt", b"0123456789")
    stores.write("s3://bucket/folder/below/b.txt", b"")
    fs, path = stores.file_system("s3://bucket/folder")
    assert sorted(fs.find(path)) == ["bucket/folder/a.txt", "bucket/folder/below/b.txt"]
    assert sorted(fs.glob(f"{path}/**/*.txt")) == ["bucket/folder/a.txt", "bucket/folder/below/b.txt"]
    assert fs.info(path)["type"] == "directory"
    assert fs.cat_file(f"{path}/a.txt", 2, 5) == b"234"
    stores.write("s3://bucket/folder/a.txt", b"text" * 10**4)
    with fs.open(f"{path}/a.txt", block_size=1000) as file:
        assert file.read(2) == b"te"
        stores.write("s3://bucket/folder/a.txt", b"other" * 10**4)
        with pytest.raises(UserError, match="has changed meanwhile"):
            file.read()
    with fsspec.open("s3://bucket/folder/below/b.txt") as file:
        assert file.read() == b""
    with pytest.raises(FileNotFoundError):
        fsspec.open("s3://bucket/folder/none").open()
