"""Ways in which a label.csv goes wrong, and file names that nobody expects; see tests/damage.py."""

from __future__ import annotations

import os
from dataclasses import dataclass

HEAD = "video_id,clip_id,text,label,mode"
GOOD = f"{HEAD}\nv,1,hello,0.5,train\nv,2,bye,-1,train\n"


@dataclass(frozen=True)
class Table:
    """One kind of label.csv, for a corpus with the clips v/1 and v/2."""

    name: str
    content: bytes
    usable: int | None
    """Clips that can be used; None: the file as a whole is refused."""
    says: str = ""
    """A regular expression that is found in what is said."""


def _text(content: str) -> bytes:
    return content.encode()


TABLES = (
    Table("a byte order mark", b"\xef\xbb\xbf" + _text(GOOD), 2),
    Table("semicolons", _text(GOOD.replace(",", ";")), 2),
    Table("tabs", _text(GOOD.replace(",", "\t")), 2),
    Table("CRLF line ends", _text(GOOD.replace("\n", "\r\n")), 2),
    Table("blank lines", _text(GOOD.replace("\n", "\n\n")), 2),
    Table("no line end at the end", _text(GOOD.rstrip()), 2),
    Table("columns in another order", b"mode,label,text,clip_id,video_id\ntrain,0.5,hello,1,v\ntrain,-1,bye,2,v\n", 2),
    Table("columns that nobody knows", _text(GOOD.replace("mode\n", "mode,note\n").replace("train", "train,x")), 2),
    Table("a quoted comma and a quoted line break", _text(GOOD.replace("hello", '"well,\nhello"')), 2),
    Table("a transcript that reads NA", _text(GOOD.replace("hello", "NA").replace("bye", "null")), 2),
    Table("decimal commas between semicolons", _text(GOOD.replace(",", ";").replace("0.5", "0,5")), 2),
    Table("a quote that never closes", _text(GOOD.replace("hello", '"hello')), None, "line"),
    Table("not UTF-8", _text(GOOD).replace(b"hello", b"h\xe9llo"), None, "not UTF-8"),
    Table("UTF-16", GOOD.encode("utf-16"), None, "not UTF-8"),
    Table("NUL bytes", _text(GOOD).replace(b"hello", b"h\0llo"), None, "NUL|line|lacks"),
    Table("an empty file", b"", None, "lacks the column"),
    Table("a header without rows", _text(HEAD + "\n"), None, "no rows"),
    Table("no header", _text("v,1,hello,0.5,train\n"), None, "lacks the column"),
    Table("a column missing", _text(GOOD.replace("label,", "").replace("0.5,", "").replace("-1,", "")), None, "label"),
    Table("a column twice", _text(GOOD.replace("text", "label")), None, "text|more than once"),
    Table("a row twice", _text(GOOD + "v,1,hello,0.5,train\n"), 2, "same clip as row 2"),
    Table("a label that is no number", _text(GOOD.replace("0.5", "high")), 1, "not a number|a number"),
    Table("a label that is not finite", _text(GOOD.replace("0.5", "nan")), 1, "number"),
    Table("a label out of range", _text(GOOD.replace("0.5", "50")), 1, "outside"),
    Table("no label", _text(GOOD.replace("0.5", "")), 1, "empty"),
    Table("an unknown split", _text(GOOD.replace("hello,0.5,train", "hello,0.5,dev")), 1, "train, valid or test"),
    Table("a row that is too short", _text(GOOD.replace("v,1,hello,0.5,train", "v,1,hello")), 1, "empty"),
    Table("a row that is too long", _text(GOOD.replace("0.5,train", "0.5,train,7,8")), 2, "more values"),
    Table("a clip without its file", _text(GOOD + "v,3,where,0,test\n"), 2, "no file|not found|missing"),
    Table("a path that leads out of the corpus", _text(GOOD + "../../etc,passwd,x,0,test\n"), 2, "inside the corpus"),
    Table("an absolute path", _text(GOOD + "/etc,passwd,x,0,test\n"), 2, "inside the corpus"),
    Table("a clip id with a path", _text(GOOD + "v,../v/1,x,0,test\n"), 2, "inside the corpus"),
    Table("end before start", _text(f"{HEAD},start,end\nv,1,a,0,train,5,2\nv,2,b,0,train,0,2\n"), 1, "make a clip"),
    Table("a start that is no number", _text(f"{HEAD},start,end\nv,1,a,0,train,x,2\nv,2,b,0,train,0,2\n"), 1, "number"),
)

NAMES = {
    "right to left": "שלום",
    "Arabic with a mark of direction": "\u202eمرحبا",
    "a line break": "one\ntwo",
    "blanks and quotes": ' it\'s "this" '.strip(),
    "percent signs and braces": "100%d {x}",
    "a leading dash": "-rf",
    "the name of a protocol": "concat:a|b",
    "an emoji": "🙂",
    "combining accents": "e\u0301te\u0301",
    "bytes that are not UTF-8": os.fsdecode(b"caf\xe9"),
    "200 characters": "x" * 200,
}
"""File names, of clips that must all be kept unless the csv cannot say them."""
