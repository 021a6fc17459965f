"""A trained network keeps what it has learned at another size of image, with nothing trained anew."""
import pytest

import datasets
import main_finetune
from datasets.embedded import load

# Seconds on one core: 49 patches, one block.
FLAGS = ["--dataset", "embedded", "--input_size", 28, "--model", "vit_tiny_patch16", "--patch_size", 4, "--embed_dim", 36,
         "--depth", 1, "--num_heads", 3, "--loss", "bal_ce", "--aa", "none", "--reprob", 0, "--smoothing", 0, "--drop_path", 0,
         "--layer_decay", 1, "--train_crop", "none", "--crop_pct", 1, "--lr", 3e-3, "--head_std", .02, "--warmup_epochs", 1,
         "--epochs", 4, "--eval_every", 4]
COMMON = ["--device", "cpu", "--amp", "off", "--num_workers", 0]


def run(*flags):
    return main_finetune.main(main_finetune.get_args_parser().parse_args(list(map(str, [*flags, *COMMON]))))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """last.pth of a classifier that was trained at 28 x 28, and its accuracy on 2,000 test images in percent."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_embedded", lambda split: tuple(part[:None if split == "train" else 2000]
                                                                     for part in load(split)))
        patch.setattr(main_finetune, "write_results", lambda *_: None)
        patch.setattr("util.figures.training_curves", lambda *_: None)
        yield folder / "last.pth", run(*FLAGS, "--output_dir", folder)["overall"]


def accuracy(trained, *flags):
    result = run("--eval", "--resume", trained[0], *flags)
    assert result["num_samples"] == 2000
    return result["overall"]


def test_patches_that_grow_with_the_image_keep_the_accuracy(trained):
    assert trained[1] > 40  # of ten classes
    assert accuracy(trained, "--input_size", 56, "--patch_size", 8) == pytest.approx(trained[1], abs=3)


def test_more_patches_at_positions_in_between_keep_most_of_it(trained):
    """7 x 7 -> 10 x 10; each patch then shows a smaller piece of the picture, which costs some."""
    assert accuracy(trained, "--input_size", 40) == pytest.approx(trained[1], abs=8)
