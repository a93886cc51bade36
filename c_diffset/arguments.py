"""What every command, training and tool does on the console: how options are read, and what is not worth a line."""

import os
import re
import sys
import warnings
from collections.abc import Callable

import jsonargparse


class ArgumentParser(jsonargparse.ArgumentParser):
    """Options by their whole names, with `-` or `_`; one that is true or false stands for true where it has no value.

    A shortened name is an error: it may mean another option tomorrow.
    """

    def __init__(self, **options):
        super().__init__(**options, allow_abbrev=False)

    def add_argument(self, *names, **options):
        """As jsonargparse does; the help says that a flag needs no value."""
        action = super().add_argument(*names, **options)
        if getattr(action, "_typehint", None) is bool:
            action.metavar = "[true|false]"
        return action

    def parse_args(self, args=None, *more, **options):
        """As jsonargparse does, after `spell_out`."""
        return super().parse_args(self.spell_out(sys.argv[1:] if args is None else args), *more, **options)

    def spell_out(self, args: list[str]) -> list[str]:
        """`--dry_run` for `--dry-run`, and `--confidence true` for `--confidence`."""
        args = [re.sub(r"^--[\w.-]+", lambda name: "--" + name[0][2:].replace("-", "_"), arg) for arg in args]
        kinds = {name: getattr(action, "_typehint", None) for name, action in self._option_string_actions.items()}
        spelt = []
        for arg, following in zip(args, [*args, ""][1:], strict=True):
            flag = kinds.get(arg) is bool and following.lower() not in ("true", "false")
            spelt += [arg, "true"] if flag else [arg]
        return spelt


def quieten() -> None:
    """Leave out what looks like trouble and is none: notes of libraries to those who program with them.

    They are about components that have nothing to do with the task (of a tiny autoencoder, that its own configuration
    has one entry too many), or about a later version of the library. Warnings are one line, without the code that
    raised them. Whoever sets DIFFUSERS_VERBOSITY, TRANSFORMERS_VERBOSITY or PYTHONWARNINGS sees more.
    """
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"
    if not sys.warnoptions:
        for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
            warnings.simplefilter("ignore", category)


def run(function: Callable) -> None:
    """Call a function with the arguments of the command line; for the scripts in `tools/`."""
    quieten()
    parser = ArgumentParser(description=function.__doc__.splitlines()[0])
    parser.add_function_arguments(function, as_group=False)
    function(**vars(parser.parse_args()))
