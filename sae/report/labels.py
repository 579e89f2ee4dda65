"""Names of strangers as labels in pictures."""


def label_text(name: str) -> str:
    """A stranger's name: no formula, no control character, no underscore in front, which would hide it."""
    shown = "".join(character if character.isprintable() else "?" for character in name)[-60:].replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
