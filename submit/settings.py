"""Tables 9 and 10 of the paper, cell by cell, beside what the recipes hold; where the two differ, the reason stands here."""
import functools

import main_finetune
import main_pretrain
from util.args import PROJECT

TABLES = {"table9": "Augmentations", "table10": "Settings"}
COLUMNS = ("data set", "setting", "paper", "recipe", "why it differs")
SETS = {"imagenet_lt": "ImageNet-LT", "inat18": "iNaturalist 2018", "places_lt": "Places-LT"}
STAGES = {"MGP": ("pretrain", main_pretrain), "BFT": ("finetune", main_finetune)}
OPTIMIZERS = {"adamw": "AdamW", "lamb": "LAMB"}
# Table 9 holds for all sets: MGP, then BFT.
TABLE_9 = {
    "RandomResizedCrop": ("yes", "yes"),
    "RandomHorizontalFlip": ("yes", "yes"),
    "AutoAug": ("no", "(9, 0.5)"),
    "Mixup": ("no", "0.8"),
    "Cutmix": ("no", "1"),
    "RandomErasing": ("no", "0.25"),
    "Normalize": ("yes", "yes"),
}
# Table 10: stage, setting, and its cells in the order of SETS, or one for all of them.
TABLE_10 = (
    ("MGP", "epochs", "800"),
    ("MGP", "warm-up epochs", "40"),
    ("MGP", "effective batch size", "4096"),
    ("MGP", "optimiser", "AdamW(0.9, 0.95)"),
    ("MGP", "learning rate", "1.5e-4"),
    ("MGP", "schedule", "cosine(min=0)"),
    ("MGP", "weight decay", "0.05"),
    ("MGP", "mask ratio", "0.75"),
    ("MGP", "input size", "224", "128", "224"),
    ("BFT", "epochs", "100", "100", "30"),
    ("BFT", "warm-up epochs", "10", "10", "5"),
    ("BFT", "effective batch size", "1024"),
    ("BFT", "optimiser", "AdamW(0.9, 0.99)"),
    ("BFT", "learning rate", "1e-3"),
    ("BFT", "schedule", "cosine(min=1e-6)"),
    ("BFT", "weight decay", "0.05"),
    ("BFT", "layer decay", "0.75"),
    ("BFT", "input size", "224"),
    ("BFT", "drop path", "0.1", "0.2", "0.1"),
    ("BFT", "tau of Bal-BCE", "1", "1", "1.05"),
)
REASONS = {
    "AutoAug": "section 5.2 calls it RandAug, and the released runs have this string of timm's",
    "learning rate": "read as MAE's base rate, for 256 images; taken literally BFT's 1e-3 is a base rate of 2.5e-4",
}


@functools.cache
def recipe(name: str, stage: str):
    """The flags of a data set's recipe as its stage reads them; stage: MGP or BFT."""
    file, module = STAGES[stage]
    return module.get_args_parser().parse_args([f"@{PROJECT / 'recipes' / name / file}.args"])


def short(value: float) -> str:
    """A number as the tables write it: 1e-3, 1.5e-4, 0.05, 4096."""
    if value == 0 or value >= 0.01:
        return f"{value:g}"
    digits, exponent = f"{value:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def augmentation(args, setting: str) -> str:
    """A recipe's cell of Table 9; MGP has no flag for what it never does."""
    policy = getattr(args, "aa", "none")
    amounts = {"Mixup": "mixup", "Cutmix": "cutmix", "RandomErasing": "reprob"}
    if setting in amounts:
        amount = getattr(args, amounts[setting], 0)
        return short(amount) if amount else "no"
    return {"RandomResizedCrop": "yes" if args.train_crop == "rrc" else "no",
            "RandomHorizontalFlip": "yes" if args.hflip else "no",
            "AutoAug": "no" if policy == "none" else f"RandAugment {policy}",
            "Normalize": "yes"}[setting]  # every image is, by the statistics of its data set


def configuration(args, setting: str) -> str:
    """A recipe's cell of Table 10."""
    if setting == "learning rate":
        return f"base rate {short(args.blr)}: {short(args.blr * args.effective_batch_size / 256)}"
    if setting == "optimiser":
        beta1, beta2 = args.opt_betas
        return f"{OPTIMIZERS[args.opt]}({beta1:g}, {beta2:g})"
    if setting == "schedule":
        return f"cosine(min={short(args.min_lr)})"
    if setting == "input size":
        return " x ".join(map(str, args.input_size))
    names = {"warm-up epochs": "warmup_epochs", "tau of Bal-BCE": "tau"}
    return short(getattr(args, names.get(setting, setting.replace(" ", "_"))))


def settings_table(number: int) -> list[tuple[str, str, str, str, str]]:
    """Rows of COLUMNS for Table 9 or 10; the last cell is empty where the paper's and the recipe's are equal.

    ValueError for another table.
    """
    if number == 9:
        cells = [(SETS[name], stage, setting, paper, augmentation(recipe(name, stage), setting)) for name in SETS
                 for setting, both in TABLE_9.items() for stage, paper in zip(STAGES, both, strict=True)]
    elif number == 10:
        cells = [(SETS[name], stage, setting, papers[k % len(papers)], configuration(recipe(name, stage), setting))
                 for k, name in enumerate(SETS) for stage, setting, *papers in TABLE_10]
    else:
        raise ValueError(f"Table {number} holds no settings: 9 (augmentations) or 10 (configurations)")
    return [(name, f"{stage}, {setting}", paper, ours, "" if paper == ours else REASONS.get(setting, "?"))
            for name, stage, setting, paper, ours in cells]
