"""Reading a page as a browser does, and what must hold for a page that needs no network."""

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Tags are balanced; what they hold is collected.

    Attributes:
        sources: values of src and href.
        ids: all ids.
        headings: (level, text).
        tables: rows of texts by caption.
        images: alt texts of the pictures.
    """

    def __init__(self, text):
        super().__init__()
        self.sources, self.ids, self.headings, self.tables, self.images = [], [], [], {}, []
        self.style = self.script = self.text = ""
        self._open, self._cell, self._table = [], None, None
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        assert len(values) == len(attrs), f"an attribute is given twice: {attrs}"
        assert not [name for name in values if name.startswith("on")], f"a handler inside a tag: {attrs}"
        self.sources += [values[name] for name in ("src", "href") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag == "img":
            self.images.append(values["alt"])
        if tag in ("td", "th", "caption", "h1", "h2", "h3", "h4"):
            self._cell = ""
        if tag == "table":
            self._table = []
        if tag == "tr":
            self._table.append([])
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"
        if tag in ("td", "th"):
            self._table[-1].append(self._cell.strip())
        if tag == "caption":
            self.tables[self._cell] = self._table
        if re.fullmatch("h[1-4]", tag):
            self.headings.append((int(tag[1]), self._cell))

    def handle_data(self, data):
        inside = self._open[-1] if self._open else ""
        if inside in ("style", "script"):
            setattr(self, inside, getattr(self, inside) + data)
            return
        self.text += data
        if self._cell is not None:
            self._cell += data


def check(text):
    """Check that a page is whole and needs nothing else; returns what it holds."""
    page = Page(text)
    for source in page.sources:
        if source.startswith("#"):
            assert source[1:] in page.ids, f"{source} leads nowhere"
        else:
            assert source.startswith("data:"), f"{source} lies outside of the page"
    assert not re.search(r"url\(|@import|https?:", page.style), "the style loads something"
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|https?:", page.script), "the script loads something"
    assert len(set(page.ids)) == len(page.ids)
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:])), f"a heading is left out: {levels}"
    assert all(page.images), "a picture without words"
    return page
