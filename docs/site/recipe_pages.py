"""Every YAML file that comes with lrtrain, as it is, by the folder that it lies in."""

from collections.abc import Callable
from functools import partial

from lrtrain.config.recipes import folder

PLACES = {
    "reference/recipes.md": (
        "Recipes",
        "A recipe is complete: `lrtrain fit --config NAME` trains it. Every field has its meaning beside it.",
        ("",),
    ),
    "reference/methods.md": (
        "Methods",
        "Overlays that change how a recipe's projections are written and trained: "
        "`lrtrain fit --config quickstart --config methods/adamw`.",
        ("methods",),
    ),
    "reference/overlays.md": (
        "Sizes and processes",
        "Overlays that change the size of the model, or how many processes train it.",
        ("model_size", "parallel"),
    ),
    "reference/studies.md": (
        "Studies",
        "Search spaces of `lrtrain sweep`, grids of `lrtrain scaling`, experiments of `lrtrain experiment`, and small "
        "tasks for `lrtrain evaluate`.",
        ("sweeps", "scaling_laws", "experiments", "tasks"),
    ),
}
"""Page -> title, text, and the folders of `configs/` whose files it shows."""


def page(title: str, text: str, folders: tuple[str, ...]) -> str:
    """A heading for each file, what it is, and the file."""
    parts = [f"# {title}", f"{text} The page shows the files of `configs/` as they are."]
    for name in folders:
        parts += [f"## {name}"] if len(folders) > 1 else []
        for file in sorted((folder() / name).glob("*.yaml")):
            content = file.read_text(encoding="utf-8").rstrip()
            heading = f"{name}/{file.stem}".removeprefix("/")
            parts += [f"{'###' if len(folders) > 1 else '##'} {heading}", f"```yaml\n{content}\n```"]
    return "\n\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {path: partial(page, *place) for path, place in PLACES.items()}
