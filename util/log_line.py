"""The line that is printed after an epoch, and the lines of log.jsonl."""
import json
from pathlib import Path


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


def read_lines(path: Path) -> list[bytes]:
    """The lines of a log.jsonl as they are, ends included; none where there is no file. ValueError where it cannot be read."""
    try:
        return path.read_bytes().splitlines(keepends=True) if path.exists() else []
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror}): mend its permissions, or give another --output_dir") from None


def whole_lines(lines: list[bytes], epoch: int) -> list[bytes]:
    """Those that are whole records of epochs before `epoch`: a damaged disk leaves others."""
    def is_whole(line: bytes) -> bool:
        try:
            return line.endswith(b"\n") and json.loads(line)["epoch"] < epoch
        except (ValueError, KeyError, TypeError):
            return False
    return [line for line in lines if is_whole(line)]
