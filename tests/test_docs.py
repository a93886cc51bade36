"""README and docs: commands that parse, snippets that compile, links and files that exist."""

import ast
import re
import shlex
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from c_diffset.cli import COMMANDS, CONFIGURED, command_parser
from c_diffset.commands import TRAINING
from c_diffset.training.parser import config_parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
LAUNCHER_OPTIONS = {"--num_processes", "--multi_gpu", "--config_file", "--quiet"}  # of `accelerate launch` itself
OTHER_OPTIONS = {"--help", "--version"}
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def inline(page: Path) -> list[str]:
    """What stands in backticks outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S))


def command_lines(block: str) -> list[list[str]]:
    """The words of every command in a block of shell: continued lines joined, variables replaced, comments left out."""
    variables, lines = {}, []
    for line in block.replace("\\\n", " ").splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
            variables[assigned[1]] = assigned[2]
            continue
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            lines.append(words)
    return lines


def own_command(words: list[str]) -> tuple[str, list[str]] | None:
    """The command of this project that a command line runs, and its arguments; None where it runs another program."""
    if len(words) < 2:
        return None
    if Path(words[0]).name == "c-diffset":
        return words[1], words[2:]
    if words[:2] == ["accelerate", "launch"]:
        for place, word in enumerate(words):
            if word.startswith("tools/"):
                return Path(word).stem, words[place + 1 :]
            if word == "c_diffset":
                return words[place + 1], words[place + 2 :]
    return None


@cache
def parser_of(command: str):
    """The parser of a command, and the function that it calls; None for what reads its settings from a file."""
    return (config_parser(*TRAINING[command][:2]), None) if command in TRAINING else command_parser(command)


@cache
def options_of(command: str) -> set[str]:
    return set(parser_of(command)[0]._option_string_actions)


def all_options() -> set[str]:
    return set().union(OTHER_OPTIONS, LAUNCHER_OPTIONS, *(options_of(command) for command in {**COMMANDS, **TRAINING}))


def parse(command: str, args: list[str]) -> None:
    """Parse a whole command line as the program does."""
    parser_of(command)[0].parse_args(args)


COMMAND_LINES = [
    pytest.param(*own, id=f"{name}: {' '.join([own[0], *own[1]])[:60]}")
    for page, name in zip(PAGES, NAMES, strict=True)
    for block in blocks(page, "bash")
    for words in command_lines(block)
    if (own := own_command(words))
]


def test_commands_are_found():
    assert len(COMMAND_LINES) > 30
    assert {*COMMANDS, "finetune_decoder"} <= {param.values[0] for param in COMMAND_LINES}


@pytest.mark.parametrize("command, args", COMMAND_LINES)
def test_every_command_line_parses(command, args, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    try:
        parse(command, args)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_options_and_commands_in_the_text_exist(page):
    for code in inline(page):
        own = own_command(code.split())
        if own and own[0] not in ("COMMAND", "--help"):
            assert own[0] in {**COMMANDS, **TRAINING}, code
            known = options_of(own[0]) | OTHER_OPTIONS
        elif not re.match(r"(c-diffset|accelerate|translate|evaluate|calibrate|demo|prepare|--)", code):
            continue  # an option of another program
        else:
            known = all_options()
        assert set(re.findall(r"(?<!\S)--[a-z][\w.]*", code.split("launch")[-1])) <= known | LAUNCHER_OPTIONS, code


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_snippets_compile_and_import_what_exists(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as they are made on GitHub."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_of_the_repository_that_are_named_exist(page):
    named = [code for code in inline(page) if re.match(r"(train_configs|tools|tests|docs|c_diffset)/[^ ]*$", code)]
    for name in named:
        assert list(ROOT.glob(name)), name
    if page.name == "architecture.md":
        for name in (code for code in inline(page) if re.fullmatch(r"[\w/]+(\.py|/)", code)):
            assert (ROOT / "c_diffset" / name).exists() or (ROOT / name).exists(), name


def test_the_architecture_names_every_package():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "c_diffset").iterdir()):
        if path.is_dir() and list(path.glob("*.py")):
            assert f"`{path.name}/`" in text, path.name
        elif path.suffix == ".py" and not path.name.startswith("__"):
            assert f"`{path.name}`" in text, path.name


def test_every_recipe_is_described():
    text = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("training.md", "distillation.md"))
    for recipe in sorted((ROOT / "train_configs").glob("*.yaml")):
        assert f"`{recipe.stem}`" in text or f"--config {recipe.stem} " in text, recipe.name


def test_new_places_of_modules_exist():
    table = re.findall(r"^\| (`c_diffset.*?) \| (.*?) \|$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert len(table) > 5
    for _, now in table:
        for name in re.findall(r"`(c_diffset[\w.]*)`", now):
            place = ROOT.joinpath(*name.split("."))
            in_module = place.parent.with_suffix(".py")  # of a function
            assert place.is_dir() or place.with_suffix(".py").is_file() or in_module.is_file(), name


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
    assert set(CONFIGURED) <= set(TRAINING)
