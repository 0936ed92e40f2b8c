"""Networks in use: your own pictures, files for other programs, the command line; clear faults."""
import io

import pytest
import torch
from PIL import Image
from scenes import run_command, without_bars

from interflow.checkpoints import save_model
from interflow.core import make_generator, read_image, to_pixels, write_image
from interflow.data import simulate
from interflow.model import InterFlow, InterFlowConfig
from interflow.sr.networks import VARIANTS, arbitrary, build, load_network, resize, save_network
from interflow.sr.use import upscale, upscale_image


def picture(height=30, width=38, seed=0):
    return torch.nn.functional.interpolate(torch.rand(1, 3, 8, 10,
                                                      generator=make_generator(seed, 'picture')),
                                           size=(height, width), mode='bicubic')[0].clamp(0, 1)


@pytest.mark.parametrize('name', VARIANTS)
def test_pictures_become_larger_by_the_factor(name):
    net = build(name, 'tiny').eval()
    large = upscale_image(net, picture(), 2.5)
    assert large.shape == (3, 75, 95) and torch.equal(large, (large * 255).round() / 255)
    with torch.inference_mode():
        expected = (net(picture()[None], size=(75, 95)) if arbitrary(net)
                    else net(resize(picture(), (75, 95))[None]))
    difference = (large - expected[0].clamp(0, 1)).abs().max()
    assert difference < .51 / 255, 'constant size: enlarged bicubically first; arbitrary: as it is'


def test_folders_files_and_pictures_held_on_their_side(tmp_path):
    net = build('vdsr', 'tiny')
    for i in range(2):
        write_image(tmp_path / 'in' / f'{i}.png', picture(seed=i))
    side = Image.fromarray(to_pixels(picture()))
    exif = side.getexif()
    exif[274] = 6
    side.save(tmp_path / 'side.jpg', exif=exif)
    assert [path.name
            for path in upscale(net, tmp_path / 'in', tmp_path / 'out', 2.,
                                device='cpu')] == ['0.png', '1.png']
    (written,) = upscale(net, tmp_path / 'side.jpg', tmp_path / 'out', 2., device='cpu')
    assert read_image(written).shape == (3, 76, 60)
    assert read_image(tmp_path / 'out/0.png').shape == (3, 60, 76)
    whole, tiled, mean = (upscale_image(net, picture(60, 70), 2., tile, ensemble) for tile,
                          ensemble in ((0, False), (80, False), (0, True)))
    assert (whole - tiled).abs().max() < 1.5 / 255 and mean.shape == whole.shape


# ---------------------------------------------------------------- the command line

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "Pairs, a flow and two networks (none trained), pictures."
    folder = tmp_path_factory.mktemp('place')
    for i in range(2):
        write_image(folder / 'photos' / f'p{i}.png', picture(64, 80, seed=i))
    simulate(folder / 'photos', folder / 'pairs', (2.1, 3.75))
    save_model(folder / 'flow', InterFlow(InterFlowConfig.tiny(), make_generator(0)))
    for name in ('rcan', 'liif_edsr_baseline'):
        save_network(folder / name, build(name, 'tiny'), (2.1, 3.75))
    return folder


def say(monkeypatch, capsys, folder, command):
    "(exit code, output, error lines without progress bars) of `interflow COMMAND`."
    monkeypatch.chdir(folder)
    code, said, error = run_command(monkeypatch, capsys, command)
    return code, said, without_bars(error)


def test_train_evaluate_upscale_export(place, monkeypatch, capsys):
    quick = '--steps 2 --batch-size 2 --device cpu'
    commands = {
        'train-sr pairs on_flow --network liif_edsr_baseline --flow flow --flow-path linear '
        f'--flow-factors 2.5:3.5 --weights 0,1 --patch 12 {quick}': 'on_flow/model/trained.json',
        'train-sr pairs mixed --network vdsr --flow flow --weights 1,2 --flow-factors 2.5,3.0 '
        f'--patch 32 {quick}': 'mixed/model/model.safetensors',
        'evaluate rcan on_flow/model pairs --rival rcan --measures psnr_rgb --csv rows.csv '
        '--crops crops.png --tile 200 --ensemble --factors 3.75 --device cpu': 'crops.png',
        'upscale on_flow/model photos large --factor 3 --device cpu': 'large/p1.png',
        'export rcan rcan.pt2 --height 24 --width 24': 'rcan.pt2'}
    for command, found in commands.items():
        code, said, errors = say(monkeypatch, capsys, place, command)
        assert code == 0, errors
        assert (place / found).exists() and said
    assert load_network(place / 'on_flow/model').factors == (2.5, 3.5)
    assert load_network(place / 'mixed/model').factors == (2.1, 2.5, 3., 3.75)
    assert read_image(place / 'large/p0.png').shape == (3, 192, 240)
    head = (place / 'rows.csv').read_text().splitlines()[0]
    assert head == 'network,factor,scene,psnr_y,ssim_y,psnr_rgb'
    assert Image.open(io.BytesIO((place / 'crops.png').read_bytes())).width > 300


FAULTS = {'network': ('train-sr pairs out --network srcnn', ['srcnn', 'swinir']),
          'preset': ('train-sr pairs out --preset huge', ['huge', 'tiny']),
          'weights': ('train-sr pairs out --weights 1,2', ['1,2', 'give 1']),
          'no source': ('train-sr pairs out --weights 0', ['sources', 'at least one']),
          'flow': ('train-sr pairs out --flow rcan', ['config.json', 'InterFlow']),
          'flow path': ('train-sr pairs out --flow flow --flow-path winding',
                        ['winding', 'transport']),
          'flow factor': ('train-sr pairs out --flow flow --flow-factors 2.0:3.0',
                          ['factor 2', '2.1 to 3.75']),
          'patch for the factor': ('train-sr pairs out --network metasr_rdn --patch 40',
                                   ['smaller than the patch of 150']),
          'a pair missing': ('train-sr lacking out', ['x2.1', 'p0.png', 'missing']),
          'evaluate a pair missing': ('evaluate rcan lacking --csv out',
                                      ['x2.1', 'p0.png', 'missing']),
          'evaluate a flow': ('evaluate flow pairs --csv out',
                              ['config.json', 'InterFlow', 'train-sr']),
          'evaluate another factor': ('evaluate rcan pairs --factors 3 --csv out',
                                      ['no scene has an LR image at 3']),
          'measure': ('evaluate rcan pairs --measures beauty --csv out', ['beauty', 'psnr_rgb']),
          'rival': ('evaluate rcan pairs --rival vdsr --csv out', ['vdsr', 'rcan', 'bicubic']),
          'weights of another': ('upscale swinir:vdsr.pth photos out', ['SwinIR', 'weights']),
          'no weights': ('upscale vdsr:absent.pth photos out', ['absent.pth', 'no such file']),
          'factor': ('upscale rcan photos out --factor 6', ['factor 6', '2.1, 3.75', 'LIIF']),
          'factor below one': ('upscale rcan photos out --factor 0.5', ['0.5', 'above 1']),
          'a picture too small': ('upscale rcan dots out --factor 2', ['dot.png', '4 pixels']),
          'no picture': ('upscale rcan texts out', ['a.png', 'not a readable image']),
          'export': ('export rcan net.pth', ['net.pth', '.onnx']),
          'export a flow': ('export flow out.pt2', ['out.pt2', 'two files']),}


@pytest.mark.parametrize('command, words', FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_line(place, monkeypatch, capsys, command, words):
    from sr_reference import reference
    if not (place / 'vdsr.pth').exists():
        torch.save(reference('vdsr')[0], place / 'vdsr.pth')
        write_image(place / 'dots/dot.png', torch.zeros(3, 1, 9))
        (place / 'texts').mkdir()
        (place / 'texts/a.png').write_text('no picture')
        simulate(place / 'photos', place / 'lacking', (2.1, 3.75))
        (place / 'lacking/x2.1/p0.png').unlink()
    code, _, errors = say(monkeypatch, capsys, place, command
                          + (' --device cpu' if not command.startswith('export') else ''))
    errors = [line for line in errors if line.startswith('interflow: ')]   # a check says more
    assert code == 2 and len(errors) == 1, errors
    assert not [word for word in words if word not in errors[0]], errors[0]
    assert not [name for name in ('out', 'net.pth', 'out.pt2')
                if (place / name).exists()], 'nothing was written'
