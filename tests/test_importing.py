"""`interflow import`: what weights are is told by their names; others are refused by name, and nothing is left behind."""
import os

import pytest
import torch
from sr_reference import reference
from typer.testing import CliRunner

from interflow.checkpoints import fingerprint, load_model, published_name
from interflow.cli import app, main
from interflow.core import InterflowError, make_generator
from interflow.importing import import_weights, recognise
from interflow.model import InterFlow, InterFlowConfig
from interflow.sr.networks import VARIANTS, load_network
from interflow.sr.networks import from_published as network_from_published


@pytest.mark.parametrize('name', [name for name in VARIANTS if name not in ('liif_rdn', 'metasr_rdn')])
def test_each_network_is_told_by_its_names(name):
    assert recognise(reference(name)[0], 'x') == name


def test_a_network_from_file_to_folder_with_its_factors(tmp_path):
    state = reference('kpn')[0]
    torch.save({'params_ema': {f'module.{key}': value for key, value in state.items()}}, tmp_path / 'kpn.pth')
    result = CliRunner().invoke(app, ['import', str(tmp_path / 'kpn.pth'), str(tmp_path / 'net'), '--factors', '2,4'])
    assert result.exit_code == 0 and 'kpn' in result.output, result.output
    net = load_network(tmp_path / 'net')
    assert net.factors == (2., 4.) and fingerprint(net) == fingerprint(network_from_published('kpn', state))


def test_a_flow_from_file_to_folder_with_its_labels(tmp_path):
    model = InterFlow(InterFlowConfig.paper(), make_generator(0))
    state = {published_name(name): value for name, value in model.state_dict().items() if not name.startswith('prior.') and not name.endswith('initialised')}
    for i in range(2):
        state |= {f'mean_shift_{i}': model.prior.means[i:i + 1].detach(), f'cov_shift_{i}': model.prior.roots[i].detach()}
    torch.save({'state_dict': state}, tmp_path / 'flow.pth')
    assert import_weights(tmp_path / 'flow.pth', tmp_path / 'a')[0] == 'flow'
    assert load_model(tmp_path / 'a').config.factors == (2.1, 3.75)
    import_weights(tmp_path / 'flow.pth', tmp_path / 'b', labels=(2, 3))
    assert load_model(tmp_path / 'b').config.factors == (2.1, 3.0)


def test_faults_are_one_line_exit_code_2_and_leave_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state = reference('vdsr')[0]
    torch.save(state, 'vdsr.pth')
    torch.save({**state, next(iter(state)): next(iter(state.values())) * torch.nan}, 'nan.pth')
    torch.save({'conv.weight': torch.ones(1)}, 'other.pth')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/notes.txt').write_text('mine')
    for words, said in ((['absent.pth', 'out'], 'no such file'), (['nan.pth', 'out', '--network', 'vdsr'], 'not finite'), (['other.pth', 'out'], 'neither the flow'),
                        (['vdsr.pth', 'out', '--network', 'rcan'], 'RCAN'), (['vdsr.pth', 'out', '--network', 'edsr'], 'edsr'), (['vdsr.pth', 'full'], 'is there already')):
        monkeypatch.setattr('sys.argv', ['interflow', 'import', *words])
        with pytest.raises(SystemExit) as end:
            main()
        error = capsys.readouterr().err.strip()
        assert end.value.code == 2 and said in error and '\n' not in error, (words, error)
    assert sorted(os.listdir(tmp_path)) == ['full', 'nan.pth', 'other.pth', 'vdsr.pth'] and os.listdir(tmp_path / 'full') == ['notes.txt']


def test_an_evil_file_runs_nothing(tmp_path):
    class Worm:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path}/bitten',)
    torch.save({'params': Worm()}, tmp_path / 'worm.pth')
    with pytest.raises(InterflowError, match='nothing in it was run'):
        import_weights(tmp_path / 'worm.pth', tmp_path / 'out')
    assert not (tmp_path / 'bitten').exists() and not (tmp_path / 'out').exists()
