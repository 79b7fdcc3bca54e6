"""Pages and messages are in plain English: words that readers know, and sentences that they can hold."""

import ast
import re

import pytest

from tests.support.paths import ROOT
from tests.support.tracked import tracked_files

BETTER = {
    r"go(?:es)? on\b(?! a| the)": "resume, continue",
    r"call (?:it |again)": "repeat the command",
    r"mend(?:s|ed)?\b": "fix",
    r"anew\b": "again",
    r"left out\b": "skipped, omitted",
    r"le(?:ave|aves|ft) (?:\w+ )?away\b": "omit",
    r"(?:is|are) through\b": "has ended",
    r"not there\b": "missing",
    r"(?:slides|tiles|files|rows) a second\b": "per second",
    r"the same call\b": "the same command",
}
"""What this project's pages once said, and what a reader expects."""

FEW_WORDS = ("benchmarks.md", "licences.md", "results.md")
"""Pages of measurements and of names, whose sentences are lists."""

MOST_WORDS = 40

PAGES = [ROOT / name for name in sorted(tracked_files()) if re.fullmatch(r"docs/[\w-]+\.md", name)]


def prose(page):
    """A page's text without code, links, tables and headings, paragraph by paragraph."""
    text = re.sub(r"^```.*?^```|^[|#][^\n]*", "\n", page, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "code", text))
    return [" ".join(each.split()) for each in re.split(r"\n\s*\n|\n(?=- )", text)]


def long_sentences(page):
    """Those of too many words, what is in parentheses aside."""
    sentences = [s for part in prose(page) for s in re.split(r"(?<=[.!?:;])\s+", re.sub(r" ?\([^()]*\)", "", part))]
    return [sentence for sentence in sentences if len(sentence.split()) > MOST_WORDS]


def odd_words(text):
    return [f"{found[0]}: {better}" for odd, better in BETTER.items() for found in re.finditer(rf"\b{odd}", text)]


def messages(source):
    """The texts of a module that are no docstrings and have several words."""
    tree = ast.parse(source)
    about = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [node.value for node in texts if id(node) not in about and node.value.count(" ") > 1]


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in FEW_WORDS], ids=lambda page: page.name)
def test_a_page_has_no_odd_words_and_no_endless_sentences(page):
    text = page.read_text()
    assert ([word for part in prose(text) for word in odd_words(part)], long_sentences(text)) == ([], [])


def test_messages_have_no_odd_words():
    code = [n for n in sorted(tracked_files()) if re.match(r"(wsi_prep|pretrain|pipelines)/.*\.py$", n)]
    assert {n: odd for n in code for text in messages((ROOT / n).read_text()) if (odd := odd_words(text))} == {}


@pytest.mark.parametrize(
    ("text", "odd"),
    [
        ("# A run\n\n| of | rows |\n\nThe run goes on; mend that.", 2),
        ("A slide is left out, or you leave it away.", 2),
        ("It goes on a disk. `left out` is code, and [left](left%20out.md) a link.", 0),
        ("```\ncall again\n```\n\n| what is through | a table |", 0),
    ],
)
def test_planted_odd_words_are_seen(text, odd):
    assert len([word for part in prose(text) for word in odd_words(part)]) == odd


@pytest.mark.parametrize(("words", "long"), [(40, 0), (41, 1)])
def test_a_planted_endless_sentence_is_seen(words, long):
    assert len(long_sentences("word " * (words - 1) + "end (and this, however long, does not count). Another.")) == long


def test_messages_are_texts_and_no_docstrings():
    source = '"""It goes on and on."""\nX = f"{1} slides are left out"\nY = "one word"\n'
    assert messages(source) == [" slides are left out"]
