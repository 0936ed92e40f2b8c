"""A training that is watched: the same weights, the best state kept, strips and numbers in the logs, lines to the terminal."""
from dataclasses import replace

import pytest
import torch
from scenes import write_crops

from interflow.checkpoints import fingerprint, load_model
from interflow.core import InterflowError, photographs
from interflow.data import simulate
from interflow.model import InterFlowConfig
from interflow.training import PRESETS, Validation, Watch, train_flow

SHORT = replace(PRESETS['tiny'], steps=24, batch_size=1, patch=32, save_every=12)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp('watched')
    seen = simulate(write_crops(folder / 'photos', photographs('train')[:2], slice(200, 248), slice(300, 348)), folder / 'pairs', (2.1, 3.75))
    other = simulate(write_crops(folder / 'others', photographs('val')[:2], slice(200, 248), slice(300, 348)), folder / 'held', (2.1, 3.75))
    lines = []
    watch = Watch(validate=Validation(other, (2.1, 3.75)), say=lines.append)
    model, history = train_flow(seen, folder / 'watched', InterFlowConfig.tiny(), replace(SHORT, validate_every=8), watch=watch)
    plain, _ = train_flow(seen, folder / 'plain', InterFlowConfig.tiny(), SHORT)
    return folder, lines, model, history, plain


def test_what_is_watched_trains_alike(place):
    _, _, model, _, plain = place
    assert fingerprint(model) == fingerprint(plain)


def test_the_best_state_is_kept_and_the_numbers_stand_in_the_history(place):
    folder, _, model, history, _ = place
    rows = [row for row in history if 'val_bits' in row]
    assert [row['step'] for row in rows] == [7, 15, 23]
    assert {'val_bits', 'val_bits_x2.1', 'val_bits_x3.75', 'val_round_trip', 'val_told', 'val_noise'} <= rows[0].keys()
    best = load_model(folder / 'watched/best')
    values = [row['val_bits'] for row in rows]
    assert (fingerprint(best) == fingerprint(model)) == (min(values) == values[-1])


def test_logs_have_strips_speed_and_numbers(place):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(next((place[0] / 'watched/logs').rglob('events*')).parent))
    events.Reload()
    tags = events.Tags()
    assert 'strip' in tags['images'] and {'loss', 'samples_per_second', 'waiting_for_data', 'val_bits', 'round_trip'} <= set(tags['scalars'])
    assert len(events.Images('strip')) == 3


def test_lines_say_how_long_and_what_was_best(place):
    lines = place[1]
    assert len(lines) == 2 and 'for 4 more steps' in lines[0] and 'GB' in lines[0]
    assert '24 steps' in lines[1] and 'samples a second' in lines[1] and '% of it waiting for data' in lines[1] and 'best: bits' in lines[1]


def test_a_logger_that_is_not_there_is_refused_before_the_run(place):
    scenes = simulate(place[0] / 'photos', place[0] / 'pairs', (2.1, 3.75))
    for name, said in (('notebook', 'unknown'), ('wandb', 'not installed')):
        if name == 'wandb':
            from accelerate.utils import is_wandb_available
            if is_wandb_available():
                continue
        with pytest.raises(InterflowError, match=said):
            train_flow(scenes, place[0] / name, InterFlowConfig.tiny(), SHORT, watch=Watch(loggers=(name,)))


def test_validation_touches_nothing(place):
    folder, _, model, _, _ = place
    scenes = simulate(folder / 'others', folder / 'held', (2.1, 3.75))
    validate, before = Validation(scenes, (2.1, 3.75)), torch.get_rng_state()
    first, mark = validate(model.train()), fingerprint(model)
    assert model.training and torch.equal(before, torch.get_rng_state()) and fingerprint(model) == mark
    again = validate(model.eval())
    assert again.numbers == first.numbers and torch.equal(again.strip, first.strip)
