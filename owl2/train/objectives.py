"""What a stage minimises: the paper's next-token loss, or a cheap warm start of the abstractor before it.

`bag_of_words` is not in the paper and off in its configurations. The decoder does not run: the mean visual
token of a picture must score, through the output head, the words of its caption in no order. It puts the
visual tokens into the space of the word embeddings, where a frozen language model can read them, for a small
part of a captioning step's cost (learning visual features by predicting words: Joulin et al., 2016).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from owl2.data.loader import Batch
from owl2.model import Owl2Model


def next_token(model: Owl2Model, batch: Batch) -> Tensor:
    """Cross-entropy (L,) of each labelled token given what stands before it."""
    return model.token_losses(batch.input_ids, batch.layout, batch.targets, batch.pixel_values)


def bag_of_words(model: Owl2Model, batch: Batch) -> Tensor:
    """Cross-entropy (L,) of each labelled token given its sample's picture alone.

    Raises:
        ValueError: a sample without exactly one picture.
    """
    num_samples, num_images = len(batch.layout.lengths), len(batch.pixel_values)
    if num_samples != num_images:
        raise ValueError(
            f"bag_of_words needs one picture a sample; got {num_images} for {num_samples} samples: use "
            f"caption sources only"
        )
    picture = model.encode_images(batch.pixel_values).mean(dim=1)  # I D
    return F.cross_entropy(
        model.logits(picture)[sample_of_targets(batch)], batch.targets.ids, reduction="none"
    )


def sample_of_targets(batch: Batch) -> Tensor:
    """(L,) int64: to which sample of the batch each target belongs."""
    return torch.bucketize(batch.targets.rows, batch.layout.boundaries[1:], right=True)


OBJECTIVES: dict[str, Callable[[Owl2Model, Batch], Tensor]] = {
    "next_token": next_token,
    "bag_of_words": bag_of_words,
}
