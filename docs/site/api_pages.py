"""Pages of the library's packages: what each exports, for mkdocstrings to describe."""

import importlib
from collections.abc import Callable
from functools import partial

PACKAGES = {
    "linalg": "Functions of tall matrices through their small Gram matrices. torch alone is needed.",
    "nn": "The decoder, the ways to write its projections, and continuing texts. torch alone is needed.",
    "optim": "Optimizers, schedules, and which optimizer has which parameter. torch alone is needed.",
    "constraints": "What keeps factorized weights in shape around an optimizer step. torch alone is needed.",
    "data": "Documents to tokens to shards, and the DataModule that streams them.",
    "training": "The LightningModule, what happens around a step, and FSDP.",
}
"""Package of lrtrain -> what it is."""


def page(package: str) -> str:
    """A heading for each name that a package exports."""
    module = importlib.import_module(f"lrtrain.{package}")
    names = sorted(module.__all__, key=str.lower)
    lazy = not any(name in vars(module) for name in names)
    places = [f"{getattr(module, name).__module__}.{name}" if lazy else f"lrtrain.{package}.{name}" for name in names]
    parts = [f"# lrtrain.{package}", PACKAGES[package], f"`from lrtrain.{package} import …`"]
    return "\n\n".join([*parts, *(f"::: {place}" for place in places)])


def index() -> str:
    """What there is to import."""
    rows = [f"| [`lrtrain.{name}`]({name}.md) | {text} |" for name, text in PACKAGES.items()]
    return "\n\n".join(
        [
            "# API",
            "What a model and a loop of your own import. [As a library](../../library.md) shows how the parts go "
            "together, in code that a test runs. The pages are made from the docstrings.",
            "\n".join(["| package | |", "|---|---|", *rows]),
        ]
    )


PAGES: dict[str, Callable[[], str]] = {
    "reference/api/index.md": index,
    **{f"reference/api/{package}.md": partial(page, package) for package in PACKAGES},
}
