"""The explorer in a real browser: headless Chromium by Playwright on a page that `interflow explore` serves, and once in JupyterLab.

Skipped where there is no Chromium (INTERFLOW_CHROMIUM names one that is not found by itself). Screenshots are kept in INTERFLOW_ARTEFACTS,
by default `runs/browser`. With INTERFLOW_BENCH=1 the latency of a slider's step is stored in benchmarks/explorer.json, and its picture beside it.
"""
import base64
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rooms import ROOT

from interflow.core import photographs

FOUND = os.environ.get('INTERFLOW_CHROMIUM') or next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
MISSING = [name for name in ('playwright', 'voila', 'ipywidgets', 'ipykernel') if importlib.util.find_spec(name) is None]
BENCH = os.environ.get('INTERFLOW_BENCH') == '1'
ARTEFACTS = Path(os.environ.get('INTERFLOW_ARTEFACTS') or ROOT / 'runs' / 'browser')
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
         '--disable-sync', '--force-color-profile=srgb']
pytestmark = [pytest.mark.skipif(not FOUND, reason='no Chromium here: install chromium, or name one in INTERFLOW_CHROMIUM'),
              pytest.mark.skipif(bool(MISSING), reason=f'not installed: {", ".join(MISSING)}')]
GENERATED = '.itf-over img.itf-generated'


def end(process):
    "End a server and all that it started."
    for sign, patience in ((signal.SIGINT, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, sign)
            process.wait(patience)
            break
        except (subprocess.TimeoutExpired, ProcessLookupError):
            continue


@pytest.fixture(scope='module')
def chromium():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=FOUND, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def address():
    "Where `interflow explore` says that its page is; the port that it was asked for is taken."
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, '-c', 'from interflow.cli import main; main()', 'explore', '--no-browser', '--port', str(port)]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
                                  env={**os.environ, 'PYTHONUNBUFFERED': '1'})
        try:
            found = re.search(r'http://127\.0\.0\.1:(\d+)/\?token=\S+', server.stdout.readline())
            assert found and int(found[1]) != port, 'the next free port, on this machine only, with a token'
            yield found[0]
        finally:
            end(server)


def spent():
    "Seconds of processors until now, of the kernels, the server and the browser below this process; nothing where there is no /proc."
    rows, sums = {}, dict.fromkeys(('kernel', 'server', 'browser'), 0.)
    for place in Path('/proc').glob('[0-9]*'):
        try:
            words, fields = (place / 'cmdline').read_text(), (place / 'stat').read_text().rpartition(')')[2].split()
        except OSError:     # it has just ended
            continue
        rows[int(place.name)] = int(fields[1]), words, (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
    for number, (_, words, seconds) in rows.items():
        above = number
        while above in rows and above != os.getpid():
            above = rows[above][0]
        if above == os.getpid():
            kind = next((kind for kind, name in (('kernel', 'ipykernel'), ('server', 'voila'), ('browser', 'chrom')) if name in words), None)
            sums |= {kind: sums[kind] + seconds} if kind else {}
    return sums


class Watch:
    "A page in which all is recorded that must not happen."

    def __init__(self, browser, size=(1400, 900), **options):
        self.context = browser.new_context(viewport={'width': size[0], 'height': size[1]}, accept_downloads=True, **options)
        self.page, self.errors, self.outside = self.context.new_page(), [], []
        self.page.on('console', lambda message: self.errors.append(message.text) if message.type in ('error', 'warning') else None)
        self.page.on('pageerror', lambda fault: self.errors.append(str(fault)))
        self.context.route(re.compile(r'^(?!http://127\.0\.0\.1[:/]|data:|blob:)'), self._stop)

    def _stop(self, route):
        self.outside.append(route.request.url)
        route.abort()

    def source(self, selector=GENERATED):
        return self.page.locator(selector).first.get_attribute('src')

    def changed(self, before, selector=GENERATED, seconds=20):
        "Wait until the picture is another, and decoded."
        self.page.wait_for_function('''([selector, before]) => { const image = document.querySelector(selector);
            return image && image.src && image.src !== before && image.complete && image.naturalWidth > 8; }''', arg=[selector, before], timeout=1000 * seconds)
        return self.source(selector)

    def rest(self):
        "Wait until everything is drawn."
        self.page.wait_for_function("document.querySelector('.itf-explorer') && !document.querySelector('.itf-explorer.itf-busy')", timeout=60_000)

    def bytes(self, selector=GENERATED):
        "The pixels of a picture, hashed in the page."
        return self.page.evaluate('''async selector => { const data = await (await fetch(document.querySelector(selector).src)).arrayBuffer();
            const hash = await crypto.subtle.digest('SHA-256', data); return [...new Uint8Array(hash)].join(); }''', selector)

    def said(self):
        return ' '.join(self.page.locator('.itf-fault').all_inner_texts())

    def part(self):
        "Where the part lies: (across, down)."
        return self.page.evaluate("(({across, down}) => [+across, +down])(document.querySelector('.itf-part').dataset)")

    def looks(self, name):
        "Keep a screenshot."
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f'{name}.png')


@pytest.fixture(scope='module')
def watch(chromium, address):
    watch, before, start = Watch(chromium), spent(), time.perf_counter()
    watch.page.goto(address, wait_until='commit')
    watch.page.wait_for_selector('#itf-wait .itf-stage', timeout=20_000)      # a skeleton, as long as nothing else is there
    assert not watch.page.locator('.itf-side select').count()
    watch.moving = watch.page.evaluate('document.getAnimations().map(one => one.effect.getKeyframes().flatMap(frame => Object.keys(frame)))')
    watch.page.wait_for_selector(GENERATED, state='attached', timeout=60_000)
    watch.changed('', seconds=60)
    watch.first = time.perf_counter() - start
    watch.spent = {kind: round(seconds - before[kind], 2) for kind, seconds in spent().items()}
    watch.rest()
    yield watch
    watch.context.close()


def the_page_shows_every_pane_and_fits(watch, tmp_path):
    assert not watch.page.locator('#itf-wait').count(), 'the skeleton is gone'
    watch.page.wait_for_function("document.querySelector('img.itf-posterior').naturalWidth > 100", timeout=60_000)
    watch.looks('explorer')
    if BENCH:
        used = watch.page.locator('.itf-body').bounding_box()
        watch.page.screenshot(path=ROOT / 'benchmarks' / 'explorer.jpg', type='jpeg', quality=82,
                              clip={'x': 0, 'y': 0, 'width': 1400, 'height': min(900, used['y'] + used['height'] + 8)})
    shown = [name for name in ('before', 'generated', 'true', 'hr', 'difference', 'spectrum', 'brightness', 'map', 'posterior')
             if watch.page.evaluate('name => document.querySelector(`img.itf-${name}`).naturalWidth', name) > 8]
    assert len(shown) == 9, shown
    for name in ('.itf-stage', '.itf-side', '.itf-plots', '.itf-grid'):
        box = watch.page.locator(name).bounding_box()
        assert box['x'] >= 0 and box['x'] + box['width'] <= 1400 and box['y'] + box['height'] <= 900, (name, box)
    assert watch.page.evaluate('document.documentElement.scrollWidth') <= 1400


def the_scripts_are_read_while_the_kernel_starts(watch, tmp_path):
    "The page ends when the kernel has imported the flow; what the browser must read is there before."
    script, page = watch.page.evaluate("""() => [performance.getEntriesByType('resource').find(entry => entry.name.endsWith('/voila.js')).responseEnd,
        performance.getEntriesByType('navigation')[0].responseEnd]""")
    assert script < page, (script, page)
    assert len(watch.moving) <= 1 and not any(name.startswith('background') for names in watch.moving for name in names), 'a skeleton that is painted 60 times a second'


def the_slider_moves_by_keyboard_and_the_picture_follows(watch, tmp_path):
    before = watch.source(), watch.bytes()
    watch.page.locator('.itf-factor .noUi-handle').focus()
    watch.page.keyboard.press('ArrowLeft')
    watch.changed(before[0])
    assert watch.bytes() != before[1]
    assert 'interflow generate data/weights/flow set made --factors 2.95 ' in watch.page.locator('.itf-command textarea').input_value(), 'as typed here'
    watch.rest()


def path_and_seed_change_the_picture(watch, tmp_path):
    hashes = [watch.bytes()]
    path = watch.page.locator('.itf-path select')
    for action in (lambda: watch.page.get_by_role('button', name='Draw again').click(), lambda: path.select_option('linear'), lambda: path.select_option('sample')):
        before = watch.source()
        action()
        watch.changed(before)
        watch.rest()
        hashes.append(watch.bytes())
    assert hashes[0] != hashes[1] != hashes[2] and hashes[3] == hashes[1], 'the same seed again is the same picture'


def zoom_and_pan_are_shared_and_the_swipe_moves(watch, tmp_path):
    transforms = lambda: watch.page.evaluate("[...document.querySelectorAll('.itf-pane img')].filter(image => image.offsetParent).map(image => getComputedStyle(image).transform)")
    whole = transforms()
    stage = watch.page.locator('.itf-stage').bounding_box()
    watch.page.mouse.move(stage['x'] + 100, stage['y'] + 100)
    watch.page.mouse.wheel(0, -100)
    watch.page.wait_for_function("before => getComputedStyle(document.querySelector('.itf-pane img')).transform !== before", arg=whole[0])
    scales = {transform.split('(')[1].split(',')[0] for transform in transforms()}
    assert scales == {'1.25'}, 'all panes, by the same'
    watch.page.locator('.itf-stage').focus()
    watch.page.keyboard.press('+')
    watch.page.wait_for_function("getComputedStyle(document.querySelector('.itf-pane img')).transform.startsWith('matrix(1.5')", timeout=10_000)
    watch.page.keyboard.press('0')
    watch.page.wait_for_function("before => getComputedStyle(document.querySelector('.itf-pane img')).transform === before", arg=whole[0], timeout=10_000)
    watch.page.mouse.move(stage['x'] + stage['width'] / 2, stage['y'] + 200)
    watch.page.mouse.down()
    watch.page.mouse.move(stage['x'] + stage['width'] / 4, stage['y'] + 200, steps=3)
    watch.page.mouse.up()
    watch.page.wait_for_function("getComputedStyle(document.querySelector('.itf-over')).clipPath === 'inset(0px 0px 0px 25%)'", timeout=10_000)
    watch.page.locator('.itf-swipe .noUi-handle').focus()
    watch.page.keyboard.press('Home')
    watch.page.wait_for_function("!getComputedStyle(document.querySelector('.itf-over')).clipPath.includes('%') ||"
                                 " getComputedStyle(document.querySelector('.itf-over')).clipPath.endsWith(' 0%)')", timeout=10_000)


def upload(watch, path):
    with watch.page.expect_file_chooser() as chooser:
        watch.page.locator('button.itf-upload').click()
    chooser.value.set_files(path)


def a_good_file_is_uploaded_and_bad_ones_are_refused_in_a_line(watch, tmp_path):
    shutil.copy(photographs('val')[0], tmp_path / 'my <b>berries.webp')
    (tmp_path / 'notes.png').write_bytes(b'hello')
    (tmp_path / 'huge.png').write_bytes(bytes(20_000_001))
    before = watch.source()
    for name, cause in (('notes.png', 'not a readable image'), ('huge.png', 'at most 20 MB')):
        upload(watch, tmp_path / name)
        watch.page.wait_for_function('cause => document.querySelector(".itf-beside-upload").innerText.includes(cause)', arg=cause, timeout=20_000)
        assert name in watch.said() and 'Traceback' not in watch.page.inner_text('body')
        assert watch.source() == before and not watch.page.locator('.itf-stale').count(), 'the picture stays, and is right'
    upload(watch, tmp_path / 'my <b>berries.webp')
    watch.changed(before)
    watch.rest()
    assert watch.page.locator('.itf-scene select option:checked').inner_text().startswith('my_b_berries')
    assert not watch.said()


def exports_are_downloaded(watch, tmp_path):
    for name, ending, start in (('Picture', '.png', b'\x89PNG'), ('Strip', '.strip.png', b'\x89PNG'), ('Lines', '.txt', b'# my <b>berries.webp: must lie in')):
        with watch.page.expect_download(timeout=30_000) as download:
            watch.page.get_by_role('button', name=name, exact=True).click()
        assert download.value.suggested_filename.endswith(ending)
        download.value.save_as(tmp_path / ending)
        assert (tmp_path / ending).read_bytes().startswith(start)


SIZES = {'phone': (390, 844), 'turned': (844, 390), 'tablet': (820, 1180), 'laptop': (1280, 800), 'screen': (1920, 1080)}
CLIPPED = '''() => [...document.querySelectorAll('.itf-explorer *')].filter(here => {
    const box = here.getBoundingClientRect(), style = getComputedStyle(here), inside = here.closest('.itf-pane, .itf-whole, .itf-wire, svg, style, option');
    if (!box.width || !box.height || inside || style.visibility === 'hidden') return false;
    if (box.left < -1 || box.right > innerWidth + 1) return true;
    for (const node of here.childNodes) {      // words, and what they may be hidden by
        if (node.nodeType !== 3 || !node.data.trim() || here.matches('textarea, select')) continue;
        const words = document.createRange();
        words.selectNodeContents(node);
        const {left, right, top, bottom} = words.getBoundingClientRect();
        for (let over = here; over && !over.matches('.itf-explorer'); over = over.parentElement) {
            const edge = over.getBoundingClientRect();
            if (getComputedStyle(over).overflowX !== 'visible' && (left < edge.left - 1 || right > edge.right + 1 || top < edge.top - 3 || bottom > edge.bottom + 3)) return true;
        }
    }
    if (!here.matches('select')) return false;
    const pen = document.createElement('canvas').getContext('2d');
    pen.font = style.font;
    return pen.measureText(here.selectedOptions[0].text).width > here.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight) + 1;
}).map(here => `${here.tagName} ${here.className} ${here.textContent.slice(0, 40)}`)'''
FAINT = '''() => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const channels = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const ground = here => { for (; here; here = here.parentElement) { const c = channels(getComputedStyle(here).backgroundColor); if (c[3] > 250) return c; } return [255, 255, 255]; };
    return [...document.querySelectorAll('.itf-explorer *')].filter(here => {
        const says = here.matches('select, input, textarea') || [...here.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        const box = here.getBoundingClientRect();
        if (!says || !box.width || !box.height || here.closest('.itf-pane, .itf-example, style, option, [disabled], .itf-wire') || here.matches('.itf-upload')) return false;
        const [a, b] = [light(channels(getComputedStyle(here).color)), light(ground(here))];
        return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.5;
    }).map(here => `${here.tagName} ${here.className} ${here.textContent.slice(0, 40)} ${getComputedStyle(here).color} on ${ground(here)}`);
}'''


def brightness_of(watch, selector):
    "The mean grey level of what is shown at a place."
    image = Image.open(BytesIO(watch.page.locator(selector).first.screenshot()))
    return np.asarray(image.convert('L')).mean()


def at_every_size_the_picture_is_first_and_nothing_is_cut(watch, tmp_path):
    for name, (width, height) in SIZES.items():
        watch.page.set_viewport_size({'width': width, 'height': height})
        watch.page.wait_for_function('width => innerWidth === width', arg=width)
        if name == 'phone':
            long = watch.page.evaluate('document.documentElement.scrollHeight')
            assert long < 2.5 * height, f'{long / height:.1f} screens: what is not needed first is folded'
            for title, inside in (('Photograph', '.itf-scene'), ('View', '.itf-swipe'), ('Noise and latents', '.itf-plot'), ('Take away', '.itf-copy-button')):
                assert not watch.page.locator(inside).first.is_visible(), title
                watch.page.locator('summary', has_text=title).click()
                assert watch.page.locator(inside).first.is_visible(), title
            assert watch.page.locator('.itf-whole').is_visible(), 'the part is chosen with the photograph'
        for scheme in ('dark', 'light'):
            watch.page.emulate_media(color_scheme=scheme)
            watch.page.evaluate('scrollTo(0, 0)')
            watch.looks(f'{name}-{scheme}')
            assert not watch.page.evaluate(FAINT), (name, scheme, 'words that are hard to read')
            assert (brightness_of(watch, '.itf-plot') < 80) == (scheme == 'dark'), 'plots included'
        assert watch.page.evaluate('document.documentElement.scrollWidth') <= width
        assert not (clipped := watch.page.evaluate(CLIPPED)), (name, clipped)
        watch.page.evaluate('scrollTo(0, 0)')
        box = watch.page.locator('.itf-stage').bounding_box()
        assert 0 <= box['y'] <= 80 and box['y'] + box['height'] <= height and box['width'] > .3 * width, (name, box)
        if name == 'phone':
            factor = watch.page.locator('.itf-factor').bounding_box()
            assert factor['y'] > box['y'] + box['height'] and factor['y'] + factor['height'] < height, 'what moves it is on the same screen'
            watch.page.evaluate("for (const one of document.querySelectorAll('.itf-explorer details')) one.open = false")
        if name == 'screen':
            plots = watch.page.locator('.itf-plots').bounding_box()
            assert plots['x'] + plots['width'] > .97 * width and plots['y'] + plots['height'] < height and box['width'] > 600, 'the width is used'
    watch.page.set_viewport_size({'width': 1400, 'height': 900})


def the_part_is_chosen_on_the_photograph(watch, tmp_path):
    whole = watch.page.locator('.itf-whole').bounding_box()
    before = watch.source()
    watch.page.mouse.click(whole['x'] + 3, whole['y'] + 3)
    before = watch.changed(before)
    assert watch.part() == [0, 0], 'a click: as near to it as there is'
    watch.page.mouse.move(whole['x'] + 10, whole['y'] + 10)
    watch.page.mouse.down()
    watch.page.mouse.move(whole['x'] + 10 + whole['width'] / 2, whole['y'] + 10, steps=4)
    watch.page.mouse.up()
    before = watch.changed(before)
    watch.rest()
    assert abs(watch.part()[0] - .5 / .75) < .02 and watch.part()[1] == 0, 'its frame is dragged'
    hr = watch.page.locator('.itf-framed-hr .itf-pane').bounding_box()
    watch.page.mouse.move(hr['x'] + 100, hr['y'] + 100)
    watch.page.mouse.down()
    watch.page.mouse.move(hr['x'] + 60, hr['y'] + 40, steps=4)
    watch.page.mouse.up()
    before = watch.changed(before)
    watch.rest()
    assert watch.part()[1] > .1, 'a picture is dragged like a map'
    watch.page.locator('.itf-whole').focus()
    watch.page.keyboard.press('ArrowLeft')
    watch.changed(before)
    watch.rest()


def an_example_is_a_view_to_start_from(watch, tmp_path):
    labels = watch.page.locator('.itf-example').all_inner_texts()
    assert len(labels) == 6 and all(watch.page.locator('.itf-example').nth(i).get_attribute('title') for i in range(6))
    before = watch.source()
    watch.page.locator('.itf-example', has_text='fur').click()
    watch.changed(before)
    watch.rest()
    assert watch.page.locator('.itf-scene select option:checked').inner_text().startswith('raccoon')


def a_fault_stands_beside_its_cause_and_the_old_picture_is_grey(watch, tmp_path):
    watch.page.locator('.itf-model select').select_option('a folder …')
    watch.page.locator('.itf-folder input').fill('nowhere')
    watch.page.keyboard.press('Enter')
    watch.page.wait_for_selector('.itf-beside-folder .itf-fault', timeout=20_000)
    watch.rest()
    watch.looks('fault')
    assert watch.said() == 'nowhere/config.json: no such file; check the path'
    field, line = (watch.page.locator(place).bounding_box() for place in ('.itf-folder', '.itf-beside-folder'))
    assert 0 <= line['y'] - field['y'] - field['height'] < 12, 'right under the field'
    assert watch.page.evaluate("getComputedStyle(document.querySelector('.itf-over img')).filter") == 'grayscale(1)'
    watch.page.locator('.itf-model select').select_option(index=0)
    watch.page.wait_for_selector('.itf-stale', state='detached', timeout=20_000)
    watch.rest()
    assert not watch.said()


GIVE = '''async ([kind, name, data]) => {
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), held = new DataTransfer();
    held.items.add(new File([bytes], name, {type: 'image/png'}));
    const place = document.querySelector('.itf-stage');
    place.dispatchEvent(kind === 'paste' ? new ClipboardEvent('paste', {clipboardData: held, bubbles: true, cancelable: true})
        : new DragEvent('drop', {dataTransfer: held, bubbles: true, cancelable: true}));
}'''


def an_image_is_dropped_and_pasted(watch, tmp_path):
    for kind in ('drop', 'paste'):
        buffer, before = BytesIO(), watch.source()
        Image.effect_noise((200, 160), 40 if kind == 'drop' else 70).convert('RGB').save(buffer, 'PNG')
        watch.page.evaluate(GIVE, [kind, f'{kind}ped.png', base64.b64encode(buffer.getvalue()).decode()])
        watch.changed(before)
        watch.rest()
        assert watch.page.locator('.itf-scene select option:checked').inner_text().startswith(f'{kind}ped') and not watch.said()
    watch.page.locator('.itf-scene select').select_option('my_b_berries (yours)')
    watch.rest()


def the_command_is_copied(watch, tmp_path):
    watch.context.grant_permissions(['clipboard-read', 'clipboard-write'])
    watch.page.locator('.itf-copy-button').click()
    watch.page.wait_for_function("document.querySelector('.itf-copy-button').textContent === 'Copied'")
    lines = watch.page.evaluate('navigator.clipboard.readText()').splitlines()
    assert lines[0] == '# my <b>berries.webp: must lie in the folder photos, alone'
    assert [line.split()[:2] for line in lines[1:]] == [['interflow', 'simulate'], ['interflow', 'generate']]


def everything_has_a_name_and_a_sentence(watch, tmp_path):
    nameless = watch.page.evaluate('''() => [...document.querySelectorAll('.itf-explorer :is(button, select, input, img, [role=slider])')].filter(here =>
        here.offsetParent && !(here.ariaLabel || here.title || here.textContent.trim() || here.alt || (here.labels && here.labels.length)
            || here.closest('.itf-example, .itf-wire'))).map(here => here.outerHTML.slice(0, 200))''')
    assert not nameless, nameless
    dumb = watch.page.evaluate('''() => [...document.querySelectorAll('.itf-side .jupyter-widgets:is(.widget-inline-hbox, .jupyter-button):not(.widget-html)')].filter(here =>
        here.offsetParent && !here.title).map(here => here.className)''')
    assert not dumb, dumb
    assert watch.page.locator('.itf-reading').count() == 4 and all(text.endswith('.') for text in watch.page.locator('.itf-reading').all_inner_texts())
    for number in range(watch.page.locator('.itf-side summary').count()):
        summary = watch.page.locator('.itf-side summary').nth(number)
        summary.focus()
        watch.page.keyboard.press('Enter')
        assert watch.page.locator('.itf-side dl').nth(number).is_visible()
        watch.page.keyboard.press('Enter')
    watch.page.locator('.itf-factor .noUi-handle').focus()
    watch.page.keyboard.press('Tab')
    watch.page.keyboard.press('Shift+Tab')
    assert watch.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == 'solid', 'where one is, is seen'


LATENCY = '''async ([selector, key, steps]) => {
    const handle = document.querySelector('.itf-factor .noUi-handle'), image = document.querySelector(selector), times = [];
    handle.focus();
    for (let i = 0; i < steps; i++) {
        const before = image.src, start = performance.now();
        handle.dispatchEvent(new KeyboardEvent('keydown', {key: i % 16 < 8 ? 'ArrowLeft' : 'ArrowRight', bubbles: true, cancelable: true}));
        while (image.src === before || !image.complete) {
            await new Promise(done => setTimeout(done, 1));
            if (performance.now() - start > 10000) throw new Error('no picture');
        }
        await image.decode();
        times.push(performance.now() - start);
        await new Promise(done => setTimeout(done, PAUSE));
    }
    return times;
}'''


def a_step_shows_its_picture_in_time(watch, tmp_path):
    "From the key to the decoded picture, each step while the panes of the one before are still being drawn, and each after a rest."
    watch.page.locator('.itf-scene select').select_option('kingswood (test)')
    watch.rest()
    watch.page.locator('.itf-path select').select_option('sample')
    watch.rest()
    busy, calm = (watch.page.evaluate(LATENCY.replace('PAUSE', pause), [GENERATED, '', 40 if BENCH else 8]) for pause in ('60', '600'))
    median, p90 = statistics.median(calm + busy), statistics.quantiles(calm + busy, n=10)[-1]
    print(f'first picture after {watch.first:.2f} s, seconds of processors: {watch.spent}; load {os.getloadavg()[0]:.1f}')
    print(f'median {median:.0f} ms (calm {statistics.median(calm):.0f}, busy {statistics.median(busy):.0f}), 9 of 10 within {p90:.0f} ms')
    if BENCH:
        result = {'median_ms': median, 'p90_ms': p90, 'median_calm_ms': statistics.median(calm), 'median_busy_ms': statistics.median(busy), 'steps': len(calm + busy),
                  'worst_ms': max(calm + busy), 'first_picture_s': round(watch.first, 2), 'first_picture_cpu_s': watch.spent, 'size': 192, 'path': 'sample', 'threads': int(os.environ.get('OMP_NUM_THREADS', 0)),
                  'cores': os.cpu_count(), 'machine': f'{os.cpu_count()} cores, {platform.machine()}', 'load': round(os.getloadavg()[0], 1)}
        (ROOT / 'benchmarks' / 'explorer.json').write_text(json.dumps(result, indent=2) + '\n')
        assert median < 150
    assert median < 1000, 'ten times the goal of 0.15 s would be felt even where other tests share the cores'


def nothing_was_wrong_and_nothing_left_the_machine(watch, tmp_path):
    assert not watch.outside, watch.outside
    assert not watch.errors, watch.errors


def without_the_token_there_is_no_page(watch, tmp_path):
    try:
        with urllib.request.urlopen(watch.page.url.split('?')[0], timeout=20) as answer:
            assert 'itf-' not in answer.read().decode() and 'login' in answer.url
    except urllib.error.HTTPError as fault:
        assert fault.code in (401, 403)


STEPS = (the_page_shows_every_pane_and_fits,
         the_scripts_are_read_while_the_kernel_starts,
         at_every_size_the_picture_is_first_and_nothing_is_cut,
         the_slider_moves_by_keyboard_and_the_picture_follows,
         path_and_seed_change_the_picture,
         zoom_and_pan_are_shared_and_the_swipe_moves,
         the_part_is_chosen_on_the_photograph,
         an_example_is_a_view_to_start_from,
         a_fault_stands_beside_its_cause_and_the_old_picture_is_grey,
         a_good_file_is_uploaded_and_bad_ones_are_refused_in_a_line,
         an_image_is_dropped_and_pasted,
         everything_has_a_name_and_a_sentence,
         the_command_is_copied,
         exports_are_downloaded,
         a_step_shows_its_picture_in_time,
         without_the_token_there_is_no_page,
         nothing_was_wrong_and_nothing_left_the_machine)


def test_the_page(watch, tmp_path):
    "One page, one server, one walk: each step a promise, in the order of a visit."
    for step in STEPS:
        step(watch, tmp_path)


def test_a_finger_on_a_phone(chromium, address):
    watch = Watch(chromium, SIZES['phone'], is_mobile=True, has_touch=True, device_scale_factor=2)
    try:
        watch.page.goto(address)
        watch.changed('', seconds=60)
        watch.rest()
        assert watch.page.evaluate('[innerWidth, document.documentElement.scrollWidth]') == [390, 390]
        small = watch.page.evaluate('''() => [...document.querySelectorAll('.itf-explorer :is(button, select, summary, .noUi-handle)')].filter(here => {
            const box = here.getBoundingClientRect();
            return box.height && Math.min(box.width, box.height) < 22; }).map(here => here.className)''')
        assert not small, small
        before, stage = watch.source(), watch.page.locator('.itf-stage').bounding_box()
        touch = watch.context.new_cdp_session(watch.page)
        for kind, x in (('touchStart', 200), ('touchMove', 150), ('touchMove', 100), ('touchEnd', None)):
            touch.send('Input.dispatchTouchEvent', {'type': kind, 'touchPoints': [{'x': x, 'y': stage['y'] + 100}] if x else []})
        watch.page.wait_for_function("+document.querySelector('.itf-view').dataset.swipe < 30", timeout=10_000)
        watch.page.locator('summary', has_text='Photograph').click()
        watch.page.locator('.itf-whole').scroll_into_view_if_needed()
        whole = watch.page.locator('.itf-whole').bounding_box()
        watch.page.touchscreen.tap(whole['x'] + 5, whole['y'] + whole['height'] - 5)
        watch.changed(before)
        assert watch.part() == [0, 1]
        assert not watch.errors, watch.errors
    finally:
        watch.context.close()


def test_the_same_cell_in_jupyterlab(chromium, tmp_path):
    from interflow.explorer import write_page
    (tmp_path / 'served').mkdir()
    write_page(tmp_path / 'served')
    settings = tmp_path / 'settings' / '@jupyterlab' / 'apputils-extension'
    settings.mkdir(parents=True)
    (settings / 'notification.jupyterlab-settings').write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    command = [sys.executable, '-m', 'jupyter', 'lab', '--allow-root', '--no-browser', '--ip=127.0.0.1', f'--port={port}', '--IdentityProvider.token=',
               '--expose-app-in-browser',               '--ServerApp.port_retries=0', f'--ServerApp.root_dir={tmp_path / "served"}', '--log-level=ERROR']
    environment = {**os.environ, 'JUPYTERLAB_SETTINGS_DIR': str(tmp_path / 'settings'), 'JUPYTERLAB_WORKSPACES_DIR': str(tmp_path / 'workspaces'),
                   'PYTHONPATH': str(ROOT), 'IPYTHONDIR': str(tmp_path / 'ipython')}
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    watch = Watch(chromium)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(('127.0.0.1', port)) == 0:
                    break
            time.sleep(.1)
        watch.page.goto(f'http://127.0.0.1:{port}/lab/tree/explorer.ipynb')
        watch.page.wait_for_function("window.jupyterapp && window.jupyterapp.shell.currentWidget && window.jupyterapp.shell.currentWidget.sessionContext"
                                     " && window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'", timeout=60_000)
        watch.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
        first = watch.changed('', seconds=60)
        watch.rest()
        watch.page.locator('.itf-factor .noUi-handle').focus()
        watch.page.keyboard.press('ArrowLeft')
        watch.changed(first)
        watch.looks('jupyterlab')
        watch.page.wait_for_function("document.querySelector('img.itf-posterior').naturalWidth > 100", timeout=60_000)
        for theme, dark in (('JupyterLab Light', False), ('JupyterLab Dark', True)):
            watch.page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
            watch.page.wait_for_function("dark => document.body.dataset.jpThemeLight === String(!dark)", arg=dark, timeout=20_000)
            for place in ('.itf-card-view', '.itf-plot'):
                assert (brightness_of(watch, place) < 90) == dark, 'the theme decides, not the system'
            assert not watch.page.evaluate(FAINT), theme
        watch.looks('jupyterlab-dark')
        assert not watch.outside, watch.outside
    finally:
        watch.context.close()
        end(server)
