"""Flags that only stage 2 has: the loss, its prior and the augmentations; the check of their numbers, and the loss of them."""
import argparse

from torch import nn

from datasets.sampling import PRIORS, SAMPLERS, check_prior_rule
from models_mae import model_shape
from models_vit import MODELS
from util.args import Parser, check_range, parse_options
from util.losses import LOSSES, build_loss, read_prior
from util.run import say

# Flags that decide what the logits of a trained model mean; --eval takes them from the checkpoint.
LOSS_SETTINGS = ("loss", "loss_args", "tau", "test_prior", "sampler", "prior")
# Flags that say what network that is, which --eval cannot change but for the patch size, to which weights are resampled; and
# flags that say how its images are prepared: the checkpoint's unless given.
SHAPE = ("model", "patch_size", "embed_dim", "depth", "num_heads")
EVALUATION_SETTINGS = ("dataset", "data_path", "mean", "std", "input_size", "crop_pct", "patch_size", "amp", "seed")


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
    """RandAugment or 3-Augment, erasing, mixing and smoothing, all timm's; colour jitter; copies of an image."""
    group = parser.add_argument_group("augmentation")
    group.add_argument("--aa", default="rand-m9-mstd0.5-inc1", metavar="POLICY", help="timm's RandAugment string, 3aug "
                       "(DeiT III's: one of grey, solarised and blurred), or none")
    group.add_argument("--color_jitter", type=float, default=0.0, metavar="S", help="brightness, contrast and saturation by a "
                       "factor within 1 - S to 1 + S each, behind --aa")
    group.add_argument("--repeated_aug", type=int, default=1, metavar="N", help="copies of an image in an epoch, side by side, "
                       "each augmented anew; the epoch is as long as ever and draws one image in N")
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
    check_range(args, "val_fraction", 0, 1)
    if args.val_fraction is not None and "split" in args.given:
        raise ValueError(f"--val_fraction {args.val_fraction:g} scores a slice of the training images, so --split {args.split} "
                         "would do nothing: leave one of them out")
    if not 0 <= args.drop_path < 1:
        raise ValueError(f"--drop_path takes 0 <= P < 1, not {args.drop_path:g}: at 1 the last block would always be dropped")
    for name in ("reprob", "mixup_prob", "mixup_switch_prob", "smoothing", "color_jitter"):
        check_range(args, name, 0, 1)
    for name in ("mixup", "cutmix"):
        check_range(args, name, 0, float("inf"))
    for name in ("layer_decay", "crop_pct"):
        if not 0 < getattr(args, name) <= 1:
            raise ValueError(f"--{name} must lie in (0, 1], not {getattr(args, name):g}")
    for name in ("eval_every", "recount", "repeated_aug"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(args, name)}")
    for name in ("layer_scale", "head_std"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name} must be a finite number above 0, not {value:g}: leave it out for the default")
    if args.cutmix_minmax is not None and not 0 <= args.cutmix_minmax[0] < args.cutmix_minmax[1] <= 1:
        raise ValueError(f"--cutmix_minmax takes MIN and MAX with 0 <= MIN < MAX <= 1, not {args.cutmix_minmax}")
    if args.eval and args.finetune:
        raise ValueError("--eval scores --resume CKPT, so --finetune would do nothing: leave it out")
    if args.eval and not args.resume:
        raise ValueError("--eval needs trained weights: give --resume CKPT (a last.pth of main_finetune.py)")
    if args.head_order and not (args.eval or args.finetune):
        raise ValueError(f"--head_order {args.head_order} is of a head that is loaded: use it with --finetune, or with --eval "
                         "--resume")
    if args.head_order and not args.eval and args.head_bias != "zero":
        raise ValueError(f"--head_order {args.head_order} loads the head with its bias, so --head_bias {args.head_bias} would "
                         "do nothing: leave one of them out")
    if args.posthoc != "none" and not args.eval:
        raise ValueError(f"--posthoc {args.posthoc} corrects a trained model: use it with --eval --resume CKPT")


def with_checkpoint_flags(args, trained: dict) -> argparse.Namespace:
    """A copy of the flags of --eval in which those that were not given are the checkpoint's, and the network always is.

    ValueError where flags ask for another network than the checkpoint's.
    """
    there = model_shape(MODELS, *(trained[name] for name in SHAPE))
    # Another name asks for its own sizes; without one, single sizes are the checkpoint's but for those that are given.
    settings = vars(args) if "model" in args.given and args.model != trained["model"] else {
        **trained, **{name: getattr(args, name) for name in SHAPE if name in args.given}}
    here = model_shape(MODELS, *(settings[name] for name in SHAPE))
    token = args.cls_token or trained["cls_token"]
    if (here[1:], token) != (there[1:], trained["cls_token"]):
        asked, are = (f"{words(*shape)}{', class token' * pooled}" for shape, pooled in (
            (here, token), (there, trained["cls_token"])))
        flags = ", ".join(f"--{name}" for name in (*SHAPE, "cls_token") if name in args.given)
        raise ValueError(f"{args.resume} is a network of {are}, not of {asked}: leave {flags} out, --eval takes the network "
                         "out of the checkpoint")
    names = [*(name for name in SHAPE if name != "patch_size"), "cls_token", "layer_scale",
             *(name for name in EVALUATION_SETTINGS if name not in args.given)]
    names = [name for name in names if name in trained]
    return argparse.Namespace(**{**vars(args), **{name: trained[name] for name in names}})


def words(patch: int, dim: int, depth: int, heads: int) -> str:
    """The sizes of a network."""
    return f"patch {patch}, width {dim}, depth {depth}, {heads} heads"


def with_loss_defaults(args, num_classes: int):
    """A copy of the flags in which loss, tau, test prior (a file by its numbers) and smoothing are filled in."""
    prior, loss = read_test_prior(args.test_prior, num_classes), args.loss or "bal_bce"
    filled = {"loss": loss, "tau": 1.0 if args.tau is None else args.tau, "test_prior": "uniform" if prior is None else prior}
    if args.smoothing is None:
        smooths = loss in LOSSES and LOSSES[loss].smooths_labels
        filled["smoothing"] = 0.0 if smooths else 0.1
    return argparse.Namespace(**{**vars(args), **filled})


def read_test_prior(value: str | None, num_classes: int) -> str | list[float] | None:
    """--test_prior: unset, a word, or the probabilities in a file."""
    return value if value in (None, "uniform", "none") else read_prior(value, num_classes).tolist()


def build_criterion(args, class_counts, class_names: list[str]) -> nn.Module:
    """The loss of the flags. Its prior is the class distribution that the sampler draws, unless --prior says otherwise."""
    counts = check_prior_rule(args.loss, args.sampler, args.prior, class_counts, class_names)
    criterion = build_loss(args.loss, counts, tau=args.tau, test_prior=args.test_prior, class_names=class_names,
                           **parse_options(args.loss_args))
    if not criterion.uses_prior and (args.tau, args.test_prior) != (1.0, "uniform"):
        raise ValueError(f"--loss {args.loss} has no logit bias, so --tau and --test_prior would do nothing: leave them out, "
                         "or use bal_ce or bal_bce")
    return criterion


def check_loss_flags(args, criterion: nn.Module) -> None:
    """ValueError for flags that this loss makes void or doubles; prints a line where a schedule in it never begins."""
    if criterion.smooths_labels and args.smoothing:
        raise ValueError(f"--loss {args.loss} smooths labels by itself, so --smoothing {args.smoothing:g} would smooth them "
                         "twice: leave it out, or write --smoothing 0 behind the recipe that has it")
    begins = criterion.scheduled_epoch
    if begins is not None and begins >= args.epochs:
        words = f"the second part of --loss {args.loss} begins at epoch {begins}, and --epochs {args.epochs} ends before it"
        if parse_options(args.loss_args).keys() & {"warmup_epochs", "drw_epoch"}:
            raise ValueError(f"{words}: lower it in --loss_args, or train longer")
        say(f"note: {words}, so it never acts (--loss_args warmup_epochs=N moves it)")


def trained_loss(args, settings: dict) -> argparse.Namespace:
    """The loss flags of the checkpoint's `settings`; ValueError where a flag of --eval asks for others."""
    trained = argparse.Namespace(**{name: settings[name] for name in LOSS_SETTINGS})
    if args.loss not in (None, trained.loss):
        raise ValueError(f"{args.resume} was trained with --loss {trained.loss}, not {args.loss}: leave the flag out, or write "
                         f"--loss {trained.loss} behind the recipe that has it")
    for name, unset in (("loss_args", []), ("sampler", "random"), ("prior", None)):
        if getattr(args, name) not in (unset, getattr(trained, name)):
            raise ValueError(f"{args.resume} was trained with --{name} {getattr(trained, name)}, which --eval cannot change to "
                             f"{getattr(args, name)}: leave the flag out")
    if trained.prior == "data" and (args.posthoc != "none" or args.test_prior):
        raise ValueError(f"{args.resume} was trained with --sampler {trained.sampler} --prior data: the images that it saw and "
                         "the prior of its loss differ, and no formula undoes both: leave --posthoc and --test_prior out")
    if args.tau not in (None, trained.tau) and args.posthoc != "logit_adjust":
        raise ValueError(f"{args.resume} was trained with --tau {trained.tau:g}, not {args.tau:g}, which --eval cannot change: "
                         "leave the flag out, or add --posthoc logit_adjust, whose strength it is")
    return trained
