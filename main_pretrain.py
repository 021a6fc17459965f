"""Stage 1, masked generative pretraining (MGP): learn an encoder from images alone.

    python main_pretrain.py @recipes/embedded/pretrain.args --output_dir runs/mgp
    python main_pretrain.py --dataset folder --data_path DIR --mean .485 .456 .406 --std .229 .224 .225 --output_dir runs/own
"""
import argparse

import torch

from datasets.imageset import ImageSet
from datasets.loading import train_loader
from datasets.transforms import Normalize, eval_transform
from engine_pretrain import train_one_epoch
from models_mae import MODELS, as_pair, build_mae
from util import figures, signals
from util.args import (
    Parser,
    add_data_flags,
    add_model_flags,
    add_optimizer_flags,
    add_run_flags,
    run_command,
)
from util.checkpoint import writing
from util.lr import param_groups
from util.reconstruct import show_masked
from util.run import RunFolder, say
from util.seed import derive_seed, seeded
from util.session import Session
from util.setup import (
    build_training,
    check_same_data,
    describe,
    load_images,
    may_skip,
    place,
    plan_steps,
    set_up,
)
from util.start import begin, start_autoencoder

BLR = 1.5e-4  # the paper's and MAE's, at 256 images


def get_args_parser() -> Parser:
    """Flags of stage 1, with MAE's names and defaults."""
    parser = Parser("LiVT stage 1: masked generative pretraining")
    add_run_flags(parser)
    add_data_flags(parser, scale=(0.2, 1.0))
    add_model_flags(parser, "mae_vit_base_patch16", MODELS)
    group = parser.add_argument_group("masked autoencoder")
    group.add_argument("--mask_ratio", type=float, default=0.75, help="share of the patches that is removed")
    group.add_argument("--norm_pix_loss", action=argparse.BooleanOptionalAction, default=False, help="predict every patch "
                       "normalised by its own mean and deviation")
    group.add_argument("--decoder_embed_dim", type=int, default=512, metavar="N")
    group.add_argument("--decoder_depth", type=int, default=8, metavar="N")
    group.add_argument("--decoder_num_heads", type=int, default=16, metavar="N")
    add_optimizer_flags(parser, epochs=400, blr=BLR, min_lr=0.0, warmup_epochs=40, betas=(0.9, 0.95))
    return parser


def build_model(args, in_chans: int):
    """The autoencoder of the flags."""
    if not 0 < args.mask_ratio < 1:
        raise ValueError(f"--mask_ratio must lie between 0 and 1, both excluded, not {args.mask_ratio:g}")
    for name in ("decoder_embed_dim", "decoder_depth", "decoder_num_heads"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(args, name)}")
    return build_mae(args.model, as_pair(args.input_size), in_chans, args.patch_size, args.embed_dim, args.depth,
                     args.num_heads, decoder_embed_dim=args.decoder_embed_dim, decoder_depth=args.decoder_depth,
                     decoder_num_heads=args.decoder_num_heads, norm_pix_loss=args.norm_pix_loss)


def show_reconstructions(model, images: ImageSet, normalize: Normalize, args, run: RunFolder, epoch: int) -> None:
    """Reconstructions of the first eight training images under fixed masks, as a figure and in TensorBoard."""
    transform = eval_transform(as_pair(args.input_size), crop_pct=1.0)
    device = normalize.factor.device
    batch = torch.stack([transform(images.image(i)) for i in range(min(8, len(images)))])
    batch = normalize(batch.to(device))
    model.eval()
    with seeded(derive_seed(args.seed, "figure"), device):
        shown = show_masked(model, normalize, batch, args.mask_ratio)
    title = f"{args.model}, epoch {epoch}, mask ratio {args.mask_ratio:g}"
    if args.norm_pix_loss:
        title += "; patches undone with their true mean and deviation"
    path = figures.reconstructions(run.figures / "reconstructions.png", *shown, title)
    run.tensorboard.add_figure("reconstructions", figures.draw_reconstructions(*shown, title), epoch)
    say(f"wrote {path}")


@signals.remembered()
def main(args) -> dict:
    """Run stage 1; returns the last epoch's record."""
    machine = set_up(args)
    world = machine.world
    images = may_skip(args, load_images(args, "train"))
    check_same_data(images, world)
    normalize = Normalize(images.record, machine.device)
    run = RunFolder(args.output_dir or "output_dir")
    args, settings, state, words = begin(args, run, "pretrain", images)
    plan = plan_steps(args, images, world, state)
    loader = train_loader(images, as_pair(args.input_size), args.batch_size, args.seed, args.train_crop, tuple(args.scale),
                          args.hflip, None, args.num_workers, machine.device, loader=args.loader, process=world.rank,
                          processes=world.size)

    model = place(build_model(args, images.record.channels), machine, args.grad_checkpointing, args.compile)
    begun = {}
    if state is None:
        start, begun = start_autoencoder(args, settings, model)
        words += f", {start}"
    stepper, schedule = build_training(args, model, param_groups(model, args.weight_decay), plan, machine, BLR)
    session = Session("pretrain", settings, run, stepper, images, plan, schedule, loader.batch_sampler, world, args.save_every,
                      args.save_steps)
    session.restore(state)
    run.create(settings, {**describe(plan, schedule, machine, images), **begun}, session.log_lines, session.epoch)
    say(f"stage 1, {args.model}: {len(images)} images of {images.source}, {plan.steps_per_epoch} steps of "
        f"{plan.effective_batch_size} images an epoch, lr {schedule.lr:.3g}; {words}; run folder {run.path}")

    def train_epoch(epoch: int, first_step: int, after_step) -> dict:
        return train_one_epoch(loader, normalize, stepper, plan, schedule, epoch, args.mask_ratio, args.seed, args.log_every,
                               first_step, after_step)

    session.listen()  # to what came since the start
    session.train(args.epochs, train_epoch, lambda epoch, record: {**record, **run.log_bad_images(images)})

    last = world.from_first(run.records()[-1] if world.first else None)
    with writing(run.path):
        run.write_json("metrics.json", {"epoch": last["epoch"], "train_loss": last["train_loss"]})
        if world.first:
            figures.training_curves(run.figures / "training.png", run.records())
            show_reconstructions(stepper.trained, images, normalize, args, run, args.epochs)
            run.log_settings(settings, last)
        run.close()
    return last


if __name__ == "__main__":
    run_command(get_args_parser(), main)
