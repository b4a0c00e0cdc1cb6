"""Names and errors of sources, as lines for the user."""

from lrtrain.runtime.errors import UserError

NAMES = 3  # how many of many names are shown


def some(names: list[str]) -> str:
    """The first of many names, in characters that any terminal prints."""
    return shown(", ".join(names[:NAMES])) + (", …" if len(names) > NAMES else "")


def shown(text: str) -> str:
    """`text` in a line of its own: what a terminal cannot print, as in a name that is no UTF-8, is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def unreadable(url: str, error: Exception, after: int = 0) -> UserError:
    """The line for an error met while listing `url`, or while reading it after document `after`."""
    url, reason = shown(url), shown(" ".join(str(error).split())[:300])
    if isinstance(error, ImportError):
        return UserError(f"{url} needs a package that is not installed ({reason}): pip install 'lrtrain[hf,s3]'")
    if isinstance(error, FileNotFoundError):
        return UserError(f"{url} does not exist: correct source")
    advice = "check the network and the URL" if "://" in url else "check the file"
    place = f" after document {after:,}" if after else ""
    return UserError(f"cannot read {url}{place}: {reason} ({type(error).__name__}); {advice}")
