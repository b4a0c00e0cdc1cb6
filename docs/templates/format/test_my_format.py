import io

from my_format import MyFormat


def test_every_row_gives_its_text() -> None:
    table = io.BytesIO(b'number,body\n1,one\n2,"two\nlines"\n3,\n')
    assert list(MyFormat("body").texts(table)) == ["one", "two\nlines", ""]
