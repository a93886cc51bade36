"""`c-diffset publish`: a pipeline becomes a complete, documented repository of the Hugging Face Hub, in one commit."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import PIL.Image
import rasterio
from huggingface_hub import CommitOperationAdd
from rasterio.crs import CRS
from rasterio.errors import CRSError

from c_diffset.data.images import read_image
from c_diffset.data.pairs import list_splits, load_pairs
from c_diffset.files import file_sha256, is_hub_id, public_name, read_json
from c_diffset.hub.card import Facts, model_card
from c_diffset.hub.folder import (
    CODE,
    COMPONENTS,
    GENERATED,
    INDEX,
    PICKLES,
    Run,
    ancestors,
    check_repo_id,
    check_weights,
    choose_license,
    component_origins,
    inherited_license,
    pipeline_files,
    read_run,
    without_paths,
)
from c_diffset.hub.mlm import mlm_item
from c_diffset.hub.repository import UNTOUCHED, Repository, check_token
from c_diffset.loading import model_revision
from c_diffset.pipelines.pipeline_cdiffset import SOURCE, CDiffSETPipeline

PLAIN_FILES = ("README.md", "LICENSE", *UNTOUCHED)  # a repository that holds nothing else is as good as new


def publish(
    folder: str | os.PathLike,
    repo: str,
    private: bool = False,
    dry_run: str | os.PathLike | None = None,
    evaluation: str | os.PathLike | None = None,
    grid: str | os.PathLike | None = None,
    license: str | None = None,
    base_model: str | None = None,
    datasets: list[str] | None = None,
    pixel_size: float | None = None,
    message: str = "Publish the pipeline",
    overwrite: bool = False,
) -> str:
    """Publish a pipeline's folder as a model repository: code, weights, card, checksums and `mlm.json`, in one commit.

    Only the pipeline's own files go, never the rest of the folder; an interrupted publish can be repeated. The token is
    that of `hf auth login` or HF_TOKEN.

    Args:
        folder: what `save_pretrained` has written, such as RUN/pipeline.
        repo: Hub id, user/name; made if it does not exist.
        private: make a new repository private.
        dry_run: a new or empty folder that everything is written to, instead of the Hub.
        evaluation: the `metrics.json` of `c-diffset evaluate` for this model, or its folder: the card's metrics.
        grid: a PNG with pictures for the card; only where the licence of the data lets them be shown.
        license: identifier of the weights' licence; follows from the base where that is Stable Diffusion.
        base_model: Hub id that the weights come from, where the run does not tell.
        datasets: Hub ids of the training data, where the run does not tell.
        pixel_size: metres a pixel of the training data, where the data do not tell.
        message: of the commit.
        overwrite: replace what a repository holds, even where that is another model.

    Returns:
        The address of the commit, or the dry run's folder.

    Raises:
        ValueError: an unfit id, licence or evaluation; a folder with pickles, links or foreign parts; a repository with
            another model.
        FileNotFoundError: an incomplete folder.
        PermissionError: no token.
        OSError: the connection was lost, or the Hub refuses; the message says whether anything was committed.
    """
    folder, facts = Path(folder), {"license": license, "base_model": base_model, "datasets": datasets}
    check_repo_id(repo)
    fill = partial(assemble, folder, repo, evaluation=evaluation, grid=grid, pixel_size=pixel_size, **facts)
    if dry_run is not None:
        write_aside(Path(dry_run), partial(fill, place=shutil.copyfile))
        print(f"{dry_run}: complete, nothing was sent")
        return str(dry_run)
    with tempfile.TemporaryDirectory(prefix="c_diffset_publish_") as aside:
        check_token()
        fill(Path(aside), place=lambda source, target: os.symlink(os.path.abspath(source), target))
        return _send(Path(aside), repo, private, message, overwrite)


def check_target(repo: str) -> None:
    """Refuse, before long work whose result is to be published, a `repo` that is no Hub id, and a missing token.

    Raises:
        ValueError: it is not of the form user/name.
        PermissionError: no token.
    """
    check_repo_id(repo)
    check_token()


def write_aside(target: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a folder aside, then put it in place; FileExistsError where something is there already."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty folder: name another one")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", suffix=".partial", dir=target.parent) as aside:
        whole = Path(aside, "whole")
        whole.mkdir()
        fill(whole)
        whole.replace(target)


# ------------------------------------------------------------------------------------------------- what is sent


def assemble(
    folder: Path,
    repo: str,
    target: Path,
    place: Callable[[Path, Path], object],
    evaluation: str | os.PathLike | None = None,
    grid: str | os.PathLike | None = None,
    license: str | None = None,
    base_model: str | None = None,
    datasets: list[str] | None = None,
    pixel_size: float | None = None,
) -> None:
    """Write the complete repository into the empty folder `target`; `place(source, target)` puts large files there.

    Arguments and errors as for `publish`.
    """
    files = pipeline_files(folder)
    lineage = ancestors(folder)
    for name in [base_model, *(datasets or [])]:
        if name is not None:
            check_repo_id(name)
    base_model = base_model or next((name for name in reversed(lineage) if is_hub_id(name)), None)
    if pixel_size is not None and not (math.isfinite(pixel_size) and pixel_size > 0):
        raise ValueError(f"pixel_size is {pixel_size}: expected metres above 0")
    run = read_run(folder)
    origins = [*lineage, *component_origins(folder, files), *([base_model] if base_model else [])]
    from_scratch = run is not None and not lineage
    unet = read_json(folder / "unet" / "config.json")
    inherited = inherited_license(unet, origins, shape_tells=base_model is None and not from_scratch)
    license = choose_license(license, inherited)
    origin = base_model or (inherited[0] if inherited else None) or (public_name(lineage[-1]) if lineage else None)
    report = None if evaluation is None else read_evaluation(Path(evaluation), folder)

    _copy(folder, files, target, place)
    if grid is not None:
        _copy_picture(Path(grid), target / "grid.png")
    pipe = CDiffSETPipeline.from_pretrained(target)
    pipe.check_channels()
    check_weights(pipe, target)
    weights = {
        name: ((target / name).stat().st_size, file_sha256(target / name))
        for name in files
        if name.endswith(".safetensors")
    }
    facts = Facts(
        repo=repo,
        pipe=pipe,
        license=license,
        base_model=base_model,
        origin=origin,
        datasets=datasets or ([run.source] if run and run.source and is_hub_id(run.source) else []),
        run=run,
        evaluation=report,
        has_grid=grid is not None,
        pixel_size=pixel_size or _pixel_size(run),
        weights=weights,
    )
    item = mlm_item(pipe, repo, license, weights, origin, from_scratch)
    try:
        card = model_card(facts)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the card cannot be written ({error!r}): expected an evaluation, and a config.yaml beside the pipeline, "
            "as `c-diffset` writes them"
        ) from error
    (target / "README.md").write_text(card, encoding="utf-8")
    (target / "mlm.json").write_text(json.dumps(item, indent=2) + "\n", encoding="utf-8")
    sums = "".join(f"{sha256}  {name}\n" for name, (_, sha256) in weights.items())
    (target / "checksums.sha256").write_text(sums, encoding="utf-8")
    left = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    left = [name for name in (path.relative_to(folder).as_posix() for path in left) if name not in {*files, *GENERATED}]
    if left:
        print(f"left out, as they are no part of the pipeline: {', '.join(left[:5])}{' ...' * (len(left) > 5)}")


def _copy(folder: Path, files: list[str], target: Path, place: Callable[[Path, Path], object]) -> None:
    """The pipeline's files; configurations without the folders of this machine, and the code that loads them here.

    The code is never the folder's own: that may be older than the pipeline's settings, or anybody's.
    """
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        content = read_json(folder / name) if name.endswith(".json") else None
        if content is not None and without_paths(content) != content:
            (target / name).write_text(json.dumps(without_paths(content), indent=2) + "\n", encoding="utf-8")
        else:
            place(folder / name, target / name)
    (target / CODE).write_text(SOURCE, encoding="utf-8")
    if (folder / CODE).is_file() and (folder / CODE).read_text(encoding="utf-8", errors="replace") != SOURCE:
        print(f"{folder / CODE} is other code than that of this version: {CODE} is published as this version has it")


def _copy_picture(source: Path, target: Path) -> None:
    """The pixels of a PNG, without whatever else its file holds."""
    if source.suffix.lower() != ".png" or not source.is_file():
        raise FileNotFoundError(f"grid {source}: expected a PNG file, such as the grid.png of `c-diffset evaluate`")
    with PIL.Image.open(source, formats=("PNG",)) as picture:
        picture.convert("RGB").save(target, "PNG")


def read_evaluation(path: Path, folder: Path) -> dict:
    """The report of `c-diffset evaluate` on this model.

    Raises:
        ValueError: it is on other weights, or no such report.
    """
    path = path / "metrics.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected the output of `c-diffset evaluate` for one model")
    report = read_json(path)
    missing = [key for key in ("model", "data", "split", "n", "mean") if key not in report]
    if missing:
        raise ValueError(f"{path} has no {missing[0]!r}: expected the metrics.json of `c-diffset evaluate`")
    if report.get("weights") is None or report["weights"] != model_revision(folder):
        raise ValueError(
            f"{path} is about {report['model']}, with weights {report.get('weights')}, and not about "
            f"{model_revision(folder)} in {folder}: evaluate the folder that you publish"
        )
    tables = [report["mean"], report.get("ceiling") or {}, *_values(report.get("floors") or {})]
    if not all(_is_finite(value) for table in tables for value in _values(table) if value is not None):
        raise ValueError(f"{path}: mean, floors and ceiling must hold finite numbers by metric: evaluate again")
    return report


def _values(table: object) -> list:
    """The values of a table; for anything else one that is no number."""
    return list(table.values()) if isinstance(table, dict) else [math.nan]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _pixel_size(run: Run | None) -> float | None:
    """Metres a pixel of the run's pairs, from the georeference of the first; None where it tells none in metres."""
    if run is None or run.source is None or not Path(run.source).exists():
        return None
    with suppress(ValueError, OSError, CRSError):  # data that have moved or changed since
        row = load_pairs(run.source, list_splits(run.source)[0])[0]
        if row.get("crs") and row.get("bounds"):
            crs, (left, _, right, _) = CRS.from_user_input(row["crs"]), row["bounds"]
            size = (right - left) / read_image(row["sar"]).shape[1]
        else:
            with rasterio.open(row["sar"]["path"] or "", driver="GTiff") as raster:
                crs, size = raster.crs, abs(raster.transform.a)
        metric = crs is not None and crs.is_projected and crs.linear_units_factor[1] == 1
        return round(size, 3) if metric else None
    return None


# -------------------------------------------------------------------------------------------------------- the Hub


def _send(folder: Path, repo: str, private: bool, message: str, overwrite: bool) -> str:
    """Commit an assembled folder; returns the commit's address."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    repository = Repository(repo, "model")
    if not overwrite:
        check_same_model(repository, folder)
    if INDEX in repository.files:
        print(f"{repository.url} holds this model at {repository.sha}, which stays in its history: it gets a new state")
    repository.create(private)
    additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names]
    repository.upload(additions)
    url = repository.commit(additions, _stale(repository, names, overwrite), message)
    print(f"published: {repository.url}")
    return url


def _stale(repository: Repository, names: list[str], overwrite: bool) -> list[str]:
    """Files of the repository that do not go with the new model: parts of an old one; with `overwrite`, all others."""
    others = [name for name in repository.files if name not in {*names, *UNTOUCHED}]
    if overwrite:
        return others
    ours = {*COMPONENTS, *GENERATED}
    return [name for name in others if name.split("/")[0] in ours or name.lower().endswith(PICKLES)]


def check_same_model(repository: Repository, folder: Path) -> None:
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
    own = read_json(folder / INDEX)
    for key in ("_class_name", "unet", "vae", "sar_transform"):
        found, expected = index.get(key), own.get(key)
        if found != expected:
            raise ValueError(f"{where} another model ({key} is {found}, not {expected}): {way_out}")
    for part in ("unet", "vae"):
        if own.get(part, [None])[0] is None:
            continue
        found, expected = repository.read_json(f"{part}/config.json") or {}, read_json(folder / part / "config.json")
        for key in sorted(found.keys() | expected.keys()):
            one, other = found.get(key), expected.get(key)
            if not key.startswith("_") and one != other:
                raise ValueError(f"{where} another model ({key} of the {part} is {one}, not {other}): {way_out}")
