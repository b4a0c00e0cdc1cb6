"""`lrtrain evaluate`: figures to the terminal, to JSON and to the run; and what bad input gets."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llama_folder
import saved_model
import toy
from commandline import arguments, refusal
from lrtrain.cli.main import main
from lrtrain.studies.evaluation.evaluated_model import EvaluatedModel
from lrtrain.studies.evaluation.harness_run import Evaluated
from lrtrain.studies.evaluation.harness_tasks import check_names
from lrtrain.studies.evaluation.kept_results import keep
from lrtrain.tracking.recorded import recorded
from lrtrain.tracking.spool import Spool
from saved_model import DENSE, LOW_RANK, decoder_config
from tracked import history, mlflow_run

TASKS = "sample_hellaswag,sample_piqa,sample_arc_easy"
PIQA = ["--tasks", "sample_piqa"]
STEPS = [
    "--trainer.logger=true",
    "--trainer.max_steps=4",
    "--checkpoints.every_n_steps=2",
    "--checkpoints.keep=-1",
    "--data.block_size=96",
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of 4 steps with checkpoints of steps 2 and 4."""
    runs = tmp_path_factory.mktemp("evaluate") / "runs"
    assert main(["fit", *arguments(shards, runs, *STEPS)]) == 0
    return runs / "quickstart/0001"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """The same run in a folder of this test, not tracked by MLflow."""
    run = tmp_path / "runs/quickstart/0001"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("mlflow.json", "evaluations"))
    spool = run / "metrics.jsonl"
    lines = [line.replace(str(trained), str(run)) for line in spool.read_text().splitlines() if "eval/" not in line]
    spool.write_text("".join(f"{line}\n" for line in lines))
    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that lies in no run."""
    return saved_model.save(tmp_path_factory.mktemp("alone") / "step-00000003.ckpt", decoder_config(LOW_RANK))


def evaluated(run: Path, step: int, metric: str) -> float:
    found = recorded(run)
    assert found is not None
    series = found.series(metric)
    return float(series.value[series.step == step][-1])


# Where the figures go


def test_figures_go_to_the_terminal_to_json_and_to_the_runs_mlflow(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained
    assert main(["evaluate", str(run.parents[1]), "--tasks", TASKS]) == 0
    out, err = capsys.readouterr()
    assert f"model        {run}/checkpoints/step-00000004.ckpt\n" in out
    header, *rows = out.partition("\n\n")[2].partition("\n\n")[0].splitlines()
    assert header.split() == ["task", "metric", "value", "±", "error", "documents"]
    assert [row.split()[:2] for row in rows] == [[task, m] for task in TASKS.split(",") for m in ("acc", "acc_norm")]
    assert "recorded" not in err
    assert f"recorded     12 metrics at step 4 of {run}\n" in out

    (file,) = (run / "evaluations").iterdir()
    content = json.loads(file.read_text())
    assert content["lrtrain"]["step"] == 4
    assert content["lrtrain"]["context"] == 96
    for row in rows:
        task, metric, value, error, documents = row.split()
        assert documents == "8"
        assert float(value) == pytest.approx(content["results"][task][f"{metric},none"], abs=5e-5)
        assert float(error) == pytest.approx(content["results"][task][f"{metric}_stderr,none"], abs=5e-5)
        assert history(run, f"eval/{task}/{metric}") == [(4, content["results"][task][f"{metric},none"])]
        assert history(run, f"eval/{task}/{metric}_stderr")
    client, tracked = mlflow_run(run)
    assert tracked.info.status == "FINISHED"
    assert [one.path for one in client.list_artifacts(tracked.info.run_id, "evaluations")] == [
        f"evaluations/{file.name}"
    ]


def test_an_older_checkpoint_takes_nothing_from_a_newer_one(trained: Path) -> None:
    run = trained
    assert main(["evaluate", str(run), *PIQA]) == 0
    files = set((run / "evaluations").iterdir())
    newer = recorded(run).last["eval/sample_piqa/acc_norm"]  # type: ignore[union-attr]
    before = (run / "metrics.jsonl").stat()
    assert main(["evaluate", str(run / "checkpoints/step-00000002.ckpt"), *PIQA]) == 0
    assert (run / "metrics.jsonl").stat().st_size > before.st_size
    assert recorded(run).last["eval/sample_piqa/acc_norm"] == newer  # type: ignore[union-attr]
    assert {step for step, _ in history(run, "eval/sample_piqa/acc_norm")} == {2, 4}
    _, tracked = mlflow_run(run)
    assert tracked.data.metrics["eval/sample_piqa/acc_norm"] == newer
    assert files < set((run / "evaluations").iterdir())


def test_an_imported_model_is_of_no_run_wherever_it_lies(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llama_folder.save(tmp_path / "tiny")
    file = run / "imports/model.ckpt"
    assert main(["import", str(tmp_path / "tiny"), "--out", str(file)]) == 0
    before = (run / "metrics.jsonl").read_bytes()
    assert main(["evaluate", str(file), *PIQA, "--limit", "2", "--out", str(tmp_path / "found.json")]) == 0
    assert f"not recorded: {file} lies in no run's directory" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before
    assert main(["export", str(file), "--out", str(tmp_path / "out")]) == 0
    assert "\n# model\n" in (tmp_path / "out/README.md").read_text()


def test_evaluations_of_one_moment_have_a_file_each(run: Path) -> None:
    model = EvaluatedModel(None, run / "checkpoints/step-00000004.ckpt", 4, run)
    for _ in range(2):
        keep(Evaluated([], {}, []), model, None, True, {})
    assert len(list((run / "evaluations").iterdir())) == 2


def test_other_settings_have_names_of_their_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--limit", "4", "--num-fewshot", "1", "--context", "80"]
    assert main(["evaluate", str(run), *PIQA, *flags]) == 0
    names = {name for name in recorded(run).metrics if name.startswith("eval/")}  # type: ignore[union-attr]
    assert names == {
        f"eval/sample_piqa/1-shot/first-4/context-80/{metric}{suffix}"
        for metric in ("acc", "acc_norm")
        for suffix in ("", "_stderr")
    }
    assert "1-shot/first-4/context-80" in capsys.readouterr().out


def test_another_value_at_the_same_step_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_other = Spool(run)
    with_other.append({"step": 4, "metrics": {"eval/sample_piqa/acc": 0.9375}})
    with_other.close()
    assert main(["evaluate", str(run), *PIQA]) == 0
    value = evaluated(run, 4, "eval/sample_piqa/acc")
    line = f"eval/sample_piqa/acc at step 4 was 0.9375 and is {value:.4f} now: the later one counts"
    assert line in capsys.readouterr().err
    assert value != 0.9375


def test_evaluating_an_older_run_does_not_make_it_the_newest(
    run: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = run.with_name("0002")
    shutil.copytree(run, newer)
    spool = newer / "metrics.jsonl"
    lines = [json.loads(line) for line in spool.read_text().splitlines()]
    lines[0]["run"] |= {"id": "another", "folder": str(newer)}
    spool.write_text("".join(json.dumps({**line, "time": line["time"] + 5000}) + "\n" for line in lines))
    assert main(["evaluate", str(run), *PIQA]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run.parents[1]), *PIQA, "--no-record"]) == 0
    assert f"model        {newer}/checkpoints" in capsys.readouterr().out


def test_a_run_that_still_trains_gets_a_file_and_a_warning(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = Spool(run)
    try:
        assert main(["evaluate", str(run), *PIQA]) == 0
    finally:
        training.close()
    assert f"not recorded: {run} is still training" in capsys.readouterr().err
    assert len(list((run / "evaluations").iterdir())) == 1
    assert not any(name.startswith("eval/") for name in recorded(run).metrics)  # type: ignore[union-attr]


def test_a_copied_run_leaves_the_record_of_the_original(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = run.with_name("0007")
    shutil.copytree(run, copy)
    assert main(["evaluate", str(copy), *PIQA]) == 0
    assert "is a copy, and its record is that of the original run" in capsys.readouterr().err
    assert not any(name.startswith("eval/") for name in recorded(run).metrics)  # type: ignore[union-attr]


def test_a_run_that_mlflow_does_not_have_keeps_the_figures_until_sync(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), *PIQA]) == 0
    assert f"MLflow does not have this run: `lrtrain sync {run}` sends it" in capsys.readouterr().err
    assert evaluated(run, 4, "eval/sample_piqa/acc") >= 0


def test_a_checkpoint_of_no_run_is_evaluated_and_what_is_not_kept_is_said(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(alone), *PIQA]) == 0
    err = capsys.readouterr().err
    assert "no JSON: these figures are of no run that has a directory here, name a file by --out" in err
    assert "lies in no run's directory on this disk" in err
    assert main(["evaluate", str(alone), *PIQA, "--out", str(tmp_path / "x.json")]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["lrtrain"]["step"] == 3


def test_what_is_cut_is_said(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(alone), *PIQA, "--context", "40"]) == 0
    assert "requests are longer than the context of 40 tokens: cut at their beginning" in capsys.readouterr().err


def test_a_tracker_that_does_not_answer_keeps_nothing_from_the_record(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"tracking_uri": "http://127.0.0.1:9", "experiment": "quickstart", "run_id": "x"}
    (run / "mlflow.json").write_text(json.dumps(state))
    assert main(["evaluate", str(run), *PIQA]) == 0
    err = capsys.readouterr().err
    assert "MLflow at http://127.0.0.1:9 takes no records" in err
    assert f"`lrtrain sync {run}` sends them" in err
    assert evaluated(run, 4, "eval/sample_piqa/acc") >= 0


# Tasks of one's own


def own_task(folder: Path, name: str = "capitals", **changes: str) -> Path:
    folder.mkdir(exist_ok=True)
    documents = [{"q": "The capital of France is", "a": ["Paris", "a norm"], "gold": 0}] * 3
    (folder / "capitals.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    fields = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": "{data_files: {test: capitals.jsonl}}",
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": '"{{q}}"',
        "doc_to_choice": '"{{a}}"',
        "doc_to_target": "gold",
        **changes,
    }
    (folder / "task.yaml").write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    return folder


def test_a_folder_of_own_tasks_has_its_files_beside_the_yaml(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, out = own_task(tmp_path / "tasks"), tmp_path / "out.json"
    command = ["evaluate", str(alone), "--tasks", "capitals", "--include-path", str(tasks), "--out", str(out)]
    assert main(command) == 0
    first = json.loads(out.read_text())
    (tasks / "capitals.jsonl").write_text((tasks / "capitals.jsonl").read_text().replace('"gold": 0', '"gold": 1'))
    assert main(command) == 0
    second = json.loads(out.read_text())
    values = [one["results"]["capitals"]["acc,none"] for one in (first, second)]
    assert sum(values) == 1, "the data that were changed are read again"


def test_a_task_that_takes_the_place_of_another_is_said(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = own_task(tmp_path / "tasks", "sample_piqa")
    assert main(["evaluate", str(alone), *PIQA, "--include-path", str(tasks)]) == 0
    assert f"task         sample_piqa: {tasks}/task.yaml\n" in capsys.readouterr().out


def test_a_pattern_means_the_harnesss_own_tasks_too(tmp_path: Path) -> None:
    manager = check_names(["arc_*"], [own_task(tmp_path / "tasks", "arc_own")])
    assert {"arc_own", "arc_easy", "arc_challenge"} <= {*manager.match_tasks(["arc_*"])}


def test_documents_that_lack_a_field_are_a_line(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = own_task(tmp_path / "tasks", doc_to_text='"{{question}}"')
    line = refusal(["evaluate", str(alone), "--tasks", "capitals", "--include-path", str(tasks)], capsys)
    assert "capitals" in line
    assert "'question' is undefined" in line


# Bad input


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tasks", "sample_pica"], "--tasks sample_pica: the harness has no such task; there are sample_piqa"),
        (["--tasks", ","], "--tasks: name one or more tasks"),
        (["--tasks", "sample_piqa", "--limit", "0"], "expected a whole number of documents or a share below 1, got 0"),
        (["--tasks", "sample_piqa", "--num-fewshot", "-1"], "expected a whole number, at least 0, got -1"),
        (["--tasks", "sample_piqa", "--include-path", "nowhere"], "--include-path nowhere: no such folder"),
        (["--tasks", "sample_piqa", "--out", "nowhere/x.json"], "name a file in a folder that is there"),
        (["--tasks", "sample_piqa", "--device", "cuda:7"], "--device cuda:7"),
        (["--tasks", "sample_piqa", "--context", "8"], "and the context 8"),
    ],
)
def test_bad_flags_are_a_line(alone: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refusal(["evaluate", str(alone), *flags], capsys)


def test_a_hub_that_does_not_answer_is_a_line_that_tells_the_way_offline(
    alone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = refusal(["evaluate", str(alone), "--tasks", "hellaswag"], capsys)
    assert "task hellaswag: its data (Rowan/hellaswag) cannot be loaded from the Hugging Face hub" in line
    assert "--include-path DIR" in line


def test_what_is_no_checkpoint_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"PK\x03\x04 nothing of ours")
    assert f"cannot use checkpoint {tmp_path}/x.ckpt" in refusal(["evaluate", str(tmp_path / "x.ckpt"), *PIQA], capsys)
    assert f"no whole checkpoint under {tmp_path}" in refusal(["evaluate", str(tmp_path), *PIQA], capsys)
    assert "nowhere does not exist" in refusal(["evaluate", "nowhere", *PIQA], capsys)


def test_without_lm_eval_the_line_says_how_to_install_it(alone: Path, tmp_path: Path) -> None:
    program = (
        "import sys, importlib.abc\n"
        "class Hidden(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('lm_eval', 'datasets'): raise ModuleNotFoundError(name)\n"
        "sys.modules['lm_eval'] = None\n"
        "from lrtrain.cli.main import main\n"
        f"sys.exit(main(['evaluate', {str(alone)!r}, '--tasks', 'sample_piqa']))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "lm-eval, which is not installed: pip install 'lrtrain[eval]'" in ran.stderr


# Exported folders


@pytest.fixture(scope="module")
def exported(alone: Path) -> Path:
    out = alone.parent / "merged"
    assert main(["export", str(alone), "--out", str(out), "--shard-size", "1MB"]) == 0
    return out


def test_an_exported_folder_has_the_figures_of_its_checkpoint(
    alone: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for model in (alone, exported):
        out = tmp_path / f"{model.stem}.json"
        assert main(["evaluate", str(model), "--tasks", TASKS, "--out", str(out)]) == 0
        results.append(json.loads(out.read_text())["results"])
    ours, theirs = results
    for task in TASKS.split(","):
        for metric in ("acc,none", "acc_norm,none"):
            assert ours[task][metric] == theirs[task][metric]


def test_a_factorized_folder_is_evaluated_where_its_code_is_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = saved_model.save(tmp_path / "a.ckpt", decoder_config(LOW_RANK))
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out"), "--factorized"]) == 0
    line = refusal(["evaluate", str(tmp_path / "out"), *PIQA], capsys)
    assert "code of its own (modeling_factorized_llama.py), which runs with your rights" in line
    assert "--trust-remote-code" in line
    assert main(["evaluate", str(tmp_path / "out"), *PIQA, "--trust-remote-code"]) == 0
    assert "sample_piqa" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("breaking", "said"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "nonsense"}'),
            "transformers cannot load it",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 99), "transformers cannot load it"),
    ],
    ids=["no tokenizer", "no weights", "broken config", "unknown architecture", "broken weights"],
)
def test_a_broken_folder_is_a_line(breaking, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    checkpoint = saved_model.save(tmp_path / "a.ckpt", decoder_config(DENSE))
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out")]) == 0
    breaking(tmp_path / "out")
    assert said in refusal(["evaluate", str(tmp_path / "out"), *PIQA], capsys)


def test_a_missing_shard_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = saved_model.save(tmp_path / "a.ckpt", decoder_config(DENSE, width=256, ffn_width=512))
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out"), "--shard-size", "1MB"]) == 0
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    shards[1].unlink()
    line = refusal(["evaluate", str(tmp_path / "out"), *PIQA], capsys)
    assert f"lacks {shards[1].name}, which model.safetensors.index.json names: copy the folder again, whole" in line
