"""The published recipes by name: `--config sd21` reads the packaged `sd21.yaml`."""

import re
from pathlib import Path

from jsonargparse import ActionConfigFile

from c_diffset.files import read_yaml

PACKAGE = Path(__file__).parent.parent


def recipes() -> dict[str, Path]:
    """Name to file of every recipe: data of an installed package, `train_configs/` beside it in a checkout."""
    installed = PACKAGE / "recipes"
    folder = installed if installed.is_dir() else PACKAGE.parent / "train_configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


class ConfigAction(ActionConfigFile):
    """Read a settings file that is given by its path, or by its name alone if it is a recipe."""

    def __call__(self, parser, namespace, values, option_string=None):
        if isinstance(values, str) and re.fullmatch(r"[\w-]+", values) and not Path(values).exists():
            known = recipes()
            if values not in known:
                names = ", ".join(known)
                parser.error(f"--config {values}: no such file or recipe, expected a YAML file or one of {names}")
            values = str(known[values])
        read_yaml(Path(values))  # whose messages name the file
        super().__call__(parser, namespace, values, option_string)
