"""What a picture file has beside 8-bit colours is read, enlarged and stored again: its 16 bits, its EXIF."""
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from test_faults import say

from interflow.core import to_tensor
from interflow.images import open_image, stored_bits
from interflow.originals import kept_exif, read_original
from interflow.photographs import read_photograph
from interflow.sr.networks import build, save_network
from interflow.storing import FORMATS, deep_png, deep_tiff, encode_picture

VALUES = np.random.default_rng(0).integers(0, 65536, (20, 31, 4), np.uint16)
KINDS = {'grey': [0], 'grey and alpha': [0, 3], 'RGB': [0, 1, 2], 'RGB and alpha': [0, 1, 2, 3]}
BACK = {1: lambda a: a, 2: np.fliplr, 3: lambda a: a[::-1, ::-1], 4: np.flipud, 5: lambda a: a.swapaxes(0, 1), 6: np.rot90,
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a, 3)}      # upright -> as stored


def smooth(channels):
    "A soft picture of 16 bits, whose low bytes are not those of 8."
    coarse = np.random.default_rng(1).random((4, 5, 4)).astype(np.float32)
    return np.round(cv2.resize(coarse, (34, 26), interpolation=cv2.INTER_LINEAR) * 50_000 + 5_000).astype(np.uint16)[..., channels]


def exif_of(orientation=6):
    tags = Image.Exif()
    tags[270], tags[271], tags[272], tags[274], tags[306], tags[305] = 'A bee', 'Lens & Sons', 'Box 1', orientation, '2021:05:01 10:00:00', 'Editor 3'
    tags[0x8769] = {0x829A: .004, 0x9003: '2021:05:01 10:00:00', 0x927C: b'secret', 0xA002: 34, 0xA003: 26, 0x9000: b'0232'}
    tags[0x8825] = {1: 'N', 2: (52., 31., 12.5), 3: 'E', 4: (13., 24., 0.)}
    return tags


@pytest.mark.parametrize('write', [deep_png, deep_tiff])
@pytest.mark.parametrize('kind', KINDS)
def test_every_bit_is_read(tmp_path, kind, write):
    path = tmp_path / 'a'
    path.write_bytes(write(VALUES[..., KINDS[kind]]))
    found = read_original(path)
    wanted = VALUES[..., [0, 0, 0] if 'grey' in kind else [0, 1, 2]]
    assert found.pixels.dtype == np.uint16 and np.array_equal(found.pixels, wanted)
    assert np.array_equal(found.alpha, VALUES[..., 3]) if 'alpha' in kind else found.alpha is None
    assert found.notices == () and (found.grey == ('grey' in kind) or write is deep_tiff)
    assert np.array_equal(read_photograph(path).pixels, np.round(wanted / 257).astype(np.uint8)), 'training sets stay in 8 bits'


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('way', BACK)
def test_sixteen_bits_however_the_camera_was_held(tmp_path, way, channels):
    stored = np.ascontiguousarray(BACK[way](VALUES[..., :channels]))
    path = tmp_path / 'a.png'
    path.write_bytes(deep_png(stored, exif=exif_of(way).tobytes()))
    assert np.array_equal(read_original(path).pixels[..., :channels], VALUES[..., :channels])
    tags = Image.Exif()
    tags[274] = way
    path.write_bytes(deep_tiff(stored, exif=tags))
    found = read_original(path)
    assert np.array_equal(found.pixels[..., :channels], VALUES[..., :channels]), found.notices


def test_a_grey_profile_goes_with_grey_values_of_sixteen_bits(tmp_path):
    from test_photographs import GREY_18
    path = tmp_path / 'a.png'
    path.write_bytes(deep_png(VALUES[..., :1], GREY_18))
    found = read_original(path)
    assert found.profile == GREY_18 and np.array_equal(found.pixels[..., 0], VALUES[..., 0])
    data = encode_picture(to_tensor(found.pixels), found, 'png', 16)
    assert np.array_equal(read_original(data).pixels, found.pixels) and read_original(data).profile == GREY_18


def test_without_opencv_a_line_says_what_to_install(tmp_path, monkeypatch):
    from interflow import core
    from interflow.core import InterflowError
    path = tmp_path / 'a.png'
    path.write_bytes(deep_png(VALUES[..., :3]))
    monkeypatch.setattr(core, 'find_spec', lambda name: None)
    with pytest.raises(InterflowError, match=r'cv2: not installed; pip install'):
        read_original(path)
    path.write_bytes(deep_png(VALUES[..., :1]))
    assert read_original(path).pixels.dtype == np.uint16, 'Pillow reads grey'


# ---------------------------------------------------------------- tags

def save_tagged(path, orientation=6):
    pixels = (smooth([0, 1, 2]) >> 8).astype(np.uint8)
    more = {'compression': 'raw'} if path.suffix == '.tiff' else {}
    Image.fromarray(pixels).save(path, exif=exif_of(orientation).tobytes(), **more)
    return path


@pytest.mark.parametrize('source', ['png', 'jpg', 'webp', 'tiff'])
@pytest.mark.parametrize('format, bits', [(name, bits) for name, kind in FORMATS.items() for bits in kind.bits])
def test_camera_date_and_place_stay(tmp_path, source, format, bits):
    picture = read_original(save_tagged(tmp_path / f'a.{source}'))
    large = to_tensor(picture.pixels).repeat_interleave(2, 1).repeat_interleave(2, 2)
    path = tmp_path / f'b.{format}'
    path.write_bytes(encode_picture(large, picture, format, bits))
    with Image.open(path) as image:
        tags = image.getexif()
        shot, place = tags.get_ifd(0x8769), tags.get_ifd(0x8825)
        assert (tags[270], tags[271], tags[272], tags[306]) == ('A bee', 'Lens & Sons', 'Box 1', '2021:05:01 10:00:00')
        assert float(shot[0x829A]) == .004 and shot[0x9003] == '2021:05:01 10:00:00' and place[1] == 'N'
        assert [float(value) for value in place[2]] == [52., 31., 12.5]
        assert 0x927C not in shot and tags.get(274, 1) == 1, 'it is upright by now'
        assert (shot[0xA002], shot[0xA003]) == image.size == (52, 68) and stored_bits(image, path) == bits
    assert np.array_equal(read_photograph(path).pixels.shape, (68, 52, 3)), 'not turned again'


def test_a_damaged_or_huge_block_costs_nothing_but_itself(tmp_path):
    random, pixels = np.random.default_rng(0), np.zeros((8, 8, 3), np.uint8)
    whole = exif_of().tobytes()
    for _ in range(80):
        bad = bytearray(whole)
        for place in random.integers(6, len(bad), 5):
            bad[place] = random.integers(256)
        Image.fromarray(pixels).save(tmp_path / 'a.jpg', exif=bytes(bad))
        picture = read_original(tmp_path / 'a.jpg')
        for name in FORMATS:
            assert encode_picture(to_tensor(picture.pixels), picture, name)
    tags = exif_of()
    tags[270] = 'b' * 64_000
    Image.fromarray(pixels).save(tmp_path / 'a.png', exif=tags)
    with open_image(tmp_path / 'a.png') as image:
        assert kept_exif(image) is None


# ---------------------------------------------------------------- the command

@pytest.fixture
def place(tmp_path, monkeypatch):
    save_network(tmp_path / 'net', build('vdsr', 'tiny'))
    (tmp_path / 'in').mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('kind', KINDS)
def test_sixteen_bits_in_sixteen_bits_out(place, monkeypatch, capsys, kind):
    (place / 'in/a.png').write_bytes(deep_png(smooth(KINDS[kind])))
    for format, words, bits in (('png', '', 16), ('tiff', '', 16), ('png', '--bits 8', 8), ('webp', '', 8)):
        code, lines = say(monkeypatch, capsys, f'upscale net in out --factor 2 --format {format} {words} --device cpu')
        path = place / f'out/a.{format}'
        with Image.open(path) as image:
            assert code == 0 and image.size == (68, 52) and stored_bits(image, path) == bits, lines
        told = [line for line in lines if 'in/a.png' in line]
        assert told == ([f'in/a.png: 16 bits per channel, of which {format} keeps 8; png and tiff keep all'] if format == 'webp' else []), lines
    found, source = (read_original(place / name) for name in ('out/a.tiff', 'in/a.png'))
    assert len(np.unique(found.pixels)) > 1000, 'more than 8 bits can tell'
    mean = abs(found.pixels.astype(float).mean() - source.pixels.mean())
    assert mean < 1500 and (found.alpha is None) == ('alpha' not in kind)


def test_tags_of_a_folder_and_without_them(place, monkeypatch, capsys):
    for name in ('a.jpg', 'b.tiff'):
        save_tagged(place / 'in' / name)
    for words, there in (('', True), ('--no-metadata', False)):
        assert say(monkeypatch, capsys, f'upscale net in out{words} --format jpg --factor 2 {words} --device cpu')[0] == 0
        for name in ('a', 'b'):
            with Image.open(place / f'out{words}/{name}.jpg') as image:
                tags = image.getexif()
                assert (272 in tags) is there is bool(tags.get_ifd(0x8825)) and tags[305] == 'interflow' and image.size == (52, 68)


def test_a_colour_that_means_clear_in_sixteen_bits(tmp_path):
    "Left to the reader of 8 bits, which says so."
    data = deep_png(VALUES[..., :3])
    key = b'tRNS' + struct.pack('>3H', *(int(value) for value in VALUES[3, 4, :3]))
    chunk = struct.pack('>I', 6) + key + struct.pack('>I', zlib.crc32(key))
    (tmp_path / 'a.png').write_bytes(data[:33] + chunk + data[33:])
    found = read_original(tmp_path / 'a.png')
    assert found.pixels.dtype == np.uint8 and '16-bit' in found.notices[0]
    assert found.notices[-1].startswith('only 8 of its 16 bits')


def tiff(values, photometric, extra=None):
    "A TIFF of 16 bits with another meaning of its values."
    data = deep_tiff(values)
    at = data.index(struct.pack('<HHI', 262, 3, 1))
    data = data[:at + 8] + struct.pack('<H', photometric) + data[at + 10:]
    if extra is not None:
        at = data.index(struct.pack('<HHI', 338, 3, 1))
        data = data[:at + 8] + struct.pack('<H', extra) + data[at + 10:]
    return data


def test_zero_may_be_white(tmp_path):
    "As scanners write it; Pillow inverts such a picture in 8 bits alone."
    (tmp_path / 'a.tif').write_bytes(tiff(VALUES[..., :1], 0))
    assert np.array_equal(read_original(tmp_path / 'a.tif').pixels[..., 0], 65535 - VALUES[..., 0])
    assert np.array_equal(read_photograph(tmp_path / 'a.tif').pixels[..., 0], np.round((65535 - VALUES[..., 0].astype(int)) / 257).astype(np.uint8))


def test_transparency_that_is_multiplied_in_is_read_in_8_bits_and_told(tmp_path):
    values = VALUES // 4
    values[..., 3] = 40_000
    (tmp_path / 'a.tif').write_bytes(tiff(values, 2, extra=1))
    found = read_original(tmp_path / 'a.tif')
    assert found.pixels.dtype == np.uint8 and found.notices[-1].startswith('only 8 of its 16 bits')
    assert abs(found.pixels.astype(float) - values[..., :3] / values[..., 3:] * 255).max() < 3


def test_a_tiff_that_nothing_reads_is_called_one(tmp_path):
    from interflow.core import InterflowError
    (tmp_path / 'a.tif').write_bytes(tiff(VALUES[..., :3], 32_844))
    with pytest.raises(InterflowError, match='a TIFF of no format that is known'):
        read_original(tmp_path / 'a.tif')


def test_what_is_missing_is_said_with_the_picture_that_needs_it(place, monkeypatch, capsys):
    from interflow import core
    (place / 'in/deep.png').write_bytes(deep_png(smooth([0, 1, 2])))
    Image.fromarray((smooth([0, 1, 2]) >> 8).astype(np.uint8)).save(place / 'in/plain.png')
    find = core.find_spec
    monkeypatch.setattr(core, 'find_spec', lambda name: None if name == 'cv2' else find(name))
    code, lines = say(monkeypatch, capsys, 'upscale net in out --factor 2 --device cpu')
    assert code == 1 and (place / 'out/plain.png').exists() and not (place / 'out/deep.png').exists()
    assert [line for line in lines if line.startswith("left aside: in/deep.png: cv2: not installed; pip install 'interflow-sr[sets]'")], lines
