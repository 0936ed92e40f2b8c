"""Faults that were met in use once, in the other forms that they can take."""
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import write_whole
from test_faults import say

from interflow.checkpoints import from_published
from interflow.core import InterflowError, make_generator, pick_device
from interflow.files import explain, write_csv
from interflow.latents import estimate_factor
from interflow.model import InterFlow, InterFlowConfig
from interflow.training.guard import Guard, why_lost
from interflow.training.settings import TrainConfig
from interflow.training.watching import Watch, note_validation
from interflow.weights import unwrap


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    return write_whole(tmp_path_factory.mktemp('whole'), 'vdsr', slice(200, 272), slice(300, 380))


@pytest.fixture
def place(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- a training that diverges

def after(losses, **settings):
    guard = Guard(TrainConfig(steps=len(losses), **settings))
    for step, loss in enumerate(losses):
        guard.note({'step': step, 'loss': loss, **({} if guard.accepts(step, loss) else {'skipped': True})})
    return guard


@pytest.mark.parametrize('losses', [[.05] + [1e16] * 29, [.05, 1e9, 1e9], [-2., 1e6, 1e6], [math.inf, .05, *[1e16] * 20]])
def test_a_short_run_that_ends_with_a_huge_loss_is_lost(losses):
    "Finite losses are stepped on before step 100: a run of thirty steps ended well with a loss of 1e16."
    assert 'the loss ends at' in why_lost(after(losses, max_loss=1.), ended=True)


@pytest.mark.parametrize('losses', [[325., 4516.], [325., 5000., 4000.], [.05, .9], [-2., 500., 600.], [2., 3.]])
def test_a_short_run_that_only_began_is_not_lost(losses):
    assert why_lost(after(losses, max_loss=1.), ended=True) is None


def test_a_model_of_a_run_that_goes_badly_is_no_best_one(tmp_path):
    "`best` was written while the losses were no numbers; `interflow upscale RUN` would have taken it."
    stored, record = [], {}
    watch = Watch(validate=lambda model: ({'psnr': 1.}, torch.zeros(3, 4, 4)), store=lambda folder, model: stored.append(folder))
    row = {'step': 4}
    note_validation(watch, torch.nn.Identity(), tmp_path, record, row, good=False)
    assert not stored and not record and row['val_psnr'] == 1.
    note_validation(watch, torch.nn.Identity(), tmp_path, record, row)
    assert stored and record['best']['step'] == 5


def test_a_lost_run_leaves_no_best_model(place, monkeypatch, capsys):
    code, lines = say(monkeypatch, capsys, 'train-sr pairs run --network rcan --steps 30 --batch-size 1 --patch 16 --learning-rate 5 --device cpu '
                                           '--no-check --validate pairs --validate-every 6')
    assert code == 2 and 'the run is lost' in lines[-1]
    assert not (place / 'run/best').exists() and not (place / 'run/model').exists()


def test_a_flow_whose_densities_are_no_numbers_tells_no_factor():
    torch.manual_seed(0)
    model = InterFlow(InterFlowConfig.tiny(), make_generator(0)).requires_grad_(False).eval()
    model.prior.means.fill_(1e30)
    images = torch.rand(1, 3, 16, 16)
    with pytest.raises(InterflowError, match='diverged'):
        estimate_factor(model, images, images, 1.)


def test_a_patch_that_no_flow_takes_claims_no_folder(place, monkeypatch, capsys):
    code, lines = say(monkeypatch, capsys, 'train pairs run --steps 1 --batch-size 1 --patch 33 --device cpu')
    assert code == 2 and 'patch 33' in lines[-1] and 'choose 32' in lines[-1] and not (place / 'run').exists()


# ---------------------------------------------------------------- devices

@pytest.mark.parametrize('name', ['CPU', 'Cpu', 'cpu:0', 'CPU:0', torch.device('cpu'), 'AUTO'])
def test_a_device_is_known_in_any_letters(name):
    assert isinstance(pick_device(name), torch.device)


# ---------------------------------------------------------------- weights in wrappings

@pytest.mark.parametrize('key', ['net', 'network', 'netG', 'G', 'ema', 'g_ema', 'module', 'weights', 'state', 'params-ema'])
def test_more_wrappings_are_taken_off(key):
    inside = {'module.first.weight': torch.ones(1)}
    assert list(unwrap({key: inside, 'epoch': 3}, 'x')) == ['first.weight']
    assert list(unwrap({'netG.first.weight': torch.ones(1)}, 'x')) == ['first.weight']


def test_averaged_weights_come_first():
    old, new = ({'a': torch.zeros(1)}, {'a': torch.ones(1)})
    for name in ('params_ema', 'ema', 'g_ema', 'model_ema'):
        assert unwrap({'params': old, 'model': old, name: new}, 'x')['a'] == 1


def test_weights_of_something_else_are_no_question_of_labels():
    with pytest.raises(InterflowError, match=r'missing.*unknown \(head.0.weight'):
        from_published({'head.0.weight': torch.ones(1), 'tail.0.weight': torch.ones(1)})


# ---------------------------------------------------------------- names that are no UTF-8

STRANGE = os.fsdecode(b'caf\xe9')


@pytest.fixture
def strange(place):
    "All that is read has such a name."
    try:
        for file in [*(place / 'pairs').rglob('*.png'), *(place / 'photos').rglob('*.png')]:
            if file.stem == sorted((place / 'photos').iterdir())[0].stem or STRANGE in file.stem:
                file.rename(file.with_name(f'{STRANGE}.png'))
    except OSError:
        pytest.skip('this disk knows UTF-8 alone')
    return place


COMMANDS = ['evaluate network pairs --device cpu --csv v.csv --report r.html', 'check pairs --processes 1 --out report',
            'train-sr pairs run --network vdsr --steps 1 --batch-size 1 --patch 16 --device cpu --no-check',
            'train pairs run --steps 1 --batch-size 1 --patch 16 --device cpu --no-check']


@pytest.mark.parametrize('command', COMMANDS, ids=lambda command: command.split()[0])
def test_work_is_not_lost_for_a_name_that_is_no_utf_8(strange, monkeypatch, capsys, command):
    "The work was done, the table or the card could not be written, and the whole of it was the message."
    code, lines = say(monkeypatch, capsys, command)
    assert code in (0, 1), lines
    assert 'training' not in command or (strange / 'run/model/README.md').exists()


def test_a_folder_that_is_no_utf_8_can_be_trained_on(place, monkeypatch, capsys):
    try:
        (place / 'pairs').rename(place / STRANGE)
    except OSError:
        pytest.skip('this disk knows UTF-8 alone')
    monkeypatch.setattr(sys, 'argv', ['interflow', 'train-sr', STRANGE, 'run', '--network', 'vdsr', '--steps', '1', '--batch-size', '1', '--patch', '16',
                                      '--device', 'cpu', '--no-check'])
    from interflow.cli import main
    main()
    assert (place / 'run/model').exists() and 'caf?' in (place / 'run/settings.toml').read_text()


def test_the_message_of_a_name_that_is_no_utf_8_is_short(tmp_path):
    write_csv(tmp_path / 'a.csv', [{'scene': STRANGE}])
    assert (tmp_path / 'a.csv').read_bytes() == b'scene\ncaf\\udce9\n'
    try:
        f'{"a page " * 1000}{STRANGE}'.encode()
    except UnicodeEncodeError as fault:
        assert len(explain(fault)) < 200 and 'caf' in explain(fault)


# ---------------------------------------------------------------- how the camera was held, and its colours, in pairs

def tagged(path, orientation=None, profile=None):
    tags = Image.Exif()
    if orientation:
        tags[274] = orientation
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=tags, icc_profile=profile)


@pytest.mark.parametrize('spoil', ['turned', 'broken profile'])
def test_a_set_made_of_pairs_agrees_with_itself(place, monkeypatch, capsys, spoil):
    "HR was linked with its tags, LR had none: OpenCV saw 80x72 beside 72x80."
    import cv2
    pixels = {}
    for file in (place / 'pairs').rglob('*.png'):
        pixels[file.name] = np.asarray(Image.open(file)) if file.parent.name == 'HR' else pixels.get(file.name)
        tagged(file, **({'orientation': 6} if spoil == 'turned' else {'profile': b'nothing' * 30}))
    code, lines = say(monkeypatch, capsys, 'generate flow pairs set --factors 3 --check none --names factor --device cpu --processes 1')
    assert code == 0, lines
    for hr in (place / 'set/HR').iterdir():
        assert cv2.imread(str(hr)).shape == cv2.imread(str(place / 'set/x3' / hr.name)).shape
        with Image.open(hr) as image:
            assert 'icc_profile' not in image.info and np.array_equal(np.asarray(image), pixels[hr.name])


# ---------------------------------------------------------------- images beside the data

@pytest.mark.parametrize('options', ['--save-images pairs/HR', '--save-images pairs/x2.1/below', '--crops pairs/HR/new.png', '--crops pairs/x2.1/new.png'])
def test_an_evaluation_leaves_no_image_among_the_data(place, monkeypatch, capsys, options):
    "It would be read as data the next time."
    before = sorted(place.rglob('*'))
    code, lines = say(monkeypatch, capsys, f'evaluate network pairs --device cpu {options}')
    assert code == 2 and 'input folder' in lines[-1] and sorted(place.rglob('*')) == before


def test_tables_of_an_evaluation_may_lie_beside_the_data(place, monkeypatch, capsys):
    assert say(monkeypatch, capsys, 'evaluate network pairs --device cpu --csv pairs/values.csv')[0] == 0


# ---------------------------------------------------------------- factors that are none

ASK = {'evaluate': 'evaluate network pairs --device cpu --factors=FACTOR', 'train': 'train pairs run --steps 1 --batch-size 1 --patch 16 --device cpu --factors=FACTOR',
       'train-sr': 'train-sr pairs run --steps 1 --batch-size 1 --patch 16 --device cpu --factors=FACTOR', 'judge': 'judge flow pairs --device cpu --factors=FACTOR'}


@pytest.mark.parametrize('factor', ['nan', 'inf', '2.1,nan', '1e400', '-2', '0'])
@pytest.mark.parametrize('command', ASK.values(), ids=ASK)
def test_a_factor_that_is_no_number_is_one_line(place, monkeypatch, capsys, command, factor):
    code, lines = say(monkeypatch, capsys, command.replace('FACTOR', factor))
    assert code == 2 and len(lines) == 1 and 'not a list of numbers' in lines[0], lines


@pytest.mark.parametrize('factor', ['1', '1.0', '1,2.1'])
def test_hr_is_no_lr_image_to_evaluate(place, monkeypatch, capsys, factor):
    code, lines = say(monkeypatch, capsys, f'evaluate network pairs --device cpu --factors {factor}')
    assert code == 2 and 'the HR image itself' in lines[-1], lines


@pytest.mark.parametrize('command', ['evaluate network set --device cpu', 'check set --processes 1', 'train set run --steps 1 --device cpu',
                                     'train-sr set run --steps 1 --device cpu'], ids=lambda command: command.split()[0])
@pytest.mark.parametrize('name', ['x0', 'x0.5', '0'])
def test_a_folder_of_a_factor_that_cannot_be_is_named(place, monkeypatch, capsys, command, name):
    "A factor 0 divided by zero, and one of 0.5 was measured and trained on."
    files = {'x0': ('HR/a.png', 'x0/a.png'), 'x0.5': ('HR/a.png', 'x0.5/a.png'), '0': ('0/a_HR.png', '0/a_LR0.png')}[name]
    for file, source in zip(files, ('HR', 'x2.1')):
        (place / 'set' / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sorted((place / 'pairs' / source).iterdir())[0], place / 'set' / file)
    code, lines = say(monkeypatch, capsys, command)
    told = command.startswith('check') or any('at factor' in line and 'rename' in line for line in lines)      # check: in its table
    assert code == 2 and told, lines


@pytest.mark.parametrize('command', ['check --hr pairs/HR --lr pairs/x2.1 --factor inf --processes 1', 'evaluate network list.csv --device cpu'],
                         ids=lambda command: command.split()[0])
def test_an_infinite_factor_of_own_pairs(place, monkeypatch, capsys, command):
    name = sorted((place / 'pairs/HR').iterdir())[0].name
    (place / 'list.csv').write_text(f'hr,lr,factor\npairs/HR/{name},pairs/x2.1/{name},inf\n')
    code, lines = say(monkeypatch, capsys, command)
    assert code == 2 and 'inf' in lines[-1] and 'a number above 1' in lines[-1], lines


def test_columns_of_a_list_in_capitals(place, monkeypatch, capsys):
    name = sorted((place / 'pairs/HR').iterdir())[0].name
    (place / 'list.csv').write_text(f'HR, LR,Factor\npairs/HR/{name},pairs/x2.1/{name},2.1\n')
    assert say(monkeypatch, capsys, 'evaluate network list.csv --device cpu')[0] == 0


# ---------------------------------------------------------------- many scenes

MANY = '''
from interflow.checking.scenes import _one_core, examine
from interflow.data import read_set
used = lambda: int(open('/proc/self/status').read().split('RssAnon:')[1].split()[0]) / 1e3
scene, facts, peaks = read_set('pairs')[0], [], []
with _one_core():
    for number in range(50):
        facts.append(examine(scene))
        peaks += [used()] if number in (9, 49) else []
print(peaks[1] - peaks[0])
'''


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='Linux tells it')
def test_a_check_of_many_scenes_takes_no_more_memory(place):
    "What is kept of a scene pinned the memory of its images: 700 MB for 180 scenes of 400x600 pixels."
    for file in (place / 'pairs').rglob('*.png'):
        Image.open(file).resize((600, 400)).save(file)
    said = subprocess.run([sys.executable, '-c', MANY], cwd=place, capture_output=True, text=True, check=True).stdout
    assert float(said) < 25, f'{said} MB more after 40 scenes more'


# ---------------------------------------------------------------- a run that is to go on otherwise

def test_a_run_with_other_settings_is_told_how_to_go_on(place, monkeypatch, capsys):
    command = 'train-sr pairs run --network vdsr --steps 1 --batch-size 1 --patch 16 --device cpu --no-check'
    code, lines = say(monkeypatch, capsys, f'{command} --learning-rate 1e-5')
    assert code == 0, lines
    code, lines = say(monkeypatch, capsys, f'{command} --learning-rate 1e-4')
    assert code == 2 and lines[-1].endswith('--init run/model'), lines
    assert say(monkeypatch, capsys, f'{command} --learning-rate 1e-4 --init run/model'.replace('pairs run', 'pairs further'))[0] == 0


@pytest.mark.parametrize('command', ['generate FILE photos out --factors 3 --device cpu', 'evaluate FILE pairs --device cpu', 'upscale FILE photos out --device cpu',
                                     'train pairs out --init FILE --device cpu', 'train-sr pairs out --init FILE --device cpu'], ids=lambda command: command.split()[0])
def test_a_file_of_weights_for_a_folder_is_told_how_to_become_one(place, monkeypatch, capsys, command):
    torch.save({'a': torch.ones(1)}, place / 'w.pth')
    code, lines = say(monkeypatch, capsys, command.replace('FILE', 'w.pth'))
    assert code == 2 and '`interflow import`' in lines[-1], lines


# ---------------------------------------------------------------- the Python API

IMAGE = torch.rand(3, 24, 32)
WRONG = {'NaN': IMAGE * math.nan, 'infinity': IMAGE / 0, '0 to 255': IMAGE * 255, 'whole numbers': (IMAGE * 255).int(), 'colours last': IMAGE.permute(1, 2, 0),
         'a batch': IMAGE[None], 'grey': IMAGE[:1], 'empty': IMAGE[:, :0], 'an array': IMAGE.numpy(), 'none': None}


@pytest.mark.parametrize('image', WRONG.values(), ids=WRONG)
@pytest.mark.parametrize('verb', ['simulate', 'generate', 'upscale'])
def test_an_image_that_is_none_is_refused_by_every_verb(place, verb, image):
    "NaN came back as an image, 0 to 255 as a white one, the rest as a traceback out of the network."
    import interflow
    model = {'simulate': (), 'generate': ('flow',), 'upscale': ('network',)}[verb]
    with pytest.raises(InterflowError):
        getattr(interflow, verb)(*model, image)


def test_images_of_8_bits_and_of_other_floats_are_taken(place):
    import interflow
    whole = (IMAGE * 255).round().byte()
    for verb, model in (('simulate', ()), ('generate', ('flow',)), ('upscale', ('network',))):
        call = getattr(interflow, verb)
        assert torch.equal(call(*model, whole), call(*model, whole.float() / 255)) and call(*model, IMAGE.double()).dtype == torch.float32


def test_the_other_kind_of_model_is_refused(place):
    import interflow
    with pytest.raises(InterflowError, match='where a flow is needed'):
        interflow.generate('network', IMAGE)
    with pytest.raises(InterflowError, match='where an SR network is needed'):
        interflow.upscale('flow', IMAGE)


@pytest.mark.parametrize('out', ['photos', 'photos/set', 'linked/set'])
def test_generate_does_not_write_into_its_photographs(place, out):
    import interflow
    (place / 'linked').symlink_to('photos')
    before = sorted(place.rglob('*'))
    with pytest.raises(InterflowError, match='input'):
        interflow.generate('flow', 'photos', out)
    assert sorted(place.rglob('*')) == before


@pytest.mark.parametrize('out', ['pairs/HR', 'pairs/x2.1', 'pairs/HR/below', 'linked'])
def test_a_judgement_leaves_no_figure_among_the_data(place, monkeypatch, capsys, out):
    "judge.png among the HR images was an HR image without LR the next time."
    (place / 'linked').symlink_to('pairs/HR')
    before = sorted(place.rglob('*'))
    code, lines = say(monkeypatch, capsys, f'judge flow pairs --device cpu --out {out}')
    assert code == 2 and 'input' in lines[-1] and sorted(place.rglob('*')) == before, lines


def test_a_flow_that_travels_to_another_process_keeps_all_that_was_measured():
    "Without its calibration it draws other images there."
    import pickle

    from interflow.degrade import Degrade
    from interflow.loading import load
    degrade = Degrade(load('shipped:flow'), 3.)
    there, crops = pickle.loads(pickle.dumps(degrade)), torch.rand(1, 3, 48, 48, generator=make_generator(0))
    assert all(getattr(there.model, name) == getattr(degrade.model, name) for name in degrade.model.measured)
    assert torch.equal(there(crops)['lr'], degrade(crops)['lr'])
