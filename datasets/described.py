"""Whether a JSON file that this project has written still says what it has to."""
import json
from pathlib import Path

from datasets.paths import printable


class Count(int):
    """Stands in `keys` for a whole number that is not negative."""


def parse(data: bytes, path: str | Path, form: str, remedy: str, keys: dict) -> dict:
    """The object in a JSON file of format `form`, with `keys` as `check_keys` takes them. ValueError names file and key."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{printable(path)} is damaged ({error}): {remedy}") from None
    if isinstance(record, dict) and record.get("format") == form:
        check_keys(record, keys, path, remedy)
        return record
    return {}


def check_keys(record: dict, keys: dict, path: str | Path, remedy: str, where: str = "") -> None:
    """ValueError where a key is missing or of another type.

    keys: {key: type}, of which [type] stands for a list of that type, a dict for an object with such keys, and {str: ...} for
    an object whose every value is such.
    """
    for key, kind in keys.items():
        if key not in record:
            raise ValueError(f"{printable(path)} has no key {where}{key}: {remedy}")
        check_value(record[key], kind, path, remedy, f"{where}{key}")


def check_value(value, kind, path, remedy: str, where: str) -> None:
    """As `check_keys`, of one value."""
    plain = {list: "a list", dict: "an object", str: "a text", int: "a whole number", Count: "a whole number, not negative",
             float: "a number"}
    outer = type(kind) if isinstance(kind, list | dict) else kind
    numbers = {int: type(value) is int, Count: type(value) is int and value >= 0, float: type(value) in (int, float)}
    fits = numbers[outer] if outer in numbers else isinstance(value, outer)
    if not fits:
        shown = repr(value)
        raise ValueError(f"{printable(path)}: {where} is {printable(shown[:40])}{'...' * (len(shown) > 40)}, expected "
                         f"{plain[outer]}: {remedy}")
    if isinstance(kind, list):
        for index, item in enumerate(value):
            check_value(item, kind[0], path, remedy, f"{where}[{index}]")
    elif isinstance(kind, dict) and set(kind) == {str}:
        for name, item in value.items():
            check_value(item, kind[str], path, remedy, f"{where}.{name}")
    elif isinstance(kind, dict):
        check_keys(value, kind, path, remedy, f"{where}.")
