"""What the first bytes of a file say that is not UTF-8 text, and what to do about it."""

import codecs

BEGINNING = 8000  # bytes that are looked at, as git does to tell a binary file
CONVERT = "convert it (iconv -f {} -t UTF-8)"
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
MAGIC = {
    b"\x1f\x8b": "is compressed by gzip: end its name in .gz",
    b"BZh": "is compressed by bzip2: end its name in .bz2",
    b"\xfd7zXZ\0": "is compressed by xz: end its name in .xz",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: end its name in .zst",
    b"PAR1": "is parquet: end its name in .parquet",
    b"PK\x03\x04": "is a zip archive: unpack it",
    b"%PDF": "is PDF: extract its text",
}
TAR, TAR_AT = b"ustar", 257


def not_text(beginning: bytes) -> str | None:
    """What a file is that begins so, if it cannot be UTF-8 text, and what to do."""
    for magic, said in MAGIC.items():
        if beginning.startswith(magic) and (b"\0" in beginning or not _decodes(beginning)):
            return said
    for mark, encoding in MARKS.items():
        if beginning.startswith(mark):
            return f"is {encoding} text: {CONVERT.format(encoding)}"
    if beginning[TAR_AT:].startswith(TAR):
        return "is a tar archive: unpack it"
    if b"\0" in beginning:
        return f"holds NUL bytes: leave it out, or if it is text in UTF-16, {CONVERT.format('UTF-16LE')}"
    return None


def not_utf8(beginning: bytes) -> str:
    """What to say of bytes that are not UTF-8, where the file or the line begins so."""
    other = f"if it is text in another encoding, {CONVERT.format('LATIN1')}"
    return not_text(beginning) or f"is not UTF-8: mend it or leave it out, or {other}"


def _decodes(beginning: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(beginning)
    except UnicodeDecodeError:
        return False
    return True
