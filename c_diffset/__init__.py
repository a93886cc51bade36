"""c_diffset: SAR to EO image translation by conditional diffusion, with a confidence for every pixel."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what editors and type checkers see; at run time a name is imported when it is used
    from c_diffset.commands import finetune, prepare
    from c_diffset.data.pairs import load_pairs
    from c_diffset.evaluation.evaluate import evaluate
    from c_diffset.hub.publish import publish
    from c_diffset.hub.publish_pairs import publish_pairs
    from c_diffset.inference.canvas import translate_windows
    from c_diffset.inference.options import SceneOptions
    from c_diffset.inference.scene import translate_scene
    from c_diffset.pipelines.pipeline_cdiffset import CDiffSETPipeline, CDiffSETPipelineOutput
    from c_diffset.synthetic.generate import make_pair, write_pairs
    from c_diffset.training.config import FinetuneConfig

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
    "SceneOptions": "c_diffset.inference.options",
    "translate_scene": "c_diffset.inference.scene",
    "translate_windows": "c_diffset.inference.canvas",
}
__all__ = [
    "CDiffSETPipeline",
    "CDiffSETPipelineOutput",
    "FinetuneConfig",
    "SceneOptions",
    "evaluate",
    "finetune",
    "load_pairs",
    "make_pair",
    "prepare",
    "publish",
    "publish_pairs",
    "translate_scene",
    "translate_windows",
    "write_pairs",
]


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'c_diffset' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
