"""deploy/skypilot/fit.yaml: keys and exit codes, and what its scripts run. `-m cluster` has SkyPilot itself read it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy_commands import check_accepted, of_lrtrain, recorded
from lrtrain.runtime.errors import TemporaryError, UserError

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy/skypilot/fit.yaml"
TASK: dict[str, Any] = yaml.safe_load(FILE.read_text())
SKYPILOT = "skypilot==0.14.1"

READS = """
import sys
import sky
from sky.utils.yaml_utils import read_yaml
task = sky.Task.from_yaml_config(read_yaml(sys.argv[1]), env_overrides=[("BUCKET", "a-bucket")])
(resources,) = task.resources
print(resources.job_recovery, resources.use_spot, task.file_mounts, list(task.storage_mounts))
"""


def test_it_restarts_on_what_a_restart_may_get_past_and_not_on_a_mistake() -> None:
    recovery = TASK["resources"]["job_recovery"]
    assert TemporaryError.exit_code in recovery["recover_on_exit_codes"]
    assert UserError.exit_code not in recovery["recover_on_exit_codes"]
    assert recovery["max_restarts_on_errors"] == 0


def test_its_fit_is_taken_resumes_and_writes_to_the_bucket_alone(tmp_path: Path) -> None:
    environment = {**{key: value or "" for key, value in TASK["envs"].items()}, "HOME": str(tmp_path)}
    (command,) = recorded(TASK["run"], ["lrtrain"], tmp_path, **environment)
    arguments = of_lrtrain(command)
    check_accepted(arguments)
    assert arguments[arguments.index("--ckpt_path") + 1] == "last"
    (mount,) = TASK["file_mounts"]
    for key in ("--runs", "--data.path"):
        assert arguments[arguments.index(key) + 1].startswith(f"{mount}/")
    assert TASK["file_mounts"][mount]["mode"] == "MOUNT_CACHED"  # MOUNT knows no renaming and no appending


@pytest.mark.parametrize("given", ["", "http://tracker:5000"])
def test_it_tracks_to_the_server_that_is_named_and_never_into_a_database_in_the_bucket(
    tmp_path: Path, given: str
) -> None:
    script = TASK["run"].replace("exec lrtrain", 'lrtrain "$MLFLOW_TRACKING_URI" && exec lrtrain')
    (said, _) = recorded(
        script, ["lrtrain"], tmp_path, MLFLOW_TRACKING_URI=given, HOME=str(tmp_path), CONFIG="", NAME=""
    )
    assert said == ["lrtrain", given or f"sqlite:///{tmp_path}/mlflow.db"]


def test_its_setup_installs_this_folder_with_the_constraints(tmp_path: Path) -> None:
    environment, install = recorded(TASK["setup"], ["uv"], tmp_path, HOME=str(tmp_path))
    assert environment == ["uv", "venv", "--allow-existing", "--python", "3.11", f"{tmp_path}/lrtrain"]
    assert install[-3:] == ["--constraint", "constraints.txt", ".[hf,s3]"]
    assert TASK["workdir"] == "."


@pytest.mark.cluster
def test_skypilot_reads_it_and_refuses_a_misspelled_key(tmp_path: Path) -> None:
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", SKYPILOT], check=True)
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}

    def read(file: Path) -> subprocess.CompletedProcess[str]:
        command = [python, "-c", READS, file]
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)

    good = read(FILE)
    assert good.returncode == 0, good.stderr
    assert "'recover_on_exit_codes': [75, 143]" in good.stdout
    misspelled = tmp_path / "fit.yaml"
    misspelled.write_text(FILE.read_text().replace("use_spot:", "use_spots:"))
    assert read(misspelled).returncode != 0
