"""What pyproject.toml cannot say: the wheel holds the presets of ``configs/`` as ``fedsim/presets/``."""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithPresets(build_py):
    """Copies the presets into what is built; a checkout, and so an editable installation, reads them where they are.

    pyproject.toml can map a package to a folder elsewhere only if it lists every other package by hand too.
    """

    def run(self) -> None:
        """Build, and add the presets."""
        super().run()
        if not self.editable_mode:
            for source, target in self._presets():
                target.parent.mkdir(parents=True, exist_ok=True)
                copyfile(source, target)

    def _presets(self) -> list[tuple[Path, Path]]:
        home = Path(self.build_lib) / "fedsim" / "presets"
        folder = ROOT / "configs"
        return [(path, home / path.relative_to(folder)) for path in sorted(folder.rglob("*.yaml"))]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return all files that a build makes."""
        own = super().get_outputs(include_bytecode)
        return own if self.editable_mode else [*own, *(str(target) for _, target in self._presets())]


setup(cmdclass={"build_py": BuildWithPresets})
