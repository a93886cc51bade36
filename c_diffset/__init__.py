"""c_diffset: SAR to EO image translation by conditional diffusion, with a confidence for every pixel."""

from importlib import import_module

__version__ = "0.1.0"

_WHERE = {
    "CDiffSETPipeline": "c_diffset.pipelines.pipeline_cdiffset",
    "CDiffSETPipelineOutput": "c_diffset.pipelines.pipeline_cdiffset",
    "FinetuneConfig": "c_diffset.training.config",
    "finetune": "c_diffset.commands",
    "load_pairs": "c_diffset.data.pairs",
    "make_pair": "c_diffset.synthetic.generate",
    "write_pairs": "c_diffset.synthetic.generate",
    "prepare": "c_diffset.commands",
    "evaluate": "c_diffset.evaluation.evaluate",
    "publish": "c_diffset.hub.publish",
    "publish_pairs": "c_diffset.hub.publish_pairs",
    "SceneOptions": "c_diffset.inference.scene",
    "translate_scene": "c_diffset.inference.scene",
    "translate_windows": "c_diffset.inference.canvas",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'c_diffset' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
