"""The script for a graphics card, run with tiny sizes on a processor: where there is a card, its lines are known to work."""
import json
import subprocess
import sys

from rooms import ROOT


def test_the_script_for_a_gpu_runs_on_any_machine(tmp_path):
    call = [sys.executable, str(ROOT / 'benchmarks/gpu.py'), '--out', str(tmp_path)]
    done = subprocess.run([*call, '--device', 'cpu', '--tiny'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / 'gpu.json').read_text())
    rows = result['rows']
    assert rows['difference to the CPU, float32'] == 0 and rows['difference of a resumed run'] == 0 and not result['left out']
    assert all(rows[f'steps/s, batch 2, {mode}'] > 0 for mode in ('float32', 'bf16'))
    assert 0 < rows['difference to the CPU, bf16'] < .1, 'the flow itself keeps its precision'
