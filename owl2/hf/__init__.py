"""mPLUG-Owl2 in `transformers`: `import owl2.hf`, and its Auto classes read released folders and ours.

Start with `modeling.py`: the modules are those of `owl2.model`, so nothing is copied and logits are equal to
the bit. `configuration.py` says which ids the library sees, `processing.py` wraps our processor.
"""

try:
    import transformers
except ImportError as error:
    raise ImportError("owl2.hf needs transformers: pip install 'owl2[hf]'") from error

from owl2.hf.configuration import Owl2HfConfig
from owl2.hf.modeling import MPLUGOwl2LlamaForCausalLM
from owl2.hf.processing import Owl2HfProcessor

__all__ = ["MPLUGOwl2LlamaForCausalLM", "Owl2HfConfig", "Owl2HfProcessor"]


def _register() -> None:
    transformers.AutoConfig.register("mplug_owl2", Owl2HfConfig, exist_ok=True)
    for auto in (transformers.AutoModelForImageTextToText, transformers.AutoModelForCausalLM):
        auto.register(Owl2HfConfig, MPLUGOwl2LlamaForCausalLM, exist_ok=True)
    transformers.AutoProcessor.register(Owl2HfConfig, Owl2HfProcessor, exist_ok=True)


_register()
