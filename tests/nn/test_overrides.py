"""Projections of a decoder that differ from those of their part."""

import re
from functools import partial

import pytest
import torch
import yaml
from torch import nn

import toy
from commandline import arguments, refusal
from lrtrain.cli.main import main
from lrtrain.nn import Decoder, DenseLinear, LowRankLinear, SpectralLinear, projections

SIZES = {"vocab_size": 50, "width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48}


def made(**overrides: object) -> dict[str, object]:
    decoder = Decoder(**SIZES, attention=DenseLinear, mlp=partial(LowRankLinear, rank=8), overrides=overrides)
    return projections(decoder)


def test_the_first_pattern_that_matches_makes_a_projection() -> None:
    patterns = {
        "blocks.1.mlp.up": partial(SpectralLinear, rank=3),
        "*.mlp.up": partial(LowRankLinear, rank=5),
        "*.attention.key": partial(nn.Linear, bias=False),
    }
    found = made(**patterns)
    assert list(found) == list(made())
    kinds = {name: (type(one), getattr(one, "rank", None)) for name, one in found.items()}
    assert kinds["blocks.0.mlp.up"] == (LowRankLinear, 5)
    assert kinds["blocks.1.mlp.up"] == (SpectralLinear, 3)
    assert kinds["blocks.1.mlp.down"] == (LowRankLinear, 8)
    assert kinds["blocks.0.attention.key"] == (nn.Linear, None)
    assert kinds["blocks.0.attention.value"] == (DenseLinear, None)
    assert found["blocks.0.attention.key"].out_features == 16
    assert found["blocks.0.attention.key"].flops_per_token == 2 * 32 * 16


def test_a_pattern_that_makes_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the pattern 'blocks\.2\.\*' matches no projection"):
        made(**{"blocks.2.*": DenseLinear})
    with pytest.raises(ValueError, match=r"the pattern 'blocks\.0\.mlp.up' matches no projection that is still free"):
        made(**{"*.up": DenseLinear, "blocks.0.mlp.up": DenseLinear})


def test_a_run_trains_and_resumes_with_them_and_refuses_a_wrong_pattern(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, overlay = toy.shards(tmp_path), tmp_path / "overlay.yaml"
    low = {"class_path": "lrtrain.nn.LowRankLinear", "init_args": {"rank": 3}}
    scaling = {"rope_type": "linear", "factor": 2.0}

    def settings(pattern: str) -> list[str]:
        added = {"overrides": {pattern: low}, "rope_scaling": scaling}
        overlay.write_text(yaml.safe_dump({"model": {"decoder": {"init_args": added}}}))
        return arguments(shards, tmp_path / "runs", "--config", str(overlay))

    assert main(["fit", *settings("*.mlp.down")]) == 0
    file = tmp_path / "runs/quickstart/0001/checkpoints/step-00000002.ckpt"
    weights = torch.load(file, weights_only=True)["state_dict"]
    assert weights["decoder.blocks.1.mlp.down.A"].shape == (64, 3)
    assert weights["decoder.blocks.1.mlp.up.A"].shape == (96, 16)
    assert main(["fit", *settings("*.mlp.down"), "--ckpt_path=last", "--trainer.max_steps=3"]) == 0
    capsys.readouterr()
    assert main(["plan", *settings("*.mlp.down")]) == 0
    assert re.search(r"^mlp +LowRankLinear", capsys.readouterr().out, re.MULTILINE)
    assert main(["plan", *settings("blocks.1.mlp.down")]) == 0
    assert re.search(r"^mlp +LowRankLinear", capsys.readouterr().out, re.MULTILINE)
    refused = refusal(["fit", *settings("*.mlp.dawn")], capsys)
    assert refused == "model.decoder: overrides: the pattern '*.mlp.dawn' matches no projection that is still free"
    overlay.write_text(
        yaml.safe_dump({"model": {"decoder": {"init_args": {"rope_scaling": {**scaling, "factor": -1}}}}})
    )
    refused = refusal(["fit", *arguments(shards, tmp_path / "runs", "--config", str(overlay))], capsys)
    assert "rope_scaling" in refused
    assert "factor must be finite and positive" in refused
