"""Tasks of the harness by name, with their data: its own, and those of YAML files in the user's folders."""

import importlib.util
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrtrain.config.recipes import folder
from lrtrain.runtime.errors import UserError
from lrtrain.runtime.hints import nearest

LOCAL = ("json", "csv", "parquet", "text", "arrow")
"""What `dataset_path` says where `dataset_kwargs.data_files` names files."""

WILD = set("*?[")
NOISY = ("huggingface_hub", "datasets", "httpx", "filelock")


def check_harness() -> None:
    """Raises UserError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("evaluate needs lm-eval, which is not installed: pip install 'lrtrain[eval]'")


def check_names(names: Sequence[str], include: Sequence[Path] = ()) -> Any:
    """The harness's TaskManager, which knows what every name means. Its own tasks are looked up only where one is used.

    Raises:
        UserError: a name is none of a task, a group, a tag, a pattern that matches some, or a task's YAML file; a
            folder does not exist; lm-eval is not installed.
    """
    check_harness()
    if not names:
        raise UserError("--tasks: name one or more tasks, as in --tasks hellaswag,piqa,arc_easy")
    for path in include:
        if not path.is_dir():
            raise UserError(f"--include-path {path}: no such folder")
    from lm_eval.tasks import TaskManager

    paths = [*dict.fromkeys(path.resolve() for path in (folder("tasks"), *include))]  # once: each names its tasks
    with _quiet():
        manager = TaskManager(include_path=paths, include_defaults=False)
        if not all(name in manager.all_subtasks or _is_file(name) for name in names):  # a pattern may mean others, too
            manager = TaskManager(include_path=paths)
    for name in names:
        if not _known(name, manager):
            hint = nearest(name, manager.all_tasks)
            raise UserError(f"--tasks {name}: the harness has no such task; {hint}, or write one in --include-path DIR")
    return manager


def load_tasks(names: Sequence[str], manager: Any) -> list[Any]:
    """lm-eval's Task and Group objects with their data.

    Raises:
        UserError: a task's data are not there, or its YAML is none.
    """
    found = []
    with _quiet():
        for name in names:
            for one in sorted(manager.match_tasks([name])) if WILD & {*name} else [name]:
                found += _load(one, manager)
    return found


def leaves(tasks: Sequence[Any]) -> dict[str, Any]:
    """Every single task by its name, also those of groups."""
    found = {}
    for task in tasks:
        for leaf in task.get_all_tasks() if hasattr(task, "get_all_tasks") else [task]:
            found[str(leaf.task_name)] = leaf
    return found


def own_sources(tasks: Sequence[Any]) -> list[str]:
    """`name: file` of every task that is not the harness's own, whatever it is called."""
    import lm_eval

    harness = str(Path(str(lm_eval.__file__)).parent)
    files = {name: (task.config.metadata or {}).get("config_source", "") for name, task in leaves(tasks).items()}
    return [f"{name}: {file}" for name, file in files.items() if file and not file.startswith(harness)]


def _known(name: str, manager: Any) -> bool:
    if WILD & {*name}:
        return bool(manager.match_tasks([name]))
    return name in manager.task_index or _is_file(name)


def _is_file(name: str) -> bool:
    return Path(name).suffix in (".yaml", ".yml") and Path(name).is_file()


def _load(name: str, manager: Any) -> list[Any]:
    entry = manager.task_index.get(name)
    try:
        if entry is not None and (files := _beside(entry)):
            kwargs = {**entry.cfg["dataset_kwargs"], "data_files": files}
            inside = {"group": f"{name} with its files", "task": [{"task": name, "dataset_kwargs": kwargs}]}
            return [manager.load([inside])["tasks"][name]]
        loaded = manager.load([name])
    except UserError:
        raise
    except Exception as error:  # datasets, its readers and the hub raise what they like
        raise UserError(_refusal(name, entry, error)) from error
    groups = loaded.get("groups", {})
    return [groups[name]] if name in groups else list(loaded["tasks"].values())


def _beside(entry: Any) -> Any:
    """`data_files` of a task with those that lie beside its YAML by their absolute paths; None where none does.

    The harness takes them from where the command runs.
    """
    config = entry.cfg or {}
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if entry.yaml_path is None or config.get("dataset_path") not in LOCAL or files is None:
        return None
    place = entry.yaml_path.parent

    def absolute(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: absolute(one) for key, one in value.items()}
        if isinstance(value, list):
            return [absolute(one) for one in value]
        return str((place / value).resolve()) if (place / value).is_file() else value

    found = absolute(files)
    return None if found == files else found


def _refusal(name: str, entry: Any, error: Exception) -> str:
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)  # type: ignore[arg-type]
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    source = ((entry.cfg if entry is not None else None) or {}).get("dataset_path")
    unreachable = any(isinstance(one, ConnectionError | TimeoutError) or "Hub" in str(one) for one in chain)
    if unreachable and source not in LOCAL:
        where = f" ({source})" if source else ""
        return (
            f"task {name}: its data{where} cannot be loaded from the Hugging Face hub: {reason}. Offline, load them "
            "once where the hub answers and copy ~/.cache/huggingface (HF_HUB_OFFLINE=1 then asks no hub), or describe "
            "files of your own in a YAML with dataset_path: json (--include-path DIR, docs/evaluation.md)"
        )
    return f"task {name}: it cannot be loaded: {reason}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the hub's client tries again and again off the terminal, and bars where it is none; what fails is
    raised.
    """
    import datasets

    before = {name: logging.getLogger(name).level for name in NOISY}
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    bars = datasets.are_progress_bars_disabled()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not bars:
            datasets.enable_progress_bars()
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
