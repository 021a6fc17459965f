"""The numbers of the paper: top-1 % of many, medium, few, all classes, then ECE and MCE in %; "-" where it gives none.

Rows that it cites from others stand here too, as "method, where it was published".
"""

# Table 1: data set, recipe.
TABLE_1 = {"BAL": {"ViT": 38.7, "DeiT III": 67.2, "MAE": 69.2}, "LT": {"ViT": 31.6, "DeiT III": 48.4, "MAE": 54.5}}

# Table 2, ImageNet-LT, ResNet50.
TABLE_2_CITED = {
    "CE, CVPR 19": "64.0 33.8 5.8 41.6",
    "LDAM, NeurIPS 19": "60.4 46.9 30.7 49.8",
    "c-RT, ICLR 20": "61.8 46.2 27.3 49.6",
    "tau-norm, ICLR 20": "59.1 46.9 30.7 49.4",
    "Causal, NeurIPS 20": "62.7 48.8 31.6 51.8",
    "Logit Adj., ICLR 21": "61.1 47.5 27.6 50.1",
    "RIDE(4E) (ResNeXt50), ICLR 21": "68.3 53.5 35.9 56.8",
    "MiSLAS, CVPR 21": "62.9 50.7 34.3 52.7",
    "DisAlign, CVPR 21": "61.3 52.2 31.4 52.9",
    "ACE (ResNeXt50), ICCV 21": "71.7 54.6 23.5 56.6",
    "PaCo (ResNeXt50), ICCV 21": "68.0 56.4 37.2 58.2",
    "TADe (ResNeXt50), ICCV 21": "66.5 57.0 43.5 58.8",
    "TSC, CVPR 22": "63.5 49.7 30.4 52.4",
    "GCL, CVPR 22": "63.0 52.7 37.1 54.5",
    "TLC, CVPR 22": "68.9 55.7 40.8 55.1",
    "BCL (ResNeXt50), CVPR 22": "67.6 54.6 36.6 57.2",
    "NCL, CVPR 22": "67.3 55.4 39.0 57.7",
    "SAFA, ECCV 22": "63.8 49.9 33.4 53.1",
    "DOC, ECCV 22": "65.1 52.8 34.2 55.0",
    "DLSA, ECCV 22": "67.8 54.5 38.8 57.5",
}
# Table 3, iNaturalist 2018, ResNet50.
TABLE_3_CITED = {
    "CE, CVPR 19": "72.2 63.0 57.2 61.7",
    "OLTR, CVPR 19": "59.0 64.1 64.9 63.9",
    "c-RT, ICLR 20": "69.0 66.0 63.2 65.2",
    "tau-norm, ICLR 20": "65.6 65.3 65.9 65.6",
    "LWS, ICLR 20": "65.0 66.3 65.5 65.9",
    "BBN, CVPR 20": "61.8 73.6 66.9 69.6",
    "BS, ICLR 21": "70.0 70.2 69.9 70.0",
    "RIDE(4E), ICLR 21": "70.9 72.5 73.1 72.6",
    "DisAlign, CVPR 21": "69.0 71.1 70.2 70.6",
    "MiSLAS, CVPR 21": "73.2 72.4 70.4 71.6",
    "DiVE, ICCV 21": "70.6 70.0 67.6 69.1",
    "ACE(4E), ICCV 21": "- - - 72.9",
    "TADE, ICCV 21": "74.4 72.5 73.1 72.9",
    "PaCo, ICCV 21": "70.4 72.8 73.6 73.2",
    "ALA, AAAI 22": "71.3 70.8 70.4 70.7",
    "TSC, CVPR 22": "72.6 70.6 67.8 69.7",
    "LTR-WD, CVPR 22": "71.2 70.4 69.7 70.2",
    "GCL, CVPR 22": "67.5 71.3 71.5 71.0",
    "BCL, CVPR 22": "66.7 71.0 70.7 70.4",
    "NCL, CVPR 22": "72.0 74.9 73.8 74.2",
    "DOC, ECCV 22": "72.8 71.7 70.0 71.0",
    "DLSA, ECCV 22": "- - - 72.8",
}
# Table 4, Places-LT, ResNet152 pretrained on ImageNet-1K.
TABLE_4_CITED = {
    "CE, CVPR 19": "45.7 27.3 8.2 30.2",
    "Focal, ICCV 17": "41.1 34.8 22.4 34.6",
    "Range, CVPR 17": "41.1 35.4 23.2 35.1",
    "OLTR, CVPR 19": "44.7 37.0 25.3 35.9",
    "FSA, ECCV 20": "42.8 37.5 22.7 36.4",
    "LWS, ICLR 20": "40.6 39.1 28.6 37.6",
    "Causal, NeurIPS 20": "23.8 35.8 40.4 32.4",
    "BS, NeurIPS 20": "42.0 39.3 30.5 38.6",
    "DisAlign, CVPR 21": "40.4 42.4 30.1 39.3",
    "LADE, CVPR 21": "42.8 39.0 31.2 38.8",
    "RSG, CVPR 21": "41.9 41.4 32.0 39.3",
    "TADE, ICCV 21": "43.1 42.4 33.2 40.9",
    "PaCo, ICCV 21": "36.1 47.9 35.3 41.2",
    "ALA, AAAI 22": "43.9 40.1 32.9 40.1",
    "NCL, CVPR 22": "- - - 41.8",
    "BF, CVPR 22": "44.0 43.1 33.7 41.6",
    "CKT, CVPR 22": "41.6 41.4 35.1 40.2",
    "GCL, CVPR 22": "- - - 40.6",
    "Bread, ECCV 22": "40.6 41.0 33.4 39.3",
}

# ViT-B from scratch.
TABLE_2 = {"ViT": "50.5 23.5 6.9 31.6", "MAE": "74.7 48.2 19.4 54.5", "DeiT": "70.4 40.9 12.8 48.4",
           "LiVT": "73.6 56.4 41.0 60.9", "LiVT, 384": "76.4 59.7 42.7 63.8"}
TABLE_3 = {"ViT": "65.4 55.3 50.9 54.6", "MAE": "79.6 70.8 65.0 69.4", "DeiT": "72.9 62.8 55.8 61.0",
           "LiVT": "78.9 76.5 74.8 76.1", "LiVT, 384": "83.2 81.5 79.7 81.0"}
TABLE_4 = {"MAE": "48.9 24.6 8.7 30.3", "DeiT": "51.6 31.0 9.4 34.2", "LiVT": "48.1 40.6 27.5 40.8",
           "LiVT, 384": "50.7 42.4 27.9 42.6"}
# What the logs of the authors' released runs end with, and a user's measurement of the first released checkpoint.
RELEASED = {"imagenet_lt": "68.83 58.53 46.68 60.79", "imagenet_lt 384": "- - - 63.51", "inat18": "- - - 76.08",
            "inat18 384": "- - - 80.95"}

# Table 5: stage-1 data, loss.
TABLE_5 = {("BAL", "ce"): "63.7 57.1 52.4 55.9 1.2 3.4", ("LT", "ce"): "64.5 57.5 52.7 56.4 1.2 3.1",
           ("BAL", "bal_bce"): "53.3 58.8 60.7 59.0 .8 1.6", ("LT", "bal_bce"): "56.5 60.8 61.6 60.7 1.0 2.9"}

# Table 6: size, loss.
TABLE_6 = {
    "Tiny": {"ce": "56.1 29.2 10.5 37.0 3.7 6.1", "bal_ce": "48.8 39.2 28.1 41.4 2.6 4.6", "bce": "42.1 11.1 .9 21.6 2.9 8.6",
             "bal_bce": "50.6 37.2 26.1 40.8 3.1 6.8"},
    "Small": {"ce": "68.9 43.1 17.3 49.5 4.7 9.2", "bal_ce": "62.7 52.0 36.3 54.0 .9 2.4", "bce": "62.4 30.6 8.4 39.8 5.7 11.1",
              "bal_bce": "65.8 50.6 32.9 54.1 4.8 9.0"},
    "Base": {"ce": "74.7 48.2 19.4 54.5 5.1 6.8", "bal_ce": "70.5 56.8 43.7 60.1 3.7 4.9", "bce": "73.7 46.5 15.6 52.4 5.6 7.9",
             "bal_bce": "73.6 55.8 41.0 60.9 2.4 3.2"},
    "Large": {"ce": "77.3 51.5 21.7 57.4 3.6 7.4", "bal_ce": "72.7 60.1 41.9 62.1 2.1 4.2",
              "bce": "74.7 46.7 17.0 53.4 8.4 15.9", "bal_bce": "75.3 58.8 37.5 62.6 6.6 14.8"},
}
LOSS_TITLES = {"ce": "CE", "cb_ce": "CB", "ldam": "LDAM", "lade": "LADE", "ib": "IB", "bal_ce": "Bal-CE", "bce": "BCE",
               "bal_bce": "Bal-BCE"}

# Table 7: CIFAR-10-LT with factors 100 and 10, CIFAR-100-LT with factors 100 and 10.
TABLE_7 = {"ce": "79.2 89.5 50.9 66.1", "cb_ce": "82.0 89.9 52.0 66.8", "ldam": "78.6 88.6 52.56 66.1",
           "lade": "68.8 81.7 56.7 68.2", "ib": "75.4 79.2 50.8 51.6", "bal_ce": "84.4 90.7 56.8 68.1",
           "bal_bce": "86.3 91.3 58.2 69.2"}

# Table 8: training images, classes, largest class, smallest class, imbalance factor.
TABLE_8 = {
    "CIFAR-10-LT 100": (12406, 10, 5000, 50, 100), "CIFAR-10-LT 10": (20431, 10, 5000, 500, 10),
    "CIFAR-100-LT 100": (10847, 100, 500, 5, 100), "CIFAR-100-LT 10": (19573, 100, 500, 50, 10),
    "ImageNet-LT": (115846, 1000, 1280, 5, 256), "ImageNet-BAL": (160000, 1000, 160, 160, 1),
    "iNat18": (437513, 8142, 1000, 2, 500), "Places-LT": (62500, 365, 4980, 5, 996),
}

# Table 11: DeiT III without and with the bias.
TABLE_11 = {"bce": "64.2 32.2 9.0 41.4", "bal_bce": "60.3 40.8 23.8 46.0"}
