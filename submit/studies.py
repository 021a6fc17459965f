"""Every table and figure of the paper that is made of runs, as the paper has it. `submit.studies_small` has small versions."""
from submit import paper
from submit.experiment import COLUMNS, Cell, Figure, Row, Run, Table, finetune, metrics_row, pretrain

IMAGENET_GROUPS = (385, 479, 136)
INAT_GROUPS = (842, 4076, 3224)
PLACES_GROUPS = (131, 163, 71)
TABLE_6_LOSSES = ("ce", "bal_ce", "bce", "bal_bce")
BALANCED = {"bal_ce": "ce", "bal_bce": "bce"}
TAUS = (0, 0.5, 1, 1.5, 2)
LAMBDAS = (1, 2, 5, 10)
MGP_1K = pretrain("places_lt/pretrain", data="imagenet_1k")
# Stage 2 of ViT-L is half as long (section 5.2).
SIZES = {"Tiny": ("tiny_patch16", ()), "Small": ("small_patch16", ()), "Base": ("base_patch16", ()),
         "Large": ("large_patch16", ("--epochs", 50))}


def cited(rows: dict[str, str]) -> tuple[Row, ...]:
    """Other papers' rows."""
    return tuple(metrics_row(name, None, numbers, "reported") for name, numbers in rows.items())


def deit(recipe: str, data: str, *flags, last: str | None = None) -> Run:
    """Both parts of DeiT III: at the recipe's size, then 20 epochs at 224."""
    first = finetune(f"{recipe}/deit3", *flags, data=data)
    return finetune(f"{last or recipe}/deit3_finetune", *flags, after=first, data=data)


def on_bal(data: str) -> dict[str, Run]:
    """The three recipes of Table 1 on a balanced set; DeiT III ends with the recipe of ImageNet-LT on its images."""
    named = ("--dataset", "imagenet_bal")
    first = finetune("imagenet_bal/deit3", data=data)
    return {"ViT": finetune("imagenet_bal/vit_scratch", data=data),
            "DeiT III": finetune("imagenet_lt/deit3_finetune", *named, after=first, data=data),
            "MAE": finetune("imagenet_bal/mae_ce", after=pretrain("imagenet_bal/pretrain", data=data), data=data)}


def table1() -> Table:
    """Recipes from scratch on the long-tailed and the balanced set."""
    runs = {"BAL": on_bal("imagenet_bal"), "BAL, 116 a class": on_bal("imagenet_bal_116"),
            "LT": {"ViT": finetune("imagenet_lt/vit_scratch"), "DeiT III": deit("imagenet_lt", "imagenet_lt"),
                   "MAE": finetune("imagenet_lt/mae_ce", after=pretrain("imagenet_lt/pretrain"))}}
    rows = tuple(Row(name, {column: Cell(paper.TABLE_1.get(column, {}).get(name), of[name]) for column, of in runs.items()})
                 for name in ("ViT", "DeiT III", "MAE"))
    return Table("Recipes that train ViT-B from scratch", "ImageNet-BAL and ImageNet-LT at 224, all classes. The paper has "
                 "160 images a class in BAL by its Table 8 and 116 by its section 5.1; 116 is as many as LT has.", rows)


def main_table(title: str, data: str, numbers: dict, others: dict, groups: tuple, encoder: str) -> Table:
    """Tables 2 to 4: others' rows, the baselines from scratch, this method at both sizes and, where there are such, with the
    settings of the released runs."""
    mgp = pretrain(f"{data}/pretrain", data=encoder)
    runs = {"ViT": finetune(f"{data}/vit_scratch") if "ViT" in numbers else None,
            "MAE": finetune(f"{data}/mae_ce", after=mgp), "DeiT": deit(data, data),
            "LiVT": finetune(f"{data}/finetune", after=mgp), "LiVT, 384": finetune(f"{data}/finetune_384", after=mgp)}
    rows = [metrics_row(name, runs[name], values) for name, values in numbers.items()]
    if data in paper.RELEASED:
        mgp = pretrain(f"{data}/pretrain_released")
        for size in ("", " 384"):
            run = finetune(f"{data}/finetune{size.replace(' ', '_')}_released", after=mgp)
            rows.append(metrics_row(f"LiVT{size and ', 384'}, settings of the released run", run, paper.RELEASED[data + size]))
    head = "ViT-B/16; rows marked reported are other papers', with ResNets, as this one cites them."
    if data in paper.RELEASED:
        head += (" Beside released settings stand the totals of the authors' logs"
                 + " and, for 224, groups that a user measured" * (data == "imagenet_lt") + ", not numbers of the paper.")
    return Table(title, head, (*cited(others), *rows), (("LiVT", "MAE"),), groups)


def table2() -> Table:
    """ImageNet-LT."""
    return main_table("ImageNet-LT", "imagenet_lt", paper.TABLE_2, paper.TABLE_2_CITED, IMAGENET_GROUPS, "imagenet_lt")


def table3() -> Table:
    """iNaturalist 2018."""
    return main_table("iNaturalist 2018", "inat18", paper.TABLE_3, paper.TABLE_3_CITED, INAT_GROUPS, "inat18")


def table4() -> Table:
    """Places-LT, from an encoder of ImageNet-1K."""
    return main_table("Places-LT", "places_lt", paper.TABLE_4, paper.TABLE_4_CITED, PLACES_GROUPS, "imagenet_1k")


def table5() -> Table:
    """What stage 1 learns from balanced and long-tailed images, on iNat18."""
    encoders = {"BAL": pretrain("imagenet_bal/pretrain"), "LT": pretrain("imagenet_lt/pretrain"),
                "BAL, 116 a class": pretrain("imagenet_bal/pretrain", data="imagenet_bal_116")}
    rows = tuple(metrics_row(f"{name}, {paper.LOSS_TITLES[loss]}", finetune("inat18/transfer", "--loss", loss, after=encoder),
                             paper.TABLE_5.get((name, loss), "- - - - - -"))
                 for loss in ("ce", "bal_bce") for name, encoder in encoders.items())
    pairs = tuple((f"LT, {paper.LOSS_TITLES[loss]}", f"{name}, {paper.LOSS_TITLES[loss]}")
                  for loss in ("ce", "bal_bce") for name in ("BAL", "BAL, 116 a class"))
    return Table("Transfer to iNaturalist 2018", "MGP on ImageNet-BAL or -LT, then BFT on iNat18 at 224.", rows, pairs,
                 INAT_GROUPS)


def loss_table(title: str, head: str, sizes: dict, run, groups: tuple, other_start: str = "prior") -> Table:
    """Table 6: sizes below one another, each with four losses; run(size, loss, more flags) -> Run.

    The two sigmoid losses stand there a second time with the other start of the head's bias, which can decide between them.
    """
    rows, pairs = [], []
    for size, words in sizes.items():
        for loss in TABLE_6_LOSSES:
            rows.append(metrics_row(f"{words}, {paper.LOSS_TITLES[loss]}", run(size, loss), paper.TABLE_6[size][loss]))
        pairs += [(f"{words}, {paper.LOSS_TITLES[loss]}", f"{words}, {paper.LOSS_TITLES[plain]}")
                  for loss, plain in BALANCED.items()]
    for size, words in sizes.items():
        rows += [metrics_row(f"{words}, {paper.LOSS_TITLES[loss]}, head bias {other_start}",
                             run(size, loss, "--head_bias", other_start), "- " * len(COLUMNS)) for loss in ("bce", "bal_bce")]
    return Table(title, head, tuple(rows), tuple(pairs), groups)


def imagenet_run(size: str, loss: str, *flags) -> Run:
    """A cell of Table 6."""
    name, more = SIZES[size]
    start = pretrain("imagenet_lt/pretrain", "--model", f"mae_vit_{name}")
    return finetune("imagenet_lt/finetune", "--model", f"vit_{name}", *more, "--loss", loss, *flags, after=start)


def table6() -> Table:
    """Losses with and without the bias, four sizes."""
    return loss_table("CE and BCE with and without the bias", "ImageNet-LT at 224. The head's bias starts at 0; the last rows "
                      "start it at the best constant logits.", {size: f"ViT-{size}" for size in SIZES}, imagenet_run,
                      IMAGENET_GROUPS)


def strategy_table(title: str, head: str, columns: dict) -> Table:
    """Table 7: losses over data sets; columns: {name: run(loss, more flags) -> Run}."""
    rows = [Row(paper.LOSS_TITLES[loss], {column: Cell(float(number), run(loss)) for (column, run), number
                                          in zip(columns.items(), numbers.split(), strict=True)})
            for loss, numbers in paper.TABLE_7.items()]
    pairs = tuple((row.name, "CE") for row in rows if row.name != "CE")
    return Table(title, head, tuple(rows), pairs)


def table7() -> Table:
    """Re-balancing losses on CIFAR."""
    def column(data, factor):
        return lambda loss: finetune(f"{data}/finetune", "--imb_factor", factor, "--loss", loss, after=MGP_1K)
    columns = {f"{title} {factor}": column(data, factor) for title, data in
               (("CIFAR-10-LT", "cifar10_lt"), ("CIFAR-100-LT", "cifar100_lt")) for factor in (100, 10)}
    return strategy_table("Re-balancing losses", "ViT-B, MGP on ImageNet-1K, then BFT with each loss; all classes.", columns)


def table11() -> Table:
    """DeiT III with the bias."""
    flags = ("--model", "vit_small_patch16", "--input_size", 224, "--epochs", 400, "--lr", 4e-3, "--drop_path", 0.05)
    rows = tuple(metrics_row(f"DeiT III, {words} the bias", finetune("imagenet_lt/deit3", *flags, "--loss", loss),
                             paper.TABLE_11[loss]) for loss, words in (("bce", "without"), ("bal_bce", "with")))
    return Table("The bias in DeiT III", "ViT-S, ImageNet-LT, 400 epochs at 224.", rows,
                 (("DeiT III, with the bias", "DeiT III, without the bias"),), IMAGENET_GROUPS)


def figure1() -> Figure:
    """Accuracy over size."""
    series = {"LiVT (Bal-BCE)": "bal_bce", "MAE with CE": "ce"}
    return Figure("Accuracy over the size of the network", "ImageNet-LT, runs of Table 6.", "points",
                  {label: dict(zip((5.7, 22, 86, 304), (imagenet_run(size, loss) for size in SIZES), strict=True))
                   for label, loss in series.items()}, "parameters (millions)", log=True)


def figure2() -> Figure:
    """Training curves of four losses."""
    mgp = pretrain("inat18/pretrain", "--model", "mae_vit_small_patch16")
    return Figure("Loss and accuracy in training", "ViT-S on iNaturalist 2018.", "curves", {
        paper.LOSS_TITLES[loss]: {0: finetune("inat18/finetune", "--model", "vit_small_patch16", "--loss", loss, after=mgp)}
        for loss in TABLE_6_LOSSES})


def figure3() -> Figure:
    """tau of Bal-BCE."""
    return Figure("Accuracy over tau", "ViT-B on CIFAR-100-LT, factor 100, plain augmentations.", "points", {
        "Bal-BCE": {tau: finetune("cifar100_lt/finetune_plain", "--tau", tau, after=MGP_1K) for tau in TAUS}}, "tau")


def figure6() -> Figure:
    """lambda of NT-BCE with and without the bias."""
    return Figure("Negative tolerance with and without the bias", "ViT-B on CIFAR-100-LT, factor 100. The paper's values of "
                  "lambda stand in its figure only; these are chosen here.", "points", {
        label: {lam: finetune("cifar100_lt/finetune", "--loss", loss, "--loss_args", f"lam={lam}", after=MGP_1K)
                for lam in LAMBDAS}
        for label, loss in (("NT-BCE", "nt_bce"), ("NT-BCE with the bias", "nt_bal_bce"))}, "lambda", log=True)


def figure7() -> Figure:
    """Reconstructions of three encoders."""
    runs = {"BAL, Base, 400 epochs": pretrain("imagenet_bal/pretrain", "--epochs", 400),
            "LT, Base, 400 epochs": pretrain("imagenet_lt/pretrain", "--epochs", 400),
            "LT, Large, 1,600 epochs": pretrain("imagenet_lt/pretrain", "--model", "mae_vit_large_patch16", "--epochs", 1600)}
    return Figure("Reconstructions", "The same masks for three encoders.", "pictures",
                  {label: {0: run} for label, run in runs.items()})


STUDIES = {study.__name__: study for study in (table1, table2, table3, table4, table5, table6, table7, table11,
                                               figure1, figure2, figure3, figure6, figure7)}
