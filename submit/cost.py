"""What a job costs, by a model that is stated: images of all epochs over a throughput, scaled by the network's multiply-adds.

A block of width D on L tokens multiplies 12 L D^2 + 2 L^2 D times. Stage 1 runs its encoder on the patches that a mask leaves
and its decoder on all of them; stage 2 the whole network. Evaluation, loading and starting cost nothing here.
"""
from main_pretrain import MODELS as MAE_MODELS
from models_mae import as_pair, model_shape, patch_grid
from models_vit import MODELS
from submit.experiment import Job, training_counts

IMAGES_PER_SECOND = 1000.0  # a round number for ViT-B/16 at 224, training on one GPU of 2020 in bf16; not measured here
CORE_IMAGES_PER_SECOND = 1800.0  # of the small networks on one core of an AMD EPYC, either stage, measured
REFERENCE = 12 * (12 * 197 * 768**2 + 2 * 197**2 * 768)  # multiply-adds of that network on an image


def blocks(depth: int, width: int, tokens: float) -> float:
    """Multiply-adds of a transformer on one image."""
    return depth * (12 * tokens * width**2 + 2 * tokens**2 * width)


def multiply_adds(job: Job) -> float:
    """Those of the job's network on one training image, forward."""
    args = job.parse()
    models = MAE_MODELS if job.run.stage == "pretrain" else MODELS
    patch, width, depth, _ = model_shape(models, args.model, args.patch_size, args.embed_dim, args.depth, args.num_heads)
    rows, columns = patch_grid(as_pair(args.input_size), patch)
    patches = rows * columns
    if job.run.stage == "finetune":
        return blocks(depth, width, patches + 1)
    seen = patches * (1 - args.mask_ratio) + 1
    return blocks(depth, width, seen) + blocks(args.decoder_depth, args.decoder_embed_dim, patches + 1)


def images_of(job: Job) -> int:
    """Training images of all its epochs."""
    args = job.parse()
    return int(training_counts(job.run.data, args.imb_factor).sum()) * args.epochs


def gpu_hours(job: Job, images_per_second: float = IMAGES_PER_SECOND) -> float:
    """Hours of one GPU on which ViT-B/16 at 224 trains so many images a second."""
    return images_of(job) * multiply_adds(job) / REFERENCE / images_per_second / 3600


def core_minutes(job: Job) -> float:
    """Minutes of one core for a run of a small network, in which the number of images decides and not the width."""
    return images_of(job) / CORE_IMAGES_PER_SECOND / 60


def words(scale: str, images_per_second: float) -> str:
    """From what the estimate is made."""
    if scale == "small":
        return f"Core minutes: training images x epochs / {CORE_IMAGES_PER_SECOND:g} images a second, measured on one core."
    return (f"GPU hours: training images x epochs / {images_per_second:g} images a second, scaled by the network's "
            "multiply-adds to ViT-B/16 at 224 on one GPU (--images_per_second: measure yours with one epoch); neither "
            "evaluation nor loading is in it.")
