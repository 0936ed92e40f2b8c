"""Reports say what their numbers say: turned round, the sentences turn with them; and every page keeps what pages promise."""
import json
import re
import sys

import pytest
import torch
from test_pages import HOSTILE, check_page
from typer.testing import CliRunner

from interflow.aligning.pictures import alignment_findings
from interflow.checking.files import Finding
from interflow.checking.report import Check, Group, check_findings, write_check
from interflow.cli import app
from interflow.core import InterflowError, data_folder, photographs, read_image, write_image
from interflow.data import simulate
from interflow.judging import Judgement, verdict, write_judgement_page
from interflow.sr.report import findings, gain_of, say_gain, write_evaluation
from interflow.sr.tables import FEWEST
from interflow.training.report import POINTS, binned, course_findings, write_course
from interflow.training.watching import Course


def rows_of(count=10, factors=(2., 3.), **networks):
    "Rows of networks, each by its mean above 25 dB; scenes differ much, gains little."
    return [{'network': name, 'factor': factor, 'scene': f'scene_{k}', 'psnr_y': 25 + k + factor + above + .1 * above * ((-1) ** k), 'ssim_y': .8}
            for name, above in {'bicubic': 0., **networks}.items() for factor in factors for k in range(count)]


def test_a_gain_has_the_sign_of_its_numbers():
    rows = rows_of(up=.3, down=-.3, same=0.)
    assert 'of “up” is 0.30 dB higher than that of “bicubic”' in say_gain(gain_of(rows, 'up', 'bicubic'))
    assert 'of “bicubic” is 0.30 dB lower than that of “up”' in say_gain(gain_of(rows, 'bicubic', 'up'))
    assert 'of “down” is 0.30 dB lower than that of “bicubic”' in say_gain(gain_of(rows, 'down', 'bicubic'))
    assert 'No difference' in say_gain(gain_of(rows, 'same', 'bicubic'))


def test_an_interval_with_zero_in_it_is_no_difference():
    rows = rows_of(wild=.2)
    for row in rows:
        if row['network'] == 'wild':
            row['psnr_y'] += 5 * (-1) ** int(row['scene'][6:])
    said = say_gain(gain_of(rows, 'wild', 'bicubic'))
    assert said.startswith('No difference in PSNR on Y') and 'higher' not in said and 'lower' not in said


def test_few_scenes_prove_little_and_factors_are_no_scenes():
    few, many = (gain_of(rows_of(count, (2., 2.5, 3.), up=.3), 'up', 'bicubic') for count in (FEWEST - 1, FEWEST))
    assert few.scenes == 7 and few.factors == 3
    assert 'prove little' in say_gain(few) and 'prove little' not in say_gain(many)
    assert not any('above zero' in line for line in findings(rows_of(FEWEST - 1, up=.3)))
    assert 'above zero at 2 and below zero at 0 of 2 factors' in findings(rows_of(up=.3))[2]
    assert 'above zero at 0 and below zero at 2 of 2 factors' in findings(rows_of(up=-.3))[2]


def test_small_differences_are_no_zeros():
    assert 'is 0.004 dB higher' in say_gain(gain_of(rows_of(up=.004), 'up', 'bicubic'))


def test_the_best_is_the_best():
    assert 'is that of “a”: 30.00 dB' in findings(rows_of(count=4, a=1., b=.5))[0] and 'of “a” is' in findings(rows_of(a=1., b=.5))[1]
    assert 'is that of “b”' in findings(rows_of(a=-1., b=.5))[0]
    assert 'is that of “bicubic”' in findings(rows_of(a=-1., b=-.5))[0] and '“b” is 0.50 dB lower' in findings(rows_of(a=-1., b=-.5))[1]
    assert '“bicubic” and “a”' in findings(rows_of(a=0., b=-.5))[0], 'a tie has two'


def test_equal_images_are_left_out():
    rows = rows_of(up=.3)
    rows[0]['psnr_y'] = next(row for row in rows if row['network'] == 'up')['psnr_y'] = float('inf')
    assert .2 < gain_of(rows, 'up', 'bicubic').mean < .4
    with pytest.raises(InterflowError, match='not measured on the same image'):
        gain_of(rows, 'up', 'nobody')


def test_the_page_of_an_evaluation(tmp_path):
    rows = rows_of(**{HOSTILE: .3})
    write_evaluation(tmp_path / 'page.html', rows, settings={HOSTILE: HOSTILE})
    read = check_page(tmp_path / 'page.html')
    assert read.tags.count('img') == 1 and read.tags.count('tr') == 3
    assert re.search(r'0\.30 dB higher', read.text['p'])


def summary_of(ratios, told, sharp, perfect=(.97, 1.02)):
    "A summary as `summarise_rows` gives it, of two factors."
    rows = []
    for kind, numbers in (('generated', ratios), ('perfect', perfect)):
        rows += [{'factor': 2. + k, 'images': kind, 'scenes': 3, 'ratio': ratio, 'spectrum': .4, 'sharpness': sharp[k],
                  'accuracy': told and told[k], 'chance': told and .05} for k, ratio in enumerate(numbers)]
    return rows


def test_a_verdict_turns_with_its_numbers():
    calm = verdict(summary_of((.42, .5), (.8, .53), (-.03, -.01)))
    wild = verdict(summary_of((1.4, 1.5), (.5, .53), (.03, .01)))
    assert 'is 0.42 to 0.50 times that of true shots; other true shots score 0.97 to 1.02' in calm[0] and 'is 1.40 to 1.50 times' in wild[0]
    assert 'in 53 to 80 % of the cases; at 1 of 2 factors that is no more than chance' in calm[1] and 'at 2 of 2 factors' in wild[1]
    assert 'differs by -3.0 to -1.0 %' in calm[2] and '+1.0 to +3.0 %' in wild[2]
    assert 'was not tested' in verdict(summary_of((1., 1.), None, (0., 0.)))[1]


def test_a_verdict_on_pairs():
    rows = [{'factor': 2., 'images': 'generated', 'noise': 1.5, 'true_noise': 2.5, 'sharpness': .1, 'accuracy': None, 'chance': None}]
    said = verdict(rows)
    assert 'is 1.50 grey levels; of the true ones 2.50' in said[0] and said[2].endswith('+10.0 % from that of true images.')


def test_the_page_of_a_judgement(tmp_path):
    summary = summary_of((.42, .5), (.8, .53), (-.03, -.01))
    curve = {'spectrum': [.1] * 32, 'transfer': [.5] * 32, 'true_transfer': [.5] * 32}
    judgement = Judgement([], summary, {(row['images'], row['factor']): curve for row in summary})
    write_judgement_page(judgement, tmp_path / 'page.html', {'judged': HOSTILE})
    read = check_page(tmp_path / 'page.html')
    assert read.tags.count('img') == 1 and read.tags.count('tr') == 5 and json.dumps(HOSTILE) in read.text['pre']


def test_an_alignment_says_what_it_gave():
    shot = {'folder': 'x2', 'factor': 2.01, 'displacement': .1, 'largest': .3, 'foreign': 0., 'gain': [1., 1., 1.], 'matches': 900}
    worse = {**shot, 'factor': 2.05, 'displacement': .4, 'largest': .9}
    records = {'scenes': {'a': {'lr': [shot]}, 'b': {'lr': [worse]}}, 'refused': {'c': 'why'}}
    said = alignment_findings(records)
    assert said[0] == '2 of 3 scenes are aligned, 1 refused.' and 'At most 0.40 HR pixels' in said[1] and '0.90 at' in said[1]
    assert said[2] == 'Factors: 2.010 to 2.050 in x2 (2 shots).'
    assert alignment_findings({'scenes': {}, 'refused': {'c': 'why'}}) == ['0 of 1 scenes are aligned, 1 refused.']


def group(place, factor, found, shift=(.1, .3)):
    return Group(place, 4, factor, found, None, shift, .9, 1., -3., (1., 2.), 0.)


def test_a_check_says_where_it_is_worst():
    fault = Finding('error', 'shift', 'a.png', 'is shifted; register it')
    check = Check(('set',), [group('x2', 2., 2.02), group('x3', 3., 2.4, (.2, 1.7)), group('own', None, 2., (.1, float('nan')))], [fault], [])
    said = check_findings(check)
    assert said[0] == '12 pairs in 3 groups: 1 error.'
    assert 'in x3, x3.00 is claimed and x2.40 measured' in said[1] and 'at most 1.70 HR pixels' in said[2]
    assert check_findings(Check((), [], [], [])) == ['0 pairs in 0 groups: nothing doubtful.']


def test_the_page_of_a_check_without_pairs_and_with_hostile_names(tmp_path):
    fault = Finding('error', 'file', HOSTILE, 'is empty; replace it')
    write_check(Check((HOSTILE,), [group(HOSTILE, 2., None)], [fault], []), tmp_path)
    assert HOSTILE in check_page(tmp_path / 'check.html').text['li']
    odd = tmp_path / 'a$\\frac$ & <b>.png'
    write_image(odd, torch.rand(3, 200, 200))
    write_check(Check((), [], [Finding('error', 'shift', str(odd), 'is shifted; register it')], []), tmp_path / 'odd')
    assert check_page(tmp_path / 'odd' / 'check.html').tags.count('img') == 1
    write_check(Check((), [], [], []), tmp_path / 'none')
    assert check_page(tmp_path / 'none' / 'check.html').tags.count('img') == 0


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    "Two small photographs, and pairs of them."
    folder = tmp_path_factory.mktemp('reports')
    for file in photographs('test')[5:]:
        write_image(folder / 'photos' / f'{file.stem}.png', read_image(file)[:, 128:272, 192:336])
    simulate(folder / 'photos', folder / 'pairs', (3.,))
    return folder


def command(*words):
    return CliRunner().invoke(app, [*map(str, words), '--device', 'cpu'])


def test_judge_writes_a_page_alone_and_replaces_nothing_else(pairs, tmp_path):
    words = 'judge', data_folder() / 'weights' / 'flow', pairs / 'pairs', '--draws', 1, '--no-classifier', '--report', tmp_path / 'page.html'
    for _ in range(2):      # the second time over a page of its own
        done = command(*words)
        assert done.exit_code == 0, (done.output, done.exception)
    read = check_page(tmp_path / 'page.html')
    assert 'grey levels; of the true ones' in read.text['p'] and '"draws": 1' in read.text['pre']
    assert [path.name for path in tmp_path.iterdir()] == ['page.html']
    (tmp_path / 'page.html').write_text('mine')
    assert 'was not made by this command' in str(command(*words).exception) and (tmp_path / 'page.html').read_text() == 'mine'


def test_evaluate_writes_a_page(pairs, tmp_path):
    done = command('evaluate', data_folder() / 'weights' / 'rcan', pairs / 'pairs', '--report', tmp_path / 'page.html')
    assert done.exit_code == 0, (done.output, done.exception)
    read = check_page(tmp_path / 'page.html')
    assert 'The report: ' in done.output and read.tags.count('img') == 2 and 'PSNR on Y' in read.text['p'] and '"rival": "bicubic"' in read.text['pre']
    (tmp_path / 'page.html').write_text('mine')
    again = command('evaluate', data_folder() / 'weights' / 'rcan', pairs / 'pairs', '--report', tmp_path / 'page.html')
    assert 'was not made by this command' in str(again.exception)


# ---------------------------------------------------------------- a training

def course(out, losses, bits=(), **settings):
    "A training with a loss for each step, and a validation at the last of them."
    rows = [{'step': k, 'loss': loss} for k, loss in enumerate(losses)]
    for k, value in enumerate(reversed(bits)):
        rows[-1 - k] |= {'val_bits': value, 'val_told': .5}
    best = {'step': len(rows), 'name': 'bits', 'value': min(bits)} if bits else None
    return Course(**{'out': out, 'history': rows, 'best': best, 'taken': len(rows), 'seconds': 300., 'speed': 80., 'waiting': .03, 'strip': None, **settings})


def test_a_training_says_what_its_numbers_say(tmp_path):
    fell, rose, same = (course_findings(course(tmp_path, losses))[0] for losses in ([5., 4., 3.], [3., 4., 5.], [3., 9., 3.]))
    assert 'In 3 steps the loss fell from 5 to 3 ' in fell and 'rose from 3 to 5 ' in rose and 'stayed at 3 ' in same
    assert 'was not validated' in course_findings(course(tmp_path, [5., 4.]))[1]
    assert 'bits per dimension went from 4 to 3; the best, 3 at step 3, is kept' in course_findings(course(tmp_path, [5., 4., 3.], (4., 3.)))[1]
    assert 'bits per dimension is 3;' in course_findings(course(tmp_path, [5., 4.], (3.,)))[1]
    calm, held = (course_findings(course(tmp_path, [5., 4.], waiting=share))[2] for share in (.03, .3))
    assert '80 samples a second, 5.0 minutes for 2 steps; 3 % of' in calm and 'hold it up' not in calm and '30 % of' in held and 'hold it up' in held
    assert len(course_findings(course(tmp_path, [5., 4.], taken=0))) == 2, 'nothing was done, so nothing is said of its speed'


@pytest.mark.parametrize('count', [0, 1, 59, 60, 61, 400, 1000])
def test_a_curve_has_all_steps_in_groups_of_one_size(count):
    "A last group of one step would look like a jump."
    groups = binned(list(range(count)))
    sizes = [high - low + 1 for _, _, low, high in groups]
    assert sum(sizes) == count and len(groups) == min(count, POINTS) and (not count or max(sizes) - min(sizes) <= 1)
    assert all(step == mean + 1 for step, mean, _, _ in groups), 'steps are counted from 1'


def test_a_training_with_steps_that_are_no_numbers(tmp_path):
    told = course(tmp_path, [5., float('nan'), 3., float('inf')], (float('nan'),))
    told.history[1]['skipped'] = told.history[3]['skipped'] = True
    assert 'fell from 5 to 3' in course_findings(told)[0] and '2 steps skipped' in course_findings(told)[0]
    said = []
    write_course(told, HOSTILE, HOSTILE, said.append)
    assert said == [f'The report: {tmp_path / "report.html"}'] and check_page(tmp_path / 'report.html').tags.count('img') == 1


def test_a_page_that_cannot_be_drawn_ends_no_training(tmp_path, monkeypatch):
    said, blank = [], course(tmp_path, [2., 1.])
    broken = course(tmp_path, [2., 1.], history=[{'step': 0}])
    (tmp_path / 'folder').write_text('no folder')
    for told in (broken, course(tmp_path / 'folder', [2., 1.])):
        write_course(told, 'a', 'b', said.append)
        assert 'not written' in said[-1] and 'the model is saved all the same' in said[-1] and '\n' not in said[-1]
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    write_course(blank, 'a', 'b', said.append)
    assert 'matplotlib: not installed; pip install' in said[-1] and not (tmp_path / 'report.html').exists()


def test_a_page_of_a_training_replaces_its_own_and_nothing_else(tmp_path):
    said, page = [], tmp_path / 'report.html'
    page.write_text('mine')
    write_course(course(tmp_path, [2., 1.]), 'a', 'b', said.append)
    assert page.read_text() == 'mine' and 'move it away' in said[0]
    page.unlink()
    for losses, taken in (([2., 1.], 2), ([2., 1., .5], 1), ([2., 1., .5], 0)):
        write_course(course(tmp_path, losses, taken=taken), 'a', 'b', said.append)
    assert 'In 3 steps' in page.read_text() and 'for 1 step;' in page.read_text() and len(said) == 3, 'a start with nothing to do keeps the page'


@pytest.mark.parametrize('words, name, images', [(('train', '--factors', 3), 'bits per dimension', 2), (('train-sr', '--network', 'vdsr'), 'PSNR on Y', 2)], ids=['train', 'train-sr'])
def test_a_training_ends_with_a_page(pairs, tmp_path, words, name, images):
    more = ['--steps', 3, '--batch-size', 1, '--patch', 32, '--validate', pairs / 'pairs', '--validate-every', 2, '--ema', .5]
    done = command(words[0], pairs / 'pairs', tmp_path / 'run', *words[1:], *more)
    assert done.exit_code == 0, (done.output, done.exception)
    page = tmp_path / 'run/report.html'
    assert done.stdout.splitlines()[-1] == f'The report: {page}'
    read = check_page(page)
    assert read.tags.count('img') == images and f'{name} ' in read.text['p'] and 'samples a second' in read.text['p'] and '"ema": 0.5' in read.text['pre']
    before = page.read_bytes()
    again = command(words[0], pairs / 'pairs', tmp_path / 'run', *words[1:], *more)
    assert again.exit_code == 0 and page.read_bytes() == before and 'report' not in again.stdout
