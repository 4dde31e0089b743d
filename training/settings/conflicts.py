"""Find flags that are valid one by one but contradict each other."""

from collections.abc import Iterator
from itertools import pairwise

from training.settings.rates import BOUNDED
from training.settings.settings import Settings

COMPILED = 8  # versions of a function that PyTorch compiles, one for each image size (torch._dynamo's recompile_limit)
WITHOUT_COOLDOWN = ("step", "plateau", "constant")  # timm adds a cooldown only to schedules that end


def conflicts(settings: Settings) -> Iterator[str]:
    """Yield one message for each contradiction between flags; it begins with the flag to change."""
    warms_up = settings.warmup_epochs > 0 and settings.warmup_lr > settings.lr
    teacher, taught = settings.teacher_model and settings.teacher_path, settings.distillation_type != "none"
    if settings.mixed and settings.step_size % 2 == 1 and not settings.eval:
        yield f"--batch-size: mixup and cutmix pair images, so it must be even, not {settings.step_size}"
    if any(after <= before for before, after in pairwise(settings.train_img_sizes or ())):
        yield "--train-img-sizes: must grow from each size to the next"
    if len(settings.train_img_sizes or ()) > settings.epochs:
        yield f"--train-img-sizes: has more sizes than --epochs {settings.epochs}"
    if settings.cutmix_minmax is not None and not settings.cutmix_minmax[0] < settings.cutmix_minmax[1]:
        yield "--cutmix-minmax: MIN must be below MAX"
    if settings.cooldown_epochs > 0 and settings.sched in WITHOUT_COOLDOWN:
        yield f"--cooldown-epochs: is for cosine, tanh and poly, not for --sched {settings.sched}"
    if settings.sched_on_updates and settings.sched == "plateau":
        yield "--sched-on-updates: --sched plateau goes by the top-1 of epochs; give --no-sched-on-updates"
    if settings.min_lr > settings.lr and settings.sched in BOUNDED and not settings.eval:
        yield f"--min-lr: {settings.min_lr:g} is above --lr {settings.lr:g}, so that the rate would rise"
    if warms_up and not settings.eval:
        yield f"--warmup-lr: {settings.warmup_lr:g} is above --lr {settings.lr:g}, so that the rate would fall to it"
    if settings.lr_noise is not None and len(settings.lr_noise) > 2:
        yield "--lr-noise: takes where noise starts, and perhaps where it ends"
    if settings.lr_noise is not None and len(settings.lr_noise) == 2 and (settings.lr_noise[0] >= settings.lr_noise[1]):
        yield "--lr-noise: must start before it ends"
    if taught and not teacher:
        yield "--distillation-type: needs the teacher, --teacher-model NAME --teacher-path FILE"
    if not taught and (settings.teacher_model or settings.teacher_path):
        yield "--teacher-model: has no effect without --distillation-type soft or hard"
    if settings.cosub and taught:
        yield "--cosub: is another kind of teaching than --distillation-type; choose one"
    if settings.cosub and (not (settings.drop_path and settings.train_mode)):
        yield "--cosub: both sub-models are the same without --drop-path"
    if settings.compile and settings.scan_recompute:
        yield "--compile: can't follow --scan-recompute, and keeps less for the backward pass itself"
    if settings.compile and settings.if_random_cls_token_position:
        yield "--compile: is for one order of tokens, not for --if_random_cls_token_position"
    if settings.if_random_token_rank and not settings.train_mode:
        yield "--if_random_token_rank: is a part of what --no-train-mode leaves out"
    if settings.if_random_cls_token_position and not settings.train_mode:
        yield "--if_random_cls_token_position: is a part of what --no-train-mode leaves out"
    if settings.compile and len(settings.train_img_sizes or ()) > COMPILED:
        yield f"--compile: makes a graph for each of --train-img-sizes, at most {COMPILED}"
    if settings.bce_loss and settings.smoothing > 0:
        smoothed = f"all of them with --smoothing {settings.smoothing}"
        yield f"--bce-loss: takes every class above 0 for right, which is {smoothed}; add --smoothing 0"
    if settings.smoothing == 1 and not settings.mixed:
        yield "--smoothing: of 1 leaves nothing to learn"
    if settings.grad_checkpointing and settings.scan_recompute:
        yield "--scan-recompute: is a part of what --grad-checkpointing does; choose one"
    if settings.eval and not (settings.resume or settings.pretrained):
        yield "--eval: needs the checkpoint to evaluate, --resume FILE, or --pretrained"
    if settings.real_labels and not settings.eval:
        yield "--real-labels: is for --eval"
    if settings.real_labels and (settings.dist_eval or settings.skip_bad_images):
        yield "--real-labels: needs all images in order on each process; leave --dist-eval and --skip-bad-images out"
    if settings.check and settings.eval:
        yield "--check: is about training, --eval about a checkpoint; choose one"
    if settings.auto_resume and not settings.output_dir:
        yield "--auto-resume: needs the run's --output_dir DIR"
    if settings.auto_resume and bool(settings.resume):
        yield "--auto-resume: finds the checkpoint itself, leave --resume out"
    if settings.save_steps > 0 and not settings.output_dir:
        yield "--save-steps: needs a place, --output_dir DIR"
    if settings.checkpoint_hist > 0 and not settings.output_dir:
        yield "--checkpoint-hist: needs a place, --output_dir DIR"
    if settings.log_images > 0 and not settings.output_dir:
        yield "--log-images: needs a place, --output_dir DIR"
    if settings.log_wandb and not settings.output_dir:
        yield "--log-wandb: sends what is logged in --output_dir DIR"
    if bool(settings.finetune and settings.resume):
        yield "--finetune: starts a new run, --resume continues one; choose one"
    if settings.pretrained and (settings.finetune or settings.resume):
        yield "--pretrained: starts from published weights; leave --finetune and --resume out"
    if settings.finetune_ema and not (settings.finetune or settings.pretrained):
        yield "--finetune-ema: has no effect without --finetune FILE or --pretrained"
