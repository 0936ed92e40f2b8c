"""A batch that was stopped goes on with the same command: what was made of the same files by the same network stays, all else is made again."""
import numpy as np
import pytest
import torch
from PIL import Image
from scenes import run_command, without_bars

from interflow.resuming import Finished, Lines
from interflow.sr import use
from interflow.sr.networks import build, save_network


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A network and four small pictures, one of them in a sub-folder."
    save_network(tmp_path / 'net', build('vdsr', 'tiny'))
    for k, name in enumerate(('a.png', 'b.png', 'c.png', 'sub/d.png')):
        (tmp_path / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        picture(tmp_path / 'in' / name, k)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 14, 3), np.uint8)).save(path)


@pytest.fixture
def enlarged(monkeypatch):
    "How many pictures were computed since it was emptied; `stop` is how many are until Ctrl-C."
    done, real = [], use.enlarge
    done_and_stop = {'done': done, 'stop': 99}

    def enlarge(*words):
        if len(done) == done_and_stop['stop']:
            raise KeyboardInterrupt
        done.append(1)
        return real(*words)
    monkeypatch.setattr(use, 'enlarge', enlarge)
    return done_and_stop


UPSCALE = 'upscale net in out --factor 2 --device cpu'


def results(place):
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in (place / 'out').rglob('*.*') if path.name[0] != '.'}


def test_the_same_command_goes_on_after_ctrl_c(place, enlarged, monkeypatch, capsys):
    enlarged['stop'] = 2
    code, _, error = run_command(monkeypatch, capsys, UPSCALE)
    assert code == 130 and without_bars(error)[-1] == 'interflow: interrupted; the same command goes on where it was'
    assert sorted(results(place)) == ['out/a.png', 'out/b.png'] and not list(place.rglob('*.part'))
    before = {name: (place / name).stat().st_mtime_ns for name in results(place)}
    enlarged['done'].clear()
    enlarged['stop'] = 99
    code, said, error = run_command(monkeypatch, capsys, UPSCALE)
    assert code == 0 and said == '4 pictures, 2 times as large: out\n' and len(enlarged['done']) == 2
    assert 'out: 2 of 4 pictures are there already' in without_bars(error)[0]
    assert before == {name: (place / name).stat().st_mtime_ns for name in before}, 'not written again'
    interrupted = results(place)
    (place / 'out').rename(place / 'kept')
    assert run_command(monkeypatch, capsys, UPSCALE)[0] == 0 and results(place) == interrupted, 'the same bytes as at one go'


def run(place, enlarged, monkeypatch, capsys, command=UPSCALE):
    "How many pictures a command computes."
    enlarged['done'].clear()
    code, _, error = run_command(monkeypatch, capsys, command)
    assert code == 0, error
    return len(enlarged['done'])


def test_what_was_made_otherwise_is_made_again(place, enlarged, monkeypatch, capsys):
    def again(command=UPSCALE):
        return run(place, enlarged, monkeypatch, capsys, command)
    assert again() == 4 and again() == 0
    picture(place / 'in/b.png', 9)
    assert again() == 1, 'another picture of the same name'
    for words in ('--factor 3', '--tile 80', '--ensemble', '--bits 16', '--no-metadata'):
        assert again(f'{UPSCALE} {words}') == 4, words
        assert again(f'{UPSCALE} {words}') == 0, words
    assert again() == 4
    (place / 'out/a.png').unlink()
    Image.open(place / 'out/b.png').transpose(Image.Transpose.ROTATE_90).save(place / 'out/b.png', pnginfo=signature())
    assert again() == 2, 'one is gone, one was changed'
    net = build('vdsr', 'tiny')
    with torch.no_grad():
        next(net.parameters()).add_(.01)
    save_network(place / 'net2', net)
    assert again(UPSCALE.replace('net', 'net2')) == 4, 'a network that has learned more'


def signature():
    from PIL.PngImagePlugin import PngInfo
    text = PngInfo()
    text.add_text('Software', 'interflow')
    return text


def test_a_broken_picture_is_tried_again_and_counted(place, enlarged, monkeypatch, capsys):
    (place / 'in/b.png').write_text('no picture')
    for computed in (3, 0):
        enlarged['done'].clear()
        code, _, error = run_command(monkeypatch, capsys, UPSCALE)
        assert code == 1 and '1 of 4 files left aside' in error and len(enlarged['done']) == computed
    picture(place / 'in/b.png', 1)
    assert run(place, enlarged, monkeypatch, capsys) == 1


def test_nothing_of_the_users_is_written_over_whatever_the_record_says(place, enlarged, monkeypatch, capsys):
    assert run(place, enlarged, monkeypatch, capsys) == 4
    picture(place / 'out/a.png', 5)         # by another program, under the name of a result
    before = (place / 'out/a.png').read_bytes()
    code, _, error = run_command(monkeypatch, capsys, UPSCALE)
    assert code == 2 and 'not made by this command' in error and (place / 'out/a.png').read_bytes() == before


def test_one_picture_leaves_no_record(place, enlarged, monkeypatch, capsys):
    command = UPSCALE.replace(' in ', ' in/a.png ')
    for _ in range(2):
        assert run(place, enlarged, monkeypatch, capsys, command) == 1
    assert [path.name for path in (place / 'out').iterdir()] == ['a.png']


@pytest.mark.parametrize('damage', [b'', b'no json\n', b'[1, 2]\n', b'{"file": "a.png"}\n', b'\xff\xfe\n', b'{"file": "a.png", "of": '])
def test_a_damaged_record_only_costs_work(place, enlarged, monkeypatch, capsys, damage):
    assert run(place, enlarged, monkeypatch, capsys) == 4
    (place / 'out/.interflow.jsonl').write_bytes(damage)
    assert run(place, enlarged, monkeypatch, capsys) == 4
    assert run(place, enlarged, monkeypatch, capsys) == 0


def test_a_torn_last_line_is_cut_off(tmp_path):
    lines = Lines(tmp_path / 'a/lines.jsonl')
    assert not lines.path.exists(), 'opened with the first line'
    lines.add({'a': 1})
    lines.open().write(b'{"b"')
    lines.close()
    again = Lines(lines.path)
    again.add({'c': 2})
    assert lines.path.read_text() == '{"a": 1}\n{"c": 2}\n'


def test_a_source_that_vanished_is_no_match(tmp_path):
    record = Finished(tmp_path, {})
    assert record.key(tmp_path / 'absent') == '' and not record.has('b', tmp_path / 'absent')
    (tmp_path / 'b').write_bytes(b'result')
    record.add('b', '')
    assert not Finished(tmp_path, {}).has('b', tmp_path / 'absent')


@pytest.mark.parametrize('command, words', [('upscale', 'goes on where it was'), ('evaluate', 'with --csv FILE'), ('evaluate --csv=a', 'goes on where'), ('check', 'begins anew'), ('-q train', 'goes on where')])
def test_the_line_after_ctrl_c_is_true(command, words):
    from interflow.cli import told_of_interruption
    assert words in told_of_interruption([*command.split(), 'a', 'b'])


# ---------------------------------------------------------------- evaluate

@pytest.fixture
def pairs(place):
    "Three pairs at one factor, HR and LR, as folders."
    for k in range(3):
        picture(place / 'in' / f'{k}.png', k)
        for folder, seed in (('hr', k), ('lr', k + 50)):
            (place / folder).mkdir(exist_ok=True)
            Image.fromarray(np.random.default_rng(seed).integers(90, 160, (40, 44, 3), np.uint8)).save(place / folder / f'{k}.png')
    return place


@pytest.fixture
def answered(monkeypatch):
    "As `enlarged`, for the answers of networks to pairs (the baseline counts as one)."
    from interflow.sr import scores
    state, real = {'done': [], 'stop': 99}, scores.super_resolve

    def answer(*words):
        if len(state['done']) == state['stop']:
            raise KeyboardInterrupt
        state['done'].append(1)
        return real(*words)
    monkeypatch.setattr(scores, 'super_resolve', answer)
    return state


EVALUATE = 'evaluate net --hr hr --lr lr --factor 3 --device cpu'


def test_an_evaluation_goes_on_beside_its_table(pairs, answered, monkeypatch, capsys):
    command = f'{EVALUATE} --csv rows.csv --save-images images'
    answered['stop'] = 3
    code, _, error = run_command(monkeypatch, capsys, command)
    assert code == 130 and without_bars(error)[-1].endswith('the same command goes on where it was')
    assert not (pairs / 'rows.csv').exists() and (pairs / '.rows.csv.rows').exists()
    answered.update(done=[], stop=99)
    code, said, _ = run_command(monkeypatch, capsys, command)
    assert code == 0 and len(answered['done']) == 4, 'two pairs, of a network and the baseline'
    assert not (pairs / '.rows.csv.rows').exists()
    table = (pairs / 'rows.csv').read_bytes()
    (pairs / 'rows.csv').unlink()
    answered['done'].clear()
    code, again, _ = run_command(monkeypatch, capsys, command)
    assert code == 0 and again == said and (pairs / 'rows.csv').read_bytes() == table and len(answered['done']) == 6


def test_rows_of_anything_else_are_not_taken(pairs, answered, monkeypatch, capsys):
    command = f'{EVALUATE} --csv rows.csv --save-images images'

    def on(command, change=lambda: None):
        "How many answers a stopped evaluation of which five are done still needs."
        answered.update(done=[], stop=5)
        assert run_command(monkeypatch, capsys, f'{EVALUATE} --csv rows.csv --save-images images')[0] == 130
        change()
        answered.update(done=[], stop=99)
        assert run_command(monkeypatch, capsys, command)[0] == 0
        (pairs / '.rows.csv.rows').unlink(missing_ok=True)
        return len(answered['done'])
    assert on(command) == 2
    assert on(f'{command} --measures psnr_rgb') == 6 and on(f'{command} --ensemble') == 6
    assert on(command, lambda: (pairs / 'images/0/x3/net.png').unlink()) == 4
    assert on(command, lambda: Image.new('RGB', (44, 40)).save(pairs / 'images/0/x3/net.png', pnginfo=signature())) == 4
    assert on(command, lambda: picture(pairs / 'hr/0.png', 7) or Image.open(pairs / 'hr/0.png').resize((44, 40)).save(pairs / 'hr/0.png')) == 4
    net = build('vdsr', 'tiny', seed=3)
    assert on(command, lambda: save_network(pairs / 'net', net)) == 6
