"""Where the time of the demo's training goes: `OMP_NUM_THREADS=2 python -m benchmarks.profile` prints a table a stage.

The second epoch of the embedded recipes is run under torch.profiler. Self times of operators, summed by kind; "python" is what
no operator accounts for: the interpreter, torch's dispatch and the profiler itself, which makes the epoch longer (both times
are printed).
"""
import tempfile
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import main_finetune
import main_pretrain
from submit.demo import run_stage
from util.args import Parser, run_command

KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn_linear", "mkldnn_convolution", "convolution",
                        "convolution_backward", "_scaled_dot_product_flash_attention_for_cpu",
                        "_scaled_dot_product_flash_attention_for_cpu_backward"),
    "casts and copies": ("copy_", "_to_copy", "clone", "contiguous", "cat"),
    "layer norm": ("native_layer_norm", "native_layer_norm_backward"),
    "GELU": ("gelu", "gelu_backward"),
    "softmax": ("_softmax", "_softmax_backward_data"),
    "sums of gradients": ("sum",),
    "additions and scalings": ("add", "add_", "mul", "mul_", "div", "div_", "sub", "sub_"),
    "optimiser": ("_fused_adamw_",),
}


def profiled(train_one_epoch, tables: dict):
    """train_one_epoch, whose second epoch is profiled into `tables`, {kind: seconds}."""
    def run(*args, **options):
        start = time.perf_counter()
        if tables.get("epochs", 0) != 1:
            record = train_one_epoch(*args, **options)
            tables["alone"] = time.perf_counter() - start
        else:
            with profile(activities=[ProfilerActivity.CPU]) as found:
                record = train_one_epoch(*args, **options)
            tables["profiled"] = record["seconds"]
            tables["waited"] = record["data_wait"]
            tables["events"] = {event.key: event.self_cpu_time_total / 1e6 for event in found.key_averages()}
        tables["epochs"] = tables.get("epochs", 0) + 1
        return record
    return run


def summed(events: dict[str, float], total: float) -> dict[str, float]:
    """{operator: seconds} -> {kind: seconds}, largest first."""
    kind_of = {f"aten::{name}": kind for kind, names in KINDS.items() for name in names}
    sums = {"python": total - sum(events.values())}
    for name, seconds in events.items():
        kind = kind_of.get(name, "other operators")
        sums[kind] = sums.get(kind, 0.0) + seconds
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def get_args_parser() -> Parser:
    """The command's flags."""
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("flags", nargs="*", help="more flags of both stages, after --")
    return parser


def main(args) -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory() as folder:
        for stage, recipe in ((main_pretrain, "embedded/pretrain"), (main_finetune, "embedded/finetune")):
            tables, original = {}, stage.train_one_epoch
            stage.train_one_epoch = profiled(original, tables)
            run_stage(stage, recipe, Path(folder) / recipe, "--epochs", 3, "--warmup_epochs", 1, *args.flags)
            stage.train_one_epoch = original
            print(f"\n{recipe}, {torch.get_num_threads()} threads: an epoch takes {tables['alone']:.2f} s, profiled "
                  f"{tables['profiled']:.2f} s; {tables['waited']:.1%} waiting for data")
            for kind, seconds in summed(tables["events"], tables["profiled"]).items():
                print(f"  {kind:24}{seconds / tables['profiled']:6.1%}")


if __name__ == "__main__":
    run_command(get_args_parser(), main)
