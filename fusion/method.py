"""Define how tokens fuse: the paper's method, and alternatives to each of its choices for ablations."""

from dataclasses import dataclass, fields

# The first of each is the default, and Famba-V's choice (arXiv 2409.09808, section 3).
CHOICES = {
    "average": ("mean", "size"),
    "metric": ("hidden", "residual", "input"),
    "distance": ("cosine", "l2", "l1"),
    "order": ("keep", "concat"),
    "reduce": ("fuse", "prune"),
    "match": ("similar", "random"),
}


@dataclass(frozen=True)
class Method:
    """Choose how the tokens of a layer are compared, paired and fused.

    Attributes:
        average: A fused token is the plain `mean` of its parts, or weighs each by its `size`, the number of patches
            that it stands for (as ToMe, arXiv 2210.09461, section 3).
        metric: Tokens are compared by `hidden`, the output of the layer's mixer, by `residual`, the sum that came
            into the layer, or by `input`, the sum of both that goes into the next layer.
        distance: Similarity is the `cosine`, or minus the `l2` or `l1` distance of the vectors as they are.
        order: `keep` leaves survivors in sequence order; `concat` puts first the possible sources that were not fused,
            by falling similarity, and then the possible targets, as ToMe leaves them. A class token then moves r places
            to the front, or to the first place if there are fewer.
        reduce: `fuse` averages a token into its target, `prune` drops it.
        match: The most `similar` pairs fuse, or `random` ones, as a control.

    Raises:
        ValueError: A choice is unknown, or has no effect in combination with another one.
    """

    average: str = "mean"
    metric: str = "hidden"
    distance: str = "cosine"
    order: str = "keep"
    reduce: str = "fuse"
    match: str = "similar"

    def __post_init__(self) -> None:
        for field in fields(self):
            choice, known = getattr(self, field.name), CHOICES[field.name]
            if choice not in known:
                raise ValueError(f"`{field.name}` must be one of {', '.join(known)}, not {choice!r}")
        if self.reduce == "prune" and self.average == "size":
            raise ValueError("`average` size has no effect with `reduce` prune, which averages nothing")
        if self.match == "random" and (self.metric, self.distance) != ("hidden", "cosine"):
            raise ValueError("`metric` and `distance` have no effect with `match` random")

    @property
    def is_default_matching(self) -> bool:
        """Return whether the most similar pairs by the cosine fuse, and survivors keep their order."""
        return (self.distance, self.order, self.match) == ("cosine", "keep", "similar")
