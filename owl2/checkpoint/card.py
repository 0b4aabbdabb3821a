"""The model card: `README.md` of a checkpoint folder."""

from collections.abc import Mapping

from owl2.checkpoint.errors import gigabytes
from owl2.model import Owl2Config


def model_card(config: Owl2Config, sizes: Mapping[str, int], name: str) -> str:
    """Return `README.md` for a checkpoint folder; `sizes` are the bytes of each tensor."""
    vision, abstractor, decoder, mam = config.vision, config.abstractor, config.decoder, config.mam
    parts = [part for part in ("norm", "key", "value") if getattr(mam, part)]
    return f"""---
library_name: owl2
pipeline_tag: image-text-to-text
---
# {name}

An [mPLUG-Owl2](https://arxiv.org/abs/2311.04257) checkpoint: {gigabytes(sum(sizes.values()))} of weights in
{len(sizes)} tensors, as safetensors under the names of the released model.

| part | shape |
|---|---|
| vision encoder | {vision.num_hidden_layers} layers of width {vision.hidden_size}, {vision.image_size} px, \
patch {vision.patch_size} |
| visual abstractor | {abstractor.num_hidden_layers} layers, {config.tokens_per_image} tokens per image |
| decoder | {decoder.num_hidden_layers} layers of width {decoder.hidden_size}, \
{decoder.num_attention_heads} heads ({decoder.num_key_value_heads} for keys and values), \
vocabulary {decoder.vocab_size}, context {decoder.max_position_embeddings} |
| modality-adaptive | {", ".join(parts) or "nothing"} |

```python
import owl2

owl = owl2.load("{name}")
print(owl.chat([{{"role": "user", "content": [{{"type": "image", "image": image}}, \
{{"type": "text", "text": "What is this?"}}]}}]))
```
"""
