"""The explorer without a browser: what its logic promises, and that nothing from outside breaks its panel."""
import json
import os
import shlex
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from pathlib import Path as Folder

import numpy as np
import pytest
import torch
from PIL import Image
from rooms import NBS, ROOT, cells, source

from interflow.checkpoints import save_model
from interflow.core import InterflowError, make_generator, to_pixels
from interflow.explorer import (
    CELL,
    DRAWS,
    EXAMPLES,
    HELP,
    READING,
    Explorer,
    Part,
    Settings,
    Studio,
    Worker,
    command,
    locate,
    panes,
    spread,
    spread_by_brightness,
)
from interflow.explorer.page import VOILA
from interflow.generation import generate_scene
from interflow.model import InterFlow, InterFlowConfig
from interflow.paths import PATHS, Path, add_path


def file(size, kind='PNG', mode='RGB'):
    "An image file's bytes."
    buffer = BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A flow that nobody trained; a picture of it is noise, but a picture."
    folder = tmp_path_factory.mktemp('flows') / 'a flow'
    model = InterFlow(InterFlowConfig.tiny(), make_generator(0)).eval()
    with torch.no_grad():
        model.prior.roots[1] *= 1.3      # so that its two Gaussians differ
        model.moments.last.weight.normal_(0, .05, generator=make_generator(0, 'moments'))      # and what they know of the scene
    save_model(folder, model)
    return str(folder)


@pytest.fixture
def settings(folder):
    return Settings(Part('flower', 64), folder)


@pytest.fixture(scope='module')
def studio(tmp_path_factory):
    return Studio(sr=tmp_path_factory.mktemp('sr') / 'absent')


def picture(data):
    return np.asarray(Image.open(BytesIO(data)))


def test_everything_that_settings_name_changes_the_picture(studio, settings):
    first = studio.picture(settings)
    changes = dict(factor=2.5, path='transport', temperature=.5, seed=1)
    for name, value in changes.items():
        assert not torch.equal(studio.picture(replace(settings, **{name: value})), first), name
    for name, value in dict(name='fig', size=96, down=.2, across=.2, camera='nikon').items():
        other = replace(settings, path='pixels', part=replace(settings.part, **{name: value}))
        assert not torch.equal(studio.picture(other), studio.picture(replace(settings, path='pixels'))), name
    for path in PATHS:
        one = replace(settings, path=path)
        assert torch.equal(studio.picture(one), studio.picture(replace(one, seed=9))) == (not PATHS[path].draws), path


@pytest.mark.parametrize('path', PATHS)
def test_a_picture_is_what_generation_makes(studio, settings, path):
    "The explorer decodes by itself, and quickly; what it shows is what `generate_scene` gives, where the prior knows the scene too."
    one = replace(settings, path=path, factor=2.7, seed=3, temperature=1. if path == 'pixels' else .8)
    model, lr = studio.model(one.model), {factor: studio.shot(one.part, factor) for factor in (2.1, 3.75)}
    if PATHS[path].images == 1:
        lr = {2.1: lr[2.1]}
    generator = make_generator(3, 'generate', one.part.name, '2.7', 0)
    made = next(generate_scene(model, studio.hr(one.part), lr, [2.7], path, [generator], one.temperature))
    assert np.abs(to_pixels(made).astype(int) - to_pixels(studio.picture(one)).astype(int)).max() <= 1


def test_noise_is_what_differs_between_draws(studio, settings):
    "Known noise is found, blur is none, and every path has some: its photographs are fresh for each draw."
    noise = torch.randn(60, 3, 32, 40, generator=make_generator(0)) / 255
    images = .5 + .2 * torch.rand(3, 32, 40, generator=make_generator(1)) + 4 * noise
    expected = 4 * (.299 ** 2 + .587 ** 2 + .114 ** 2) ** .5
    assert abs(spread(images) / expected - 1) < .03
    level, found = spread_by_brightness(images)
    assert len(level) == 8 and np.nanmax(np.abs(found / expected - 1)) < .1 and np.isnan(found).any() and not np.isnan(found).all()
    assert spread(images[:1].expand(4, -1, -1, -1)) == 0, 'one picture four times: whatever it looks like'
    shift = torch.tensor([-1., 1.])[:, None, None, None] / 255
    assert abs(spread(images[:1] + shift) - 2 ** .5) < 1e-3, 'two levels apart: an offset of a whole shot counts'
    for path in PATHS:
        one = replace(settings, path=path)
        draws = [studio.draw(one, number) for number in range(DRAWS)]
        assert torch.equal(draws[0], studio.picture(one)) and all(not torch.equal(a, b) for a, b in zip(draws, draws[1:])), path
    shots = [studio.shot(settings.part, 3., number) for number in range(DRAWS)]
    assert all(not torch.equal(a, b) for a, b in zip(shots, shots[1:]))


def test_the_noise_comes_after_the_pictures_and_can_be_left(studio, settings):
    "The caption first without the noise, once for each draw, so that a newer drawing may come between; then with it."
    events = list(panes(studio, replace(settings, factor=2.6, path='pixels')))
    names = [name for name, _ in events]
    captions = [value for name, value in events if name == 'caption']
    assert max(names.index(name) for name in ('generated', 'true', 'hr', 'difference')) < names.index('caption') < names.index('spectrum')
    assert len(captions) == DRAWS + 1 and not any('noise' in text for text in captions[:-1])
    draws, shots = (torch.stack(images) for images in zip(*((studio.draw(replace(settings, factor=2.6, path='pixels'), k), studio.shot(settings.part, 2.6, k)) for k in range(DRAWS))))
    assert f'noise {spread(draws):.1f}, true {spread(shots):.1f}' in captions[-1]


def test_a_slider_conditions_nothing_again(folder, settings, monkeypatch):
    studio, conditioned = Studio(sr='absent'), []
    condition = InterFlow.condition
    monkeypatch.setattr(InterFlow, 'condition', lambda self, hr: conditioned.append(len(hr)) or condition(self, hr))
    for path in PATHS:
        for factor in (2.2, 2.7, 3.3):
            studio.picture(replace(settings, path=path, factor=factor))
    assert conditioned == [1]


def test_the_picture_comes_first_and_the_panes_after_it(studio, settings):
    names = [name for name, _ in panes(studio, settings)]
    assert names[0] == 'generated'
    assert {'true', 'hr', 'difference', 'spectrum', 'brightness', 'map', 'posterior', 'caption'} <= set(names) and 'sr' not in names
    drawn = dict(panes(studio, replace(settings, path='pixels')))
    assert picture(drawn['hr']).shape == (64, 64, 3)
    difference = picture(drawn['difference']).astype(float) - 127.5
    truth = picture(drawn['generated']).astype(float) - picture(drawn['true'])
    assert np.abs(difference - (4 * truth).clip(-127.5, 127.5)).max() <= 1, 'grey where there is none, four times as much elsewhere'


def test_a_network_is_shown_where_there_is_one(folder, settings, tmp_path):
    from interflow.sr.networks import build, save_network
    save_network(tmp_path / 'net', build('rcan', 'tiny'))
    assert picture(dict(panes(Studio(sr=tmp_path / 'net'), settings))['sr']).shape == (64, 64, 3)


def test_a_flow_of_one_factor_has_pictures_but_no_map(studio, settings, tmp_path):
    save_model(tmp_path / 'one', InterFlow(InterFlowConfig.tiny(factors=(3.,)), make_generator(0)).eval())
    drawn = dict(panes(studio, replace(settings, model=str(tmp_path / 'one'))))
    assert {'generated', 'map', 'posterior'} <= set(drawn)


def test_the_command_line_is_one(settings):
    words = shlex.split(command(replace(settings, path='slerp', factor=2.8, seed=3, temperature=.5)))
    assert words[:3] == ['interflow', 'generate', settings.model]
    assert dict(zip(words[5::2], words[6::2])) == {'--factors': '2.8', '--path': 'slerp', '--seed': '3', '--temperature': '0.5'}
    done = subprocess.run([sys.executable, '-c', 'from interflow.cli import main; main()', *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and 'No such option' not in done.stderr and 'SET' in done.stderr, 'the command knows its words, and misses the set alone'


@pytest.mark.parametrize('name, data', [('a.txt', b'text'), ('a.svg', b'<svg xmlns="http://www.w3.org/2000/svg"/>'), ('a.png', b''), ('a.png', file((300, 300))[:900]),
                                        ('a.gif', file((99, 99), 'GIF', 'P')), ('a.png', file((63, 900))), ('a.tif', file((80, 80), 'TIFF', 'F')),
                                        ('a.png', bytes(20_000_001))])
def test_bad_uploads_are_one_line(name, data):
    studio = Studio()
    with pytest.raises(InterflowError) as fault:
        studio.add(name, data)
    assert len(str(fault.value).splitlines()) == 1 and not studio.uploads


def test_good_uploads_are_turned_upright_and_kept_apart():
    studio, exif = Studio(), Image.Exif()
    exif[274] = 6      # the camera was held upright
    buffer = BytesIO()
    Image.effect_noise((120, 80), 60).convert('RGB').save(buffer, 'JPEG', exif=exif)
    given = {'../../my photo.jpg': buffer.getvalue(), 'my photo.png': file((70, 90), mode='RGBA'), 'flower.png': file((64, 64), mode='L')}
    names = [studio.add(name, data) for name, data in given.items()]
    assert names == ['my_photo', 'my_photo-2', 'flower-2'] and studio.pixels(names[0]).shape == (120, 80, 3)
    assert studio.hr(Part(names[1], 192)).shape == (3, 68, 68), 'as much of it as there is, in fours'
    for _ in range(5):
        studio.add('more.png', file((64, 64)))
    assert len(studio.uploads) == 4


def test_of_many_drawings_the_first_and_the_last_are_made_and_nothing_kept_is_lost():
    made, go, rest = [], threading.Event(), threading.Event()
    worker = Worker(lambda event: (made.append(event[0]), rest.set() if event[0] == 'idle' else None))

    def job(name):
        go.wait(5)
        yield name, None
        yield f'{name} at length', None
    for i in range(50):
        worker.draw(lambda i=i: job(f'drawing {i}'))
        if i == 0:
            while 'busy' not in made:
                pass
        worker.keep(lambda i=i: job(f'kept {i}'))
    go.set()
    assert rest.wait(20)
    worker.close()
    assert [name for name in made if name.startswith('kept') and 'length' not in name] == [f'kept {i}' for i in range(50)]
    assert {name for name in made if name.startswith('drawing')} == {'drawing 0', 'drawing 49', 'drawing 49 at length'}


def no_survey(studio, model, size, camera):
    raise InterflowError('not surveyed, to be quick')


@pytest.fixture
def panel(studio, settings, monkeypatch):
    "A panel in place, without thread and browser."
    pytest.importorskip('ipywidgets')
    monkeypatch.setattr('interflow.explorer.controls.flows', lambda: {'test': settings.model})
    monkeypatch.setattr('interflow.explorer.drawing.survey', no_survey)
    panel = Explorer(studio)
    yield panel
    panel.close()


def said_of(panel):
    "All that stands beside the controls."
    return ''.join(line.value for line in panel.faults.values())


def test_no_fault_leaves_the_panel_and_none_is_html(panel, monkeypatch):
    monkeypatch.setattr(panel.studio, 'picture', lambda settings: [][0])
    panel.controls.factor.value = 2.4
    said = panel.faults['factor'].value
    assert 'IndexError' in said and '\n' not in said and 'itf-stale' in panel.screen.panel._dom_classes, 'beside its cause, the old picture greyed'
    assert sum(bool(line.value) for line in panel.faults.values()) == 1
    monkeypatch.undo()
    panel.controls.factor.value = 2.6
    assert not said_of(panel) and 'itf-stale' not in panel.screen.panel._dom_classes, 'the next picture takes both away'
    for name in ('<img src=x onerror=alert(1)>.png', 'a\nb.png'):
        panel.controls.upload.value = ({'name': name, 'type': 'image/png', 'size': 4, 'content': memoryview(b'nope'), 'last_modified': datetime(2026, 1, 1)},)
        said = panel.faults['upload'].value
        assert 'itf-fault' in said and '<img' not in said and '\n' not in said
        assert 'itf-stale' not in panel.screen.panel._dom_classes, 'the picture is still that of the settings'
    panel.controls.model.value = ''
    panel.controls.folder.value = '<b>nowhere'
    assert '&lt;b&gt;nowhere' in panel.faults['folder'].value
    panel.controls.factor.value = 3.1
    assert panel.faults['folder'].value and not panel.faults['factor'].value, 'it stays where it was caused'


@pytest.mark.parametrize('words', ['', 'null', '3', '[]', '"zoom"', '{"zoom": "x"}', '{"zoom": null}', '{"zoom": NaN}', '{"zoom": 1e99, "swipe": -5}',
                                   '{"large": []}', '{"large": ["<b>", "many"]}', '{"large": ["<b>.png", 1e12]}', '{"nothing": 1}',
                                   '{"example": [1]}', '{"part_down": 7, "part_across": -1}'])
def test_what_the_page_says_is_checked(panel, words):
    panel.controls.wire.value = words
    assert 1 <= panel.controls.zoom.value <= 16 and 0 <= panel.controls.swipe.value <= 100 and '<b>' not in said_of(panel)


def test_an_example_is_one_change_and_the_frame_follows_the_part(panel, studio, monkeypatch):
    drawn = []
    monkeypatch.setattr(panel.runner, 'run', lambda job, kept=False: drawn.append(job))
    for example in EXAMPLES:
        panel.controls.wire.value = json.dumps({'example': example.label})
        chosen = panel.controls.chosen()
        assert (chosen.part, chosen.path, chosen.factor) == (example.part, example.path, example.factor)
    assert len(drawn) == len(EXAMPLES) - 1, 'five widgets, one picture; the first example is there already'
    panel.controls.wire.value = '{"part_across": 1, "part_down": 0}'
    locate(panel.screen, studio.pixels(panel.controls.scene.value).shape[:2])
    assert 'left: 75.00%; top: 0.00%; width: 25.00%' in panel.screen.frame.value, 'the upper right corner of 768x512'


def test_a_page_that_missed_everything_is_told_again(studio, settings, monkeypatch):
    "What is said to a page while it is being built may be lost; it says hello until it sees the answer."
    pytest.importorskip('ipywidgets')
    monkeypatch.setattr('interflow.explorer.controls.flows', lambda: {'test': settings.model})
    monkeypatch.setattr('interflow.explorer.Runner.run', lambda self, job, kept=False: None)
    panel, sent = Explorer(studio), []
    assert 'data-heard="0"' in panel.screen.view.value, 'there before anything is drawn'
    monkeypatch.setattr(type(panel.screen.view), 'send_state', lambda widget, key=None: sent.append(widget))
    for count in range(3):
        sent.clear()
        panel.controls.wire.value = json.dumps({'hello': 1, 'count': count})
        assert panel.screen.view in sent and 'data-heard="1"' in panel.screen.view.value
        assert (panel.screen.frame in sent) == (count == 0), 'the rest once'
    panel.close()


def test_each_control_has_its_sentence(panel):
    for name, widget in vars(panel.controls).items():
        if hasattr(widget, 'tooltip') and name != 'wire':
            assert widget.tooltip == HELP[name] and widget.tooltip.endswith(('.', ').')), name
    inside, said = [panel.screen.panel], ''
    while inside:
        widget = inside.pop()
        inside += getattr(widget, 'children', ())
        said += str(getattr(widget, 'value', ''))
    assert all(sentence in said for sentence in {**HELP, **READING}.values()), 'each sentence stands on the page'


def test_what_is_typed_for_an_upload_names_its_file(panel, tmp_path):
    panel.controls.upload.value = ({'name': 'my photo.jpg', 'type': 'image/jpeg', 'size': 4, 'content': memoryview(file((120, 90), 'JPEG')), 'last_modified': datetime(2026, 1, 1)},)
    assert panel.controls.scene.value == 'my_photo'
    note, simulate, generate = panel.command.value.splitlines()
    assert note.startswith('# my photo.jpg: must lie in the folder photos')
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'my photo.jpg').write_bytes(file((120, 90), 'JPEG'))
    for line in (simulate, generate):
        words = [word if word != panel.controls.chosen().model else str(Folder(word).resolve()) for word in shlex.split(line)]
        done = subprocess.run([sys.executable, '-c', 'from interflow.cli import main; main()', *words[1:]], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, 'PYTHONPATH': str(ROOT)})
        assert done.returncode == 0 or 'set aside' in done.stdout + done.stderr, done.stderr
    assert [*(tmp_path / 'made').iterdir()]


def test_the_range_of_the_slider_is_the_flow_s(panel, tmp_path):
    for i, factors in enumerate([(1.5, 2.), (3.2, 3.9), (2.5,), (2.1, 3., 3.75)]):
        save_model(tmp_path / str(i), InterFlow(InterFlowConfig.tiny(factors=factors), make_generator(0)).eval())
        panel.controls.model.value = ''
        panel.controls.folder.value = str(tmp_path / str(i))
        assert abs(panel.controls.factor.min - factors[0]) + abs(panel.controls.factor.max - factors[-1]) < 1e-4
        assert factors[0] <= panel.controls.chosen().factor <= factors[-1] and not said_of(panel), said_of(panel)


def test_the_room_ends_as_the_page_does():
    room, = NBS.rglob('*_explorer.ipynb')
    assert CELL.splitlines()[-1] == source(cells(room)[-1][1])


@pytest.fixture
def added():
    "A path that nobody knew when the modules were written: it draws, and needs both images."
    def latent(s):
        return torch.lerp(s.z[s.i], s.z[s.i + 1], s.a) + .1 * s.noise
    add_path(Path('rough', 2, True, False, latent, 'the mean of both, and grain', '#882255', 'P'))
    yield 'rough'
    del PATHS['rough']


def test_a_path_that_is_added_is_shown_like_the_others(studio, settings, monkeypatch, added):
    one = replace(settings, path=added, factor=2.7)
    linear = studio.picture(replace(one, path='linear'))
    assert not torch.equal(studio.picture(one), studio.picture(replace(one, seed=1)))
    assert (studio.picture(one) - linear).abs().mean() > 1e-4
    names = [name for name, _ in panes(studio, one)]
    assert names[0] == 'generated' and {'spectrum', 'map', 'posterior'} <= {*names}
    pytest.importorskip('ipywidgets')
    monkeypatch.setattr('interflow.explorer.controls.flows', lambda: {'test': settings.model})
    monkeypatch.setattr('interflow.explorer.drawing.survey', no_survey)
    panel = Explorer(studio)
    assert panel.controls.path.options == tuple(PATHS) and added in panel.controls.path.options
    panel.controls.path.value = added
    assert not said_of(panel) and not panel.controls.seed.disabled
    assert f'--path {added} ' in panel.command.value
    panel.close()


def test_without_ipywidgets_one_line_says_so():
    script = "import sys; sys.modules['ipywidgets'] = None\nfrom interflow.explorer import explore\nfrom interflow.core import InterflowError\n" \
             "try: explore()\nexcept InterflowError as fault: print(fault)"
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "pip install 'interflow-sr[explorer]'" in done.stdout and len(done.stdout.splitlines()) == 1, done.stderr


def test_the_server_does_not_wait_for_a_grammar_of_addresses():
    "Building it takes longer than all else that Voila imports."
    pytest.importorskip('voila')
    done = subprocess.run([sys.executable, '-X', 'importtime', '-c', VOILA, '--version'], capture_output=True, text=True)
    assert done.returncode == 0 and 'voila.app' in done.stderr and 'rfc3987_syntax.' not in done.stderr, done.stderr[-300:]
