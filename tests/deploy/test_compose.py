"""compose.yaml: valid by the specification's schema, whole in itself, and its commands are ones that are taken."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy_commands import check_accepted

ROOT = Path(__file__).parents[2]
FILE = ROOT / "compose.yaml"
PROJECT: dict[str, Any] = yaml.safe_load(FILE.read_text())
MLFLOW, FIT = PROJECT["services"]["mlflow"], PROJECT["services"]["fit"]


def valid(file: Path) -> bool:
    check = Path(sys.executable).with_name("check-jsonschema")
    command = [check, "--builtin-schema", "vendor.compose-spec", file]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_it_is_valid_and_a_misspelled_key_is_not(tmp_path: Path) -> None:
    misspelled = tmp_path / "compose.yaml"
    misspelled.write_text(FILE.read_text().replace("depends_on", "depend_on"))
    assert valid(FILE)
    assert not valid(misspelled)


def test_every_volume_and_service_that_is_used_is_there() -> None:
    used = {mount.partition(":")[0] for service in (MLFLOW, FIT) for mount in service["volumes"]}
    assert used == set(PROJECT["volumes"])
    assert FIT["depends_on"] == {"mlflow": {"condition": "service_healthy"}}
    assert "healthcheck" in MLFLOW


def test_both_run_the_image_of_this_folder_with_its_arguments() -> None:
    arguments = re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.M)
    for service in (MLFLOW, FIT):
        assert service["image"] == "lrtrain"
        assert service["build"]["context"] == "."
        assert set(service["build"]["args"]) == set(arguments)


def test_what_is_written_goes_to_volumes_that_the_image_lets_anyone_write() -> None:
    made = re.search(r"chmod 1777 (.*) &&", (ROOT / "Dockerfile").read_text())
    assert made is not None
    for service in (MLFLOW, FIT):
        assert service["read_only"] is True
        assert {mount.partition(":")[2] for mount in service["volumes"]} <= set(made.group(1).split())


def test_the_fit_is_one_that_lrtrain_takes_and_tracks_to_the_server() -> None:
    check_accepted(FIT["command"])
    host = FIT["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
    assert host in next(flag for flag in MLFLOW["command"] if flag.startswith("--allowed-hosts=")).split("=")[1].split(
        ","
    )
    assert f"--port={host.partition(':')[2]}" in MLFLOW["command"]


@pytest.mark.parametrize("flag", [flag.partition("=")[0] for flag in MLFLOW["command"]])
def test_the_server_knows_its_options(flag: str) -> None:
    from mlflow.cli import server

    assert MLFLOW["entrypoint"] == ["mlflow", "server"]
    assert flag in {name for option in server.params for name in option.opts}
