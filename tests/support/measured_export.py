"""Peak memory of an export, as a program of its own: what it held before is no part of it, nor are mapped files."""

import json
import sys
import threading
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import saved_model
from forked import FORK
from lrtrain.checkpoint.shard_folder import write_sharded
from lrtrain.checkpoint.single_file import read_whole
from lrtrain.config.export_settings import Export
from lrtrain.config.exporting import export
from saved_model import DENSE, LOW_RANK, decoder_config


class PeakMemory(threading.Thread):
    """Looks every millisecond how many bytes the process holds that are no pages of a file."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.peak = anonymous_bytes()
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.001):
            self.peak = max(self.peak, anonymous_bytes())


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def as_folder(file: Path) -> Path:
    """The checkpoint as the processes of a sharded run write it, by one process."""
    checkpoint, folder = read_whole(file), file.with_name("folder.ckpt")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {name: distribute_tensor(w, mesh, [Shard(0)]) for name, w in state.items()}
    write_sharded(checkpoint, folder)
    return folder


def make(kind: str, folder: Path) -> None:
    sizes = {"width": 512, "depth": 8, "heads": 8, "ffn_width": 1536, "embedding_std": 0.02}
    file = saved_model.save(folder / "file.ckpt", decoder_config(LOW_RANK if kind == "merged" else DENSE, **sizes))
    if kind == "folder":
        as_folder(file)


if __name__ == "__main__":
    kind, dtype, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    making = FORK.Process(target=make, args=(kind, folder))  # its memory goes with it
    making.start()
    making.join()
    settings = Export("merged", dtype)
    export(saved_model.save(folder / "small.ckpt", decoder_config(DENSE)), folder / "small", settings)
    memory = PeakMemory()
    memory.start()
    written = export(folder / ("folder.ckpt" if kind == "folder" else "file.ckpt"), folder / "out", settings)
    memory.done.set()
    print(json.dumps({"copy": 4 * written.parameters, "peak": memory.peak - memory.before}))
