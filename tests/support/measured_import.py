"""Peak memory of an import, as a program of its own: what it held before is no part of it, nor are mapped files."""

import json
import sys
from pathlib import Path

import torch

import llama_folder
from forked import FORK
from lrtrain.checkpoint.huggingface.factorized_import import Factorization
from lrtrain.config.importing import check_import, import_model
from measured_export import PeakMemory

SIZES = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}


def make(kind: str, folder: Path) -> None:
    sizes = {**SIZES, "num_key_value_heads": 8, "initializer_range": 0.02}
    if kind == "gguf":
        llama_folder.save_gguf(folder / "large.gguf", llama_folder.model(**sizes))
    else:
        llama_folder.save(folder / "large", dtype=kind, size="20MB", **sizes)
    llama_folder.save(folder / "small")


if __name__ == "__main__":
    kind, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    making = FORK.Process(target=make, args=(kind, folder))  # its memory goes with it
    making.start()
    making.join()
    import_model(f"{folder}/small", check_import(f"{folder}/small.ckpt", Factorization()), Factorization())
    asked = Factorization(rank=int(sys.argv[3])) if len(sys.argv) > 3 else Factorization()
    memory = PeakMemory()
    memory.start()
    source = "large.gguf" if kind == "gguf" else "large"
    import_model(f"{folder}/{source}", check_import(f"{folder}/large.ckpt", asked), asked)
    memory.done.set()
    copy = 4 * sum(w.numel() for w in torch.load(folder / "large.ckpt", mmap=True)["state_dict"].values())
    print(json.dumps({"copy": copy, "peak": memory.peak - memory.before}))
