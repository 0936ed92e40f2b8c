"""Photographs as people have them: each kind is read as its viewer shows it, each change is told, and what cannot be read is named in one line."""
import errno
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from interflow.core import InterflowError, read_pixels
from interflow.photographs import (
    Attempts,
    LeftAside,
    Photograph,
    list_photographs,
    read_each,
    read_photograph,
)

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


def picture(seed=0, size=(30, 40)):
    "Smooth colours, (H, W, 3) uint8."
    coarse = np.random.default_rng(seed).integers(30, 226, (4, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


PIXELS = picture()


def profile(red, green, blue, gamma=2.2, space=b'RGB ', tags=None):
    "An ICC profile made by hand: matrix columns in XYZ (D50) and one gamma; `space` b'GRAY' has the gamma alone."
    def xyz(values):
        return b'XYZ \0\0\0\0' + b''.join(struct.pack('>i', round(65536 * value)) for value in values)
    curve = b'curv\0\0\0\0' + struct.pack('>IH', 1, round(256 * gamma)) + b'\0\0'
    text = b'A test profile'
    desc = b'desc\0\0\0\0' + struct.pack('>I', len(text) + 1) + text + b'\0' + b'\0' * 78
    desc += b'\0' * (-len(desc) % 4)
    white = xyz((.9642, 1, .8249))
    parts = {b'desc': desc, b'wtpt': white, b'cprt': b'text\0\0\0\0none\0\0\0\0'}
    parts |= {b'kTRC': curve} if space == b'GRAY' else {b'rXYZ': xyz(red), b'gXYZ': xyz(green), b'bXYZ': xyz(blue), b'rTRC': curve, b'gTRC': curve, b'bTRC': curve}
    table, data, start = struct.pack('>I', len(parts)), b'', 128 + 4 + 12 * len(parts)
    for name, part in parts.items():
        table += name + struct.pack('>II', start + len(data), len(part))
        data += part
    head = struct.pack('>I4s4s4s4s4s12s4s4sII4sQIiii', start + len(data), b'none', b'\x02\x20\0\0', b'mntr', space, b'XYZ ',
                       struct.pack('>6H', 2024, 1, 1, 0, 0, 0), b'acsp', b'none', 0, 0, b'none', 0, 0, 63190, 65536, 54061)
    return head.ljust(128, b'\0') + table + data


P3 = profile((.5151, .2412, -.0011), (.2919, .6922, .0419), (.1571, .0666, .7841))       # Display P3's primaries
GREY_18 = profile(None, None, None, 1.8, b'GRAY')


def saved(path, image, **more):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(path, **more)
    return path


def turned(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


# ---------------------------------------------------------------- upright

@pytest.mark.parametrize('suffix', ['png', 'jpg', 'webp', 'tif'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_all_eight_ways_to_hold_a_camera(tmp_path, suffix, orientation):
    back = {1: lambda a: a, 2: np.fliplr, 3: lambda a: a[::-1, ::-1], 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
            6: np.rot90, 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: np.rot90(a, 3)}[orientation]     # upright -> as stored
    more = {'png': {}, 'jpg': dict(quality=100, subsampling=0), 'webp': dict(lossless=True), 'tif': {}}[suffix]
    photograph = read_photograph(saved(tmp_path / f'a.{suffix}', np.ascontiguousarray(back(PIXELS)), exif=turned(orientation), **more))
    assert photograph.pixels.shape == PIXELS.shape
    assert abs(photograph.pixels.astype(int) - PIXELS).max() <= (6 if suffix == 'jpg' else 0)
    assert photograph.notices == ()


def test_a_photograph_that_needs_nothing_is_read_as_it_is(tmp_path):
    photograph = read_photograph(saved(tmp_path / 'a.png', PIXELS))
    assert np.array_equal(photograph.pixels, PIXELS) and photograph.pixels.dtype == np.uint8
    assert (photograph.alpha, photograph.profile, photograph.notices) == (None, None, ())
    assert photograph.srgb() is photograph


def test_a_broken_exif_block_is_told(tmp_path):
    path = saved(tmp_path / 'a.jpg', PIXELS, exif=b'Exif\0\0MM\0*\0\0\0\x08\xff\xff' + b'\xff' * 40)
    with pytest.warns(UserWarning, match='Corrupt EXIF data'):
        assert read_photograph(path).pixels.shape == PIXELS.shape


# ---------------------------------------------------------------- kinds

def deep(path, values):
    ok, data = cv2.imencode(path.suffix, values[..., ::-1] if values.ndim == 3 and values.shape[2] == 3 else values)
    assert ok
    path.write_bytes(data)
    return path


def test_grey(tmp_path):
    grey = PIXELS[..., 0]
    photograph = read_photograph(saved(tmp_path / 'a.png', grey))
    assert np.array_equal(photograph.pixels, np.stack(3 * [grey], -1)) and photograph.notices == ('grey, read as RGB',)
    assert read_photograph(saved(tmp_path / 'b.png', Image.fromarray(grey > 99))).notices == ('black and white, read as RGB',)


def test_transparency_is_kept_apart(tmp_path):
    alpha = np.full((30, 40), 255, np.uint8)
    opaque = read_photograph(saved(tmp_path / 'a.png', np.dstack([PIXELS, alpha])))
    assert opaque.alpha is None and np.array_equal(opaque.pixels, PIXELS) and 'opaque everywhere' in opaque.notices[0]
    alpha[3:9] = 17
    clear = read_photograph(saved(tmp_path / 'b.png', np.dstack([PIXELS, alpha])))
    assert np.array_equal(clear.alpha, alpha) and np.array_equal(clear.pixels, PIXELS)
    assert clear.notices == ('RGB with transparency (RGBA), transparency kept apart',)
    grey = read_photograph(saved(tmp_path / 'c.png', Image.merge('LA', [Image.fromarray(PIXELS[..., 0]), Image.fromarray(alpha)])))
    assert np.array_equal(grey.alpha, alpha) and np.array_equal(grey.pixels[..., 2], PIXELS[..., 0])


def test_a_palette_with_and_without_transparency(tmp_path):
    image = Image.fromarray(PIXELS).quantize(16)
    wanted = np.asarray(image.convert('RGB'))
    plain = read_photograph(saved(tmp_path / 'a.png', image))
    assert np.array_equal(plain.pixels, wanted) and plain.notices == ('a palette image, read as RGB',)
    clear = read_photograph(saved(tmp_path / 'b.png', image, transparency=int(np.asarray(image)[0, 0])))
    assert clear.alpha[0, 0] == 0 and clear.alpha.max() == 255 and 'transparency' in clear.notices[0]
    key = read_photograph(saved(tmp_path / 'c.png', PIXELS, transparency=tuple(map(int, PIXELS[4, 5]))))      # a colour that means clear
    assert key.alpha[4, 5] == 0 and key.notices == ('RGB, transparency kept apart',)


def test_sixteen_bit_grey_is_rounded(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for suffix in ('png', 'tif'):
        photograph = read_photograph(deep(tmp_path / f'a.{suffix}', values))
        assert np.array_equal(photograph.pixels[..., 1], np.round(values / 257).astype(np.uint8)), suffix
        assert photograph.notices == ('16-bit grey, read as RGB',)


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('channels', [3, 4])
def test_sixteen_bit_colours_are_rounded_not_cut_off(tmp_path, suffix, channels):
    values = np.random.default_rng(0).integers(0, 65536, (30, 40, channels), np.uint16)
    photograph = read_photograph(deep(tmp_path / f'a{suffix}', values))
    order = [2, 1, 0] if channels == 4 else [0, 1, 2]       # `deep` turns RGB alone
    assert np.array_equal(photograph.pixels, np.round(values[..., order] / 257).astype(np.uint8))
    assert photograph.notices[0].startswith('16-bit RGB')
    if channels == 4:
        assert np.array_equal(photograph.alpha, np.round(values[..., 3] / 257).astype(np.uint8))


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def test_sixteen_bits_on_its_side(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (30, 40, 3), np.uint16)
    path = deep(tmp_path / 'a.png', values)
    data = path.read_bytes()
    path.write_bytes(data[:33] + chunk(b'eXIf', turned(6).tobytes().removeprefix(b'Exif\0\0')) + data[33:])
    assert np.array_equal(read_photograph(path).pixels, np.round(np.rot90(values, -1) / 257).astype(np.uint8))


def test_inks(tmp_path):
    inks = Image.fromarray(PIXELS).convert('CMYK')
    for suffix in ('tif', 'jpg'):
        photograph = read_photograph(saved(tmp_path / f'a.{suffix}', inks, quality=100))
        assert abs(photograph.pixels.astype(int) - PIXELS).max() <= 12
        assert photograph.notices == ('CMYK without a colour profile; its colours are approximate',)
    broken = read_photograph(saved(tmp_path / 'b.tif', inks, icc_profile=b'no profile'))
    assert broken.profile is None and 'profile is broken' in broken.notices[0]


def test_several_pictures_in_a_file(tmp_path):
    first, second = Image.fromarray(PIXELS), Image.fromarray(picture(1))
    for suffix in ('gif', 'webp', 'tif', 'png'):
        more = {'lossless': True} if suffix == 'webp' else {}
        photograph = read_photograph(saved(tmp_path / f'a.{suffix}', first, save_all=True, append_images=[second], **more))
        assert photograph.notices[-1] == 'the first of several pictures in the file'
        assert abs(photograph.pixels.astype(int) - PIXELS).mean() < 12


def test_a_phone_whose_jpeg_hides_a_preview_needs_no_notice(tmp_path):
    path = saved(tmp_path / 'a.mpo', Image.fromarray(PIXELS), save_all=True, append_images=[Image.fromarray(PIXELS[:9, :9])], quality=95)
    assert read_photograph(path).notices == ()


@pytest.mark.parametrize('values', [np.ones((9, 9), np.float32), np.ones((9, 9, 3), np.float32), np.ones((9, 9), np.int32)], ids=['grey', 'colours', '32 bits'])
def test_numbers_without_a_range_are_refused(tmp_path, values):
    path = tmp_path / 'a.tif'
    if values.dtype == np.int32:
        Image.fromarray(values).save(path)
    else:
        deep(path, values)
    with pytest.raises(InterflowError, match=r'a\.tif: .*(convert|replace)') as fault:
        read_photograph(path)
    assert '\n' not in str(fault.value)


def test_bytes_are_read_as_well(tmp_path):
    data = saved(tmp_path / 'a.png', PIXELS).read_bytes()
    assert np.array_equal(read_photograph(data).pixels, PIXELS)
    with pytest.raises(InterflowError, match='^upload.png: '):
        read_photograph(data[:200], 'upload.png')


def test_pairs_stay_strict(tmp_path):
    for k, image in enumerate((PIXELS[..., 0], np.dstack([PIXELS, PIXELS[..., 0]]), PIXELS[..., 0].astype(np.uint16))):
        with pytest.raises(InterflowError, match='not 8-bit RGB'):
            read_pixels(saved(tmp_path / f'{k}.png', image))


# ---------------------------------------------------------------- colours

def test_wide_colours_are_converted_and_said(tmp_path):
    photograph = read_photograph(saved(tmp_path / 'a.png', PIXELS, icc_profile=P3))
    assert photograph.profile == P3 and np.array_equal(photograph.pixels, PIXELS) and photograph.notices == ()
    small = photograph.srgb()
    assert small.profile is None and small.notices == ('A test profile, converted to sRGB',)
    # by hand: gamma 2.2 and the two sets of primaries, D50
    to_xyz = np.array([(.5151, .2412, -.0011), (.2919, .6922, .0419), (.1571, .0666, .7841)]).T
    srgb = np.array([(.4361, .2225, .0139), (.3851, .7169, .0971), (.1431, .0606, .7139)]).T
    linear = (np.linalg.inv(srgb) @ to_xyz @ ((PIXELS / 255) ** 2.2).reshape(-1, 3).T).T.reshape(PIXELS.shape).clip(0, 1)
    wanted = 255 * np.where(linear <= .0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - .055)
    assert abs(small.pixels - wanted).max() < 2
    assert abs(small.pixels.astype(int) - PIXELS).max() > 10, 'nothing was converted'


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'webp', 'tif'])
def test_srgb_by_its_profile_keeps_every_byte(tmp_path, suffix):
    path = saved(tmp_path / f'a.{suffix}', PIXELS, icc_profile=SRGB)
    photograph = read_photograph(path)
    assert photograph.profile == SRGB
    assert photograph.srgb().profile is None and photograph.srgb().notices == ()
    with Image.open(path) as image:
        assert np.array_equal(photograph.srgb().pixels, np.asarray(image))


@pytest.mark.parametrize('bad', [b'no profile', SRGB[:200], b'\0' * 500, GREY_18], ids=['text', 'cut', 'zeros', 'for grey values'])
def test_a_broken_profile_leaves_the_pixels(tmp_path, bad):
    small = read_photograph(saved(tmp_path / 'a.png', PIXELS, icc_profile=bad)).srgb()
    assert np.array_equal(small.pixels, PIXELS) and small.profile is None
    assert small.notices == ('its colour profile is broken; the colours are taken as sRGB',)


def test_grey_by_its_profile(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).repeat(8).reshape(32, 64)
    photograph = read_photograph(saved(tmp_path / 'a.png', ramp, icc_profile=GREY_18))
    linear = (ramp / 255) ** 1.8
    wanted = 255 * np.where(linear <= .0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - .055)
    assert photograph.profile is None and abs(photograph.pixels[..., 0] - wanted).max() < 2.5
    assert photograph.notices == ('grey, converted to sRGB by its profile',)


def test_adobe_rgb_without_a_profile_is_told(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: 'R03'}
    path = saved(tmp_path / 'a.jpg', PIXELS, exif=exif)
    with Image.open(path) as image:
        assert image.getexif().get_ifd(0xA005).get(1) == 'R03', 'the file does not say it'
    assert read_photograph(path).notices == ('Adobe RGB by a tag alone; the colours are taken as sRGB',)


# ---------------------------------------------------------------- what cannot be read

def refusal(path):
    with pytest.raises(InterflowError) as fault:
        read_photograph(path)
    text = str(fault.value)
    assert text.startswith(f'{path}: ') and '\n' not in text and '; ' in text
    return text


def test_what_is_no_image_says_what_it_is(tmp_path):
    path = tmp_path / 'a.png'
    for data, words in ((b'', '0 bytes'), (b'holiday, 2020', 'it is text'), (b'<!DOCTYPE html><html>404', 'web page'), (bytes(range(90)), 'no format')):
        path.write_bytes(data)
        assert words in refusal(path)


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'webp', 'tif', 'bmp', 'gif'])
@pytest.mark.parametrize('part', [.1, .5, .9])
def test_a_cut_file_is_named(tmp_path, suffix, part):
    path = saved(tmp_path / f'a.{suffix}', np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[:int(part * len(data))])
    assert 'not a readable image' in refusal(path)


@pytest.mark.filterwarnings('ignore:(Metadata Warning, tag|Tag data larger than file|Corrupt EXIF data|Truncated File Read):UserWarning')      # Pillow's
def test_damage_anywhere_never_gives_a_traceback(tmp_path):
    random = np.random.default_rng(0)
    for suffix in ('png', 'jpg', 'tif', 'gif', 'webp', 'bmp'):
        data = saved(tmp_path / f'a.{suffix}', PIXELS, icc_profile=P3, exif=turned(6)).read_bytes()
        for _ in range(60):
            bad = bytearray(data)
            for place in random.integers(0, min(len(bad), 400), 6):
                bad[place] = random.integers(256)
            try:
                read_photograph(bytes(bad), 'a').srgb()
            except InterflowError as fault:
                assert str(fault).startswith('a: ') and '\n' not in str(fault)


def test_places_that_are_no_file(tmp_path):
    assert 'no such file' in refusal(tmp_path / 'absent.png')
    (tmp_path / 'folder.png').mkdir()
    assert 'a folder' in refusal(tmp_path / 'folder.png')
    (tmp_path / 'dangling.png').symlink_to(tmp_path / 'gone.png')
    assert 'a link to a file that does not exist' in refusal(tmp_path / 'dangling.png')
    (tmp_path / 'one.png').symlink_to(tmp_path / 'two.png')
    (tmp_path / 'two.png').symlink_to(tmp_path / 'one.png')
    assert 'circle' in refusal(tmp_path / 'one.png')
    os.mkfifo(tmp_path / 'pipe.png')
    assert 'a pipe' in refusal(tmp_path / 'pipe.png')


def test_no_permission(tmp_path, monkeypatch):
    path = saved(tmp_path / 'a.png', PIXELS)
    if os.geteuid():
        path.chmod(0)
    else:       # nothing is forbidden to root: the system's answer is played

        def forbidden(*_, **__):
            raise PermissionError(errno.EACCES, 'Permission denied', str(path))
        monkeypatch.setattr(Image, 'open', forbidden)
    assert 'no permission' in refusal(path)


def test_a_file_that_claims_to_be_enormous(tmp_path):
    path = tmp_path / 'a.png'
    head = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(b'\0' * 100)) + chunk(b'IEND', b''))
    assert 'pixels' in refusal(path) and 'cut it' in refusal(path)


# ---------------------------------------------------------------- folders

def test_a_folder_with_all_below_it(tmp_path):
    for name in ('b.PNG', 'a.JPG', 'sub/c.Tif', 'sub/deep/d.webp', '.hidden.png', '.thumbs/e.png', 'sub/notes.txt', 'x.png/f.bmp'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'any')
    names = [str(path.relative_to(tmp_path)) for path in list_photographs(tmp_path)]
    assert names == ['a.JPG', 'b.PNG', 'sub/c.Tif', 'sub/deep/d.webp', 'x.png/f.bmp']


def test_links_in_a_circle_are_harmless(tmp_path):
    saved(tmp_path / 'a.png', PIXELS)
    (tmp_path / 'sub').mkdir()
    saved(tmp_path / 'sub/b.png', PIXELS)
    (tmp_path / 'sub/up').symlink_to(tmp_path)
    (tmp_path / 'round').symlink_to(tmp_path / 'round')
    assert [path.name for path in list_photographs(tmp_path)] == ['a.png', 'b.png']


def test_raw_and_heic_are_named(tmp_path):
    saved(tmp_path / 'a.png', PIXELS)
    for name in ('1.CR2', '2.nef', 'p.HEIC'):
        (tmp_path / name).write_bytes(b'raw')
    said = []
    assert len(list_photographs(tmp_path, said.append)) == 1
    assert len(said) == 2 and '1.CR2 and 1 more' in said[0] and 'darktable' in said[0] and 'p.HEIC' in said[1] and 'heif-convert' in said[1]


def test_a_folder_of_raw_files_alone(tmp_path):
    (tmp_path / '1.CR2').write_bytes(b'raw')
    said = []
    with pytest.raises(InterflowError, match='no photograph'):
        list_photographs(tmp_path, said.append)
    assert 'darktable' in said[0]


# ---------------------------------------------------------------- a batch

@pytest.fixture
def mixed(tmp_path):
    "A good photograph, a grey one, another grey one, an empty file and a text."
    saved(tmp_path / 'a.png', PIXELS)
    saved(tmp_path / 'b.png', PIXELS[..., 0])
    saved(tmp_path / 'c.png', PIXELS[..., 1])
    (tmp_path / 'd.png').write_bytes(b'')
    (tmp_path / 'e.png').write_text('no image')
    return tmp_path


def test_a_batch_goes_on_after_a_broken_file(mixed):
    said, read = [], []
    with pytest.raises(LeftAside, match='2 of 5 files left aside') as end:
        for path, photograph in read_each(list_photographs(mixed), say=said.append):
            read.append(path.name)
            assert isinstance(photograph, Photograph)
    assert read == ['a.png', 'b.png', 'c.png'] and end.value.exit_code == 1
    assert [sum(name in line for line in said) for name in 'bcde'] and sum('grey' in line for line in said) == 2
    assert any('d.png' in line and '0 bytes' in line for line in said) and any('e.png' in line and 'text' in line for line in said)
    assert said[-1] == '2 photographs: grey, read as RGB'


def test_strict_ends_at_the_first(mixed):
    with pytest.raises(InterflowError, match='d.png') as end:
        list(read_each(list_photographs(mixed), strict=True, say=print))
    assert end.value.exit_code == 2


def test_nothing_read_is_no_success(mixed):
    with pytest.raises(InterflowError, match='2 of 2 files, all left aside') as end:
        list(read_each([mixed / 'd.png', mixed / 'e.png'], say=print))
    assert end.value.exit_code == 2


def test_faults_of_ours_are_not_left_aside():
    with pytest.raises(ZeroDivisionError):
        with Attempts().on(Path('a.png')):
            print(1 / 0)
