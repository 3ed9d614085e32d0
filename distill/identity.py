"""Learning identity: a classifier over the training people that pulls embeddings apart, and is dropped at export."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill import ranks
from edgeface.specs import LossSpec

DEFAULT = "center"  # where the recipe names no form of the identity loss


def center_loss(embedding: Tensor, centres: Tensor, people: Tensor) -> Tensor:
    """Half the squared distance of each embedding to its person's centre.

    Args:
        embedding: (B, D).
        centres: (P, D).
        people: (B,) person of each sample.

    Returns:
        (B,).

    Source:
        Wen et al., A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016, eq. 2.
    """
    return 0.5 * (embedding - centres[people]).square().sum(dim=1)


def moved_centres(centres: Tensor, embedding: Tensor, people: Tensor, *, rate: float) -> Tensor:
    """The centres after a batch: each moves towards its samples, less when it has few.

    Args:
        centres: (P, D).
        embedding: (B, D).
        people: (B,) person of each sample.
        rate: Alpha, in (0, 1].

    Returns:
        (P, D); a person without a sample stays in place.

    Source:
        Wen et al., ECCV 2016, eq. 4; the one in the denominator keeps few samples from throwing a centre about.
    """
    total = torch.zeros_like(centres).index_add_(0, people, centres[people] - embedding)
    count = torch.zeros_like(centres[:, 0]).index_add_(0, people, torch.ones_like(embedding[:, 0]))
    return centres - rate * total / (1.0 + count)[:, None]


def additive_margin(embedding: Tensor, weight: Tensor, people: Tensor, *, margin: float, scale: float) -> Tensor:
    """Cross-entropy over cosines, the right person's less a margin.

    Args:
        embedding: (B, D) of any length.
        weight: (P, D), a direction for each person.
        people: (B,) person of each sample.
        margin: In units of the cosine.
        scale: Factor on the cosines.

    Returns:
        (B,).

    Source:
        Wang et al., Additive Margin Softmax for Face Verification, arXiv:1801.05599, eq. 6.
    """
    cosines = F.normalize(embedding, dim=1) @ F.normalize(weight, dim=1).T
    taken = margin * F.one_hot(people, len(weight)).to(cosines)
    return F.cross_entropy(scale * (cosines - taken), people, reduction="none")


class PeopleClassifier(nn.Module):
    """Scores embeddings against the people of the training set.

    Its weights are trained with the network. Centres are no parameters: they follow the embeddings at a rate of their
    own. Both are part of every step checkpoint and of none of the files that are built.

    Args:
        people: How many people the labels name.
        features: Length of the embedding.
        spec: With the form under `forms.identity`: "softmax", "center" (softmax and centre loss) or "margin".
        generator: Of the first weights.

    Source:
        Softmax and centre loss together: Wen et al., ECCV 2016, eq. 5; so do Ming et al., arXiv:1911.03281, whose
        weight of 0.1 is of a mean over the D values instead of half their sum.
    """

    centres: Tensor

    def __init__(self, people: int, features: int, *, spec: LossSpec, generator: torch.Generator) -> None:
        super().__init__()
        self.form = spec.forms.get("identity", DEFAULT)
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(people, features).normal_(0.0, features**-0.5, generator=generator))
        self.bias = nn.Parameter(torch.zeros(people)) if self.form != "margin" else None
        self.register_buffer("centres", torch.zeros(people, features))

    def forward(self, embedding: Tensor, people: Tensor) -> Tensor:
        """(B, D) raw embeddings and (B,) people, -1 where not known, to (B,); zero without gradient where not known.

        In training mode the centres move, once the loss was taken from where they stood.
        """
        known = people >= 0
        rows, named = embedding[known], people[known]
        if self.form == "margin":
            value = additive_margin(rows, self.weight, named, margin=self.spec.margin, scale=self.spec.margin_scale)
        else:
            value = F.cross_entropy(F.linear(rows, self.weight, self.bias), named, reduction="none")
        if self.form == "center":
            value = value + self.spec.center_weight * center_loss(rows, self.centres, named)
            if self.training:
                with torch.no_grad():
                    every, who = ranks.gather(embedding.detach()), ranks.gather(people)
                    every, who = every[who >= 0], who[who >= 0]
                    self.centres.copy_(moved_centres(self.centres, every, who, rate=self.spec.center_rate))
        return embedding.sum(dim=1).mul(0.0).index_put((known.nonzero().squeeze(1),), value)
