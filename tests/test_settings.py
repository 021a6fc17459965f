"""Tables 9 and 10: every cell of the paper equals the recipe's, or the difference has its reason."""
from types import SimpleNamespace

import pytest

from submit import settings
from submit.settings import COLUMNS, SETS, settings_table


@pytest.mark.parametrize("number, cells", [(9, 42), (10, 60)])
def test_every_cell_is_equal_or_its_deviation_is_listed(number, cells):
    rows = settings_table(number)
    assert len(rows) == len({row[:2] for row in rows}) == cells and {row[0] for row in rows} == set(SETS.values())
    assert all(len(row) == len(COLUMNS) and all(row[:4]) for row in rows)
    different = {row[1].split(", ")[1] for row in rows if row[2] != row[3]}
    assert different == {9: {"AutoAug"}, 10: {"learning rate"}}[number]
    assert all((row[4] == "") == (row[2] == row[3]) and row[4] != "?" for row in rows)


def test_cells_are_the_papers():
    cells = {(row[0], row[1]): row[2:4] for row in settings_table(9) + settings_table(10)}
    assert cells["Places-LT", "BFT, tau of Bal-BCE"] == ("1.05", "1.05")
    assert cells["iNaturalist 2018", "MGP, input size"] == ("128", "128")
    assert cells["iNaturalist 2018", "BFT, drop path"] == ("0.2", "0.2")
    assert cells["ImageNet-LT", "BFT, optimiser"] == ("AdamW(0.9, 0.99)", "AdamW(0.9, 0.99)")
    assert cells["ImageNet-LT", "MGP, learning rate"] == ("1.5e-4", "base rate 1.5e-4: 2.4e-3")
    assert cells["ImageNet-LT", "BFT, AutoAug"] == ("(9, 0.5)", "RandAugment rand-m9-mstd0.5-inc1")
    assert cells["ImageNet-LT", "MGP, Mixup"] == ("no", "no")


def test_a_recipe_that_differs_is_seen(monkeypatch):
    own = settings.recipe

    def changed(name, stage):
        return SimpleNamespace(**{**vars(own(name, stage)), "weight_decay": 0.1, "reprob": 0, "opt_betas": [0.9, 0.999]})

    monkeypatch.setattr(settings, "recipe", changed)
    different = {row[1] for number in (9, 10) for row in settings_table(number) if row[4] == "?"}
    assert different == {"BFT, RandomErasing", "MGP, weight decay", "BFT, weight decay", "MGP, optimiser", "BFT, optimiser"}


def test_another_table_is_refused():
    with pytest.raises(ValueError, match="Table 8 holds no settings: 9"):
        settings_table(8)
