"""Flags: those that both stages have stand here once. Names and meanings are MAE's where MAE has them."""
import argparse
import ast
import copy
import math
import shlex
import sys
import traceback
from pathlib import Path

import torch

from datasets import DATASETS
from datasets.decode import UnreadableImage
from datasets.loading import LOADERS
from util.checkpoint import SaveError
from util.distributed import is_collective_error, world
from util.signals import LEFT, SAVED, Stopped
from util.steps import OPTIMIZERS, NonFiniteError

PROJECT = Path(__file__).resolve().parent.parent
NO_TEXT = "a file named with @ is no text: a recipe has one flag a line"


class Parser(argparse.ArgumentParser):
    """Reads recipes, `@recipes/NAME/stage.args`: one flag a line, `#` begins a comment; later flags win."""

    def __init__(self, description: str):
        super().__init__(description=description, fromfile_prefix_chars="@", allow_abbrev=False,
                         formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    def convert_arg_line_to_args(self, line: str) -> list[str]:
        if any("\udc80" <= letter <= "\udcff" for letter in line):
            self.error(NO_TEXT)  # what newer Pythons read such bytes as
        try:
            return shlex.split(line, comments=True)
        except ValueError as error:
            self.error(f"recipe line {line!r}: {error}; put values with quotes or blanks in double quotes")

    def expanded(self, words: list[str]) -> list[str]:
        """Command-line words with every recipe replaced by the words that it holds."""
        try:
            return self._read_args_from_files(words)
        except UnicodeDecodeError:
            self.error(NO_TEXT)
        except RecursionError:
            self.error("a recipe names itself with @: leave that line out")

    def parse_known_args(self, args=None, namespace=None):
        """As argparse, and `given` tells which flags were given and which have their default."""
        namespace, unset = argparse.Namespace() if namespace is None else namespace, object()
        defaults = {action.dest: action.default for action in self._actions
                    if action.default is not argparse.SUPPRESS and not hasattr(namespace, action.dest)}
        for name in defaults:
            setattr(namespace, name, unset)
        words = list(sys.argv[1:] if args is None else args)
        args, others = super().parse_known_args(self.expanded(words) if self.fromfile_prefix_chars else words, namespace)
        args.given = [name for name in defaults if getattr(args, name) is not unset]
        for name in defaults.keys() - set(args.given):
            setattr(args, name, copy.copy(defaults[name]))
        return args, others

    def error(self, message: str):
        main = getattr(sys.modules["__main__"], "__spec__", None)  # None of a script, a module's with python -m
        command = f"-m {main.name}" if main else Path(sys.argv[0]).name
        self.exit(2, f"error: {message} (see python {command} --help)\n")


def add_run_flags(parser: Parser) -> None:
    """Where a run lives, on what it runs, and how often it reports."""
    group = parser.add_argument_group("run")
    group.add_argument("--output_dir", metavar="DIR", help="run folder (output_dir by default); an unfinished run in "
                       "it is continued, another run in it is refused")
    group.add_argument("--resume", metavar="CKPT", help="continue from this last.pth; weights alone are taken as --finetune")
    group.add_argument("--finetune", metavar="CKPT", help="weights to start from, this project's, MAE's, LiVT's, timm's or "
                       "Hugging Face's, a file or a folder: the encoder; in stage 1 the decoder too, where they have one; in "
                       "stage 2 the head of a classifier of this project and of the same classes; random weights without it")
    group.add_argument("--device", default="auto", help="auto (cuda where there is one), cpu, cuda, cuda:1, ...")
    group.add_argument("--seed", type=int, default=0, help="decides every random draw")
    group.add_argument("--num_workers", type=int, metavar="N", help="processes that load images (by default one a "
                       "core, up to 10; none for sets in memory, unless a GPU would wait for their augmentation)")
    group.add_argument("--amp", default="auto", choices=["auto", "bf16", "fp16", "off"], help="type of matrix products; "
                       "auto is bf16 where the device has it, else fp32")
    group.add_argument("--log_every", type=int, default=50, metavar="STEPS", help="steps between two looks at the device: "
                       "whether training is finite, and a line of progress, every half minute at most")
    group.add_argument("--save_every", type=int, default=1, metavar="EPOCHS", help="epochs between two checkpoints")
    group.add_argument("--save_steps", type=int, metavar="STEPS", help="steps between two checkpoints within an epoch (none by "
                       "default)")
    group.add_argument("--dist_timeout", type=float, default=1800.0, metavar="SECONDS", help="how long one process waits for "
                       "another before all of them end")
    group.add_argument("--deterministic", action="store_true", help="only operations that give the same bits again (slower on "
                       "GPUs), an error where torch has none")
    group.add_argument("--grad_checkpointing", action="store_true", help="keep no activations within blocks and compute them "
                       "again: less memory, about a third more time")
    group.add_argument("--compile", action="store_true", help="compile the transformer blocks (torch.compile): faster steps "
                       "after a minute or so at the start; needs a C++ compiler on CPUs, Triton on GPUs")


def add_data_flags(parser: Parser, scale: tuple[float, float]) -> None:
    """Which images, and how training images are cut."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", default="folder", metavar="NAME", help=f"one of {', '.join(DATASETS)}")
    group.add_argument("--data_path", metavar="DIR", help="where the images are")
    group.add_argument("--mean", type=float, nargs="+", metavar="M", help="channel means in [0, 1], for sets without a "
                       "record of their own")
    group.add_argument("--std", type=float, nargs="+", metavar="S", help="channel deviations in [0, 1]")
    group.add_argument("--imb_factor", type=float, metavar="F", help="draw a long tail out of the training images, largest "
                       "class over smallest: for cifar10_lt and cifar100_lt (100 by default), folder and list (no draw)")
    group.add_argument("--data_seed", type=int, metavar="S", help="which draw that is (0 by default)")
    group.add_argument("--input_size", type=int, nargs="+", default=[224], metavar="PIXELS", help="one number, or height "
                       "and width")
    group.add_argument("--train_crop", default="rrc", choices=["rrc", "pad", "none"], help="rrc: RandomResizedCrop; pad: "
                       "pad by an eighth and crop (shifts); none: resize only")
    group.add_argument("--scale", type=float, nargs=2, default=list(scale), metavar=("MIN", "MAX"), help="share of the "
                       "image's area that rrc takes")
    group.add_argument("--hflip", type=float, default=0.5, metavar="P", help="probability of a horizontal flip")
    group.add_argument("--loader", default="fast", choices=LOADERS, help="who decodes and resizes image files: fast is torch "
                       "and torchvision, pil the exact reference (sets in memory are decoded already)")
    group.add_argument("--skip_bad_images", type=int, default=0, metavar="N", help="training images that may turn out "
                       "unreadable, each replaced by the next of its class and listed in bad_images.txt; one more stops the "
                       "run")


def add_model_flags(parser: Parser, default: str, models: dict) -> None:
    """Which network; the overrides change single numbers of a named size."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", default=default, metavar="NAME", help=f"one of {', '.join(models)}")
    for name in ("patch_size", "embed_dim", "depth", "num_heads"):
        group.add_argument(f"--{name}", type=int, metavar="N", help="instead of the named model's")


def add_optimizer_flags(parser: Parser, epochs: int, blr: float, min_lr: float, warmup_epochs: int,
                        betas: tuple[float, float]) -> None:
    """The optimiser, its schedule and the batch."""
    group = parser.add_argument_group("optimiser")
    group.add_argument("--batch_size", type=int, default=64, metavar="N", help="images a process and micro-batch")
    group.add_argument("--accum_iter", type=int, metavar="N", help="micro-batches an optimiser step (1 by default)")
    group.add_argument("--effective_batch_size", type=int, metavar="N", help="images an optimiser step; accum_iter is "
                       "derived from it")
    group.add_argument("--epochs", type=int, default=epochs, metavar="N")
    group.add_argument("--warmup_epochs", type=float, default=warmup_epochs, metavar="N", help="linear from "
                       "--warmup_lr")
    group.add_argument("--warmup_lr", type=float, default=0.0, metavar="LR", help="where the warm-up begins")
    group.add_argument("--blr", type=float, metavar="LR", help=f"base learning rate, {blr:g} by default: lr = blr * effective "
                       "batch / 256")
    group.add_argument("--lr", type=float, metavar="LR", help="absolute learning rate instead of --blr")
    group.add_argument("--min_lr", type=float, default=min_lr, metavar="LR", help="where the cosine ends")
    group.add_argument("--opt", default="adamw", choices=OPTIMIZERS, help="AdamW, or LAMB (timm's), which scales every "
                       "tensor's step with its norm")
    group.add_argument("--weight_decay", type=float, default=0.05, metavar="W")
    group.add_argument("--opt_betas", type=float, nargs=2, default=list(betas), metavar=("B1", "B2"))
    group.add_argument("--clip_grad", type=float, metavar="NORM", help="largest gradient norm (no clipping by default)")
    group.add_argument("--max_bad_steps", type=int, default=20, metavar="N", help="non-finite steps in a row after which the "
                       "run goes back to its last checkpoint, once, and then stops")
    group.add_argument("--ema", type=float, metavar="DECAY", help="keep the moving average of the weights too (timm's), which "
                       "is then what is scored and loaded")


def check_common(args) -> None:
    """Raise ValueError for flags whose numbers cannot be, before anything is built."""
    for name in ("batch_size", "epochs", "log_every", "save_every", "save_steps", "max_bad_steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if not 0 <= args.warmup_epochs < args.epochs:
        raise ValueError(f"--warmup_epochs {args.warmup_epochs:g} must be below --epochs {args.epochs} and not negative")
    if args.num_workers is not None and args.num_workers < 0:
        raise ValueError(f"--num_workers must not be negative: {args.num_workers}")
    if args.skip_bad_images < 0:
        raise ValueError(f"--skip_bad_images must not be negative: {args.skip_bad_images}")
    if len(args.input_size) > 2 or min(args.input_size) < 1:
        raise ValueError(f"--input_size takes one number or height and width, each at least 1, not {args.input_size}")
    if not 0 < args.scale[0] <= args.scale[1] <= 1:
        raise ValueError(f"--scale takes MIN and MAX with 0 < MIN <= MAX <= 1, not {args.scale}")
    if args.output_dir == "":
        raise ValueError("--output_dir is empty (an unset variable?): name a folder, or leave the flag out for output_dir")
    if args.lr is not None and args.blr is not None:
        raise ValueError(f"--lr {args.lr:g} and --blr {args.blr:g} both set the learning rate: give one (a recipe may have "
                         "given the other)")
    check_range(args, "hflip", 0, 1)
    check_range(args, "ema", 0, 1)
    if not 0 < args.dist_timeout < 1e7:
        raise ValueError(f"--dist_timeout is in seconds, above 0 and below 1e7 (116 days), not {args.dist_timeout:g}")
    if not all(0 <= beta < 1 for beta in args.opt_betas):
        raise ValueError(f"--opt_betas must lie in [0, 1), not {args.opt_betas}")
    for name in ("weight_decay", "min_lr", "lr", "blr", "warmup_lr", "clip_grad"):
        check_range(args, name, 0, float("inf"))
    if args.warmup_lr and not args.warmup_epochs:
        raise ValueError(f"--warmup_lr {args.warmup_lr:g} does nothing with --warmup_epochs 0: leave it out, or warm up")


def check_range(args, name: str, low: float, high: float) -> None:
    """Raise ValueError unless the flag is unset or a finite number within [low, high]."""
    value = getattr(args, name)
    if value is not None and not (low <= value <= high and math.isfinite(value)):
        wanted = f"must be a finite number, at least {low:g}" if high == float("inf") else f"must lie in [{low:g}, {high:g}]"
        raise ValueError(f"--{name} {wanted}, not {value:g}")


def parse_options(words: list[str]) -> dict:
    """NAME=VALUE words -> {name: value}, the value a Python literal (2, .5, None, 'text') or the word itself."""
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise ValueError(f"--loss_args takes NAME=VALUE, such as lam=2, not {word!r}")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def run_command(parser: Parser, main) -> None:
    """Parse the command line and call main(args); a failure ends in one line and an exit code, on all processes.

    Exit code 2 is a user's mistake: a ValueError that this project's code raised. One from inside a library is a bug of
    ours and keeps its traceback. 75 is a run that was asked to stop and has saved, 1 any other failure.
    """
    args = parser.parse_args()
    try:
        code = to_the_end(main, args)
    except KeyboardInterrupt:
        print(LEFT, file=sys.stderr)
        world().fail(130, "stopped by Ctrl-C")
        sys.exit(130)
    except Exception as error:
        code, message = outcome(error, args)
        if message is None:
            world().fail(1, f"{type(error).__name__}: {error}")
            raise
        earlier = world().fail(code, message)
        if earlier and not isinstance(error, NonFiniteError | SaveError):  # which all meet at once, and each can tell
            code, message = earlier
        print(f"error: {message}", file=sys.stderr)
    if code:
        sys.exit(code)


def to_the_end(main, args) -> int:
    """Call main(args), and leave together with the other processes: the exit code, 0 or SAVED."""
    code = 0
    try:
        main(args)
    except Stopped as stop:
        print(stop, file=sys.stderr) if world().first else None
        code = SAVED
    world().close()
    return code


def outcome(error: Exception, args) -> tuple[int, str | None]:
    """Exit code and the line that says what to do; no line where the traceback is what tells."""
    if isinstance(error, NonFiniteError | SaveError):
        return 1, str(error)
    if isinstance(error, UnreadableImage):
        # A loading worker wraps the message in its own traceback; the last line is the message.
        return 2, str(error).strip().splitlines()[-1].split("UnreadableImage: ")[-1]
    if isinstance(error, ValueError):
        # A path that is not absolute is that of a compiled extension, which is no code of this project.
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        ours = raised_in.is_absolute() and raised_in.is_relative_to(PROJECT) and "site-packages" not in raised_in.parts
        return (2, str(error)) if ours else (1, None)
    if isinstance(error, torch.OutOfMemoryError):
        batch = getattr(args, "batch_size", None)
        return 1, (f"the device has too little memory for --batch_size {batch} ({str(error).splitlines()[0]}): halve "
                   "--batch_size and double --accum_iter, or add --grad_checkpointing")
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return 1, (f"{str(error).splitlines()[0]}: a process that loads images has died, most often for want of memory: lower "
                   "--num_workers, or give the job more memory; the same command goes on from the last checkpoint")
    if is_collective_error(error):
        return 1, world().explain(error)
    return 1, None
