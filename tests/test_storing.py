"""Pictures as people have them, made larger: grey stays grey, transparency and profile stay, in as many bits as are asked for."""
import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms
from test_faults import say

from interflow.core import data_folder, make_generator, photographs
from interflow.images import stored_bits
from interflow.photographs import Photograph, read_photograph
from interflow.sr.networks import build, load_network, save_network
from interflow.sr.use import upscale_image
from interflow.storing import FORMATS, Results, encode_picture, made_here, values_of

RCAN = data_folder() / 'weights/rcan'


def pixels(height=26, width=34):
    with Image.open(photographs('test')[0]) as image:
        return np.asarray(image.convert('RGB'))[200:200 + height, 300:300 + width]


def deep(path, channels=3):
    "A picture of 16 bits whose low bytes are not those of 8."
    random = np.random.default_rng(0)
    values = pixels().astype(np.uint16) * 256 + random.integers(0, 256, pixels().shape, np.uint16)
    cv2.imwrite(str(path), values[..., ::-1] if channels == 3 else values[..., 0])
    return path


def with_profile(path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('LAB')).tobytes()
    Image.fromarray(pixels()).save(path, icc_profile=profile)
    return profile


SOURCES = {
    'RGB.png': lambda path: Image.fromarray(pixels()).save(path),
    'grey.png': lambda path: Image.fromarray(pixels()).convert('L').save(path),
    'black and white.png': lambda path: Image.fromarray(pixels()).convert('1').save(path),
    'palette.gif': lambda path: Image.fromarray(pixels()).convert('P').save(path),
    'alpha.png': lambda path: Image.fromarray(np.dstack([pixels(), pixels()[..., :1]])).save(path),
    'grey and alpha.png': lambda path: Image.fromarray(np.dstack([pixels()[..., :1], pixels()[..., 1:2]]), 'LA').save(path),
    '16 bits.png': deep, '16 bits.tif': deep, 'grey 16 bits.png': lambda path: deep(path, 1),
    'ink.jpg': lambda path: Image.fromarray(pixels()).convert('CMYK').save(path)}


@pytest.fixture
def place(tmp_path, monkeypatch):
    save_network(tmp_path / 'net', build('vdsr', 'tiny'))
    save_network(tmp_path / 'liif', build('liif_edsr_baseline', 'tiny'), (2.1, 3.75))
    (tmp_path / 'in').mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('bits', ['8', '16'])
@pytest.mark.parametrize('name', SOURCES)
def test_whatever_one_has_becomes_larger(place, monkeypatch, capsys, name, bits):
    SOURCES[name](place / 'in' / name)
    code, lines = say(monkeypatch, capsys, f'upscale net in out --factor 2 --bits {bits} --device cpu')
    assert code == 0, lines
    result, source = next((place / 'out').glob('[!.]*')), read_photograph(place / 'in' / name)
    with Image.open(result) as image:
        assert image.size == (68, 52) and stored_bits(image, result) == int(bits)
        kind = image.mode
    again = read_photograph(result)
    assert source.grey == name.startswith(('grey', 'black'))
    same = (again.pixels == again.pixels[..., :1]).all()      # Pillow has no name for grey and alpha of 16 bits
    assert again.grey == source.grey or same and kind == 'RGBA' and bits == '16'
    assert (again.alpha is None) == (source.alpha is None) and kind != 'L' or source.grey
    plain = name == 'RGB.png' or '16' in name       # all of their bits are read
    assert len([line for line in lines if name in line]) == (0 if plain else 1), lines
    if source.alpha is not None:
        expected = np.asarray(Image.fromarray(source.alpha).resize((68, 52), Image.Resampling.BICUBIC))
        assert abs(again.alpha.astype(int) - expected).max() <= 1


def test_sixteen_bits_hold_what_the_network_says_between_two_grey_levels(place):
    image = make_generator(0)
    import torch
    image = torch.rand(3, 20, 30, generator=image)
    plain = Photograph(np.zeros((1, 1, 3), np.uint8))
    for name in ('png', 'tiff'):
        data = encode_picture(image, plain, name, 16)
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]
        assert found.dtype == np.uint16 and abs(found / 65535 - image.permute(1, 2, 0).numpy()).max() < 1 / 65535
    assert values_of(image, plain, 8).dtype == np.uint8


@pytest.mark.parametrize('name, bits', [(name, bits) for name, kind in FORMATS.items() for bits in kind.bits])
def test_the_colour_profile_stays(tmp_path, name, bits):
    import torch
    profile = with_profile(tmp_path / 'a.png')
    image = torch.rand(3, 20, 30, generator=make_generator(0))
    path = tmp_path / f'b.{name}'
    path.write_bytes(encode_picture(image, Photograph(np.zeros((1, 1, 3), np.uint8), profile=profile), name, bits))
    with Image.open(path) as found:
        assert found.info['icc_profile'] == profile and made_here(path)


def test_formats_suffix_and_what_they_refuse(place, monkeypatch, capsys):
    Image.fromarray(pixels()).save(place / 'in/a.png')
    SOURCES['alpha.png'](place / 'in/b.png')
    for name in ('png', 'webp', 'tiff'):
        code, lines = say(monkeypatch, capsys, f'upscale net in {name} --format {name} --suffix _x2 --factor 2 --device cpu')
        assert code == 0 and sorted(path.name for path in (place / name).glob('[!.]*')) == [f'a_x2.{name}', f'b_x2.{name}'], lines
    code, lines = say(monkeypatch, capsys, 'upscale net in jpg --format jpg --factor 2 --device cpu')
    assert code == 1 and [path.name for path in (place / 'jpg').glob('[!.]*')] == ['a.jpg'], 'the other is left aside'
    assert [line for line in lines if 'in/b.png' in line and 'transparency' in line and 'choose png' in line]
    code, lines = say(monkeypatch, capsys, 'upscale net in/b.png jpg --format jpg --factor 2 --device cpu')
    assert code == 2 and len(lines) == 1 and 'transparency' in lines[0]
    with Image.open(place / 'jpg/a.jpg') as image, Image.open(place / 'png/a_x2.png') as exact:
        error = np.asarray(image).astype(int) - np.asarray(exact)
        assert (error ** 2).mean() ** .5 < 3 and image.format == 'JPEG'
    with Image.open(place / 'webp/a_x2.webp') as image, Image.open(place / 'png/a_x2.png') as exact:
        assert np.array_equal(image, exact), 'without loss'
    for words in ('--format jpg --bits 16', '--suffix ../x', '--suffix a/b', '--format gif', '--bits 12'):
        code, lines = say(monkeypatch, capsys, f'upscale net in out {words} --device cpu')
        assert code == 2 and len(lines) == 1 and not (place / 'out').exists(), (words, lines)


@pytest.mark.parametrize('name', FORMATS)
def test_results_are_made_again_and_nothing_else_is_replaced(place, monkeypatch, capsys, name):
    Image.fromarray(pixels()).save(place / 'in/a.png')
    command = f'upscale net in out --format {name} --factor 2 --device cpu'
    for _ in range(2):
        assert say(monkeypatch, capsys, command)[0] == 0
    Image.fromarray(pixels()).save(place / f'out/a.{name}', 'JPEG' if name == 'jpg' else name.upper())
    before = (place / f'out/a.{name}').read_bytes()
    code, lines = say(monkeypatch, capsys, command)
    assert code == 2 and 'not made by this command' in lines[0] and (place / f'out/a.{name}').read_bytes() == before


def test_an_image_too_large_for_a_format_is_refused_before_the_work():
    from interflow.core import InterflowError
    from interflow.storing import check_storable
    picture = Photograph(np.zeros((1, 1, 3), np.uint8))
    for name, side in (('webp', 16_384), ('jpg', 65_536)):
        with pytest.raises(InterflowError, match='choose png or tiff'):
            check_storable(picture, (10, side), Results('out', name))
        check_storable(picture, (10, side), Results('out', 'png'))


# ---------------------------------------------------------------- factors

@pytest.mark.parametrize('factor', [2, 2.7, 3, 4])
def test_the_shipped_network_serves_any_factor_from_2_to_4(place, monkeypatch, capsys, factor):
    Image.fromarray(pixels()).save(place / 'in/a.png')
    assert say(monkeypatch, capsys, f'upscale {RCAN} in out --factor {factor} --device cpu')[0] == 0
    with Image.open(place / 'out/a.png') as image:
        assert image.size == (round(34 * factor), round(26 * factor))


def test_another_factor_names_those_of_the_network(place, monkeypatch, capsys):
    Image.fromarray(pixels()).save(place / 'in/a.png')
    for factor, words in ((6, '2, 2.4, 2.8, 3.2, 3.6, 4'), (1.4, '2, 2.4'), (0, 'above 1'), (90, '2, 2.4')):
        code, lines = say(monkeypatch, capsys, f'upscale {RCAN} in out --factor {factor} --device cpu')
        assert code == 2 and len(lines) == 1 and f'factor {factor}' in lines[0] and words in lines[0], lines
    for factor in (1.5, 6, 11.3):
        assert say(monkeypatch, capsys, f'upscale liif in out{factor} --factor {factor} --device cpu')[0] == 0, 'LIIF was made for any'


def test_eight_bits_are_those_that_are_measured(place, monkeypatch, capsys):
    Image.fromarray(pixels()).save(place / 'in/a.png')
    assert say(monkeypatch, capsys, f'upscale {RCAN} in out --factor 3 --device cpu')[0] == 0
    from interflow.core import read_image, to_pixels
    wanted = upscale_image(load_network(RCAN), read_image(place / 'in/a.png'), 3.)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO((place / 'out/a.png').read_bytes()))), to_pixels(wanted))
