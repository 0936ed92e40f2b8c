"""Sets made on a cluster: two machines, of which one joins late and is lost; the bytes are those of one process."""
import importlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
from rooms import ROOT
from scenes import write_crops
from typer.testing import CliRunner

from interflow import clusters
from interflow.checkpoints import load_model
from interflow.cli import app
from interflow.clusters import RayEngine, put_once
from interflow.core import InterflowError, data_folder, photographs
from interflow.data import Processing, read_scenes, simulate
from interflow.files import LeftAside
from interflow.sets import SetConfig, begin_set, generate, shares

GRAMMAR = 'rfc3987_syntax'      # JupyterLab installs it for jsonschema, which then compiles a grammar in each process of Ray: 1.6 s instead of 0.4
sys.modules.setdefault(GRAMMAR, None)
ray = pytest.importorskip('ray', reason="Ray is not installed: pip install 'interflow-sr[cluster]'")
if sys.modules[GRAMMAR] is None:
    del sys.modules[GRAMMAR]
FLOW = data_folder() / 'weights' / 'flow'
NODE = {'num_cpus': 1, 'object_store_memory': 80_000_000}
LEAN = {'include_dashboard': False, 'include_log_monitor': False, 'no_monitor': True}
FAST = {'health_check_initial_delay_ms': 1000, 'health_check_period_ms': 300, 'health_check_failure_threshold': 3}


@pytest.fixture(scope='module')
def cluster():
    "The first machine of a cluster, with one core; this process is connected to it."
    clusters.import_ray()
    cluster_utils = importlib.import_module('ray.cluster_utils')
    folder = tempfile.mkdtemp(prefix='ray', dir='/tmp')      # its sockets want a short path
    (Path(folder) / 'without').mkdir()
    (Path(folder) / 'without' / f'{GRAMMAR}.py').write_text('raise ImportError')
    here = os.environ.get('PYTHONPATH')
    places = Path(folder) / 'without', ROOT, ROOT / 'tests'
    os.environ['PYTHONPATH'] = os.pathsep.join([*map(str, places), *filter(None, [here])])     # of Ray's processes
    try:
        cluster = cluster_utils.Cluster(True, head_node_args={**NODE, **LEAN, 'temp_dir': folder, '_system_config': FAST})
        clusters.connect(cluster.address)
    except Exception as fault:
        pytest.skip(f'Ray cannot start here: {type(fault).__name__}: {str(fault)[:200]}')
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    os.environ.update({} if here is None else {'PYTHONPATH': here})
    os.environ.pop('' if here else 'PYTHONPATH', None)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    write_crops(folder, photographs('train')[:6], slice(200, 264), slice(300, 364))
    return folder


def content(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob('*')) if path.is_file()}


@pytest.fixture(scope='module')
def whole(photos, tmp_path_factory):
    "What one process makes."
    out = tmp_path_factory.mktemp('whole') / 'set'
    generate(load_model(FLOW), read_scenes(photos), out, SetConfig((2.5,)), 'cpu')
    return content(out)


def stopping(folder, make, work, share):
    "A job that stops before its second scene, the first time that it is tried, until it is killed."
    scenes, real = [], shares.make_scene

    def make_scene(*arguments):
        scenes.append(arguments)
        mark = Path(folder) / str(share.rank)
        if len(scenes) == 2 and not mark.exists():
            mark.with_suffix('.part').write_text(f'{os.getpid()} {os.getppid()}')
            os.replace(mark.with_suffix('.part'), mark)
            time.sleep(600)
        real(*arguments)
    shares.make_scene = make_scene
    try:
        make(work, share)
    finally:
        shares.make_scene = real


def test_machines_come_and_go_and_the_bytes_stay(cluster, photos, whole, tmp_path, monkeypatch, caplog):
    "The second machine joins when the first is at work. A worker of the first is killed, then the second machine."
    real = RayEngine.__call__

    def run(self, function, jobs, at_once):
        running = real(self, stopping, [(str(tmp_path), function, *job) for job in jobs], at_once)
        yield next(running)
        second = cluster.add_node(**NODE)
        raylets = [node.all_processes['raylet'][0].process.pid for node in (cluster.head_node, second)]
        marks = [tmp_path / '0', tmp_path / '1']
        for codes in running:
            yield codes
            if all(map(Path.exists, marks)) and not (tmp_path / 'killed').exists():
                workers = {parent: worker for worker, parent in (map(int, mark.read_text().split()) for mark in marks)}
                assert sorted(workers) == sorted(raylets), 'a job on each machine'
                os.kill(workers[raylets[0]], signal.SIGKILL)
                cluster.remove_node(second, allow_graceful=False)
                (tmp_path / 'killed').touch()

    monkeypatch.setattr(RayEngine, '__call__', run)
    monkeypatch.setattr(clusters, 'JOBS', 3)
    (tmp_path / '2').touch()      # two jobs stop, the third does not
    with caplog.at_level(logging.WARNING, 'interflow'):
        report = generate(load_model(FLOW), read_scenes(photos), tmp_path / 'set', SetConfig((2.5,)), 'cpu', engine=RayEngine(cluster.address))
    assert report.missing == 0
    assert content(tmp_path / 'set') == whole
    lost = [record.message for record in caplog.records if 'its worker was lost' in record.message]
    assert len(lost) == 2 and all('it is done again' in line for line in lost), lost
    assert {line.partition(':')[0] for line in lost} == {'job 0', 'job 1'}


def test_the_command_on_a_cluster(cluster, photos, whole, tmp_path, caplog):
    call = ['generate', str(FLOW), str(photos), str(tmp_path / 'set'), '--factors', '2.5', '--engine', 'ray']
    done = CliRunner().invoke(app, [*call, '--address', cluster.address], catch_exceptions=False)
    assert done.stdout.splitlines()[-1].startswith('6 images of 6 scenes, 0 set aside, 0 missing') and content(tmp_path / 'set') == whole
    begin_set(load_model(FLOW), read_scenes(photos), tmp_path / 'failing', SetConfig((2.5,)))
    (tmp_path / f'failing/scale_2.5/{read_scenes(photos)[2].name}_LR3.png').mkdir(parents=True)      # in the way of an image
    with pytest.raises(InterflowError, match='failing: a job of the generation ended with code 2'):
        CliRunner().invoke(app, [*call[:3], str(tmp_path / 'failing'), *call[4:]], catch_exceptions=False)
    assert f'{read_scenes(photos)[2].name}_LR3.png: a folder, where a file is needed' in caplog.text
    with pytest.raises(InterflowError, match='--processes belongs to --engine processes'):
        CliRunner().invoke(app, [*call, '--processes', '2'], catch_exceptions=False)


def test_photographs_are_taken_on_a_cluster(cluster, photos, tmp_path):
    "Outcomes come back through the engine's queue: a broken photograph is named, the rest is made."
    (photos / 'broken.png').write_bytes(b'no image')
    told = []
    for place, engine in (('here', None), ('there', RayEngine())):
        with pytest.raises(LeftAside, match='broken.png'):
            simulate(photos, tmp_path / place, (2.1,), how=Processing(1, say=told.append, engine=engine))
    (photos / 'broken.png').unlink()
    assert content(tmp_path / 'here') == content(tmp_path / 'there') and sum('broken.png' in line for line in told) == 2


def test_a_job_that_always_loses_its_worker_is_given_up(cluster, monkeypatch, caplog):
    monkeypatch.setattr(clusters, 'AGAIN', 0)
    *_, codes = RayEngine()(os._exit, [(9,)], 1)
    assert codes == [1] and 'given up after 0 more tries' in caplog.text


def test_what_jobs_have_in_common_is_stored_once():
    model, stored = object(), []
    jobs = put_once(lambda one: stored.append(one) or 'reference', [(model, 1000 + k) for k in range(5)])
    assert stored == [model] and jobs == [('reference', 1000 + k) for k in range(5)]


def test_without_ray_one_line_says_how_to_install_it(monkeypatch, photos, tmp_path):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(InterflowError, match=r"pip install 'interflow-sr\[cluster\]'"):
        CliRunner().invoke(app, ['generate', str(FLOW), str(photos), str(tmp_path / 'set'), '--engine', 'ray'], catch_exceptions=False)
    assert not (tmp_path / 'set').exists()
