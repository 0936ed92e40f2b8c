"""Other work on the machine does not make a training collapse: the commands choose their threads so, and what benchmarks/load.py measured says so."""
import json
import sys

import pytest
from rooms import ROOT

sys.path.append(str(ROOT / 'benchmarks'))
import load  # noqa: E402


def test_the_stored_table_keeps_the_promise():
    if not (ROOT / 'benchmarks/load.json').exists():
        pytest.skip('not measured yet on a machine that does nothing else: python benchmarks/load.py')
    found = json.loads((ROOT / 'benchmarks/load.json').read_text())
    assert (ROOT / 'benchmarks/load.txt').read_text() == load.table(found)
    chosen = [row for row in found['rows'] if row['chosen']]
    assert {row['training'] for row in chosen} == set(load.COMMANDS)
    assert all(row['threads'] == 1 and load.worst(row) <= load.MOST for row in chosen)


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    return load.make_pairs(tmp_path_factory.mktemp('load'))


def test_a_step_beside_busy_processes_needs_no_more_of_the_processor(pairs):
    "Seconds of the processor, which hold on a machine that does other things too. Threads that wait for each other would spend them waiting."
    name = 'rcan, 4 x 64x64'
    alone = load.measured(name, pairs, 0, .5)
    with load.busy(2):
        beside = load.measured(name, pairs, 0, .5)
    assert alone['threads'] == beside['threads'] == 1
    assert 0 < beside['cpu'] < load.MOST * alone['cpu']


def test_a_command_that_fails_says_why(pairs, tmp_path):
    with pytest.raises(SystemExit, match='load.py: train .*no such'):
        load.measured('flow, 8 x 48x48', tmp_path / 'absent', 0, .1)
