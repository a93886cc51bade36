"""What a repository of a model holds, and its way to the Hugging Face Hub: complete, documented, in one commit."""

import io
import json
import math
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
from huggingface_hub import CommitOperationAdd

from c_diffset.convert.record import CONVERSION, read_conversion
from c_diffset.data.images import read_image
from c_diffset.data.pairs import list_splits, load_pairs
from c_diffset.evaluation.report import Report, read_reports
from c_diffset.files import file_sha256, folder_aside, public_name, read_json
from c_diffset.history import HISTORY, read_ancestors
from c_diffset.hub.card import Facts, autoencoder_card, model_card
from c_diffset.hub.checks import (
    CODE,
    COMPONENTS,
    GENERATED,
    INDEX,
    PICKLES,
    check_repo_id,
    component_files,
    hub_ids,
    load_checked,
    pipeline_files,
    without_paths,
)
from c_diffset.hub.licence import choose_license, inherited_license
from c_diffset.hub.markdown import plain
from c_diffset.hub.mlm import mlm_item
from c_diffset.hub.repository import UNTOUCHED, Repository, check_token
from c_diffset.hub.run import Run, read_run, told_history
from c_diffset.loading import component_checksum, model_revision
from c_diffset.pipelines.pipeline_cdiffset import SOURCE
from c_diffset.sar.gdal import find_crs, open_raster

Contents = dict[str, Path | bytes]  # of a repository: for the name of each file the file to send, or its content
MOST_NAMED = 5  # models in an error message
PLAIN_FILES = ("README.md", "LICENSE", *UNTOUCHED)  # a repository that holds nothing else is as good as new


def check_target(repo: str) -> None:
    """Refuse, before long work whose result is to be published, a `repo` that is no Hub id, and a missing token.

    Raises:
        ValueError: it is not of the form user/name.
        PermissionError: no token.
    """
    check_repo_id(repo)
    check_token()


def publish_autoencoder(folder: Path, repo: str, private: bool = False) -> str:
    """Publish an autoencoder alone, with its configuration, weights and a card, in one commit; errors as `publish`."""
    check_target(repo)
    contents, run = public_contents(folder, component_files(folder)), read_run(folder)
    if run is not None and (folder / HISTORY).is_file():
        contents[HISTORY] = told_history(run, read_ancestors(folder))
    contents["README.md"] = autoencoder_card(repo, run.loss_networks if run else []).encode()
    repository = Repository(repo, "model")
    others = [name for name in repository.files if name not in {*contents, *PLAIN_FILES}]
    if others:
        raise ValueError(f"{repository.url} exists and holds {plain(others[0])}: choose another repository")
    return _commit(repository, contents, [], private, "Publish the autoencoder")


def write_contents(contents: Contents, target: Path) -> None:
    """Write a repository into a new folder; FileExistsError where something is there already."""
    with folder_aside(target) as aside:
        for name, content in contents.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                (aside / name).write_bytes(content)
            else:
                shutil.copyfile(content, aside / name)


# ------------------------------------------------------------------------------------------------- what is sent


@dataclass(frozen=True)
class Choices:
    """What a publisher says of a pipeline beyond its folder; see `publish`."""

    evaluation: str | os.PathLike | None = None
    grid: str | os.PathLike | None = None
    license: str | None = None
    base_model: str | None = None
    datasets: list[str] | None = None
    pixel_size: float | None = None

    def __post_init__(self):
        for name in [self.base_model, *(self.datasets or [])]:
            if name is not None:
                check_repo_id(name)
        if self.pixel_size is not None and not 0 < self.pixel_size < math.inf:
            raise ValueError(f"pixel_size is {self.pixel_size}: expected metres above 0")


def assemble(folder: Path, repo: str, choices: Choices) -> Contents:
    """The complete repository of a pipeline; errors as for `publish`."""
    files = pipeline_files(folder)
    run, ancestors = read_run(folder), read_ancestors(folder)
    base_model = choices.base_model or next(iter(hub_ids(ancestors[::-1])), None)
    origins = [*ancestors, *_component_origins(folder, files), *([base_model] if base_model else [])]
    from_scratch = run is not None and not ancestors
    unet = read_json(folder / "unet" / "config.json")
    inherited = inherited_license(unet, origins, shape_tells=base_model is None and not from_scratch)
    license = choose_license(choices.license, inherited)
    origin = base_model or (inherited[0] if inherited else None) or (public_name(ancestors[-1]) if ancestors else None)
    report = None if choices.evaluation is None else read_evaluation(Path(choices.evaluation), folder)

    contents = public_contents(folder, files)
    if run is not None and (folder / HISTORY).is_file():
        contents[HISTORY] = told_history(run, ancestors)
    conversion = read_conversion(folder)
    if conversion is not None:
        contents[CONVERSION] = _json(vars(conversion))
    contents[CODE] = SOURCE.encode()  # not the folder's own, which may be older than its settings, or anybody's
    if (folder / CODE).is_file() and (folder / CODE).read_bytes() != contents[CODE]:
        print(f"{folder / CODE} is other code than that of this version: {CODE} is published as this version has it")
    if choices.grid is not None:
        contents["grid.png"] = _picture(Path(choices.grid))
    pipe = load_checked(folder)
    weights = {
        name: ((folder / name).stat().st_size, file_sha256(folder / name))
        for name in files
        if name.endswith(".safetensors")
    }
    facts = Facts(
        repo=repo,
        pipe=pipe,
        license=license,
        base_model=base_model,
        origin=origin,
        datasets=choices.datasets or hub_ids([run.source] if run else []),
        run=run,
        conversion=conversion,
        report=report,
        has_grid=choices.grid is not None,
        pixel_size=choices.pixel_size or _pixel_size(run),
        weights=weights,
    )
    if facts.has_unjudged_calibration:
        print("the evaluation was made before the calibration: evaluate again if the card is to say how good that is")
    contents["README.md"] = model_card(facts).encode()
    contents["mlm.json"] = _json(mlm_item(pipe, repo, license, weights, origin, from_scratch))
    contents["checksums.sha256"] = "".join(f"{sha256}  {name}\n" for name, (_, sha256) in weights.items()).encode()
    left = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    left = [plain(name) for name in left if name not in {*files, *GENERATED}]
    if left:
        print(f"left out, as they are no part of the pipeline: {', '.join(left[:5])}{' ...' * (len(left) > 5)}")
    return contents


def public_contents(folder: Path, files: list[str]) -> Contents:
    """These files of the folder, configurations without the folders of this machine."""
    contents: Contents = {name: folder / name for name in files}
    for name in (name for name in files if name.endswith(".json")):
        content = read_json(folder / name)
        if (public := without_paths(content)) != content:
            contents[name] = _json(public)
    return contents


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _component_origins(folder: Path, files: list[str]) -> list[str]:
    """What the components' configurations say they were loaded from, paths included."""
    configs = [read_json(folder / name) for name in files if os.path.basename(name) == "config.json"]
    return [str(config["_name_or_path"]) for config in configs if config.get("_name_or_path")]


def _picture(source: Path) -> bytes:
    """The pixels of a PNG, without whatever else its file holds."""
    if source.suffix.lower() != ".png" or not source.is_file():
        raise FileNotFoundError(f"grid {source}: expected a PNG file, such as the grid.png of `c-diffset evaluate`")
    pixels, content = read_image(source), io.BytesIO()
    if pixels.dtype != "uint8":
        raise ValueError(f"grid {source} has pixels of {pixels.dtype}: expected a PNG of 8 bits a channel")
    PIL.Image.fromarray(pixels).convert("RGB").save(content, "PNG")
    return content.getvalue()


def read_evaluation(path: Path, folder: Path) -> Report:
    """The report of `c-diffset evaluate` on this model, which may be one of several that were evaluated together.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is on other weights, or no such report; or several are on these weights, and none on this folder.
    """
    reports, weights, autoencoder = read_reports(path), model_revision(folder), component_checksum(folder, "vae")
    own = [
        report
        for report in reports  # those of earlier versions do not know the autoencoder's weights
        if report.weights is not None
        and report.weights == weights
        and report.autoencoder_weights in (None, autoencoder)
    ]
    if len(own) > 1:  # as of `best` and `pipeline` of one run, where the last update was the best
        own = [report for report in own if Path(report.model).resolve() == folder.resolve()] or own
    if len(own) == 1:
        return own[0]
    about = " and ".join(map(_weights_of, reports[:MOST_NAMED])) + " ..." * (len(reports) > MOST_NAMED)
    if own:
        raise ValueError(
            f"{path} is about {about}: {len(own)} of them have the weights of {folder}, so name the folder of the "
            "report that you mean"
        )
    raise ValueError(
        f"{path} is about {about}, and not about {weights}{f' and {autoencoder}' if autoencoder else ''} in {folder}: "
        "evaluate the folder that you publish"
    )


def _weights_of(report: Report) -> str:
    """What a report says of its model, for an error message."""
    autoencoder = f" and autoencoder {plain(report.autoencoder_weights)}" if report.autoencoder_weights else ""
    return f"{plain(report.model)}, with weights {plain(report.weights)}{autoencoder}"


def _pixel_size(run: Run | None) -> float | None:
    """Metres a pixel of the run's pairs, from the georeference of the first; None where it tells none in metres."""
    if run is None or not Path(run.source).exists():
        return None
    with suppress(ValueError, OSError):  # data that have moved or changed since
        row = load_pairs(run.source, list_splits(run.source)[0])[0]
        if row.get("crs") and row.get("bounds"):
            crs, (left, _, right, _) = find_crs(row["crs"]), row["bounds"]
            size = (right - left) / read_image(row["sar"]).shape[1]
        else:
            with open_raster(Path(row["sar"]["path"] or "")) as raster:
                crs, size = raster.crs, abs(raster.transform.a)
        metric = crs is not None and crs.is_projected and crs.linear_units_factor[1] == 1
        return round(size, 3) if metric else None
    return None


# -------------------------------------------------------------------------------------------------------- the Hub


def send(contents: Contents, repo: str, private: bool, message: str, overwrite: bool) -> str:
    """Commit a pipeline, unless the repository holds something else; returns the commit's address."""
    repository = Repository(repo, "model")
    if not overwrite:
        check_same_model(repository, contents)
    if INDEX in repository.files:
        print(f"{repository.url} holds this model at {repository.sha}, which stays in its history: it gets a new state")
    return _commit(repository, contents, _stale(repository, contents, overwrite), private, message)


def _commit(repository: Repository, contents: Contents, stale: list[str], private: bool, message: str) -> str:
    """Make the repository hold these contents, without the stale files; returns the commit's address."""
    repository.create(private)
    additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=contents[name]) for name in sorted(contents)]
    repository.upload(additions)
    url = repository.commit(additions, stale, message)
    print(f"published: {repository.url}")
    return url


def _stale(repository: Repository, contents: Contents, overwrite: bool) -> list[str]:
    """Files of the repository that do not go with the new model: parts of an old one; with `overwrite`, all others."""
    others = [name for name in repository.files if name not in {*contents, *UNTOUCHED}]
    if overwrite:
        return others
    ours = {*COMPONENTS, *GENERATED}
    return [name for name in others if name.split("/")[0] in ours or name.lower().endswith(PICKLES)]


def check_same_model(repository: Repository, contents: Contents) -> None:
    """Refuse a repository that holds something else than an earlier state of this model.

    Raises:
        ValueError: its pipeline is of another class, or has another UNet or another SAR input; or it holds other files.
    """
    where = f"{repository.url} exists and holds"
    way_out = "choose another repository, or set overwrite to replace it"
    index = repository.read_json(INDEX)
    if index is None:
        others = [name for name in repository.files if name not in (*PLAIN_FILES, *GENERATED)]
        if others:
            raise ValueError(f"{where} no pipeline of this project, but {', '.join(others[:3])}: {way_out}")
        return
    own = _content(contents, INDEX)
    for key in ("_class_name", "unet", "vae", "sar_transform"):
        found, expected = index.get(key), own.get(key)
        if found != expected:
            raise ValueError(f"{where} another model ({key} is {plain(found)}, not {plain(expected)}): {way_out}")
    for part in ("unet", "vae"):
        if f"{part}/config.json" not in contents:
            continue
        found, expected = repository.read_json(f"{part}/config.json") or {}, _content(contents, f"{part}/config.json")
        for key in sorted(found.keys() | expected.keys()):
            one, other = found.get(key), expected.get(key)
            if not key.startswith("_") and one != other:
                differs = f"{plain(key)} of the {part} is {plain(one)}, not {plain(other)}"
                raise ValueError(f"{where} another model ({differs}): {way_out}")


def _content(contents: Contents, name: str) -> dict:
    """A JSON file of a repository to be."""
    content = contents[name]
    return json.loads(content) if isinstance(content, bytes) else read_json(content)
