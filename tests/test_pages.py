"""Pages: one file with everything inside, nothing that was not escaped, small, and honest sentences."""
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from interflow import pages
from interflow.pages import (
    Html,
    Page,
    Picture,
    command_line,
    commit_of,
    html,
    is_page,
    listing,
    table,
    write_page,
)

EMPTY = {'meta', 'img', 'br', 'link', 'input', 'hr'}
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\'&{{ $title }} </pre></details>'


class Reader(HTMLParser):
    "Reads a page as a browser does, and notes what is open, what it refers to, and its text."

    def __init__(self, text):
        super().__init__()
        self.open, self.faults, self.refers, self.tags, self.text = [], [], [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.refers += [(name, value) for name, value in attributes if name in ('src', 'href', 'srcset', 'poster', 'data') or name.startswith('on')]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        where = self.open[-1] if self.open else ''
        self.text[where] = self.text.get(where, '') + data


def check_page(path, most=5_000_000):
    "What every page of this package promises; gives what was read."
    text = Path(path).read_text(encoding='utf-8')
    read = Reader(text)
    assert not read.open and not read.faults, 'balanced'
    assert all(name == 'src' and value.startswith('data:image/') for name, value in read.refers), 'self-contained'
    assert 'script' not in read.tags and 'url(' not in text and '@import' not in text
    assert read.tags.count('h1') == 1 and {'details', 'footer', 'main'} <= set(read.tags)
    assert '<meta name="viewport" content="width=device-width' in text and 'prefers-color-scheme: dark' in text
    assert not re.search(r'\$\w|\{\{', text.replace('{{ $title }}', '')), 'nothing left to fill in'
    assert all(f'{name}: ' in read.text['footer'] for name in ('version', 'commit', 'date', 'command'))
    assert len(text) < most and is_page(Path(path))
    return read


def noise(side):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


def test_a_page_is_one_file_and_hostile_names_are_text(tmp_path):
    sections = {HOSTILE: [HOSTILE, table([{HOSTILE: HOSTILE, 'n': 1}]), listing([HOSTILE], HOSTILE),
                          Picture(noise(40), HOSTILE, HOSTILE)], 'empty': []}
    write_page(tmp_path / 'page.html', Page(HOSTILE, [HOSTILE], sections, {HOSTILE: HOSTILE}))
    read = check_page(tmp_path / 'page.html')
    assert read.tags.count('img') == 1 and read.tags.count('h2') == 1, 'no tag came from a name'
    assert HOSTILE in read.text['h1'] and HOSTILE in read.text['td'] and HOSTILE in read.text['figcaption']


def test_many_large_pictures_are_still_a_small_page(tmp_path):
    many = [Picture(noise(700), 'noise') for _ in range(12)]
    write_page(tmp_path / 'page.html', Page('noise', [], {'all': many}))
    assert check_page(tmp_path / 'page.html').tags.count('img') == 12


def test_few_pictures_lose_nothing():
    image = noise(64)
    file = Picture(image, 'noise').open()[0]
    assert np.array_equal(file, image)
    assert np.array_equal(Image.open(__import__('io').BytesIO(pages.squeeze(file, 10**6))).convert('RGB'), image)
    assert len(pages.squeeze(file, 4000)) <= 4000


def test_what_is_html_already_is_not_escaped_twice():
    assert html('<') == html(html('<')) == '&lt;' and isinstance(html('<'), Html)
    assert html(1 / 3) == '0.333' and html(7) == '7'
    assert table([{'a': 1, 'b': 2}], ['b', 'c']) == '<table><tr><th>b</th><th>c</th></tr><tr><td>2</td><td></td></tr></table>'


def test_a_page_replaces_a_page_and_nothing_else(tmp_path):
    (tmp_path / 'mine.html').write_text('<meta name="generator" content="another">')
    assert not is_page(tmp_path / 'mine.html') and not is_page(tmp_path) and not is_page(tmp_path / 'none.html')


def test_a_page_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(OSError):
        write_page(tmp_path / 'page.html', Page('a', [], {'b': [Picture(tmp_path / 'none.png', 'none')]}))
    assert not list(tmp_path.iterdir())


def test_the_page_says_which_code_made_it(tmp_path):
    git = lambda *words: subprocess.run(['git', '-C', tmp_path, '-c', 'user.name=a', '-c', 'user.email=a@b', *words], check=True, capture_output=True)
    (tmp_path / 'code.py').write_text('1')
    assert commit_of(tmp_path) == ''
    git('init', '-q'), git('add', '.'), git('commit', '-qm', 'one')
    first = commit_of(tmp_path)
    assert re.fullmatch(r'[0-9a-f]{10}', first)
    (tmp_path / 'code.py').write_text('2')
    assert commit_of(tmp_path) == f'{first} with changes'
    assert command_line(['C:/x/interflow.exe', 'judge', 'a b']).startswith('interflow judge ') and command_line([]) == ''
    assert command_line([sys.executable, 'x']) == ''
