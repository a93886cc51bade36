"""`c-diffset publish`: a pipeline becomes a complete, documented repository of the Hugging Face Hub, in one commit."""

import os
from pathlib import Path


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
        folder: The folder that `save_pretrained` has written, such as RUN/pipeline.
        repo: The Hub id of the repository, user/name; it is made if it does not exist.
        private: Make a new repository private.
        dry_run: A new or empty folder that everything is written to, instead of the Hub.
        evaluation: The folder or `metrics.json` of `c-diffset evaluate`, for the metrics of the card. Of several models
            that were evaluated together, the report with the weights of `folder` counts.
        grid: A PNG file with pictures for the card; only where the licence of the data lets them be shown.
        license: The identifier of the weights' licence; it follows from the base where that is Stable Diffusion.
        base_model: The Hub id that the weights come from, where the run does not tell.
        datasets: The Hub ids of the training data, where the run does not tell.
        pixel_size: The metres a pixel of the training data, where the data do not tell.
        message: The message of the commit.
        overwrite: Replace what a repository holds, even where that is another model.

    Returns:
        The address of the commit, or the dry run's folder.

    Raises:
        ValueError: an unfit id, licence or evaluation; a folder with pickles, links or foreign parts; a repository with
            another model.
        FileNotFoundError: an incomplete folder.
        PermissionError: no token.
        OSError: the connection was lost, or the Hub refuses; the message says whether anything was committed.
    """
    from c_diffset.hub.checks import check_repo_id
    from c_diffset.hub.contents import Choices, assemble, send, write_contents
    from c_diffset.hub.repository import check_token

    check_repo_id(repo)
    if dry_run is None:
        check_token()
    choices = Choices(evaluation, grid, license, base_model, datasets, pixel_size)
    contents = assemble(Path(folder), repo, choices)
    if dry_run is None:
        return send(contents, repo, private, message, overwrite)
    write_contents(contents, Path(dry_run))
    print(f"{dry_run}: complete, nothing was sent")
    return str(dry_run)
