"""Files and folders: written whole or not at all, made and removed by their owner alone, locked, hashed and named."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile

import yaml
from filelock import FileLock, Timeout

PARTIAL = ".partial"  # what is not finished is called .NAME.partial
MARKER = ".c_diffset"  # stands in every folder that this program has made, and may therefore remove
MAGIC = {  # what files of each kind begin with
    "png": (b"\x89PNG\r\n\x1a\n",),
    "jpeg": (b"\xff\xd8\xff",),
    "tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # both read plain values only
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


# ----------------------------------------------------------------------------------------------- whole or not at all


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A path beside the file `target` to write to; it gets its name when the block ends, and is removed on an error."""
    aside = target.with_name(f".{target.name}{PARTIAL}")
    try:
        yield aside
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def write_file(target: Path, content: str | bytes) -> None:
    """Write a file aside, text as UTF-8, and rename it."""
    with written_aside(target) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(target: Path, content) -> None:
    """Write a JSON file aside and rename it; ValueError for NaN, which JSON does not know."""
    write_file(target, json.dumps(content, indent=2, allow_nan=False) + "\n")


def check_writable(folder: Path) -> None:
    """Refuse a folder that no file can be made in: what takes long asks before it starts.

    Raises:
        OSError: the folder, or the nearest one above it that exists, cannot be written to.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        TemporaryFile(dir=place).close()
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({place}: {error.strerror}): name another folder") from None


def read_json(path: Path) -> dict:
    """A JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or holds something else than an object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}: expected a JSON object")
    return content


def check_yaml(text: str) -> None:
    """Refuse YAML that grows without end where it is used.

    Raises:
        ValueError: it is longer than 100 000 characters, deeper than 30 levels, or no YAML; or it has an alias
            (`*name`), since ten lines of aliases can stand for a billion values.
    """
    if len(text) > 100_000:
        raise ValueError(f"{len(text)} characters, expected settings of at most 100 000")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=YAML_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"line {event.start_mark.line + 1} has the alias *{event.anchor}: write the value out")
            if depth > 30:
                raise ValueError(f"line {event.start_mark.line + 1} is more than 30 levels deep")
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"this is not YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> dict:
    """A YAML mapping of plain values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, not what `check_yaml` lets through, or holds something else than a mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        text = path.read_text(encoding="utf-8")
        check_yaml(text)
        content = yaml.load(text, YAML_LOADER)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as error:  # such as a date of month 13
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}: expected a mapping, NAME: value")
    return content


@contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """A new folder beside `target` to fill; it takes the place of an absent or empty `target` when the block ends.

    Raises:
        FileExistsError: `target` is there and is not an empty folder.
        OSError: another process is filling it.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty folder: name another one")
    aside = target.with_name(f".{target.name}{PARTIAL}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(aside.with_name(f"{aside.name}.lock"), f"another process is writing {target}: name another folder"):
        if aside.exists():
            remove_own(aside)  # what a killed process has left
        make_own(aside)
        try:
            yield aside
            (aside / MARKER).unlink()
            if target.exists():
                target.rmdir()
            aside.rename(target)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


# --------------------------------------------------------------------------------------------------------- ownership


def make_own(folder: Path) -> None:
    """Make a folder and mark it as made by this program; one that is there already is marked where it is empty."""
    new = not folder.exists() or not any(folder.iterdir())
    folder.mkdir(parents=True, exist_ok=True)
    if new:
        (folder / MARKER).touch()


def is_own(folder: Path) -> bool:
    """Whether this program has made the folder: it is no link, and holds the marker."""
    return folder.is_dir() and not folder.is_symlink() and (folder / MARKER).is_file()


def remove_own(folder: Path) -> None:
    """Remove a folder that this program has made.

    Raises:
        FileExistsError: it was made by somebody else.
    """
    if not is_own(folder):
        raise FileExistsError(f"{folder} was not made by c_diffset (it holds no {MARKER}), so it stays: remove it")
    for path in folder.iterdir():  # the marker last: a process that is killed here leaves a folder that is still ours
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()
    shutil.rmtree(folder)


@contextmanager
def locked(path: Path, message: str, timeout: float = 0) -> Iterator[None]:
    """Hold the lock file `path` while the block runs, after at most `timeout` seconds of waiting for it.

    Raises:
        OSError: another process holds it, which `message` explains, or `path` is a link or cannot be written.
    """
    if path.is_symlink():
        raise OSError(f"{path} is a link, which a lock never is: remove it")
    lock = FileLock(path, timeout=timeout)
    try:
        lock.acquire()
    except Timeout:
        raise OSError(f"{path}: {message}") from None
    try:
        yield
    finally:
        lock.release()
        path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------ hashes, kinds, names


def file_sha256(path: Path) -> str:
    """The checksum of a file of any size, in hex."""
    digest = sha256()
    with open(path, "rb") as file:
        while data := file.read(2**20):
            digest.update(data)
    return digest.hexdigest()


def image_kind(header: bytes) -> str | None:
    """ "png", "jpeg" or "tiff" by the first eight bytes of a file; None for any other."""
    return next((kind for kind, starts in MAGIC.items() if header.startswith(starts)), None)


def is_hub_id(name: str) -> bool:
    """Whether this has the form of a Hub id, owner/name, and names nothing on this machine."""
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def public_name(source: str | os.PathLike) -> str:
    """What reports, cards and calibrations call data or a model: a Hub id as it is, of a path the last part alone.

    Links and `.` are resolved first, so that one folder has one name. `pipeline` and `best` are named by their run.
    """
    if is_hub_id(str(source)):
        return str(source)
    path = Path(source)
    path = path.resolve() if path.exists() else path
    return path.parent.name if path.name in ("pipeline", "best") and path.parent.name else path.name


def check_id(name: str, where: str) -> str:
    """Return an id that is fit to be a file name; ValueError for one that is not, such as `../a`."""
    if name in ("", ".", "..") or not name.isprintable() or any(sign in name for sign in "/\\"):
        raise ValueError(f"{where}: {name!r:.200} cannot be an id: it has to work as a file name.")
    return name
