"""A wheel carries `configs/` and `docs/templates/` inside the package; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithFiles(build_py):
    """Copies into the package what `lrtrain.config.recipes` looks for there; an editable install finds it here."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for folder in (Path("configs"), Path("docs", "templates")):
                shutil.copytree(folder, Path(self.build_lib, "lrtrain", folder.name), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithFiles})
