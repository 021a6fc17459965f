"""The line that is printed after an epoch."""


def log_line(record: dict) -> str:
    """One readable line for one object of log.jsonl; memory is the device's, on a CPU the process's."""
    def number(value, form):
        return "-" if value is None else format(value, form)

    line = (f"epoch {record['epoch']:>3}  loss {number(record['train_loss'], '.4f')}  lr {record['lr']:.2e}  "
            f"grad {number(record['grad_norm'], '.2f')}  {record['images_per_second']:.0f} images/s, "
            f"{record['data_wait']:.1%} waiting for data")
    memory = record["device_memory_bytes"] or record["host_memory_bytes"]
    if memory:
        line += f", {memory / 2**30:.1f} GiB"
    if record["skipped_steps"]:
        line += f"  {record['skipped_steps']} steps skipped, not finite"
    if "eval" in record:
        line += "  | " + "  ".join(f"{key} {number(record['eval'][key], '.1f')}" for key in
                                   ("overall", "many", "medium", "few"))
    return line
