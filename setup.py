"""A wheel carries `configs/` inside the package; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies `configs/` into the package, where `lrtrain.config.recipes` looks; an editable install finds it here."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("configs", Path(self.build_lib, "lrtrain", "configs"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
