"""Training objectives: the paper's next-token loss, and a cheap warm start for the abstractor.

`bag_of_words` is not in the paper and off in its configurations. The decoder does not run: through the final
norm and head, the visual tokens of an image together predict the words of its caption, in any order. This
moves visual tokens towards word embeddings, which a frozen language model can read, at a small part of the
cost of a captioning step (visual features learnt from words: Joulin et al., 2016).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from owl2.data.loader import Batch
from owl2.data.sample import DataError
from owl2.model import Owl2Model


def next_token(model: Owl2Model, batch: Batch) -> Tensor:
    """Cross-entropy (L,) of each labelled token given the tokens before it."""
    return model.token_losses(
        batch.input_ids, batch.layout, batch.targets, batch.pixel_values, image_of=batch.image_of
    )


def bag_of_words(model: Owl2Model, batch: Batch) -> Tensor:
    """Cross-entropy (L,) of each labelled token given its sample's image alone.

    An image's distribution over words is the mean of its visual tokens' distributions, so the loss is lower
    if different tokens predict different words.

    Raises:
        DataError: a sample without exactly one image.
    """
    num_samples, num_images = len(batch.layout.lengths), len(batch.pixel_values)
    if num_samples != num_images:
        raise DataError(
            f"objective bag_of_words needs one image per sample; a batch has {num_images} for {num_samples} "
            f"samples: use caption sources only"
        )
    visual_tokens = model.model.norm(model.encode_images(batch.pixel_values))  # I Q D
    log_shares = F.log_softmax(model.logits(visual_tokens), dim=-1)
    log_words = log_shares.logsumexp(dim=1) - math.log(visual_tokens.shape[1])  # I V
    return F.nll_loss(log_words[sample_of_targets(batch)], batch.targets.ids, reduction="none")


def sample_of_targets(batch: Batch) -> Tensor:
    """(L,) int64: the number in the batch of each target's sample."""
    return torch.bucketize(batch.targets.rows, batch.layout.boundaries[1:], right=True)


OBJECTIVES: dict[str, Callable[[Owl2Model, Batch], Tensor]] = {
    "next_token": next_token,
    "bag_of_words": bag_of_words,
}
