"""The command `c-diffset`: every option is a parameter of the Python function that the command calls."""

import sys
from collections.abc import Callable
from importlib import import_module

from c_diffset.arguments import ArgumentParser, quieten

# command: (module:function, what it does)
COMMANDS = {
    "demo": ("c_diffset.demo:demo", "train and test a small model on generated scenes, in minutes"),
    "inspect": ("c_diffset.commands:inspect", "look at a data set: splits, sizes, values, faults, a picture"),
    "prepare": ("c_diffset.commands:prepare", "bring a data set into the standard form"),
    "degrade": ("c_diffset.commands:degrade", "make pairs for super-resolution out of EO images"),
    "finetune": ("c_diffset.commands:finetune", "fine-tune a model, on one process"),
    "distill": ("c_diffset.commands:distill", "distil a model into a student of few steps, on one process"),
    "finetune_decoder": ("c_diffset.commands:finetune_decoder", "fine-tune a tiny decoder, on one process"),
    "convert": ("c_diffset.convert.convert:convert", "make a model out of weights that others have released"),
    "translate": ("c_diffset.inference.translate:translate", "translate SAR images and whole scenes to EO"),
    "info": ("c_diffset.info:info", "say what a model reads and writes, and what scenes would take"),
    "calibrate": ("c_diffset.evaluation.calibrate:calibrate", "measure what error the model's variance stands for"),
    "publish": ("c_diffset.hub.publish:publish", "publish a model on the Hugging Face Hub"),
    "evaluate": ("c_diffset.evaluation.evaluate:evaluate", "measure a model on a split: metrics, floors, pictures"),
    "compare": ("c_diffset.evaluation.compare:write_report", "put earlier evaluations side by side on one page"),
    "env": ("c_diffset.environment:env", "show versions and machine, to paste into a bug report"),
}
CONFIGURED = ("finetune", "distill", "finetune_decoder")  # commands that read --config FILE.yaml
# arguments whose form on the command line does not follow from the function's signature, the first those of scenes
OF_SCENES = {
    "--bands": {
        "nargs": "+",
        "help": "Polarisations (VV VH HH HV) or numbers of a scene's bands, in the order that the model reads.",
    },
    "--bbox": {
        "nargs": 4,
        "type": float,
        "metavar": ("LEFT", "BOTTOM", "RIGHT", "TOP"),
        "help": "Part of each scene that is translated, in units of `bbox_crs`; pixels that it touches count.",
    },
    "--window": {
        "nargs": 4,
        "type": int,
        "metavar": ("COLUMN", "ROW", "WIDTH", "HEIGHT"),
        "help": "Part of each scene that is translated, in pixels, counted from 0 and after warping.",
    },
}
ARGUMENTS = {
    "prepare": {
        "layout": {
            "help": "Layout of the data: folders, csv, parquet, webdataset, hub, or a published one: sen1-2, sen12ms, "
            "bigearthnet, major-tom, terramesh, ssl4eo-s12, qxs-saropt, sar2opt, spacenet6."
        },
        "source": {"help": "Folder or file of the data set; for hub, its id."},
        "out": {"help": "New folder for the standard form."},
    },
    "convert": {
        "kind": {
            "choices": ["c-diffset", "acd", "guided-diffusion"],
            "help": "Code that wrote the weights: C-DiffSET of either stage (Do et al.), a student of adversarial "
            "consistency distillation (acd; Bai and Xu), or conditional diffusion in pixel space (guided-diffusion; "
            "Bai, Pu and Xu).",
        },
        "source": {"help": "File of the weights, .safetensors or .pt, or a folder that holds it with its config.json."},
        "out": {"help": "New folder for the model."},
    },
    "degrade": {
        "source": {"help": "Folder, file or Hub id of the EO images, or of pairs, whose EO images are taken."},
        "out": {"help": "New folder for the pairs."},
    },
    "inspect": {"data": {"help": "Folder, CSV file, Parquet file, WebDataset shards or Hub id of the pairs."}},
    "translate": {
        "inputs": {
            "nargs": "+",
            "metavar": "INPUT",
            "help": "Images, GeoTIFF, SAFE folders; folders of them, glob patterns, lists (.txt), STAC items (.json).",
        },
        **OF_SCENES,
    },
    "info": {
        "model": {"help": "Folder or Hub id of the model."},
        "scenes": {
            "nargs": "*",
            "metavar": "SCENE",
            "help": "GeoTIFF, SAFE folders; folders of them, glob patterns, lists (.txt), STAC items (.json).",
        },
        **OF_SCENES,
    },
    "publish": {
        "folder": {"help": "Folder that is published, such as RUN/pipeline."},
        "--repo": {"required": True, "help": "Hub id of the repository, user/name."},
        "--datasets": {"nargs": "+", "help": "Hub ids of the training data."},
    },
    "calibrate": {
        "--num_inference_steps": {
            "nargs": "+",
            "type": int,
            "help": "Numbers of steps, each calibrated by itself; by default the model's own.",
        },
    },
    "evaluate": {
        "--model": {"required": True, "nargs": "+", "help": "Folder or Hub id of the model; several are compared."}
    },
    "compare": {
        "metrics": {"nargs": "+", "metavar": "EVALUATION", "help": "File metrics.json of an evaluation, or its folder."}
    },
}
HELP = f"""usage: c-diffset COMMAND [OPTION ...]

Translate SAR images to EO images, and say how far each pixel can be trusted.

{"".join(f"  {name:<17} {text}" + chr(10) for name, (_, text) in COMMANDS.items())}
`c-diffset COMMAND --help` shows the options; they are named like the Python parameters that they set.
Training on several processes or GPUs: `accelerate launch tools/finetune.py`, and likewise `tools/distill.py`.
"""


def command_parser(name: str) -> tuple[ArgumentParser, Callable]:
    """The parser of one command, and the function it calls."""
    target, text = COMMANDS[name]
    module, function_name = target.split(":")
    function = getattr(import_module(module), function_name)
    parser = ArgumentParser(prog=f"c-diffset {name}", description=text[0].upper() + text[1:] + ".")
    arguments = ARGUMENTS.get(name, {})
    for argument, options in arguments.items():
        parser.add_argument(argument, **options)
    parser.add_function_arguments(function, as_group=False, skip={argument.strip("-") for argument in arguments})
    return parser, function


def main(args: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 where some input failed, 2 for wrong usage."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if args[0] == "--version":
        print(import_module("c_diffset").__version__)
        return 0
    if args[0] not in COMMANDS:
        print(f"c-diffset: unknown command {args[0]!r}: expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    quieten()
    try:
        if args[0] in CONFIGURED:
            result = import_module("c_diffset.commands").train_as_told(args[0], args[1:])
        else:
            parser, function = command_parser(args[0])
            result = function(**vars(parser.parse_args(args[1:])))
    except (ValueError, OSError) as error:
        print(f"c-diffset {args[0]}: {' '.join(str(error).split())}", file=sys.stderr)  # libraries write several lines
        return 2
    except KeyboardInterrupt as stop:
        if not hasattr(stop, "status"):  # a training has said itself how it goes on
            print(f"c-diffset {args[0]}: interrupted", file=sys.stderr)
        return getattr(stop, "status", 130)
    return 1 if getattr(result, "failed", None) else 0


if __name__ == "__main__":
    sys.exit(main())
