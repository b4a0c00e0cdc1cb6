"""What lrtrain takes from its dependencies' private parts is in the page's table, and is as it relies on."""

import inspect
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse
import lightning as L
import numpy as np
import optuna
import pytest
import torch
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from litdata.constants import _TORCH_DTYPES_MAPPING
from torch import Tensor, distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import checkpoint as dcp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

import lrtrain
from lrtrain.checkpoint import shard_folder
from lrtrain.checkpoint.signals import GracefulSignals
from lrtrain.data.shards import ShardWriter
from lrtrain.optim import Optimizers
from lrtrain.runtime.errors import UserError
from lrtrain.training import FSDP
from private_uses import private_uses

SOURCES = Path(lrtrain.__file__).parent
PAGE = Path(__file__).parents[2] / "docs/architecture.md"


def table() -> list[tuple[set[str], set[str], str]]:
    """The rows of the page's table: names, files, and the test."""
    section = PAGE.read_text(encoding="utf-8").partition("## Private APIs")[2].partition("\n## ")[0]
    cells = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return [
        ({name.split(".")[-1].split("(")[0] for name in ticked(row[0])}, ticked(row[1]), ticked(row[3]).pop())
        for row in cells
    ]


def ticked(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def test_every_use_of_a_private_api_is_in_the_table_of_the_architecture_page() -> None:
    used = private_uses(SOURCES)
    listed = {(file, name) for names, files, _ in table() for name in names for file in files}
    assert sorted(used - listed) == [], "add these to a row of docs/architecture.md, or use what is public"


def test_the_table_names_what_is_used_and_a_test_that_is_here() -> None:
    for names, files, test in table():
        assert test in globals(), test
        texts = {file: (SOURCES / file).read_text(encoding="utf-8") for file in files}
        for file, text in texts.items():
            assert any(re.search(rf"\b{name}\b", text) for name in names), f"{file} uses none of {sorted(names)}"
        for name in names:
            assert any(re.search(rf"\b{name}\b", text) for text in texts.values()), f"{name} is not in {sorted(files)}"


class Tiny(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.weight * batch.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watch(L.Callback):
    """Notes the Trainer's private parts while a run goes on."""

    def __init__(self) -> None:
        self.accumulating: list[bool] = []
        self.dumped: dict[str, Any] = {}
        self.caught: signal.Signals | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.before = trainer._signal_connector
        trainer._signal_connector = self.signals = GracefulSignals(trainer)

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.accumulating.append(trainer.fit_loop._should_accumulate())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.dumped = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        handler = signal.getsignal(signal.SIGTERM)
        assert callable(handler)
        handler(signal.SIGTERM, None)
        self.caught = self.signals.caught


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Watch, L.Trainer]:
    watch, handler = Watch(), signal.getsignal(signal.SIGTERM)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        accumulate_grad_batches=2,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path_factory.mktemp("run")),
    )
    trainer.fit(Tiny(), DataLoader(torch.ones(4, 1)))
    assert signal.getsignal(signal.SIGTERM) == handler
    return watch, trainer


def test_the_trainer_registers_the_signal_connector_that_it_holds(watched: tuple[Watch, L.Trainer]) -> None:
    assert type(watched[0].before) is _SignalConnector
    assert watched[0].caught == signal.SIGTERM
    register = inspect.getsource(_SignalConnector.register_signal_handlers)
    assert "sigusr_handlers.append(self._slurm_sigusr_handler_fn)" in register


def test_the_fit_loop_tells_whether_a_batch_is_accumulated(watched: tuple[Watch, L.Trainer]) -> None:
    assert watched[0].accumulating == [True, False, True, False]


def test_the_checkpoint_connector_makes_a_checkpoint_without_writing_it(watched: tuple[Watch, L.Trainer]) -> None:
    assert {"state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks"} <= watched[0].dumped.keys()
    assert list(watched[0].dumped["state_dict"]) == ["weight"]


def test_the_fit_loop_makes_the_loader_anew_when_it_holds_none(tmp_path: Path) -> None:
    class Counting(L.LightningDataModule):
        made = 0

        def train_dataloader(self) -> DataLoader:
            self.made += 1
            return DataLoader(list(range(3)))

    class Asking(L.LightningModule):
        def training_step(self, batch: Tensor, index: int) -> None:
            pass

        def configure_optimizers(self) -> None:
            assert self.trainer.estimated_stepping_batches == 3
            assert self.trainer.fit_loop._combined_loader is not None
            self.trainer.fit_loop._combined_loader = None

    data = Counting()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, **quiet)
    trainer.fit(Asking(), datamodule=data)
    assert data.made == 2


def test_a_module_without_a_trainer_holds_none(watched: tuple[Watch, L.Trainer]) -> None:
    assert Tiny()._trainer is None
    assert watched[1].lightning_module._trainer is watched[1]


def test_the_strategy_asks_for_a_launcher_before_a_process_starts_and_keeps_its_mesh() -> None:
    with pytest.raises(UserError, match="do not fit 2 processes"):
        L.Trainer(accelerator="cpu", devices=2, strategy=FSDP(shards=3), logger=False)
    strategy, mesh = FSDP(), object()
    strategy._device_mesh = mesh  # type: ignore[assignment]
    assert strategy.device_mesh is mesh
    assert list(inspect.signature(strategy._setup_distributed).parameters) == []


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(folder, np.dtype(np.uint16))
    writer.append(np.arange(1000, dtype=np.uint16), 5000)
    writer.close()
    return folder


def test_litdata_writes_chunks_and_says_their_dtype_by_number(shards: Path) -> None:
    import json

    content = json.loads((shards / "index.json").read_text())
    (entry,) = content["chunks"]
    assert entry["dim"] == 1000
    kind, _, number = content["config"]["data_format"][0].partition(":")
    assert (kind, _TORCH_DTYPES_MAPPING[int(number)]) == ("no_header_tensor", torch.uint16)
    assert torch.int32 in _TORCH_DTYPES_MAPPING.values()


def test_a_parser_lists_its_actions_and_their_types() -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--optimizers", type=Optimizers | None)
    actions = {action.dest: action for action in parser._actions}
    assert actions["optimizers"]._typehint == Optimizers | None
    checked = inspect.signature(parser._check_value_key).parameters
    assert list(checked) == ["action", "value", "key", "cfg", "append"]


def test_fake_tensors_have_sizes_and_no_memory() -> None:
    with FakeTensorMode() as fake, fake:
        x = torch.empty(1 << 20, 1 << 20)
        assert (x @ x).untyped_storage().nbytes() == 1 << 42


def test_a_dispatch_mode_sees_every_operator_and_storages_have_an_identity() -> None:
    seen: list[Any] = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Seen():
        x = torch.ones(2, 3)
        float(x[0, 0])
    assert torch.ops.aten._local_scalar_dense.default in seen
    assert tree_leaves(([x, (x,)], {"a": 1})) == [x, x, 1]
    assert x.untyped_storage()._cdata == x.view(3, 2).untyped_storage()._cdata != x.clone().untyped_storage()._cdata


def test_torch_records_the_history_of_a_gpus_memory() -> None:
    record = torch.cuda.memory._record_memory_history
    assert inspect.signature(record).parameters["enabled"].default == "all"
    assert "max_entries" in (record.__doc__ or "")
    assert [*inspect.signature(torch.cuda.memory._dump_snapshot).parameters] == ["filename", "augment_with_fx_traces"]


def test_torch_gives_the_store_of_the_process_group() -> None:
    assert not distributed.is_initialized()
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        store = distributed.distributed_c10d._get_default_store()
        assert [store.add("key", 1), store.add("key", 1)] == [1, 2]
    finally:
        distributed.destroy_process_group()


def test_foreach_functions_do_to_lists_what_their_namesakes_do_to_tensors() -> None:
    def lists() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        torch.manual_seed(1)
        return tuple([torch.rand(2, 3), torch.rand(4)] for _ in range(3))  # type: ignore[return-value]

    def check(found: Any, of: Any) -> None:
        for one, (a, b, c) in zip(found, zip(*lists(), strict=True), strict=True):
            torch.testing.assert_close(one, of(a, b, c))

    a, b, _ = lists()
    check(torch._foreach_lerp(a, b, 0.3), lambda a, b, c: a.lerp(b, 0.3))
    check(torch._foreach_mul(a, b), lambda a, b, c: a * b)
    check(torch._foreach_div(a, b), lambda a, b, c: a / b)
    check(torch._foreach_sqrt(a), lambda a, b, c: a.sqrt())
    check(torch._foreach_norm(a), lambda a, b, c: a.norm())
    for name, others, options, of in (
        ("lerp_", 1, {"weight": 0.3}, lambda a, b, c: a.lerp(b, 0.3)),
        ("add_", 1, {"alpha": -2}, lambda a, b, c: a - 2 * b),
        ("addcmul_", 2, {"value": -2}, lambda a, b, c: a - 2 * b * c),
        ("copy_", 1, {}, lambda a, b, c: b),
    ):
        a, *rest = lists()
        getattr(torch, f"_foreach_{name}")(a, *rest[:others], **options)
        check(a, of)
    a, *_ = lists()
    torch._foreach_add_(a, 0.5)
    check(a, lambda a, b, c: a + 0.5)


def test_a_schedule_counts_its_steps_and_keeps_its_last_rates() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(()))], lr=0.5)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, 1.0, 4)
    assert schedule._step_count == 1
    optimizer.step()
    schedule.step()
    assert schedule._step_count == 2
    schedule._last_lr = [0.125]
    assert schedule.get_last_lr() == [0.125]


def test_the_index_of_a_distributed_checkpoint_is_of_the_classes_that_we_let_it_name(tmp_path: Path) -> None:
    dcp.save({"x": torch.arange(3)}, storage_writer=dcp.FileSystemWriter(tmp_path), no_dist=True)
    index = (tmp_path / shard_folder.INDEX).read_bytes()
    for name in (b"_StorageInfo", b"_MEM_FORMAT_ENCODING", b"_get_layout"):
        assert name in index
    x = torch.zeros(3, dtype=torch.int64)
    shard_folder.read_into(tmp_path, {"x": x})
    assert x.tolist() == [0, 1, 2]


def test_a_trial_knows_the_number_by_which_its_storage_knows_it() -> None:
    storage = optuna.storages.InMemoryStorage()
    storage_of_two = [optuna.create_study(storage=storage).ask() for _ in range(2)]
    assert storage_of_two[1].number == 0
    assert storage.get_trial(storage_of_two[1]._trial_id)._trial_id == storage_of_two[1]._trial_id == 1


def test_mlflow_makes_its_database_and_names_the_columns_of_its_points() -> None:
    from mlflow.store.db.utils import create_sqlalchemy_engine
    from mlflow.store.tracking.dbmodels.models import SqlMetric
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    assert list(inspect.signature(SqlAlchemyStore).parameters)[:2] == ["db_uri", "default_artifact_root"]
    assert SqlMetric.__tablename__ == "metrics"
    columns = {column.name for column in SqlMetric.__table__.columns}
    assert {"run_uuid", "key", "step", "value", "is_nan", "timestamp"} <= columns
    create_sqlalchemy_engine("sqlite://").connect().close()


def test_a_parser_checks_the_arguments_of_a_replaced_class_by_key() -> None:
    asked = []

    class Parser(jsonargparse.ArgumentParser):
        def _check_value_key(self, action: Any, value: Any, key: str, *rest: Any, **how: Any) -> Any:
            asked.append(key)
            return super()._check_value_key(action, value, key, *rest, **how)

    parser = Parser(exit_on_error=False)
    parser.add_argument("--optimizer", type=Callable[[Any], torch.optim.Optimizer])
    names = [*inspect.signature(jsonargparse.ArgumentParser._check_value_key).parameters]
    assert names == ["self", "action", "value", "key", "cfg", "append"]
    parser.parse_args(["--optimizer=SGD", "--optimizer.lr=0.5", "--optimizer=Adam"])
    assert "lr" in asked


def test_fsspec_opens_files_by_what_a_file_system_overrides() -> None:
    from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

    class File(AbstractBufferedFile):
        def _fetch_range(self, start: int, end: int) -> bytes:
            return b"0123456789"[start:end]

    class System(AbstractFileSystem):
        protocol = ("digits",)

        def _open(self, path: str, mode: str = "rb", **options: Any) -> File:
            return File(self, path, mode, size=10, **options)

    assert System._strip_protocol("digits://a/b/") == "a/b"
    with System().open("digits://a/b") as file:
        assert file.seek(4) == 4
        assert file.read(3) == b"456"


def test_transformers_asks_a_quantizer_before_and_after_it_loads_weights() -> None:
    from transformers.quantizers.base import HfQuantizer

    for around, asked in (
        (HfQuantizer.preprocess_model, "self._process_model_before_weight_loading(model, **kwargs)"),
        (HfQuantizer.postprocess_model, "return self._process_model_after_weight_loading(model, **kwargs)"),
    ):
        assert asked in inspect.getsource(around)


def test_lm_eval_asks_a_model_for_the_tokens_of_pairs() -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM

    class Bytes(TemplateLM):
        eot_token_id = 0

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            return list(string.encode())

        def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> Any:
            return [(request[1:], False) for request in requests]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any: ...

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any: ...

    pairs = [("a ", "b"), ("", "b")]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    answers = Bytes().loglikelihood(requests, disable_tqdm=True)
    assert [asked for asked, _ in answers] == [([97], [32, 98]), ([0], [98])]


def test_transformers_asks_a_model_how_weights_begin_that_no_file_holds(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    class Told(LlamaForCausalLM):
        def _init_weights(self, module: nn.Module) -> None:
            super()._init_weights(module)
            if module is self.lm_head:
                nn.init.constant_(module.weight, 7.0)

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=11, **sizes)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    model = Told.from_pretrained(tmp_path)
    assert bool((model.lm_head.weight == 7).all())
    assert torch.equal(model.model.embed_tokens.weight, weights["model.embed_tokens.weight"])
