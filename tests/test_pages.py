"""Pages: one file with everything inside, nothing that was not escaped, small, and honest sentences."""
import importlib.util
import itertools
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_browser import ARTEFACTS, FLAGS
from test_browser import FOUND as CHROMIUM

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
HOSTILE = '$\\frac$"><script>alert(1)</script><img src=x onerror=alert(2)>\'&{{ $title }} </pre></details>'


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
    assert command_line([sys.executable, 'x']) == '' == command_line(['/x/other/__main__.py'])
    assert command_line(['/x/interflow/cli/__main__.py', 'judge']) == 'interflow judge'


@pytest.mark.skipif(not CHROMIUM or importlib.util.find_spec('playwright') is None, reason='no Chromium or no playwright here')
def test_a_page_reads_on_a_phone_and_in_the_dark(tmp_path):
    from playwright.sync_api import sync_playwright
    wide = {f'column {k} of many': k / 3 for k in range(14)}
    sections = {'Tables': ['Some words. ' * 20, table([{'name': '/a/very/long/name/of/a/network/in/a/folder', **wide}])],
                'Pictures': [Picture(noise(900), 'noise', 'how to read it'), Picture(noise(60), 'small')]}
    write_page(tmp_path / 'page.html', Page('A page', ['It is 2 % better than before.'], sections, {'settings': ['x' * 300]}))
    seen, said = {}, []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for width, scheme in itertools.product((390, 1280), ('light', 'dark')):
            context = browser.new_context(viewport={'width': width, 'height': 844}, color_scheme=scheme)
            page = context.new_page()
            page.on('console', lambda message: said.append(message.text))
            page.on('request', lambda request: said.append(request.url) if request.url.startswith('http') else None)
            page.goto((tmp_path / 'page.html').as_uri())
            page.evaluate("document.querySelector('details').open = true")
            ARTEFACTS.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=ARTEFACTS / f'page_{width}_{scheme}.png', full_page=True)
            seen[width, scheme] = page.evaluate('''() => {
                const style = element => getComputedStyle(document.querySelector(element)), table = document.querySelector('table');
                return {whole: document.documentElement.scrollWidth, table: [table.scrollWidth, table.clientWidth],
                        ink: style('body').color, paper: style('body').backgroundColor, quiet: style('figcaption').color, size: parseFloat(style('p').fontSize),
                        images: [...document.images].map(image => image.naturalWidth > 8 && image.getBoundingClientRect().width)} }''')
            assert not said, said
            context.close()
        browser.close()
    for (width, scheme), found in seen.items():
        assert found['whole'] <= width and found['size'] >= 16 and all(found['images']), (width, scheme, found)
        assert contrast(found['ink'], found['paper']) > 7 and contrast(found['quiet'], found['paper']) > 4.5
        assert found['table'][0] > found['table'][1], 'a wide table scrolls inside itself'
    assert seen[390, 'light']['paper'] != seen[390, 'dark']['paper'] and seen[390, 'dark']['images'][1] == 60
    assert seen[390, 'light']['images'][0] > 600, 'a wide picture scrolls too, and is not made small'


def contrast(one, other):
    "Of two colours, by WCAG."
    def light(colour):
        shares = (int(part) / 255 for part in re.findall(r'\d+', colour)[:3])
        return sum(weight * (share / 12.92 if share < .04 else ((share + .055) / 1.055) ** 2.4) for weight, share in zip((.2126, .7152, .0722), shares))
    low, high = sorted((light(one) + .05, light(other) + .05))
    return high / low
