"""Build the loss that training minimises, and the mixing of images."""

from timm.data import Mixup
from timm.task import DistillationTeacher

from training.build.teacher import build_teacher
from training.runtime.distributed import World
from training.settings.settings import Settings
from training.settings.stages import train_sizes
from training.step.criteria import binary_cross_entropy, create_criterion
from training.step.objectives import Classification, Cosub, Distillation, Objective


def build_objective(settings: Settings, world: World, classes: list[str] | None = None) -> Objective:
    """Build the loss that flags ask for; a teacher must know the same classes as `classes`, if both are named."""
    if settings.bce_loss or settings.cosub:
        criterion = binary_cross_entropy(soft=not settings.bce_loss, smoothing=settings.smoothing)
    else:
        criterion = create_criterion(settings.mixed, settings.smoothing)
    if settings.cosub:
        return Cosub(criterion)
    if settings.distillation_type == "none":
        return Classification(criterion)
    teacher = DistillationTeacher(build_teacher(settings, world.device, classes)).to(world.device)
    return Distillation(
        criterion,
        teacher,
        hard=settings.distillation_type == "hard",
        alpha=settings.distillation_alpha,
        tau=settings.distillation_tau,
        in_chans=settings.in_chans,
    )


def build_mixup(settings: Settings) -> Mixup | None:
    """Build timm's mixup and cutmix if either is on; raise ValueError if no box of --cutmix-minmax fits the images."""
    if not settings.mixed:
        return None
    if settings.cutmix_minmax:
        low, high = settings.cutmix_minmax
        for size in train_sizes(settings):
            if any(int(low * side) == int(high * side) for side in size):
                raise ValueError(f"--cutmix-minmax: no whole number of pixels is {low:g} to {high:g} of {size}")
    return Mixup(
        settings.mixup,
        settings.cutmix,
        settings.cutmix_minmax,
        prob=settings.mixup_prob,
        switch_prob=settings.mixup_switch_prob,
        mode=settings.mixup_mode,
        label_smoothing=settings.smoothing,
        num_classes=settings.nb_classes,
    )
