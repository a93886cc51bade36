"""Settings from a recipe and the command line; an unknown key or a wrong value is an error before any work."""

from functools import cache
from typing import Any

from jsonargparse import ArgumentError, get_loader, set_loader
from yaml import YAMLError

from c_diffset.arguments import ArgumentParser
from c_diffset.files import check_yaml
from c_diffset.training.recipes import ConfigAction, recipes

# settings that have become others
REPLACED = {"noise_timesteps": "time_aware.score_timesteps and time_aware.critic_timesteps"}

any_yaml = get_loader("yaml")


def checked_yaml(text: str) -> Any:
    """What `jsonargparse` reads, where `check_yaml` lets it through."""
    check_yaml(text)
    return any_yaml(text)


set_loader("yaml", checked_yaml, (ValueError, TypeError, AttributeError, YAMLError))


@cache
def config_parser(config_class: type, description: str) -> ArgumentParser:
    """A parser that reads `--config NAME_OR_FILE`, and every field of `config_class` as an option that overrides it."""
    usage = "%(prog)s --config RECIPE [--NAME VALUE ...]"
    parser = ArgumentParser(description=description, usage=usage, exit_on_error=False)
    text = f"YAML file with any of the settings below, or the name of a recipe: {', '.join(recipes())}."
    parser.add_argument("--config", action=ConfigAction, metavar="RECIPE", help=text)
    parser.add_class_arguments(config_class, as_group=False)
    return parser


def parse_config(config_class: type, description: str, args: list[str] | None = None):
    """Parse the command line into a `config_class`.

    Raises:
        ValueError: a setting is unknown, missing or wrong; the message is one line.
        FileNotFoundError: the file of settings is missing.
    """
    parser = config_parser(config_class, description)
    try:
        settings = parser.instantiate(parser.parse_args(args))
        settings.pop("config", None)
        return config_class(**vars(settings))
    except (ArgumentError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        hints = [f" ({old} is no longer a setting: give {new})" for old, new in REPLACED.items() if old in text]
        raise ValueError(text + "".join(hints)) from None
