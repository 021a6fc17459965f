"""Names of folders and classes as text that can be shown."""


def clean(text) -> str:
    """Text that UTF-8 and a browser can take: no halves of surrogate pairs, no characters that control (but joined emoji)."""
    text = str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    joiner, unknown = "\N{ZERO WIDTH JOINER}", "\N{REPLACEMENT CHARACTER}"
    return "".join(letter if letter.isprintable() or letter == joiner else unknown for letter in text)
