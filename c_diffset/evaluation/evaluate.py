"""The command `evaluate`: mean metrics beside floors and a ceiling, the protocol of the measurement, and pictures."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from c_diffset.precision import Precision

if TYPE_CHECKING:
    from c_diffset.evaluation.report import Comparison, Report
    from c_diffset.evaluation.session import Model
else:  # whoever asks for the annotations at run time, such as the console, would import all that a model needs
    Model = Any
ProtocolName = Literal["own", "zoo", "c-diffset"]
Spacing = Literal["leading", "linspace", "trailing"]


def evaluate(
    model: Model | list[Model],
    data: str | os.PathLike,
    split: str = "test",
    output: str | os.PathLike | None = None,
    num_inference_steps: int | None = None,
    crop_size: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    max_images: int | None = None,
    lpips_net: str | None = "squeeze",
    lpips_weights: str | os.PathLike | None = None,
    inception_weights: str | os.PathLike | None = None,
    download: bool = True,
    mean_colour: list[float] | None = None,
    grid_rows: int = 8,
    revision: str | None = None,
    device: str | None = None,
    dtype: Precision = "auto",
    overwrite: bool = False,
    vae: str | None = None,
    spread_samples: int = 0,
    protocol: ProtocolName = "own",
    timestep_spacing: Spacing | None = None,
    dists_weights: str | os.PathLike | None = None,
    save_images: bool = False,
    realism: float | None = None,
    two_sample: bool = False,
) -> "Report | Comparison":
    """Evaluate a model on a split, print a table, and write `metrics.json`, `per_image.csv`, `grid.png`, `report.html`.

    Several models are measured one after the other on the same images with the same noise. Each has its files in a
    folder of its own, `0_NAME` and so on; the page and `differences.json` compare them with the first.

    Args:
        model: A pipeline, its folder or its Hub id, or several. The progress bar of a given pipeline is switched off.
        data: The data set to measure on: a folder, a file or a Hub id, as `load_pairs` reads it.
        split: The split of `data` to measure on.
        output: A new or empty folder for the files. By default, nothing is written.
        num_inference_steps: The number of denoising steps. By default, the model's own one, or that of the protocol.
        crop_size: Images are cut into crops with sides of so many pixels. By default, they stay whole.
        batch_size: The number of images in a batch. The results do not depend on it.
        seed: Random seed of the sampling noise.
        max_images: The measurement stops after so many images (or crops), in the order of the data.
        lpips_net: The network of LPIPS: "squeeze", "alex" or "vgg", which most published figures use. None leaves LPIPS
            out.
        lpips_weights: A file with complete weights of LPIPS, which are otherwise downloaded.
        inception_weights: A file with pytorch-fid's weights for FID and KID, which are otherwise downloaded.
        download: False takes from torch's cache what is not given as a file, and names as left out what is not there.
        mean_colour: Red, green and blue in [0, 1] of the floor of one colour: an image that every model should surpass.
            By default, this is the mean colour of the data's train split.
        grid_rows: The picture `grid.png` shows so many images, the first ones.
        revision: The revision of a Hub id.
        device: The device to compute on. By default, CUDA where there is one. A given pipeline stays where it is.
        dtype: The precision of the model, which the report names. By default (auto), the fastest that the device has
            instructions for; float32 gives the same figures on every machine. A given pipeline stays as it is.
        overwrite: Files may be written into a folder that is not empty.
        vae: The folder or Hub id of an autoencoder of the same latent space, or "taesd", that takes the place of the
            model's own.
        spread_samples: The number of further samples of each image, whose spread is compared with the confidence. With
            0, none is drawn.
        protocol: The conventions of the figures. By default (own), they are those of this package. With zoo, they are
            those of the model zoos of ReFlowSET and GeoSET; with c-diffset, those of the C-DiffSET paper's own code.
        timestep_spacing: The times of the denoising steps. By default, they are the model's own ones (trailing), or
            those of the protocol. Published figures were sampled at the leading ones: 981, 961, and so on to 1.
        dists_weights: A file with the weights of DISTS, which are otherwise downloaded.
        save_images: Every generated image and its true image are written too, as `generated/ID.png` and `true/ID.png`,
            for other programs to measure.
        realism: From 0, the best estimate of every pixel, to 1, a plausible sample, for models of one step that were
            trained for it. By default, each model's own one.
        two_sample: A small network, which no loss contains, is trained from scratch to tell generated from true images
            at half of the places, and judges those of the other half, with five seeds. It takes minutes on a CPU.

    Returns:
        The `Report` that `metrics.json` holds. Its floors are what no model should fall below; its ceiling is the true
        EO image after the autoencoder's round trip. For several models, a `Comparison`.

    Raises:
        FileExistsError: `output` is not empty, and `overwrite` is not set.
        ValueError: `protocol` or `timestep_spacing` has no such name, or the model has times of its own.
        ValueError: `vae` does not fit the model, or comes with a pipeline in memory; one sample, which has no spread.
        ValueError, OSError: unusable data, model or weights files; the message names them.
    """
    from c_diffset.data.pairs import list_splits, load_pairs
    from c_diffset.evaluation import session as parts
    from c_diffset.evaluation.compare import compare, unique_names
    from c_diffset.evaluation.instruments import choose_instruments, try_features
    from c_diffset.evaluation.page.page import make_page
    from c_diffset.evaluation.page.pictures import Gallery, gallery_of
    from c_diffset.evaluation.report import Comparison, LeftOut, to_json
    from c_diffset.evaluation.sampling import check_sampling
    from c_diffset.evaluation.split import SplitPairs, check_arguments, is_remote, split_against_train, train_colour
    from c_diffset.files import public_name, write_file, write_json
    from c_diffset.loading import component_checksum, load_pipeline, model_revision
    from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline

    check_arguments(split, crop_size, batch_size, max_images, [num_inference_steps])
    rules = check_sampling(protocol, timestep_spacing)
    if spread_samples < 0 or spread_samples == 1:
        raise ValueError(f"spread_samples is {spread_samples}: a spread needs at least 2, and 0 leaves it out")
    if save_images and output is None:
        raise ValueError("save_images is set, but no output is named: name the folder with output")
    if grid_rows < 1:
        raise ValueError(f"grid_rows is {grid_rows}: expected at least 1")
    if mean_colour is not None and (len(mean_colour) != 3 or not all(0 <= value <= 1 for value in mean_colour)):
        raise ValueError(f"mean_colour is {mean_colour}: expected red, green and blue, each from 0 to 1")
    models = list(model) if isinstance(model, list | tuple) else [model]
    if not models:
        raise ValueError("model is an empty list: name at least one")
    parts.check_output(output, overwrite)
    # the data are read before models and networks are loaded
    pairs = SplitPairs(load_pairs(data, split), crop_size, max_images, rules.crop)
    train_rows = load_pairs(data, "train", streaming=is_remote(data)) if "train" in list_splits(data) else None
    eo_transform, sar_transforms = parts.check_models(models, revision, vae)
    networks = [parts.networks_in_losses(each, revision, vae) for each in models]
    pairs.check_eo(eo_transform, data)
    pairs.check_sar(sar_transforms, data)
    left_out: list[LeftOut] = []
    instruments = choose_instruments(rules, lpips_net, lpips_weights, dists_weights, download, left_out, pairs.enlarges)
    features = try_features(instruments.lpips_model, inception_weights, download, left_out, rules.sets)
    facts = {
        "data": str(data),
        "data_on_hub": is_remote(data),
        "data_name": public_name(data),
        "split": split,
        "split_against_train": split_against_train(pairs.rows, train_rows) if split != "train" else [],
        "seed": seed,
        "eo_values": parts.eo_values(eo_transform),
        "mean_colour": mean_colour or train_colour(train_rows, eo_transform, left_out),
    }
    session = parts.Session(
        pairs=pairs,
        facts=facts,
        num_inference_steps=num_inference_steps,
        timestep_spacing=timestep_spacing,
        realism=realism,
        batch_size=batch_size,
        spread_samples=spread_samples,
        grid_rows=grid_rows,
        instruments=instruments,
        features=features,
        left_out=left_out,
        two_sample=two_sample,
    )
    names, reports, galleries = unique_names([parts.name_of(each) for each in models]), [], []
    for i, each in enumerate(models):
        pipe = each if isinstance(each, CDiffSETPipeline) else load_pipeline(each, revision, device, dtype, vae)
        gallery = Gallery(chosen=set(galleries[0].pictures)) if galleries else Gallery()
        weights = None if pipe is each else model_revision(each, revision)
        if vae is not None:  # figures of another model than the one in the folder
            weights = f"{weights} with the autoencoder {vae}"
        identity = {"model": parts.name_of(each), "revision": revision, "weights": weights}
        identity["autoencoder_weights"] = None if pipe is each else component_checksum(Path(str(each)), "vae")
        identity["loss_networks"] = networks[i]
        own = f"{i}_{names[i].replace('/', '-')[:50]}" if len(models) > 1 else ""
        folder = None if output is None else Path(output, own)
        report, grid = session.measure(pipe, identity, gallery, folder if save_images else None)
        print(parts.quality_table(report))
        reports.append(report)
        galleries.append(gallery)
        if folder is not None:
            parts.write_files(report, grid, folder)
    gallery, differences = gallery_of(galleries, names, [report.images for report in reports]), compare(reports, names)
    if output is not None:
        if len(models) > 1:
            write_json(Path(output, "differences.json"), to_json(differences))
        write_file(Path(output, "report.html"), make_page(reports, names, differences, gallery))
        print(parts.closing(reports[0], len(models), Path(output)))
    return reports[0] if len(models) == 1 else Comparison(reports, differences)
