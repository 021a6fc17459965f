"""Small versions of tables and figures: the same comparison on small images, with networks of up to half a million parameters.

Minutes on a core instead of days on GPUs, and other numbers: they say whether an effect shows, not how large the paper's is.
Recipes are those of recipes/embedded and recipes/cifar100_lt_small with other sizes and fewer epochs. Data that are not to be
had are replaced, and named: CIFAR-10 by Fashion-MNIST under the same rule, CIFAR-100 of factor 10 by a draw out of factor 100.
"""
from datasets import embedded
from submit import paper
from submit.experiment import DATA, Figure, Run, Table, finetune, metrics_row, pretrain
from submit.studies import IMAGENET_GROUPS, TABLE_6_LOSSES, loss_table, strategy_table

TAUS = (0, 0.5, 1, 1.5, 2)
LAMBDAS = (1, 2, 5, 10)
WIDTHS = {"Tiny": (32, 2), "Small": (48, 3), "Base": (64, 4), "Large": (96, 3)}
# Stage-2 epochs: a run is to take about a minute on one core, whatever its set.
EMBEDDED_EPOCHS, CIFAR_EPOCHS, CIFAR_10_EPOCHS = 20, 8, 30
FASHION = ("--dataset", "folder", "--mean", embedded.MEAN, "--std", embedded.STD)
MGP_CIFAR = pretrain("cifar100_lt_small/pretrain", data="cifar100_folder")
ONE_SET = f"{DATA['embedded'].title}; 4 blocks, patches of 7 pixels, MGP 60 epochs, BFT {EMBEDDED_EPOCHS}"


def epochs(number: int) -> tuple:
    """Flags of a shorter stage 2, its warm-up an eighth of it."""
    return "--epochs", number, "--warmup_epochs", number / 8, "--eval_every", max(1, number // 4)


def width(size: str) -> tuple:
    """Flags of a size."""
    return "--embed_dim", WIDTHS[size][0], "--num_heads", WIDTHS[size][1]


def embedded_run(size: str, loss: str, *flags) -> Run:
    """A cell of Table 6."""
    start = pretrain("embedded/pretrain", *width(size))
    return finetune("embedded/finetune", *width(size), "--loss", loss, *epochs(EMBEDDED_EPOCHS), *flags, after=start)


def fashion_run(data: str, loss: str) -> Run:
    """A cell of the first two columns of Table 7; LDAM's classifier has no bias."""
    start = ("--head_bias", "zero") if loss == "ldam" else ()
    return finetune("embedded/finetune", *FASHION, "--loss", loss, *start, *epochs(EMBEDDED_EPOCHS), data=data,
                    after=pretrain("embedded/pretrain"))


def cifar_run(loss: str, *flags, number: int = CIFAR_EPOCHS) -> Run:
    """A run on CIFAR-100-LT from the one encoder of it."""
    start = ("--head_bias", "zero") if loss == "ldam" else ()
    return finetune("cifar100_lt_small/finetune", "--loss", loss, *start, *epochs(number), *flags, data="cifar100_folder",
                    after=MGP_CIFAR)


def table2() -> Table:
    """From random weights, MAE with CE, LiVT."""
    none = finetune("embedded/finetune", *width("Large"), "--loss", "ce", *epochs(EMBEDDED_EPOCHS))
    runs = {"ViT": none, "MAE": embedded_run("Large", "ce"), "LiVT": embedded_run("Large", "bal_bce")}
    rows = tuple(metrics_row(name, run, paper.TABLE_2[name]) for name, run in runs.items())
    return Table("ImageNet-LT, small", f"{ONE_SET}; width 96.", rows, (("MAE", "ViT"), ("LiVT", "MAE")), IMAGENET_GROUPS)


def table6() -> Table:
    """Losses with and without the bias, four widths."""
    return loss_table("CE and BCE with and without the bias, small", f"{ONE_SET}. The head's bias starts at the best constant "
                      "logits; the last rows start it at 0.", {size: f"ViT-{size} (width {of[0]})" for size, of
                                                              in WIDTHS.items()}, embedded_run, IMAGENET_GROUPS, "zero")


def table7() -> Table:
    """Re-balancing losses on four sets."""
    columns = {"CIFAR-10-LT 100 (stand-in: Fashion-MNIST)": lambda loss: fashion_run("fashion_100", loss),
               "CIFAR-10-LT 10 (stand-in: Fashion-MNIST)": lambda loss: fashion_run("fashion_10", loss),
               "CIFAR-100-LT 100": cifar_run,
               "CIFAR-100-LT 10 (stand-in: 55 images of the largest class instead of 500)":
                   lambda loss: cifar_run(loss, "--imb_factor", 10, number=CIFAR_10_EPOCHS)}
    head = (f"Width 96, 4 blocks, no mixing. Fashion-MNIST: {DATA['fashion_100'].title.split(', ', 1)[1]} and "
            f"{DATA['fashion_10'].title.split(', ', 1)[1]}, encoder of the embedded set (60 epochs), BFT {EMBEDDED_EPOCHS} "
            f"epochs. CIFAR-100: encoder of CIFAR-100-LT (15 epochs), BFT {CIFAR_EPOCHS} epochs on 10,847 images and "
            f"{CIFAR_10_EPOCHS} on 2,108.")
    return strategy_table("Re-balancing losses, small", head, columns)


def figure1() -> Figure:
    """Accuracy over size."""
    series = {"LiVT (Bal-BCE)": "bal_bce", "MAE with CE": "ce"}
    return Figure("Accuracy over the size of the network, small", f"{ONE_SET}; runs of Table 6.", "points", {
        label: {of[0]: embedded_run(size, loss) for size, of in WIDTHS.items()} for label, loss in series.items()}, "width")


def figure2() -> Figure:
    """Training curves of four losses."""
    return Figure("Loss and accuracy in training, small", f"{ONE_SET}; width 96, runs of Table 6.", "curves", {
        paper.LOSS_TITLES[loss]: {0: embedded_run("Large", loss)} for loss in TABLE_6_LOSSES})


def figure3() -> Figure:
    """tau of Bal-BCE."""
    return Figure("Accuracy over tau, small", f"CIFAR-100-LT, factor 100, width 96, 4 blocks, MGP 15 epochs, BFT "
                  f"{CIFAR_EPOCHS}.", "points", {"Bal-BCE": {tau: cifar_run("bal_bce", "--tau", tau) for tau in TAUS}}, "tau")


def figure6() -> Figure:
    """lambda of NT-BCE with and without the bias."""
    series = {"NT-BCE": "nt_bce", "NT-BCE with the bias": "nt_bal_bce"}
    return Figure("Negative tolerance with and without the bias, small", "CIFAR-100-LT, factor 100, width 96, 4 blocks, MGP 15 "
                  f"epochs, BFT {CIFAR_EPOCHS}.", "points", {
                      label: {lam: cifar_run(loss, "--loss_args", f"lam={lam}") for lam in LAMBDAS}
                      for label, loss in series.items()}, "lambda", log=True)


def figure7() -> Figure:
    """Reconstructions of three encoders."""
    balanced = pretrain("embedded/pretrain", *FASHION, *width("Base"), "--epochs", 128, data="fashion_bal")
    runs = {"BAL, width 64": balanced, "LT, width 64": pretrain("embedded/pretrain", *width("Base")),
            "LT, width 96": pretrain("embedded/pretrain", *width("Large"))}
    return Figure("Reconstructions, small", "The same masks for three encoders: of 2,100 balanced images (128 epochs, as many "
                  "steps as the others) and of the 4,479 embedded ones (60 epochs).", "pictures",
                  {label: {0: run} for label, run in runs.items()})


STUDIES = {study.__name__: study for study in (table2, table6, table7, figure1, figure2, figure3, figure6, figure7)}
