"""What a stage minimises: the paper's next-token loss, or a cheap warm start of the abstractor before it.

`bag_of_words` is not in the paper and off in its configurations. The decoder does not run: read out through
final norm and head, the visual tokens of an image must between them name the words of its caption, in no
order. That puts words of the embedding space into visual tokens, where a frozen language model can read them,
for a small part of a captioning step's cost (learning visual features from words: Joulin et al., 2016).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from owl2.data.loader import Batch
from owl2.model import Owl2Model


def next_token(model: Owl2Model, batch: Batch) -> Tensor:
    """Cross-entropy (L,) of each labelled token given what stands before it."""
    return model.token_losses(
        batch.input_ids, batch.layout, batch.targets, batch.pixel_values, image_of=batch.image_of
    )


def bag_of_words(model: Owl2Model, batch: Batch) -> Tensor:
    """Cross-entropy (L,) of each labelled token given its sample's image alone.

    An image's distribution over words is the mean of its visual tokens' distributions, so tokens that share
    the words among them score better than tokens that all say everything.

    Raises:
        ValueError: a sample without exactly one image.
    """
    num_samples, num_images = len(batch.layout.lengths), len(batch.pixel_values)
    if num_samples != num_images:
        raise ValueError(
            f"bag_of_words needs one image a sample; got {num_images} for {num_samples} samples: use "
            f"caption sources only"
        )
    visual_tokens = model.model.norm(model.encode_images(batch.pixel_values))  # I Q D
    log_shares = F.log_softmax(model.logits(visual_tokens), dim=-1)
    log_words = log_shares.logsumexp(dim=1) - math.log(visual_tokens.shape[1])  # I V
    return F.nll_loss(log_words[sample_of_targets(batch)], batch.targets.ids, reduction="none")


def sample_of_targets(batch: Batch) -> Tensor:
    """(L,) int64: to which sample of the batch each target belongs."""
    return torch.bucketize(batch.targets.rows, batch.layout.boundaries[1:], right=True)


OBJECTIVES: dict[str, Callable[[Owl2Model, Batch], Tensor]] = {
    "next_token": next_token,
    "bag_of_words": bag_of_words,
}
