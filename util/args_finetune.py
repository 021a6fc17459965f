"""Flags that only stage 2 has: the loss, its prior and the augmentations, and the check of their numbers."""
from datasets.sampling import PRIORS, SAMPLERS
from util.args import Parser, check_range
from util.losses import LOSSES


def add_loss_flags(parser: Parser) -> None:
    """The loss, its prior, and what is drawn for it. With --eval the loss is the checkpoint's."""
    group = parser.add_argument_group("loss")
    group.add_argument("--loss", metavar="NAME", help=f"one of {', '.join(LOSSES)} (bal_bce by default)")
    group.add_argument("--loss_args", nargs="+", default=[], metavar="NAME=VALUE", help="options of that loss, such as lam=2 "
                       "of nt_bce or beta=.999 of cb_ce")
    group.add_argument("--tau", type=float, help="scale of the logit bias of balanced losses (1 by default); with --eval, of "
                       "--posthoc logit_adjust")
    group.add_argument("--test_prior", metavar="uniform|none|FILE", help="class distribution of the test set: uniform (the "
                       "default, Eq. 10), none (Thm. 2), or a file of C probabilities (Thm. 3); with --eval a trained model is "
                       "moved to it")
    group.add_argument("--head_bias", default="zero", choices=["zero", "prior"], help="start of the head's bias: 0, or the "
                       "best constant logits under the loss")
    group.add_argument("--sampler", default="random", choices=SAMPLERS, help="images an epoch draws: each once, every class "
                       "equally often, or by the root of its size")
    group.add_argument("--prior", choices=PRIORS, help="class counts of a re-balancing loss beside a re-balancing sampler: as "
                       "the sampler draws them, or as the data have them")


def add_augmentation_flags(parser: Parser) -> None:
    """RandAugment, erasing, mixing and smoothing, all timm's."""
    group = parser.add_argument_group("augmentation")
    group.add_argument("--aa", default="rand-m9-mstd0.5-inc1", metavar="POLICY", help="timm's RandAugment string, or none")
    group.add_argument("--reprob", type=float, default=0.25, metavar="P", help="probability of random erasing")
    group.add_argument("--remode", default="pixel", choices=["pixel", "rand", "const"], help="what erasing fills in")
    group.add_argument("--recount", type=int, default=1, metavar="N", help="largest number of erased boxes")
    group.add_argument("--mixup", type=float, default=0.0, metavar="A", help="mixup alpha, 0 is off")
    group.add_argument("--cutmix", type=float, default=0.0, metavar="A", help="cutmix alpha, 0 is off")
    group.add_argument("--cutmix_minmax", type=float, nargs=2, metavar=("MIN", "MAX"), help="sides of cutmix's box, instead "
                       "of --cutmix")
    group.add_argument("--mixup_prob", type=float, default=1.0, metavar="P", help="probability of mixing a micro-batch")
    group.add_argument("--mixup_switch_prob", type=float, default=0.5, metavar="P", help="of cutmix where both are on")
    group.add_argument("--mixup_mode", default="batch", choices=["batch", "pair", "elem"], help="what one draw is for")
    group.add_argument("--smoothing", type=float, metavar="S", help="label smoothing (.1 by default; 0 for mislas, which "
                       "smooths by itself)")


def check_finetune(args) -> None:
    """Raise ValueError for numbers that cannot be."""
    for name in ("drop_path", "reprob", "mixup_prob", "mixup_switch_prob", "smoothing"):
        check_range(args, name, 0, 1)
    for name in ("mixup", "cutmix"):
        check_range(args, name, 0, float("inf"))
    for name in ("layer_decay", "crop_pct"):
        if not 0 < getattr(args, name) <= 1:
            raise ValueError(f"--{name} must lie in (0, 1], not {getattr(args, name):g}")
    for name in ("eval_every", "recount"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.cutmix_minmax is not None and not 0 <= args.cutmix_minmax[0] < args.cutmix_minmax[1] <= 1:
        raise ValueError(f"--cutmix_minmax takes MIN and MAX with 0 <= MIN < MAX <= 1, not {args.cutmix_minmax}")
    if args.eval and args.finetune:
        raise ValueError("--eval scores --resume CKPT, so --finetune would do nothing: leave it out")
    if args.eval and not args.resume:
        raise ValueError("--eval needs trained weights: give --resume CKPT (a last.pth of main_finetune.py)")
    if args.posthoc != "none" and not args.eval:
        raise ValueError(f"--posthoc {args.posthoc} corrects a trained model: use it with --eval --resume CKPT")
