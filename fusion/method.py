"""Define how tokens fuse: the paper's method, and alternatives to each of its choices for ablations."""

from dataclasses import dataclass, fields

# The first of each is the default, and Famba-V's choice (arXiv 2409.09808, section 3).
CHOICES = {
    "average": ("mean", "size"),
    "metric": ("hidden", "residual", "input", "delta", "B", "C", "scan"),
    "distance": ("cosine", "l2", "l1"),
    "order": ("keep", "concat"),
    "reduce": ("fuse", "prune"),
    "match": ("similar", "random", "lowest"),
    "score": ("place", "delta", "scan"),
}
PARTS = ("delta", "B", "C", "scan")  # choices that the mixer has to hand out
_OTHER_METRICS, _OTHER_DISTANCES = CHOICES["metric"][1:], CHOICES["distance"][1:]
_UNUSED = "`metric` and `distance` have no effect with"
# Choices that don't go together, by the names of their attributes, and why.
CONTRADICTIONS = (
    (
        {"reduce": ("prune",), "average": ("size",)},
        "`average` size has no effect with `reduce` prune, which averages nothing",
    ),
    ({"match": ("random",), "metric": _OTHER_METRICS}, f"{_UNUSED} `match` random"),
    ({"match": ("random",), "distance": _OTHER_DISTANCES}, f"{_UNUSED} `match` random"),
    ({"score": ("place",), "match": ("lowest",)}, "`match` lowest needs `score` delta or scan"),
    (
        {"reduce": ("prune",), "match": ("lowest",), "metric": _OTHER_METRICS},
        f"{_UNUSED} `reduce` prune and `match` lowest",
    ),
    (
        {"reduce": ("prune",), "match": ("lowest",), "distance": _OTHER_DISTANCES},
        f"{_UNUSED} `reduce` prune and `match` lowest",
    ),
)


@dataclass(frozen=True)
class Method:
    """Choose how the tokens of a layer are compared, paired and fused.

    Attributes:
        average: A fused token is the plain `mean` of its parts, or weighs each by its `size`, the number of patches
            that it stands for (as ToMe, arXiv 2210.09461, section 3).
        metric: Tokens are compared by `hidden`, the output of the layer's mixer, by `residual`, the sum that came
            into the layer, or by `input`, the sum of both that goes into the next layer. Or by what the mixer computed
            on its way: the step sizes `delta` and the projections `B` and `C` of both directions, or the `scan`, the
            output of both directions before it is projected to the width of a token.
        distance: Similarity is the `cosine`, or minus the `l2` or `l1` distance of the vectors as they are.
        order: `keep` leaves survivors in sequence order; `concat` puts first the possible sources that were not fused,
            by falling similarity, and then the possible targets, as ToMe leaves them. A class token then moves r places
            to the front, or to the first place if there are fewer.
        reduce: `fuse` averages a token into its target, `prune` drops it.
        match: The most `similar` pairs fuse, or `random` ones, as a control, or those whose source has the `lowest`
            score.
        score: Which tokens may vanish, half of them: by `place`, every other one; or those with the lowest score, the
            mean step size, `delta` (as MTR, arXiv 2507.14042), or the mean positive output of the `scan` (as ToP-ViM,
            arXiv 2409.18962).

    Raises:
        ValueError: A choice is unknown, or has no effect in combination with another one.
    """

    average: str = "mean"
    metric: str = "hidden"
    distance: str = "cosine"
    order: str = "keep"
    reduce: str = "fuse"
    match: str = "similar"
    score: str = "place"

    def __post_init__(self) -> None:
        for field in fields(self):
            choice, known = getattr(self, field.name), CHOICES[field.name]
            if choice not in known:
                raise ValueError(f"`{field.name}` must be one of {', '.join(known)}, not {choice!r}")
        for choices, reason in CONTRADICTIONS:
            if all(getattr(self, name) in refused for name, refused in choices.items()):
                raise ValueError(reason)

    @property
    def is_default_matching(self) -> bool:
        """Return whether the most similar pairs by the cosine fuse, and survivors keep their order."""
        return (self.distance, self.order, self.match) == ("cosine", "keep", "similar")

    @property
    def parts(self) -> tuple[str, ...]:
        """Return what the mixer has to hand out beside its output, by the names of PARTS."""
        return tuple({name: None for name in (self.metric, self.score) if name in PARTS})
