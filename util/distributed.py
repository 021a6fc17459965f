"""Which process this is. One process for now: a launcher that starts several is refused, not half obeyed."""
import os


def check_single_process() -> None:
    """Raise ValueError where a launcher has started several processes of this program."""
    # SLURM_STEP_NUM_TASKS is there inside srun only; SLURM_NTASKS also in an allocation that has started nothing.
    world = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or "1"
    if world != "1":
        raise ValueError(f"{world} processes were started, but this version trains in one: start it without torchrun or "
                         "srun, or with --nproc_per_node 1, and use --effective_batch_size for large batches")
